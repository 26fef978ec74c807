//! ModelOpt: one algorithm for all linear layers but those excluded, in hf_quant_config.json or in config.json.

use super::{Group, KvCacheScheme, LinearFormat, Method, Pattern, Quantization};
use crate::config::Fields;
use crate::{Files, Result};
use serde_json::Value;

const ALGORITHMS: &str = "FP8, FP8_PER_CHANNEL_PER_TOKEN, W4A8_AWQ";

/// Reads hf_quant_config.json, where there is one.
pub(super) fn read_file(files: &Files) -> Result<Option<Quantization>> {
    let Some((file, object)) = super::read_object(files, super::MODEL_OPT_FILE)? else { return Ok(None) };
    let top = Fields::new(&file, &object);
    let quantization = top.object("quantization")?.ok_or_else(|| top.missing("quantization"))?;
    let fields = Fields::under(&file, "quantization", quantization);
    if fields.get("quant_algo").is_none() && fields.get("kv_cache_quant_algo").is_none() {
        return Ok(Some(Quantization::NONE));
    }
    let kv_cache = match fields.string("kv_cache_quant_algo")? {
        None | Some("") => KvCacheScheme::None,
        Some("FP8") => KvCacheScheme::Fp8,
        Some(other) => {
            return Err(fields.unsupported("kv_cache_quant_algo", format_args!("{other:?}"), "FP8"));
        }
    };
    let method = match fields.get("quant_algo") {
        None => Method::None,
        Some(_) => read_method(&fields, "exclude_modules")?,
    };
    Ok(Some(Quantization { method, kv_cache }))
}

/// Reads `quantization_config` in config.json.
pub(super) fn read_config(fields: &Fields<'_>) -> Result<Quantization> {
    let kv_cache = match fields.get("kv_cache_scheme") {
        None => KvCacheScheme::None,
        Some(Value::Object(scheme)) => {
            let key = fields.key("kv_cache_scheme");
            let scheme = Fields::under(fields.file(), &key, scheme);
            let bits = scheme.integer("num_bits", 1..=64)?.ok_or_else(|| scheme.missing("num_bits"))?;
            match (scheme.string("type")?.ok_or_else(|| scheme.missing("type"))?, bits) {
                ("float", 8) => KvCacheScheme::Fp8,
                ("float", bits) => return Err(scheme.unsupported("num_bits", bits, "8")),
                (other, _) => return Err(scheme.unsupported("type", format_args!("{other:?}"), "float")),
            }
        }
        Some(Value::String(name)) if name == "FP8" => KvCacheScheme::Fp8,
        Some(other) => return Err(fields.unsupported("kv_cache_scheme", other, "FP8")),
    };
    Ok(Quantization { method: read_method(fields, "ignore")?, kv_cache })
}

fn read_method(fields: &Fields<'_>, exclude_key: &str) -> Result<Method> {
    let algorithm = fields.string("quant_algo")?.ok_or_else(|| fields.missing("quant_algo"))?;
    let format = match algorithm {
        "FP8" => LinearFormat::Fp8 { per_row: false, static_input: true },
        "FP8_PER_CHANNEL_PER_TOKEN" => LinearFormat::Fp8 { per_row: true, static_input: false },
        "W4A8_AWQ" => {
            if fields.flag("has_zero_point")? == Some(true) {
                return Err(fields.unsupported("has_zero_point", true, "false"));
            }
            match Group::read(fields, "group_size")? {
                None => LinearFormat::W4a8Awq { group_size: 128 },
                Some(Group::Size(group_size)) => LinearFormat::W4a8Awq { group_size },
                Some(Group::Channel) => return Err(fields.unsupported("group_size", -1, "a multiple of 8")),
            }
        }
        other => return Err(fields.unsupported("quant_algo", format_args!("{other:?}"), ALGORITHMS)),
    };
    Ok(Method::ModelOpt { format, exclude: Pattern::globs(fields, exclude_key)? })
}
