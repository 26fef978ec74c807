//! The models inside the binary, and where any model's files come from.

use crate::error::{Error, Result};
use checkpoint::{Checkpoint, Files};
use std::path::Path;

macro_rules! files {
    ($model:literal) => {
        [
            ("config.json", include_bytes!(concat!("../models/", $model, "/config.json")).as_slice()),
            (
                "generation_config.json",
                include_bytes!(concat!("../models/", $model, "/generation_config.json")),
            ),
            ("model.safetensors", include_bytes!(concat!("../models/", $model, "/model.safetensors"))),
            ("tokenizer.json", include_bytes!(concat!("../models/", $model, "/tokenizer.json"))),
            (
                "tokenizer_config.json",
                include_bytes!(concat!("../models/", $model, "/tokenizer_config.json")),
            ),
        ]
    };
}

/// Files by name.
type Embedded = [(&'static str, &'static [u8]); 5];

/// The embedded models by name.
const MODELS: [(&str, Embedded); 2] =
    [("tiny-llama", files!("tiny-llama")), ("tiny-falcon", files!("tiny-falcon"))];

/// Opens a checkpoint's folder or an embedded model.
pub fn open(model: &str) -> Result<Checkpoint> {
    Ok(Checkpoint::from_files(files(model)?)?)
}

/// The files of a checkpoint's folder or of an embedded model.
pub fn files(model: &str) -> Result<Files> {
    if let Some((_, files)) = MODELS.iter().find(|(name, _)| *name == model) {
        return Ok(Files::memory(files.iter().copied()));
    }
    if !Path::new(model).is_dir() {
        let embedded = MODELS.map(|(name, _)| name).join(", ");
        return Err(Error::NoModel { model: model.to_owned(), embedded });
    }
    Ok(Files::folder(model)?)
}
