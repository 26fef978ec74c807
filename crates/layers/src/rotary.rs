//! How positions enter attention: inverse frequencies of rotary embedding, the rotation, and ALiBi's slopes.

use device::{Check, Result};

/// How rotary embedding is stretched beyond the context that a model was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// All frequencies divided by `factor` (arXiv:2306.15595).
    Linear {
        /// More than 0.
        factor: f64,
    },
    /// The base grows with the context once that is longer than the trained one ("dynamic NTK").
    Dynamic {
        /// More than 0.
        factor: f64,
        /// The trained context, in tokens.
        max_position_embeddings: usize,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between blended: Llama 3.1's.
    Llama3 {
        /// More than 0.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept. More than
        /// `low_freq_factor`.
        high_freq_factor: f64,
        /// The trained context, in tokens.
        original_max_position_embeddings: usize,
    },
}

/// A model's rotary embedding (Su et al., arXiv:2104.09864).
///
/// ```
/// use layers::{RopeScaling, Rotary};
///
/// let rotary = Rotary::new(4, 10000.0, RopeScaling::Linear { factor: 2.0 })?;
/// assert_eq!(rotary.inverse_frequencies(1), [0.5, 0.005]);
/// # device::Result::Ok(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    rotary_dim: usize,
    theta: f64,
    scaling: RopeScaling,
}

impl Rotary {
    /// `rotary_dim`: the dims of a head that turn, a positive multiple of 2; `theta`: the base, more than 0.
    pub fn new(rotary_dim: usize, theta: f64, scaling: RopeScaling) -> Result<Self> {
        let check = Check("rotary");
        let positive = |argument, value: f64| {
            let in_f32 = value as f32;
            check.that(in_f32.is_finite() && in_f32 > 0.0, argument, "an f32 above 0", value)
        };
        check.multiple("rotary_dim", rotary_dim, 2)?;
        positive("theta", theta)?;
        match scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => positive("factor", factor)?,
            RopeScaling::Dynamic { factor, max_position_embeddings } => {
                positive("factor", factor)?;
                check.positive("max_position_embeddings", max_position_embeddings)?;
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low_freq_factor)?;
                let ok = high_freq_factor.is_finite() && high_freq_factor > low_freq_factor;
                let expected = format_args!("a finite number above low_freq_factor {low_freq_factor}");
                check.that(ok, "high_freq_factor", expected, high_freq_factor)?;
                check.positive("original_max_position_embeddings", original_max_position_embeddings)?;
            }
        }
        Ok(Self { rotary_dim, theta, scaling })
    }

    /// The dims of a head that turn.
    pub fn rotary_dim(&self) -> usize {
        self.rotary_dim
    }

    /// Whether the frequencies depend on the context's length.
    pub fn is_dynamic(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. })
    }

    /// f32 `[rotary_dim / 2]` in radians a token, for a context of `context_len` tokens (only dynamic scaling asks).
    ///
    /// Rounded to f32 where Hugging Face transformers rounds: at position 100,000 an error in the last place of a frequency
    /// is an angle of 0.01. Powers are rounded correctly, transformers' to one place.
    pub fn inverse_frequencies(&self, context_len: usize) -> Vec<f32> {
        match self.scaling {
            RopeScaling::None => self.unscaled(self.theta as f32),
            RopeScaling::Linear { factor } => {
                self.unscaled(self.theta as f32).iter().map(|frequency| frequency / factor as f32).collect()
            }
            RopeScaling::Dynamic { factor, max_position_embeddings } => {
                self.unscaled(self.stretched_theta(factor, max_position_embeddings, context_len))
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let trained = original_max_position_embeddings as f64;
                let longest = (trained / low_freq_factor) as f32;
                let shortest = (trained / high_freq_factor) as f32;
                let (low, span) = (low_freq_factor as f32, (high_freq_factor - low_freq_factor) as f32);
                let (trained, factor) = (trained as f32, factor as f32);
                let blend = |frequency: f32| {
                    let wavelength = frequency.recip() * std::f32::consts::TAU;
                    let smooth = (wavelength.recip() * trained - low) / span;
                    match wavelength {
                        _ if wavelength > longest => frequency / factor,
                        _ if wavelength < shortest => frequency,
                        _ => (1.0 - smooth) * frequency / factor + smooth * frequency,
                    }
                };
                self.unscaled(self.theta as f32).into_iter().map(blend).collect()
            }
        }
    }

    /// `theta ^ -(2 i / rotary_dim)`.
    fn unscaled(&self, theta: f32) -> Vec<f32> {
        let exponent = |i: usize| f64::from((2 * i) as f32 / self.rotary_dim as f32);
        (0..self.rotary_dim / 2).map(|i| power(theta, exponent(i)).recip()).collect()
    }

    /// The base at which the slowest dimension turns as if positions had been divided by the excess of the context.
    fn stretched_theta(&self, factor: f64, trained: usize, context_len: usize) -> f32 {
        if context_len <= trained {
            return self.theta as f32;
        }
        let stretch = factor as f32 * context_len as f32 / trained as f32 - (factor - 1.0) as f32;
        let dim = self.rotary_dim as f64;
        self.theta as f32 * power(stretch, dim / (dim - 2.0))
    }
}

/// `base ^ exponent`, rounded correctly but for the rarest of ties.
fn power(base: f32, exponent: f64) -> f32 {
    f64::from(base).powf(exponent) as f32
}

/// Rotary embedding of rows `[tokens, row_heads, head_dim]` in place: the first `rotated_heads` heads of each row turn
/// (the queries and keys of a fused `[q | k | v]` row), each by [`device::rotate_head`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotate {
    pub(crate) row_heads: usize,
    pub(crate) rotated_heads: usize,
    pub(crate) head_dim: usize,
}

/// The op's name in errors.
pub(crate) const ROTATE: Check = Check("rotate");

impl Rotate {
    /// `rotated_heads` at most `row_heads`; `head_dim` a positive multiple of 2.
    pub fn new(row_heads: usize, rotated_heads: usize, head_dim: usize) -> Result<Self> {
        ROTATE.positive("row_heads", row_heads)?;
        let expected = format_args!("at most row_heads {row_heads}");
        ROTATE.that(rotated_heads <= row_heads, "rotated_heads", expected, rotated_heads)?;
        ROTATE.multiple("head_dim", head_dim, 2)?;
        ROTATE.product("row_heads", &[row_heads, head_dim])?;
        Ok(Self { row_heads, rotated_heads, head_dim })
    }

    /// `positions`: u32 `[tokens]`; `inverse_frequencies`: f32 `[rotary_dim / 2]`, at most half of `head_dim`.
    pub fn reference(&self, positions: &[u32], inverse_frequencies: &[f32], rows: &mut [f32]) -> Result<()> {
        self.check_lens(positions.len(), inverse_frequencies.len(), rows.len())?;
        let rows = rows.chunks_exact_mut(self.row_heads * self.head_dim);
        for (&position, row) in positions.iter().zip(rows) {
            for head in row.chunks_exact_mut(self.head_dim).take(self.rotated_heads) {
                device::rotate_head(head, position, inverse_frequencies);
            }
        }
        Ok(())
    }

    pub(crate) fn check_lens(&self, positions: usize, inverse_frequencies: usize, rows: usize) -> Result<()> {
        let fits = (1..=self.head_dim / 2).contains(&inverse_frequencies);
        let expected = format_args!("1 to {} elements", self.head_dim / 2);
        ROTATE.that(fits, "inverse_frequencies", expected, inverse_frequencies)?;
        let elements = ROTATE.product("positions", &[positions, self.row_heads, self.head_dim])?;
        crate::rows::len(ROTATE, "rows", rows, elements)
    }
}

/// ALiBi's slope of each query head (Press et al., arXiv:2108.12409), f32 `[query_heads]`.
///
/// ```text
/// p = the largest power of two that is at most query_heads
/// slopes = 2^(-8 i / p) for i in 1..=p, then 2^(-4 j / p) for odd j, until there are query_heads
/// ```
///
/// Rounded to bf16, with which Falcon was trained; [`device::alibi_bias`] gives the bias of a position.
pub fn alibi_slopes(query_heads: usize) -> Vec<f32> {
    let power_of_two = query_heads.checked_ilog2().map_or(0, |log| 1usize << log);
    let slope = |eighths: usize, steps: usize| {
        let exact = (-8.0 * eighths as f64 / steps as f64).exp2();
        half::bf16::from_f32(exact as f32).to_f32()
    };
    let regular = (1..=power_of_two).map(|i| slope(i, power_of_two));
    let between = (0..query_heads - power_of_two).map(|i| slope(2 * i + 1, 2 * power_of_two));
    regular.chain(between).collect()
}
