//! compressed-tensors: groups of layers, each with the form of its weights and of its inputs.

use super::{Group, KvCacheScheme, LinearFormat, Method, Pattern, Quantization, TargetGroup};
use crate::Result;
use crate::config::Fields;
use crate::json::Object;
use serde_json::Value;

const FORMATS: &str = "pack-quantized, float-quantized, naive-quantized";

/// Reads `quantization_config`.
pub(super) fn read(fields: &Fields<'_>) -> Result<Quantization> {
    if let Some(sparsity) = fields.object("sparsity_config")?
        && let Some(format) = sparsity.get("format").filter(|&format| format != "dense")
    {
        return Err(fields.unsupported("sparsity_config.format", format, "dense"));
    }
    let parent = fields.key("config_groups");
    let groups = fields.object("config_groups")?.ok_or_else(|| fields.missing("config_groups"))?;
    let mut targets = Vec::with_capacity(groups.len());
    for (name, group) in groups {
        let Value::Object(group) = group else {
            return Err(Fields::under(fields.file(), &parent, groups).wrong_type(name, "an object", group));
        };
        targets.push(read_group(fields, &format!("{parent}.{name}"), group)?);
    }
    let ignore = Pattern::names_or_regexes(fields, "ignore")?;
    let method = Method::CompressedTensors { groups: targets, ignore };
    Ok(Quantization { method, kv_cache: read_kv_cache(fields)? })
}

fn read_group(top: &Fields<'_>, parent: &str, object: &Object) -> Result<TargetGroup> {
    let group = Fields::under(top.file(), parent, object);
    let weights_key = group.key("weights");
    let weights = group.object("weights")?.ok_or_else(|| group.missing("weights"))?;
    let weights = Fields::under(top.file(), &weights_key, weights);
    let (format, named_by) = match group.string("format")? {
        Some(format) => (format, &group),
        None => (top.string("format")?.ok_or_else(|| top.missing("format"))?, top),
    };
    let format = match format {
        "pack-quantized" => packed(&group, &weights)?,
        // naive-quantized is what the first versions called it; the tensors are the same.
        "float-quantized" | "naive-quantized" => fp8(&group, &weights)?,
        other => return Err(named_by.unsupported("format", format_args!("{other:?}"), FORMATS)),
    };
    if group.get("targets").is_none() {
        return Err(group.missing("targets"));
    }
    Ok(TargetGroup { targets: Pattern::names_or_regexes(&group, "targets")?, format })
}

/// 4-bit integers in words, one scale to a group or to a row.
fn packed(group: &Fields<'_>, weights: &Fields<'_>) -> Result<LinearFormat> {
    expect_number(weights, "int", 4)?;
    match weights.get("actorder") {
        None | Some(Value::Bool(false)) => {}
        Some(Value::String(order)) if matches!(order.as_str(), "weight" | "static") => {}
        Some(order) => return Err(weights.unsupported("actorder", order, "weight, static, or none")),
    }
    // Inputs are quantized to FP8 by the product itself, as they come: that is no setting of the weights.
    if let Some(inputs) = group.object("input_activations")? {
        let key = group.key("input_activations");
        let inputs = Fields::under(group.file(), &key, inputs);
        expect_number(&inputs, "float", 8)?;
        if inputs.flag("dynamic")? != Some(true) {
            return Err(inputs.unsupported("dynamic", false, "true beside 4-bit weights"));
        }
    }
    let symmetric = weights.flag("symmetric")?.unwrap_or(true);
    let group = match (strategy(weights)?, Group::read(weights, "group_size")?) {
        ("group", Some(size @ Group::Size(_))) => size,
        ("group", _) => return Err(weights.missing("group_size")),
        ("channel", _) => Group::Channel,
        (other, _) => {
            return Err(weights.unsupported("strategy", format_args!("{other:?}"), "group, channel"));
        }
    };
    Ok(LinearFormat::PackQuantized { group, symmetric })
}

/// e4m3 codes, one scale to a tensor or to a row.
fn fp8(group: &Fields<'_>, weights: &Fields<'_>) -> Result<LinearFormat> {
    expect_number(weights, "float", 8)?;
    expect_symmetric(weights)?;
    let per_row = match strategy(weights)? {
        "tensor" => false,
        "channel" => true,
        other => return Err(weights.unsupported("strategy", format_args!("{other:?}"), "tensor, channel")),
    };
    let Some(inputs) = group.object("input_activations")? else {
        return Ok(LinearFormat::Fp8 { per_row, static_input: false });
    };
    let key = group.key("input_activations");
    let inputs = Fields::under(group.file(), &key, inputs);
    expect_number(&inputs, "float", 8)?;
    expect_symmetric(&inputs)?;
    let static_input = match inputs.get("dynamic") {
        None | Some(Value::Bool(false)) => true,
        Some(Value::Bool(true)) => false,
        Some(other) => return Err(inputs.unsupported("dynamic", other, "true, false")),
    };
    match (strategy(&inputs)?, static_input) {
        ("tensor", _) | ("token", false) => Ok(LinearFormat::Fp8 { per_row, static_input }),
        (other, _) => {
            Err(inputs.unsupported("strategy", format_args!("{other:?}"), "tensor; token where dynamic"))
        }
    }
}

fn read_kv_cache(fields: &Fields<'_>) -> Result<KvCacheScheme> {
    let Some(scheme) = fields.object("kv_cache_scheme")? else { return Ok(KvCacheScheme::None) };
    let key = fields.key("kv_cache_scheme");
    let scheme = Fields::under(fields.file(), &key, scheme);
    expect_number(&scheme, "float", 8)?;
    expect_symmetric(&scheme)?;
    if scheme.flag("dynamic")? == Some(true) {
        return Err(scheme.unsupported("dynamic", true, "false"));
    }
    match strategy(&scheme)? {
        "tensor" => Ok(KvCacheScheme::Fp8),
        other => Err(scheme.unsupported("strategy", format_args!("{other:?}"), "tensor")),
    }
}

/// What kind of number, and of how many bits.
fn expect_number(fields: &Fields<'_>, kind: &'static str, bits: usize) -> Result<()> {
    let got = fields.string("type")?.unwrap_or("int");
    if !got.eq_ignore_ascii_case(kind) {
        return Err(fields.unsupported("type", format_args!("{got:?}"), kind));
    }
    let got = fields.integer("num_bits", 1..=64)?.unwrap_or(8);
    if got != bits {
        return Err(fields.unsupported("num_bits", got, if bits == 4 { "4" } else { "8" }));
    }
    Ok(())
}

fn expect_symmetric(fields: &Fields<'_>) -> Result<()> {
    match fields.flag("symmetric")? {
        Some(false) => Err(fields.unsupported("symmetric", false, "true")),
        _ => Ok(()),
    }
}

/// What shares a scale; where it is not said it follows from the group size.
fn strategy<'a>(fields: &Fields<'a>) -> Result<&'a str> {
    Ok(match fields.string("strategy")? {
        Some(strategy) => strategy,
        None => match Group::read(fields, "group_size")? {
            None => "tensor",
            Some(Group::Size(_)) => "group",
            Some(Group::Channel) => "channel",
        },
    })
}
