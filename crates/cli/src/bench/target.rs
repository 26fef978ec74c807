//! What is measured: a model by its checkpoint, by its configuration alone, or by name.

use super::workload::at_least_1;
use crate::args::{BackendChoice, BenchModel, KvChoice};
use crate::embedded;
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::plan::preset;
use crate::progress::progress_bar;
use crate::table::{bytes, grouped};
use checkpoint::quantization::KvCacheScheme;
use checkpoint::{Checkpoint, ModelConfig, Quantization};
use device::PAGE_SIZE;
use models::{Backend, KvDtype, MemoryPlan, Model, Progress};

/// A model that is to be loaded.
pub struct Target {
    pub name: String,
    pub config: ModelConfig,
    pub quantization: Quantization,
    /// None where weights are random.
    checkpoint: Option<Checkpoint>,
    preset: bool,
}

impl Target {
    pub fn open(args: &BenchModel) -> Result<Self> {
        let (name, mut config, quantization, mut checkpoint) = match (&args.what.model, args.what.preset) {
            (Some(model), _) if !args.synthetic => {
                let checkpoint = embedded::open(model)?;
                let (config, quantization) = (checkpoint.config.clone(), checkpoint.quantization.clone());
                (model.clone(), config, quantization, Some(checkpoint))
            }
            (Some(model), _) => {
                let (config, quantization) = checkpoint::settings(&embedded::files(model)?)?;
                (model.clone(), config, quantization, None)
            }
            (None, choice) => {
                let (name, config, quantization) = preset(choice)?;
                (name, config, quantization, None)
            }
        };
        if let Some(max_context) = args.max_context {
            at_least_1("max-context", max_context)?;
            set_max_context(&mut config, max_context);
            if let Some(checkpoint) = &mut checkpoint {
                set_max_context(&mut checkpoint.config, max_context);
            }
        }
        Ok(Self { name, config, quantization, checkpoint, preset: args.what.model.is_none() })
    }

    /// Whether weights are random.
    pub fn synthetic(&self) -> bool {
        self.checkpoint.is_none()
    }

    /// Tokens a sequence can have.
    pub fn max_context(&self) -> usize {
        self.config.max_context()
    }

    /// Where it runs. Models by name are too large for the CPU.
    pub fn machine(&self, choice: BackendChoice) -> Result<Machine> {
        if !self.preset {
            return Machine::open(choice, BackendChoice::Auto);
        }
        if choice == BackendChoice::Cpu {
            let expected = format!("cuda with --preset {}", self.name);
            return Err(Error::Option { option: "backend", expected, got: "cpu".to_owned() });
        }
        Machine::open(choice, BackendChoice::Cuda)
    }

    /// How its cache is stored.
    pub fn kv_dtype(&self, choice: KvChoice, machine: &Machine) -> KvDtype {
        match choice {
            KvChoice::F32 => KvDtype::F32,
            KvChoice::Bf16 => KvDtype::Bf16,
            KvChoice::Fp8 => KvDtype::Fp8,
            KvChoice::Auto if self.preset || self.quantization.kv_cache == KvCacheScheme::Fp8 => KvDtype::Fp8,
            KvChoice::Auto => match machine {
                Machine::Cpu => KvDtype::F32,
                #[cfg(feature = "cuda")]
                Machine::Gpu(_) => KvDtype::Bf16,
            },
        }
    }

    /// The pages of a cache for `batch` sequences of `tokens` tokens each: as many as they need, or as were asked for.
    /// Refused where they do not fit, before anything is loaded.
    pub fn pages(
        &self,
        batch: usize,
        tokens: usize,
        kv_tokens: Option<usize>,
        kv: KvDtype,
        machine: &Machine,
    ) -> Result<usize> {
        let needed = batch.saturating_mul(tokens.div_ceil(PAGE_SIZE));
        let pages = match kv_tokens {
            Some(tokens) => {
                at_least_1("kv-tokens", tokens)?;
                tokens.div_ceil(PAGE_SIZE)
            }
            None => needed,
        };
        let plan = MemoryPlan::new(&self.config, &self.quantization, kv);
        let page_bytes = plan.kv_bytes_per_token.saturating_mul(PAGE_SIZE as u64);
        let kv_bytes = |pages: usize| page_bytes.saturating_mul(pages as u64);
        let error = |given: String, remedy| Error::KvCache {
            batch,
            tokens,
            needed: format!(
                "{} tokens of KV cache, {}",
                grouped(needed.saturating_mul(PAGE_SIZE) as u64),
                bytes(kv_bytes(needed))
            ),
            given,
            remedy,
        };
        if pages < needed {
            let given = format!("--kv-tokens gives {}", grouped((pages * PAGE_SIZE) as u64));
            return Err(error(given, "give more, or lower --batch"));
        }
        if let Some(memory) = machine.memory()? {
            let left = memory.free.saturating_sub(plan.weight_bytes());
            if kv_bytes(pages) > left {
                let given = format!("{} of memory are free beside the weights", bytes(left));
                return Err(error(given, "lower --batch or the lengths"));
            }
        }
        Ok(pages)
    }

    /// Loads it with a cache of `pages` pages.
    pub fn load<B: Backend>(&self, backend: B, pages: usize, kv: KvDtype, seed: u64) -> Result<Model<B>> {
        let bar = progress_bar(0, "loading", "{bytes}/{total_bytes} {bytes_per_sec}");
        let mut progress = |progress: Progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.loaded);
        };
        let model = match &self.checkpoint {
            Some(checkpoint) => Model::load(checkpoint, backend, pages, kv, &mut progress),
            None => {
                let (config, quantization) = (&self.config, &self.quantization);
                Model::synthetic(config, quantization, backend, pages, kv, seed, &mut progress)
            }
        };
        bar.finish_and_clear();
        Ok(model?)
    }
}

fn set_max_context(config: &mut ModelConfig, max_context: usize) {
    let common = match config {
        ModelConfig::Falcon(config) => &mut config.common,
        ModelConfig::Llama(config) => &mut config.common,
    };
    common.max_position_embeddings = max_context;
}
