//! The least time that a card needs for a step: what figures are held against.
//!
//! Every product takes the larger of its weights' bytes over the memory's rate and its operations over the tensor cores'
//! rate; the KV cache of every sequence in the step is read once. Nothing else is counted: a step of this length would
//! have to hide all other ops and every gap.

use checkpoint::{ModelConfig, Quantization};
use device::Card;
use models::{KvDtype, MemoryPlan, Op};

/// What a step's time depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepShape {
    /// New tokens.
    pub tokens: usize,
    /// Sequences that a token is chosen for.
    pub sampled: usize,
    /// Tokens in the cache of all sequences of the step, the new ones included.
    pub kv_tokens: usize,
}

/// The work of a model's steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    products: Vec<Product>,
    layers: f64,
    hidden: f64,
    /// Columns of `[q | k | v]`, of the queries, of the MLP's first product, of its second.
    qkv: f64,
    queries: f64,
    up: f64,
    ffn: f64,
    vocab_size: f64,
    parallel: bool,
    kv_bytes_per_token: f64,
}

/// One kind of linear layer, all layers together.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Product {
    op: Op,
    bytes: f64,
    /// Multiplications and additions a token.
    operations: f64,
    /// 16-bit weights are multiplied in 16 bits, all others in FP8.
    sixteen_bits: bool,
}

impl Work {
    pub fn new(config: &ModelConfig, quantization: &Quantization, kv: KvDtype) -> Self {
        let plan = MemoryPlan::new(config, quantization, kv);
        let dims = config.common();
        let has_head = plan.parts.iter().any(|part| part.name == "head");
        let op = |name: &str| match name {
            "qkv" => Some(Op::Qkv),
            "attention output" => Some(Op::Output),
            "gate and up" | "up" => Some(Op::Up),
            "down" => Some(Op::Down),
            // A head that is tied to the embedding reads its table.
            "embedding" if !has_head => Some(Op::Head),
            "head" => Some(Op::Head),
            _ => None,
        };
        let product = |part: &models::Part| {
            let weights = (part.count * part.in_features * part.out_features) as f64;
            let bytes = part.bytes as f64;
            let sixteen_bits = part.weight_bits == 16;
            Some(Product { op: op(part.name)?, bytes, operations: 2.0 * weights, sixteen_bits })
        };
        let products: Vec<Product> = plan.parts.iter().filter_map(product).collect();
        let columns = |names: &[&str]| {
            let part = plan.parts.iter().find(|part| names.contains(&part.name));
            part.map_or(0.0, |part| part.out_features as f64)
        };
        Self {
            layers: dims.layers as f64,
            hidden: dims.hidden_size as f64,
            qkv: columns(&["qkv"]),
            queries: (dims.query_heads * dims.head_dim) as f64,
            up: columns(&["gate and up", "up"]),
            ffn: dims.ffn_hidden_size as f64,
            vocab_size: dims.vocab_size as f64,
            parallel: matches!(config, ModelConfig::Falcon(config)
                if config.block != checkpoint::FalconBlock::Sequential),
            kv_bytes_per_token: plan.kv_bytes_per_token as f64,
            products,
        }
    }

    /// Seconds of a step at the limit.
    pub fn step_seconds(&self, card: &Card, step: StepShape) -> f64 {
        let products: f64 = self.products.iter().map(|product| product.seconds(card, step)).sum();
        products + self.attention_seconds(card, step)
    }

    fn attention_seconds(&self, card: &Card, step: StepShape) -> f64 {
        step.kv_tokens as f64 * self.kv_bytes_per_token / card.read
    }

    /// Seconds of one kind of op in a step, all layers together: products and attention as above, every other op at the
    /// bytes it reads and writes over the copy's rate (activations of 16 bits, of 8 where a product reads them). Such an
    /// op can be faster where its tensors stay in the card's L2 cache. `None` where there is no such floor.
    pub fn op_seconds(&self, card: &Card, op: Op, step: StepShape) -> Option<f64> {
        if let Some(product) = self.products.iter().find(|product| product.op == op) {
            return Some(product.seconds(card, step));
        }
        let (tokens, sampled, layers) = (step.tokens as f64, step.sampled as f64, self.layers);
        let input = |op: Op| {
            let sixteen_bits = self.products.iter().any(|product| product.op == op && product.sixteen_bits);
            if sixteen_bits { 2.0 } else { 1.0 }
        };
        // What the branches before it gave is added in the first norm after them.
        let (attention_deltas, mlp_deltas) = if self.parallel { (2.0, 0.0) } else { (1.0, 1.0) };
        let norm = |calls: f64, deltas: f64, into: Op| {
            let added = if deltas > 0.0 { 2.0 * deltas + 2.0 } else { 0.0 };
            calls * self.hidden * (2.0 + added + input(into))
        };
        let bytes = match op {
            Op::Embed => tokens * self.hidden * (2.0 + 2.0),
            // The first layer's has nothing to add.
            Op::AttentionNorm => {
                tokens * (norm(1.0, 0.0, Op::Qkv) + norm(layers - 1.0, attention_deltas, Op::Qkv))
            }
            Op::MlpNorm => tokens * norm(layers, mlp_deltas, Op::Up),
            Op::RopeAppend => tokens * (layers * 2.0 * (self.qkv + self.queries) + self.kv_bytes_per_token),
            Op::Attend => return Some(self.attention_seconds(card, step)),
            Op::Activate => tokens * layers * (2.0 * self.up + input(Op::Down) * self.ffn),
            Op::SampledRows => sampled * self.hidden * (1.0 + attention_deltas) * (2.0 + 2.0),
            Op::HeadNorm => sampled * norm(1.0, attention_deltas, Op::Head),
            Op::Sample => sampled * 4.0 * self.vocab_size,
            _ => return None,
        };
        Some(bytes / card.copy)
    }
}

impl Product {
    fn seconds(&self, card: &Card, step: StepShape) -> f64 {
        let rate = if self.sixteen_bits { card.bf16 } else { card.fp8 };
        let rows = if self.op == Op::Head { step.sampled } else { step.tokens };
        (self.bytes / card.read).max(self.operations * rows as f64 / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload::Workload;
    use checkpoint::Files;

    fn work(config: &'static str) -> Work {
        let files = Files::memory([("config.json", config.as_bytes())]);
        let (config, quantization) = checkpoint::settings(&files).unwrap();
        Work::new(&config, &quantization, KvDtype::Fp8)
    }

    /// Burst limits of one H200, worked out once by hand: prompts in steps of 8,192 tokens, whose keys and values are
    /// touched once; the head only for the rows that a token is chosen from; the last token is never fed back.
    #[test]
    fn limits_of_the_known_workloads() {
        let (falcon, llama) = (work(models::FALCON_180B), work(models::LLAMA_2_70B));
        let card = Card::named("NVIDIA H200").unwrap();
        for (work, isl, osl, batch, wanted) in [
            (&falcon, 128, 128, 256, 2090.0),
            (&falcon, 128, 2048, 256, 3660.0),
            (&llama, 128, 128, 960, 5270.0),
            (&llama, 128, 2048, 192, 7210.0),
            (&llama, 128, 4096, 96, 4210.0),
        ] {
            let workload = Workload { isl, osl, batch, max_batch_tokens: 8192 };
            let rate = (osl * batch) as f64 / workload.limit(work, card).total();
            assert!((rate / wanted - 1.0).abs() < 0.01, "{isl}/{osl} at {batch}: {rate}, not {wanted}");
        }
    }

    #[test]
    fn a_step_is_its_products_and_its_attention() {
        let card = Card::named("NVIDIA H200").unwrap();
        for work in [work(models::FALCON_180B), work(models::LLAMA_2_70B)] {
            let step = StepShape { tokens: 256, sampled: 256, kv_tokens: 256 * 192 };
            let ops = [Op::Qkv, Op::Output, Op::Up, Op::Down, Op::Head, Op::Attend];
            let sum: f64 = ops.iter().map(|&op| work.op_seconds(card, op, step).unwrap()).sum();
            let whole = work.step_seconds(card, step);
            assert!((sum / whole - 1.0).abs() < 1e-12, "{sum} {whole}");
            assert_eq!(work.op_seconds(card, Op::Begin, step), None);
            let norm = work.op_seconds(card, Op::AttentionNorm, step).unwrap();
            assert!(norm > 0.0 && norm < 0.1 * whole);
        }
        // Falcon-180B's `up`, a layer: 882 M weights of 4.156 bits are 458 MB.
        let up = work(models::FALCON_180B);
        let one = StepShape { tokens: 1, sampled: 1, kv_tokens: 1 };
        let microseconds = up.op_seconds(card, Op::Up, one).unwrap() / 80.0 * 1e6;
        assert!((microseconds - 100.4).abs() < 0.2, "{microseconds}");
    }
}
