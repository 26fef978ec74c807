//! Which format each linear layer is stored in: `quantization_config` in config.json, or hf_quant_config.json.

mod pattern;

pub use pattern::Pattern;

/// How a checkpoint is quantized.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantization {
    /// The method with its settings.
    pub method: Method,
    /// How the producer wants the KV cache stored.
    pub kv_cache: KvCacheScheme,
}

/// A quantization method with its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Plain weights.
    None,
    /// AutoAWQ, version gemm, 4 bits with zero points.
    AutoAwq {
        /// Input features that share a scale.
        group: Group,
        /// Layers whose name contains one of these are plain.
        modules_to_not_convert: Vec<String>,
    },
    /// compressed-tensors: the first group that targets a layer says how it is stored.
    CompressedTensors {
        /// In the order of the file.
        groups: Vec<TargetGroup>,
        /// Layers that are plain all the same.
        ignore: Vec<Pattern>,
    },
    /// ModelOpt: one format for all layers but those excluded.
    ModelOpt {
        /// That format.
        format: LinearFormat,
        /// Plain layers.
        exclude: Vec<Pattern>,
    },
}

/// Layers that share a format.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetGroup {
    /// Layer names, `re:` patterns, or the class `Linear`.
    pub targets: Vec<Pattern>,
    /// How these layers are stored.
    pub format: LinearFormat,
}

/// How one linear layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinearFormat {
    /// bf16, f16 or f32.
    Plain,
    /// [`crate::LinearWeight::AutoAwq`].
    AutoAwq {
        /// Input features that share a scale.
        group: Group,
    },
    /// [`crate::LinearWeight::PackQuantized`].
    PackQuantized {
        /// Input features that share a scale.
        group: Group,
        /// Whether there are no zero points.
        symmetric: bool,
    },
    /// [`crate::LinearWeight::Fp8`].
    Fp8 {
        /// One scale to a row of the weight, or one in all.
        per_row: bool,
        /// Whether inputs have a scale fixed in the checkpoint, or one per token found as they come.
        static_input: bool,
    },
    /// [`crate::LinearWeight::W4a8Awq`].
    W4a8Awq {
        /// Input features that share a scale.
        group_size: usize,
    },
}

/// How many input features share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// This many; a multiple of 8.
    Size(usize),
    /// All of them: one scale to an output feature.
    Channel,
}

/// How the producer wants the KV cache stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvCacheScheme {
    /// At the model's precision.
    None,
    /// e4m3 with a static scale per layer for keys and for values ([`crate::Checkpoint::kv_scales`]).
    Fp8,
}
