//! Untrusted checkpoints parsed under limits: safetensors, configs, tokenizer, chat template
