//! Rotary embedding settings. Older files have `rope_theta` at the top and the scaling under `rope_scaling`; newer
//! ones have both under `rope_parameters`. The type is under `rope_type`, or `type` before that.

use super::Fields;
use crate::Result;
use serde_json::Value;

/// A rotary embedding over the whole of a head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// How frequencies are stretched for contexts longer than the model was trained on.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// 1 or more.
        factor: f64,
    },
    /// The base grows with the context once it is longer than `original_max_position_embeddings`.
    Dynamic {
        /// 1 or more.
        factor: f64,
        /// The context trained on, tokens: the model's `max_position_embeddings`.
        original_max_position_embeddings: usize,
    },
    /// Long wavelengths divided by `factor`, short ones kept, a smooth ramp between (Llama 3.1).
    Llama3 {
        /// 1 or more.
        factor: f64,
        /// Wavelengths over `original_max_position_embeddings / low_freq_factor` are stretched in full.
        low_freq_factor: f64,
        /// Wavelengths under `original_max_position_embeddings / high_freq_factor` are kept; over `low_freq_factor`.
        high_freq_factor: f64,
        /// The context trained on, tokens.
        original_max_position_embeddings: usize,
    },
}

const SUPPORTED: &str = "default, linear, dynamic, llama3";
const THETA: f64 = 10_000.0;

impl Rope {
    /// The rotary settings of a model with `max_position_embeddings`. Where both spellings are there, `rope_scaling`
    /// wins, and a theta inside the object wins over the one at the top, as in transformers.
    pub(super) fn read(config: &Fields<'_>, max_position_embeddings: usize) -> Result<Self> {
        let positive = f64::MIN_POSITIVE..=1e12;
        let top_theta = config.float("rope_theta", positive.clone())?.unwrap_or(THETA);
        if let Some(fraction) =
            config.float("partial_rotary_factor", 0.0..=1.0)?.filter(|&fraction| fraction != 1.0)
        {
            return Err(config.unsupported("partial_rotary_factor", fraction, "1 (the whole head)"));
        }
        let mut key = "rope_scaling";
        let mut object = config.object(key)?.filter(|object| !object.is_empty());
        if object.is_none() {
            key = "rope_parameters";
            object = config.object(key)?;
        }
        let Some(object) = object else { return Ok(Self { theta: top_theta, scaling: RopeScaling::None }) };
        let rope = Fields::under(config.file(), key, object);
        if let Some(fraction) =
            rope.float("partial_rotary_factor", 0.0..=1.0)?.filter(|&fraction| fraction != 1.0)
        {
            return Err(rope.unsupported("partial_rotary_factor", fraction, "1 (the whole head)"));
        }
        let theta = rope.float("rope_theta", positive)?.unwrap_or(top_theta);
        let scaling = RopeScaling::read(&rope, max_position_embeddings)?;
        Ok(Self { theta, scaling })
    }
}

impl RopeScaling {
    fn read(rope: &Fields<'_>, max_position_embeddings: usize) -> Result<Self> {
        let type_key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
        let kind = match rope.get(type_key) {
            None => "default",
            Some(Value::String(kind)) => kind,
            Some(other) => return Err(rope.wrong_type(type_key, "a string", other)),
        };
        let needed = |key, range| rope.float(key, range)?.ok_or_else(|| rope.missing(key));
        let factor = || needed("factor", 1.0..=1e6);
        match kind {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: factor()? }),
            "dynamic" => Ok(Self::Dynamic {
                factor: factor()?,
                original_max_position_embeddings: max_position_embeddings,
            }),
            "llama3" => {
                let key = "original_max_position_embeddings";
                let original = rope.integer(key, 1..=super::MAX_CONTEXT)?.unwrap_or(max_position_embeddings);
                let low_freq_factor = needed("low_freq_factor", 1e-6..=1e6)?;
                let high_freq_factor = needed("high_freq_factor", 1e-6..=1e6)?;
                // The ramp between them divides by their difference.
                if high_freq_factor <= low_freq_factor {
                    let expected = format!("a number over low_freq_factor {low_freq_factor}");
                    return Err(rope.out_of_range("high_freq_factor", expected, high_freq_factor));
                }
                Ok(Self::Llama3 {
                    factor: factor()?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: original,
                })
            }
            other => Err(rope.unsupported(type_key, format_args!("{other:?}"), SUPPORTED)),
        }
    }
}
