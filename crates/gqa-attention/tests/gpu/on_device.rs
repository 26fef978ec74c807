//! Cases on the device: launched, read back, their guard zones checked.

use crate::common::{Case, Paged};
use crate::truth::{Page, check};
use cudarc::driver::DeviceRepr;
use cudarc::driver::{CudaSlice, CudaStream};
use device::gpu::{Gpu, download, multiprocessors, upload};
use device::{BatchView, Element, KvPages};
use gqa_attention::{Attention, AttentionKernel, AttentionShape, AttentionWorkspace};
use half::bf16;
use op_test::{Guarded, Rng};
use std::sync::{Arc, OnceLock};

type Stream = Arc<CudaStream>;

pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| Gpu::open(0).unwrap())
}

/// Everything of a case on the device.
pub struct OnDevice<T> {
    pub queries: CudaSlice<bf16>,
    pub pool: CudaSlice<T>,
    pub key_scales: CudaSlice<f32>,
    pub value_scales: CudaSlice<f32>,
    pub block_tables: CudaSlice<u32>,
    pub context_lens: CudaSlice<u32>,
    pub query_offsets: CudaSlice<u32>,
    pub max_pages: usize,
    pub output: (Guarded<bf16>, CudaSlice<bf16>),
    pub log_sum_exp: (Guarded<f32>, CudaSlice<f32>),
}

impl<T: Page> OnDevice<T> {
    /// `padding` rows of activations more than the batch has.
    pub fn new(stream: &Stream, case: &Case<T>, paged: &Paged<T>, padding: usize) -> Self {
        let AttentionShape { query_heads, head_dim, .. } = case.shape;
        let rows = (paged.batch().tokens() + padding) * query_heads;
        let mut queries: Vec<bf16> = case.queries.iter().map(|&x| bf16::from_f32(x)).collect();
        queries.resize(rows * head_dim, bf16::NAN);
        let (mut output, mut log_sum_exp) = (Guarded::new(rows * head_dim), Guarded::new(rows));
        Self {
            queries: upload(stream, &queries, "queries").unwrap(),
            pool: upload(stream, &paged.pool, "pool").unwrap(),
            key_scales: upload(stream, &case.key_scales, "key scales").unwrap(),
            value_scales: upload(stream, &case.value_scales, "value scales").unwrap(),
            block_tables: upload(stream, &paged.block_tables, "block tables").unwrap(),
            context_lens: upload(stream, &paged.context_lens, "context lengths").unwrap(),
            query_offsets: upload(stream, &paged.query_offsets, "query offsets").unwrap(),
            max_pages: paged.max_pages,
            output: (output.clone(), upload(stream, output.whole_mut(), "output").unwrap()),
            log_sum_exp: (
                log_sum_exp.clone(),
                upload(stream, log_sum_exp.whole_mut(), "log-sum-exp").unwrap(),
            ),
        }
    }

    pub fn launch(
        &mut self,
        stream: &Stream,
        plan: &Attention,
        layout: device::KvLayout,
        max_queries: usize,
        workspace: &mut AttentionWorkspace,
        with_log_sum_exp: bool,
    ) -> device::Result<()> {
        let (key_scales, value_scales) = (&self.key_scales, &self.value_scales);
        let pages = KvPages { layout, pool: &self.pool, key_scales, value_scales };
        let batch = BatchView {
            block_tables: &self.block_tables,
            max_pages: self.max_pages,
            context_lens: &self.context_lens,
            query_offsets: &self.query_offsets,
        };
        let mut output = self.output.1.slice_mut(self.output.0.range());
        let mut log_sum_exp = self.log_sum_exp.1.slice_mut(self.log_sum_exp.0.range());
        let log_sum_exp = with_log_sum_exp.then_some(&mut log_sum_exp);
        // SAFETY: `Case::lay_out` makes batches that pass `BatchView::check`.
        unsafe {
            plan.launch::<T>(
                stream,
                &self.queries,
                &pages,
                &batch,
                max_queries,
                workspace,
                &mut output,
                log_sum_exp,
            )
        }
    }

    /// Output and log-sum-exp, their guard zones checked.
    pub fn written(&self, stream: &Stream) -> (Vec<bf16>, Vec<f32>) {
        fn payload<T: Element + DeviceRepr>(
            stream: &Stream,
            (host, device): &(Guarded<T>, CudaSlice<T>),
        ) -> Vec<T> {
            let whole: Vec<T> = download(stream, device).unwrap();
            let range = host.range();
            let poisoned = |part: &[T]| part.iter().all(|x| x.to_f32().is_nan());
            assert!(
                poisoned(&whole[..range.start]) && poisoned(&whole[range.end..]),
                "a guard zone was written"
            );
            whole[range].to_vec()
        }
        (payload(stream, &self.output), payload(stream, &self.log_sum_exp))
    }
}

/// The kernel of a launch on this device.
pub fn kernel(plan: &Attention, sequences: usize, max_queries: usize) -> AttentionKernel {
    let multiprocessors = multiprocessors(gpu().stream()).unwrap() as usize;
    plan.kernel(sequences, max_queries, multiprocessors)
}

/// The case with queries as the kernel sees them.
pub fn rounded<T>(mut case: Case<T>) -> Case<T> {
    case.queries.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    case
}

/// The bits of what a kernel wrote.
pub fn bits((output, log_sum_exp): &(Vec<bf16>, Vec<f32>)) -> (Vec<u16>, Vec<u32>) {
    (output.iter().map(|x| x.to_bits()).collect(), log_sum_exp.iter().map(|x| x.to_bits()).collect())
}

/// Runs a case twice on one workspace, with the kernel for `max_queries`: both times the same bits, and the right ones.
pub fn run<T: Page>(
    rng: &mut Rng,
    case: &Case<T>,
    max_queries: usize,
    padding: usize,
    with_log_sum_exp: bool,
) -> (Vec<bf16>, Vec<f32>) {
    let stream = gpu().stream();
    let paged = case.lay_out(rng, 1);
    let plan = Attention::new(case.shape, case.options.clone()).unwrap();
    let mut workspace = plan.workspace(stream).unwrap();
    let mut written = || {
        let mut on_device = OnDevice::new(stream, case, &paged, padding);
        on_device.launch(stream, &plan, paged.layout, max_queries, &mut workspace, with_log_sum_exp).unwrap();
        on_device.written(stream)
    };
    let first = written();
    check(case, kernel(&plan, case.sequences.len(), max_queries), &first, with_log_sum_exp);
    assert!(bits(&written()) == bits(&first), "a second run gave other bits");
    first
}
