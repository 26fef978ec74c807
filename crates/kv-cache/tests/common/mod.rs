//! A random batch for the append step, and what complex numbers say about it. Random copies of pages.

// Each test binary uses its part of this.
#![allow(dead_code)]

use device::{BatchView, Element, KvLayout, KvPages, PAGE_SIZE};
use kv_cache::{CopyPage, Direction, RopeAppend};
use op_test::{Guarded, Rng};

/// What f32 rounds off: half a unit in the last place.
pub const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// A batch in shuffled pages and everything the step reads.
#[derive(Debug, Clone)]
pub struct Case {
    pub plan: RopeAppend,
    pub pages: usize,
    pub block_tables: Vec<u32>,
    pub max_pages: usize,
    pub context_lens: Vec<u32>,
    pub query_offsets: Vec<u32>,
    pub frequencies: Vec<f32>,
    pub key_scales: Vec<f32>,
    pub value_scales: Vec<f32>,
    pub qkv: Vec<f32>,
}

/// What the step writes.
#[derive(Debug, Clone)]
pub struct Written<T> {
    pub queries: Vec<f32>,
    pub pool: Vec<T>,
}

impl Case {
    /// `sequences`: tokens in the cache and how many of them are new. Frequencies are one table or one a sequence.
    pub fn random(
        rng: &mut Rng,
        plan: RopeAppend,
        sequences: &[(usize, usize)],
        own_frequencies: bool,
    ) -> Self {
        let used: usize = sequences.iter().map(|s| s.0.div_ceil(PAGE_SIZE)).sum();
        let longest = sequences.iter().map(|s| s.0.div_ceil(PAGE_SIZE)).max().unwrap_or(0);
        let (pages, max_pages) = (used + 2, longest + rng.below(0..2));
        let mut free: Vec<u32> = (0..pages as u32).collect();
        let mut block_tables = vec![u32::MAX; sequences.len() * max_pages];
        let mut query_offsets = vec![0];
        for (index, (context, queries)) in sequences.iter().enumerate() {
            for entry in &mut block_tables[index * max_pages..][..context.div_ceil(PAGE_SIZE)] {
                *entry = free.swap_remove(rng.below(0..free.len()));
            }
            query_offsets.push(query_offsets[index] + *queries as u32);
        }
        let tokens = query_offsets[sequences.len()] as usize;
        let tables = if own_frequencies { sequences.len() } else { 1 };
        let half = plan.rotary_dim() / 2;
        let frequencies = (0..tables * half)
            .map(|i| 10000f32.powf(-((i % half) as f32) / half as f32) * (1.0 + 0.1 * rng.signed()))
            .collect();
        let kv_heads = plan.layout().kv_heads();
        let mut scales = || (0..kv_heads).map(|_| 0.01 + 0.1 * rng.signed().abs()).collect();
        let (key_scales, value_scales) = (scales(), scales());
        let qkv = rng.tensor(tokens * plan.qkv_features(), 2.0);
        let context_lens = sequences.iter().map(|s| s.0 as u32).collect();
        Self {
            plan,
            pages,
            block_tables,
            max_pages,
            context_lens,
            query_offsets,
            frequencies,
            key_scales,
            value_scales,
            qkv,
        }
    }

    pub fn batch(&self) -> BatchView<&[u32]> {
        BatchView {
            block_tables: &self.block_tables,
            max_pages: self.max_pages,
            context_lens: &self.context_lens,
            query_offsets: &self.query_offsets,
        }
    }

    /// Runs the reference on a pool of NaN, or on top of `pool`.
    pub fn run<T: Element>(&self, pool: Option<Vec<T>>) -> Written<T> {
        let layout = self.plan.layout();
        let mut pool =
            pool.unwrap_or_else(|| vec![T::from_f32(f32::NAN); self.pages * layout.page_elements()]);
        let mut queries = Guarded::<f32>::new(self.batch().tokens() * self.plan.query_features());
        let mut pages = KvPages {
            layout,
            pool: &mut pool[..],
            key_scales: &self.key_scales[..],
            value_scales: &self.value_scales[..],
        };
        let batch = self.batch();
        self.plan.reference(&self.qkv, &self.frequencies, &batch, queries.payload_mut(), &mut pages).unwrap();
        Written { queries: queries.checked(), pool }
    }

    /// Every new token: its sequence, its position, its row.
    pub fn new_tokens(&self) -> Vec<(usize, usize, usize)> {
        let batch = self.batch();
        let of =
            |index| batch.rows(index).zip(batch.first_position(index)..).map(move |(row, p)| (index, p, row));
        (0..batch.sequences()).flat_map(of).collect()
    }

    /// The head that starts at `offset` of row `row`, as complex numbers turned by `position`, in f64; and for each
    /// element the sum of the magnitudes that went into it.
    pub fn turned(&self, index: usize, position: usize, row: usize, offset: usize) -> (Vec<f64>, Vec<f64>) {
        let (dim, half) = (self.plan.layout().head_dim(), self.plan.rotary_dim() / 2);
        let head = &self.qkv[row * self.plan.qkv_features() + offset..][..dim];
        let mut turned: Vec<f64> = head.iter().map(|&x| f64::from(x)).collect();
        let mut magnitudes: Vec<f64> = turned.iter().map(|x| x.abs()).collect();
        let first = if self.frequencies.len() == half { 0 } else { index * half };
        for pair in 0..half {
            // The angle is defined in f32: radians a token times the position, rounded.
            let angle = f64::from(self.frequencies[first + pair] * position as f32);
            let (re, im) = (f64::from(head[pair]), f64::from(head[pair + half]));
            let (modulus, argument) = (re.hypot(im), im.atan2(re));
            turned[pair] = modulus * (argument + angle).cos();
            turned[pair + half] = modulus * (argument + angle).sin();
            magnitudes[pair] = re.abs() + im.abs();
            magnitudes[pair + half] = re.abs() + im.abs();
        }
        (turned, magnitudes)
    }
}

/// Pools of random bytes, and copies among their pages with many runs of neighbours.
#[derive(Debug, Clone)]
pub struct Copies<T> {
    pub layout: KvLayout,
    pub copies: Vec<CopyPage>,
    /// A pool a layer.
    pub pools: Vec<Vec<T>>,
    /// `[layers][host pages]`.
    pub host: Vec<T>,
}

impl<T: Element> Copies<T> {
    pub fn random(rng: &mut Rng, layout: KvLayout, pages: usize, host_pages: usize) -> Self {
        let mut bytes = |pages: usize| -> Vec<T> {
            let len = pages * layout.page_elements() * size_of::<T>();
            let bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| rng.bits().to_le_bytes()).collect();
            bytes[..len].chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
        };
        let layers = 1 + pages % 3;
        let (pools, host) = ((0..layers).map(|_| bytes(pages)).collect(), bytes(layers * host_pages));
        let mut copies = Vec::new();
        for _ in 0..rng.below(0..9) {
            let directions = [Direction::OnDevice, Direction::ToHost, Direction::ToDevice];
            let direction = directions[rng.below(0..if host_pages > 0 { 3 } else { 1 })];
            let (readable, writable) = match direction {
                Direction::OnDevice => (pages, pages),
                Direction::ToHost => (pages, host_pages),
                Direction::ToDevice => (host_pages, pages),
            };
            let (mut from, mut to) = (rng.below(0..readable), rng.below(0..writable));
            let down = rng.below(0..2) == 0;
            for _ in 0..rng.below(1..6) {
                copies.push(CopyPage { from: from as u32, to: to as u32, direction });
                let next = |page: usize| if down { page.wrapping_sub(1) } else { page + 1 };
                (from, to) = (next(from), next(to));
                if from >= readable || to >= writable {
                    break;
                }
            }
        }
        Self { layout, copies, pools, host }
    }

    /// What the pools and the host hold afterwards, as bytes: layer by layer, page by page, one copy after the other.
    pub fn copied(&self) -> (Vec<Vec<u8>>, Vec<u8>) {
        let on_host = self.host.len() / self.pools.len();
        let layers = self.pools.iter().enumerate();
        let (pools, host): (_, Vec<_>) =
            layers.map(|(layer, pool)| self.layer(pool, &self.host[layer * on_host..][..on_host])).unzip();
        (pools, host.concat())
    }

    fn layer(&self, pool: &[T], host: &[T]) -> (Vec<u8>, Vec<u8>) {
        let bytes = self.layout.page_elements() * size_of::<T>();
        let pages = |pool: &[T]| -> Vec<Vec<u8>> {
            bytemuck::cast_slice::<T, u8>(pool).chunks(bytes).map(<[u8]>::to_vec).collect()
        };
        let (mut pool, mut host) = (pages(pool), pages(host));
        for &CopyPage { from, to, direction } in &self.copies {
            let (from, to) = (from as usize, to as usize);
            match direction {
                Direction::OnDevice => pool[to] = pool[from].clone(),
                Direction::ToHost => host[to] = pool[from].clone(),
                Direction::ToDevice => pool[to] = host[from].clone(),
            }
        }
        (pool.concat(), host.concat())
    }
}
