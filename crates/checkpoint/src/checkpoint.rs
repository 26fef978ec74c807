//! A checkpoint: its settings and its tensors.

use crate::linear::check_scales;
use crate::{ChatTemplate, Files, GenerationConfig, LinearFormat, LinearTensors, ModelConfig, Quantization};
use crate::{Result, Tensors, Tokenizer, json, limits};
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
        let (config, quantization) = settings(&files)?;
        let generation = GenerationConfig::read(&files, config.common().vocab_size)?;
        let tensors = Tensors::open(&files)?;
        Ok(Self { files, config, generation, quantization, tensors })
    }

    /// How the linear layer `prefix` (`model.layers.0.mlp.up_proj`) is stored.
    pub fn linear_format(&self, prefix: &str) -> LinearFormat {
        self.quantization.format(prefix, |name| self.tensors.contains(name))
    }

    /// The linear layer `prefix`: `weight` or what stands for it, and `bias` where there is one.
    ///
    /// Errors name the tensor that is missing, of another dtype or shape, or has a scale that is no scale.
    pub fn linear(&self, prefix: &str, in_features: usize, out_features: usize) -> Result<LinearTensors> {
        let format = self.linear_format(prefix);
        LinearTensors::read(&self.tensors, prefix, format, in_features, out_features, true)
    }

    /// The same without the largest tensor, which is only checked for dtype and shape and is left empty: whoever streams it
    /// to a device reads it by [`Tensors::read_into`]. It is `weight` of plain and FP8 layers, whose numbers are then the
    /// reader's to check, `qweight` of AutoAWQ, `weight_packed` of pack-quantized; ModelOpt's W4A8 is read whole.
    pub fn linear_to_stream(
        &self,
        prefix: &str,
        in_features: usize,
        out_features: usize,
    ) -> Result<LinearTensors> {
        let format = self.linear_format(prefix);
        LinearTensors::read(&self.tensors, prefix, format, in_features, out_features, false)
    }

    /// The static KV scales of an attention module (`model.layers.0.self_attn`), where the checkpoint has them:
    /// `k_scale` and `v_scale` of the module itself, or of its `k_proj` and `v_proj`.
    pub fn kv_scales(&self, attention: &str) -> Result<Option<KvScales>> {
        let own = [format!("{attention}.k_scale"), format!("{attention}.v_scale")];
        let projections = [format!("{attention}.k_proj.k_scale"), format!("{attention}.v_proj.v_scale")];
        let has = |names: &[String; 2]| names.iter().any(|name| self.tensors.contains(name));
        let Some([key, value]) = [own, projections].into_iter().find(has) else { return Ok(None) };
        let scale = |name: String| {
            let scale = self.tensors.scalar(&name)?;
            check_scales(&name, [scale]).map(|()| scale)
        };
        Ok(Some(KvScales { key: scale(key)?, value: scale(value)? }))
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
        Tokenizer::read(&self.files, self.config.common().vocab_size)
    }

    /// The chat template: chat_template.jinja, else `chat_template` in tokenizer_config.json.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        ChatTemplate::read(&self.files)
    }
}

/// The model and its format, from config.json (and hf_quant_config.json) alone.
pub fn settings(files: &Files) -> Result<(ModelConfig, Quantization)> {
    const NAME: &str = "config.json";
    let remedy = "give the folder of a Hugging Face checkpoint";
    let bytes = files.read_needed(NAME, limits::CONFIG_BYTES, remedy)?;
    let file = files.path(NAME);
    let object = json::parse(&file, &bytes)?;
    let config = ModelConfig::read(&file, &object)?;
    let quantization = Quantization::read(files, &file, &object)?;
    Ok((config, quantization))
}
