//! `model.safetensors.index.json`: `{ "weight_map": { tensor name: file name } }`.

use super::Shard;
use crate::{Files, Result, TensorError, json, limits};
use serde_json::Value;
use std::collections::BTreeMap;

/// Opens every file that the index names and checks that each tensor is where the index places it.
pub(super) fn open(files: &Files, file: &str, bytes: &[u8]) -> Result<Vec<Shard>> {
    let index = json::parse(file, bytes)?;
    let map = match index.get("weight_map") {
        Some(Value::Object(map)) => map,
        other => {
            let got = other.map_or("nothing", json::kind);
            return Err(TensorError::WeightMap { file: file.to_owned(), got }.into());
        }
    };
    let mut tensors: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in map {
        let (file, tensor_name) = (file.to_owned(), tensor.clone());
        let Value::String(shard) = shard else {
            return Err(TensorError::ShardType { file, tensor: tensor_name, got: json::kind(shard) }.into());
        };
        if !is_plain_name(shard) {
            return Err(TensorError::ShardName { file, tensor: tensor_name, shard: shard.clone() }.into());
        }
        tensors.entry(shard).or_default().push(tensor);
    }
    if tensors.len() > limits::SHARDS {
        let (count, limit) = (tensors.len(), limits::SHARDS);
        return Err(TensorError::TooManyShards { file: file.to_owned(), count, limit }.into());
    }
    let mut shards = Vec::with_capacity(tensors.len());
    for (name, tensors) in tensors {
        let missing = || TensorError::MissingShard { file: files.path(name) };
        let shard = Shard::open(files.open(name)?.ok_or_else(missing)?)?;
        for tensor in tensors {
            if shard.header.find(&shard.source.path, tensor)?.is_none() {
                let (file, tensor) = (shard.source.path, tensor.to_owned());
                return Err(TensorError::NotInShard { file, tensor }.into());
            }
        }
        shards.push(shard);
    }
    Ok(shards)
}

/// A name within the folder: no separators, no parents, no drive letters, nothing hidden.
fn is_plain_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | ' ');
    name.len() <= 255 && name.ends_with(".safetensors") && !name.starts_with('.') && name.chars().all(plain)
}
