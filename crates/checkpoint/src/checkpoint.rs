//! A checkpoint: its settings and its tensors.

use crate::{ChatTemplate, Files, GenerationConfig, LinearFormat, LinearTensors, ModelConfig, Quantization};
use crate::{Result, Tensors, Tokenizer};
use std::path::Path;

/// A checkpoint, opened: settings parsed, headers checked, no weight read yet.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where its files are.
    pub files: Files,
    /// config.json.
    pub config: ModelConfig,
    /// generation_config.json; all `None` where there is no such file.
    pub generation: GenerationConfig,
    /// How linear layers are stored.
    pub quantization: Quantization,
    /// The weights.
    pub tensors: Tensors,
}

/// What a layer's keys and values are divided by before they are stored in e4m3.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvScales {
    /// For keys.
    pub key: f32,
    /// For values.
    pub value: f32,
}

impl Checkpoint {
    /// Opens the checkpoint in `folder`.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::from_files(Files::folder(folder)?)
    }

    /// Opens a checkpoint from anywhere.
    pub fn from_files(files: Files) -> Result<Self> {
        todo!("{files:?}")
    }

    /// How the linear layer `prefix` (`model.layers.0.mlp.up_proj`) is stored.
    pub fn linear_format(&self, prefix: &str) -> LinearFormat {
        todo!("{prefix}")
    }

    /// The linear layer `prefix`: `weight` or what stands for it, and `bias` where there is one.
    pub fn linear(&self, prefix: &str, in_features: usize, out_features: usize) -> Result<LinearTensors> {
        todo!("{prefix} {in_features} {out_features}")
    }

    /// The static KV scales of an attention module (`model.layers.0.self_attn`), where the checkpoint has them.
    pub fn kv_scales(&self, attention: &str) -> Result<Option<KvScales>> {
        todo!("{attention}")
    }

    /// The tokens that end a text: generation_config.json's where it names some, else config.json's.
    pub fn eos_token_ids(&self) -> &[u32] {
        match &self.generation.eos_token_ids {
            Some(ids) => ids,
            None => &self.config.common().eos_token_ids,
        }
    }

    /// tokenizer.json, checked against the model's vocabulary.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        todo!()
    }

    /// The chat template, where the checkpoint has one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        todo!()
    }
}
