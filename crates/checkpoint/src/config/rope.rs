//! Rotary embedding settings, under `rope_scaling` (with `rope_theta` beside it) or `rope_parameters`.

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
