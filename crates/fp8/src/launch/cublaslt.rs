//! cuBLASLt behind one function: a product of row-major matrices, planned once per shape.
//!
//! cuBLASLt thinks in columns. Row-major `y [tokens, out_features]` is its column-major `[out_features, tokens]`, so:
//!
//! ```text
//! D [out_features x tokens]  =  A^T [out_features x in_features]  *  B [in_features x tokens]
//!      y, as it lies              weights, as they lie                 x, as it lies
//! ```
//!
//! which is also the only arrangement its FP8 kernels have. Scales of A and B, where there are any, are vectors along D's
//! rows and columns ("outer vector" scaling, cuBLAS 12.9, Hopper only); the bias runs along D's rows.

use crate::product::Shape;
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUstreamCaptureStatus;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use device::gpu::{DriverResult, zeros};
use device::{Error, Result};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// 12.9, the first with outer vector scaling.
const NEEDED_VERSION: usize = 120_900;

/// cublasOperation_t's CUBLAS_OP_T, which the bindings of cuBLASLt leave out.
const TRANSPOSED: i32 = 1;

/// The type of x and weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Inputs {
    E4m3,
    Bf16,
}

/// The type of y.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    Bf16,
    F32,
}

/// A product's types and sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Problem {
    pub inputs: Inputs,
    pub output: Output,
    pub tokens: usize,
    pub in_features: usize,
    pub out_features: usize,
}

impl Problem {
    pub fn new(shape: Shape, tokens: usize, inputs: Inputs, output: Output) -> Self {
        let Shape { in_features, out_features } = shape;
        Self { inputs, output, tokens, in_features, out_features }
    }
}

/// All that the choice of an algorithm depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Plan {
    problem: Problem,
    scaled: bool,
    bias: bool,
}

/// Device addresses. All but the scales are aligned to 16 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Operands {
    pub x: u64,
    pub weights: u64,
    pub scales: Option<Scales>,
    /// bf16 `[out_features]`.
    pub bias: Option<u64>,
    pub y: u64,
}

/// f32 `[tokens]` and `[out_features]`.
#[derive(Debug, Clone, Copy)]
pub struct Scales {
    pub x: u64,
    pub weights: u64,
}

/// `y = x * weights^T`, scaled, plus bias.
///
/// # Safety
/// The addresses are device memory of `stream`'s context, as large as `problem` says, and stay allocated until the
/// product is done.
pub unsafe fn matmul(stream: &Arc<CudaStream>, problem: Problem, operands: Operands) -> Result<()> {
    stream.context().bind_to_thread().named("cuCtxSetCurrent")?;
    let library = library(stream.context())?;
    let workspace = library.workspace(stream)?;
    let layouts = Layouts::new(problem)?;
    let description = Description::new(operands)?;
    let plan = Plan { problem, scaled: operands.scales.is_some(), bias: operands.bias.is_some() };
    let algorithm = library.algorithm(stream, plan, &description, &layouts)?;
    let (one, zero) = (1.0f32, 0.0f32);
    // SAFETY: the caller's contract for the operands; the descriptors are alive and were made for this problem; alpha
    // and beta are host f32, as the description says; C is D, which beta = 0 leaves unread.
    unsafe {
        result::matmul(
            library.handle,
            description.0,
            (&raw const one).cast(),
            (&raw const zero).cast(),
            operands.weights as *const c_void,
            layouts.weights.0,
            operands.x as *const c_void,
            layouts.x.0,
            operands.y as *const c_void,
            layouts.y.0,
            operands.y as *mut c_void,
            layouts.y.0,
            &algorithm,
            workspace as *mut c_void,
            WORKSPACE_BYTES,
            stream.cu_stream().cast(),
        )
    }
    .named("cublasLtMatmul", problem)
}

/// `len` f32 of `stream`'s, to be written and read by work that is put into it at once.
pub fn scratch(stream: &Arc<CudaStream>, len: usize) -> Result<u64> {
    stream.context().bind_to_thread().named("cuCtxSetCurrent")?;
    let library = library(stream.context())?;
    let mut scratches = lock(&library.scratches);
    let scratches = scratches.entry(stream.cu_stream() as usize).or_default();
    if let Some(largest) = scratches.last().filter(|largest| largest.len() >= len) {
        return Ok(largest.device_ptr(stream).0);
    }
    refuse_capture(stream, "the scratch memory of products")?;
    // Doubled, so that all of a stream's take less than twice the largest.
    let len = len.next_power_of_two().max(WORKSPACE_BYTES / 4);
    let scratch = zeros::<f32>(stream, len, "the sums of a product")?;
    let address = scratch.device_ptr(stream).0;
    scratches.push(scratch);
    Ok(address)
}

/// The library in one context, with what was made for it. Stays until the process ends.
struct Library {
    handle: sys::cublasLtHandle_t,
    /// By the stream's address, which the slices keep alive.
    workspaces: Mutex<HashMap<usize, CudaSlice<u8>>>,
    /// Sums of each stream, the largest last: graphs may hold the addresses of all.
    scratches: Mutex<HashMap<usize, Vec<CudaSlice<f32>>>>,
    algorithms: Mutex<HashMap<Plan, sys::cublasLtMatmulAlgo_t>>,
}

// SAFETY: a cuBLASLt handle may be used from any thread, from several at a time.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The maps are only ever inserted into: they are whole even where another thread died holding the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The library in `context`, which is current.
fn library(context: &CudaContext) -> Result<Arc<Library>> {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    static LIBRARIES: Mutex<Vec<(usize, Arc<Library>)>> = Mutex::new(Vec::new());
    // SAFETY: loads libcublasLt and nothing else; its initialisers are NVIDIA's and expect to be run this way.
    if !*PRESENT.get_or_init(|| unsafe { sys::is_culib_present() }) {
        return Err(Error::NoCublasLt);
    }
    let key = context.cu_ctx() as usize;
    let mut libraries = lock(&LIBRARIES);
    if let Some((_, library)) = libraries.iter().find(|(of, _)| *of == key) {
        return Ok(library.clone());
    }
    // SAFETY: takes no arguments.
    let version = unsafe { sys::cublasLtGetVersion() };
    if version < NEEDED_VERSION {
        let message = format!("cuBLASLt {version} is too old: {NEEDED_VERSION} (12.9) or newer is needed");
        return Err(Error::Driver { call: "cublasLtGetVersion".into(), message });
    }
    let handle = result::create_handle().named("cublasLtCreate", ())?;
    let library = Arc::new(Library {
        handle,
        workspaces: Mutex::default(),
        scratches: Mutex::default(),
        algorithms: Mutex::default(),
    });
    libraries.push((key, library.clone()));
    Ok(library)
}

impl Library {
    /// What algorithms need on the side, once a stream: its products run one after the other.
    fn workspace(&self, stream: &Arc<CudaStream>) -> Result<u64> {
        let mut workspaces = lock(&self.workspaces);
        let workspace = match workspaces.entry(stream.cu_stream() as usize) {
            Entry::Occupied(workspace) => workspace.into_mut(),
            Entry::Vacant(place) => {
                refuse_capture(stream, "the workspace of products")?;
                place.insert(zeros(stream, WORKSPACE_BYTES, "the workspace of products")?)
            }
        };
        Ok(workspace.device_ptr(stream).0)
    }

    /// What the library's heuristics find best, asked once per problem.
    fn algorithm(
        &self,
        stream: &CudaStream,
        plan: Plan,
        description: &Description,
        layouts: &Layouts,
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        if let Some(algorithm) = lock(&self.algorithms).get(&plan) {
            return Ok(*algorithm);
        }
        refuse_capture(stream, "the plan of a product")?;
        let preference = Preference::new()?;
        // SAFETY: all descriptors are alive and describe one problem.
        let found = unsafe {
            let Layouts { x, weights, y } = layouts;
            result::get_matmul_algo_heuristic(
                self.handle,
                description.0,
                weights.0,
                x.0,
                y.0,
                y.0,
                preference.0,
            )
        };
        let algorithm = found.named("cublasLtMatmulAlgoGetHeuristic", plan)?.algo;
        lock(&self.algorithms).insert(plan, algorithm);
        Ok(algorithm)
    }
}

/// Allocations and first uses of a library cannot be captured into a graph.
fn refuse_capture(stream: &CudaStream, what: &str) -> Result<()> {
    match stream.capture_status().named("cuStreamIsCapturing")? {
        CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
        _ => {
            let message =
                format!("{what} is made at the first run, which cannot be captured: run it once before");
            Err(Error::Driver { call: "cublasLtMatmul".into(), message })
        }
    }
}

/// Names a cuBLASLt status.
trait Status<T> {
    fn named(self, call: &str, problem: impl std::fmt::Debug) -> Result<T>;
}

impl<T> Status<T> for std::result::Result<T, result::CublasError> {
    fn named(self, call: &str, problem: impl std::fmt::Debug) -> Result<T> {
        self.map_err(|status| {
            let message = format!("{:?} for {problem:?}", status.0);
            Error::Driver { call: call.to_owned(), message }
        })
    }
}

/// The operation: transposition, scales, bias.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new(operands: Operands) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let made = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F);
        let description = Self(made.named("cublasLtMatmulDescCreate", ())?);
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        if let Some(scales) = operands.scales {
            let vector = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, vector)?;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, vector)?;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scales.weights)?;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scales.x)?;
            // Promoting sums to f32 costs these kernels up to a fifth of their speed; the others promote at no cost.
            description.set::<i8>(Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, 1)?;
        }
        if let Some(bias) = operands.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
            let bf16 = sys::cudaDataType::CUDA_R_16BF;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, bf16)?;
        }
        Ok(description)
    }

    fn set<T: Copy>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) -> Result<()> {
        // SAFETY: the description is alive, and the library copies `size_of::<T>()` bytes of the attribute's type.
        unsafe {
            result::set_matmul_desc_attribute(self.0, attribute, (&raw const value).cast(), size_of::<T>())
        }
        .named("cublasLtMatmulDescSetAttribute", attribute)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once. A failure would leak a few bytes of host memory and nothing else.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Layouts {
    x: Layout,
    weights: Layout,
    y: Layout,
}

impl Layouts {
    fn new(problem: Problem) -> Result<Self> {
        let Problem { tokens, in_features, out_features, .. } = problem;
        let input = match problem.inputs {
            Inputs::E4m3 => sys::cudaDataType::CUDA_R_8F_E4M3,
            Inputs::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        };
        let output = match problem.output {
            Output::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Output::F32 => sys::cudaDataType::CUDA_R_32F,
        };
        Ok(Self {
            x: Layout::row_major(input, tokens, in_features)?,
            weights: Layout::row_major(input, out_features, in_features)?,
            y: Layout::row_major(output, tokens, out_features)?,
        })
    }
}

/// A matrix in memory.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// Row-major `[rows, columns]`, which the library calls column-major `[columns, rows]`.
    fn row_major(dtype: sys::cudaDataType, rows: usize, columns: usize) -> Result<Self> {
        let made = result::create_matrix_layout(dtype, columns as u64, rows as u64, columns as i64);
        made.named("cublasLtMatrixLayoutCreate", (rows, columns)).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `row_major`, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What the heuristics may choose from.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Self(result::create_matmul_pref().named("cublasLtMatmulPreferenceCreate", ())?);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE_BYTES as u64)?;
        for side in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(side, super::ALIGNMENT as u32)?;
        }
        Ok(preference)
    }

    fn set<T: Copy>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: T) -> Result<()> {
        // SAFETY: the preference is alive, and the library copies `size_of::<T>()` bytes of the attribute's type.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, (&raw const value).cast(), size_of::<T>())
        }
        .named("cublasLtMatmulPreferenceSetAttribute", attribute)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
