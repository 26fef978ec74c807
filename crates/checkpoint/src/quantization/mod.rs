//! Which format each linear layer is stored in: `quantization_config` in config.json, or hf_quant_config.json.

mod compressed_tensors;
mod model_opt;
mod pattern;

pub use pattern::Pattern;

use crate::config::Fields;
use crate::json::Object;
use crate::{Files, Result, json, limits};

const MODEL_OPT_FILE: &str = "hf_quant_config.json";

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
        /// Layers whose name contains one of these are plain. Others are plain too where they have a `weight` in
        /// place of a `qweight`: AutoAWQ leaves the head alone without saying so.
        modules_to_not_convert: Vec<String>,
    },
    /// compressed-tensors: of the groups that target a layer the one that says it most specifically counts.
    CompressedTensors {
        /// In the order of their names.
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

const METHODS: &str = "awq, compressed-tensors, modelopt, or none";

impl Quantization {
    /// Plain weights.
    pub const NONE: Self = Self { method: Method::None, kv_cache: KvCacheScheme::None };

    /// Reads the settings: `config` is config.json, whose path is `file`.
    pub(crate) fn read(files: &Files, file: &str, config: &Object) -> Result<Self> {
        let top = Fields::new(file, config);
        // compressed-tensors wrote `compression_config` at first.
        let parent = if top.get("quantization_config").is_some() {
            "quantization_config"
        } else {
            "compression_config"
        };
        let Some(object) = top.object(parent)? else {
            return Ok(model_opt::read_file(files)?.unwrap_or(Self::NONE));
        };
        let fields = Fields::under(file, parent, object);
        match fields.string("quant_method")?.ok_or_else(|| fields.missing("quant_method"))? {
            "awq" => Self::auto_awq(&fields),
            "compressed-tensors" => compressed_tensors::read(&fields),
            // The file of its own says more than what was copied from it into config.json.
            "modelopt" => match model_opt::read_file(files)? {
                Some(quantization) => Ok(quantization),
                None => model_opt::read_config(&fields),
            },
            other => Err(fields.unsupported("quant_method", format_args!("{other:?}"), METHODS)),
        }
    }

    fn auto_awq(fields: &Fields<'_>) -> Result<Self> {
        let version = fields.string("version")?.or(fields.string("format")?).unwrap_or("gemm");
        if !version.eq_ignore_ascii_case("gemm") {
            return Err(fields.unsupported("version", format_args!("{version:?}"), "gemm"));
        }
        for key in ["bits", "w_bit"] {
            if let Some(bits) = fields.integer(key, 1..=64)?.filter(|&bits| bits != 4) {
                return Err(fields.unsupported(key, bits, "4"));
            }
        }
        if fields.flag("zero_point")? == Some(false) {
            return Err(fields.unsupported("zero_point", false, "true (AutoAWQ gemm always stores qzeros)"));
        }
        let key = fields.spelling(&["group_size", "q_group_size"])?.unwrap_or("group_size");
        let group = Group::read(fields, key)?.unwrap_or(Group::Size(128));
        let modules = fields.strings("modules_to_not_convert")?;
        let modules_to_not_convert = modules.into_iter().map(str::to_owned).collect();
        Ok(Self { method: Method::AutoAwq { group, modules_to_not_convert }, kv_cache: KvCacheScheme::None })
    }

    /// How the linear layer `prefix` is stored. `has` says whether the checkpoint has a tensor of a name.
    pub fn format(&self, prefix: &str, has: impl Fn(&str) -> bool) -> LinearFormat {
        match &self.method {
            Method::None => LinearFormat::Plain,
            Method::AutoAwq { group, modules_to_not_convert } => {
                let excluded = modules_to_not_convert.iter().any(|module| prefix.contains(module.as_str()));
                let plain = has(&format!("{prefix}.weight")) && !has(&format!("{prefix}.qweight"));
                if excluded || plain { LinearFormat::Plain } else { LinearFormat::AutoAwq { group: *group } }
            }
            Method::CompressedTensors { ignore, .. }
                if ignore.iter().any(|pattern| pattern.matches(prefix)) =>
            {
                LinearFormat::Plain
            }
            Method::CompressedTensors { groups, .. } => {
                let mut best: Option<(u8, LinearFormat)> = None;
                for group in groups {
                    let matching = group.targets.iter().filter(|target| target.matches(prefix));
                    if let Some(rank) = matching.map(Pattern::rank).max()
                        && best.is_none_or(|(found, _)| rank > found)
                    {
                        best = Some((rank, group.format));
                    }
                }
                best.map_or(LinearFormat::Plain, |(_, format)| format)
            }
            Method::ModelOpt { exclude, .. } if exclude.iter().any(|pattern| pattern.matches(prefix)) => {
                LinearFormat::Plain
            }
            Method::ModelOpt { format, .. } => *format,
        }
    }
}

impl Group {
    /// A multiple of 8, or -1 for one group to a row.
    fn read(fields: &Fields<'_>, key: &str) -> Result<Option<Self>> {
        if fields.get(key).and_then(serde_json::Value::as_i64) == Some(-1) {
            return Ok(Some(Self::Channel));
        }
        let size = fields.integer(key, 8..=1 << 20)?;
        match size {
            Some(size) if size % 8 != 0 => Err(fields.out_of_range(key, "a multiple of 8".to_owned(), size)),
            size => Ok(size.map(Self::Size)),
        }
    }

    /// Input features to a group of a layer with `in_features`.
    pub fn size(self, in_features: usize) -> usize {
        match self {
            Self::Size(size) => size,
            Self::Channel => in_features,
        }
    }
}

/// The object in a file of its own, where there is one.
fn read_object(files: &Files, name: &str) -> Result<Option<(String, Object)>> {
    let Some(bytes) = files.read(name, limits::CONFIG_BYTES)? else { return Ok(None) };
    let file = files.path(name);
    let object = json::parse(&file, &bytes)?;
    Ok(Some((file, object)))
}
