//! The MLP's activation, with the quantization behind.

use crate::reference;
use crate::rows::{self, HostQuantized, QuantizedLens};
use device::{Check, Result};

/// Which activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `silu(gate) * up` over rows `[gate | up]` (Shazeer, arXiv:2002.05202): Llama's.
    Swiglu,
    /// Exact GELU, `x * P(normal <= x)` (Hendrycks and Gimpel, arXiv:1606.08415): Falcon's.
    Gelu,
    /// `x * sigmoid(x)`.
    Silu,
    /// `x`: for the multiplier or the quantization alone.
    Identity,
}

impl Activation {
    /// Columns it reads for each column it writes: 2 for a gated activation.
    pub fn fan_in(self) -> usize {
        if self == Self::Swiglu { 2 } else { 1 }
    }
}

/// An activation over rows: f32 `[tokens, fan_in * features]` to `[tokens, features]`.
///
/// `multiplier`, f32 `[features]`, multiplies what comes out. It is where AWQ's scales of the layer behind go when
/// nothing before the activation can take them (the reciprocal of AutoAWQ's `act.scales`, or ModelOpt's
/// `pre_quant_scale`).
///
/// ```
/// use layers::{Activate, Activation};
///
/// let swiglu = Activate::new(Activation::Swiglu, 2)?;
/// let (gate, up) = ([0.0, 100.0], [5.0, 0.5]);
/// let mut output = [f32::NAN; 2];
/// swiglu.reference(&[gate, up].concat(), None, &mut output)?;
/// assert_eq!(output, [0.0, 50.0]);
/// # device::Result::Ok(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activate {
    pub(crate) activation: Activation,
    pub(crate) features: usize,
}

impl Activate {
    /// `features`: columns of the output, at least 1.
    pub fn new(activation: Activation, features: usize) -> Result<Self> {
        let activate = Self { activation, features };
        activate.check().positive("features", features)?;
        activate.check().product("features", &[features, activation.fan_in()])?;
        Ok(activate)
    }

    /// Writes f32 `[tokens, features]`.
    pub fn reference(&self, input: &[f32], multiplier: Option<&[f32]>, output: &mut [f32]) -> Result<()> {
        let tokens = self.check_lens(input.len(), multiplier.map(<[f32]>::len))?;
        self.check().len("output", output, tokens * self.features)?;
        let rows = input.chunks_exact(self.features * self.activation.fan_in());
        for (row, output) in rows.zip(output.chunks_exact_mut(self.features)) {
            reference::activate(self.activation, row, multiplier, output);
        }
        Ok(())
    }

    /// Writes e4m3 codes, scales and group sums as [`device::quantize_row`] makes them from the activation in f32.
    pub fn reference_quantized(
        &self,
        input: &[f32],
        multiplier: Option<&[f32]>,
        output: &mut HostQuantized<'_>,
    ) -> Result<()> {
        let tokens = self.check_lens(input.len(), multiplier.map(<[f32]>::len))?;
        let (codes, scales, group_sums) = (output.codes.len(), output.scales.len(), output.group_sums.len());
        let lens = QuantizedLens { codes, scales, group_sums };
        rows::quantized(self.check(), output.shape, lens, tokens, self.features)?;
        let columns = self.features * self.activation.fan_in();
        rows::quantize_each(output, |token, output| {
            reference::activate(self.activation, &input[token * columns..][..columns], multiplier, output);
        });
        Ok(())
    }

    pub(crate) fn check(&self) -> Check {
        Check(match self.activation {
            Activation::Swiglu => "swiglu",
            Activation::Gelu => "gelu",
            Activation::Silu => "silu",
            Activation::Identity => "identity",
        })
    }

    /// The number of tokens, once all lengths fit.
    pub(crate) fn check_lens(&self, input: usize, multiplier: Option<usize>) -> Result<usize> {
        let check = self.check();
        rows::optional_len(check, "multiplier", multiplier, self.features)?;
        rows::tokens(check, "input", input, self.features * self.activation.fan_in())
    }
}
