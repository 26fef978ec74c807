//! RMSNorm and LayerNorm, with the residual addition before and the quantization behind.

use crate::reference;
use crate::rows::{self, HostQuantized, QuantizedLens};
use device::{Check, Result};

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// Root mean square (Zhang and Sennrich, arXiv:1910.07467): Llama's.
    Rms,
    /// Mean and variance (Ba et al., arXiv:1607.06450): Falcon's.
    Layer,
}

/// A norm over rows `[tokens, features]` of a residual stream.
///
/// ```text
/// residual += deltas[0] + deltas[1]         0, 1 or 2 of them; with none the residual stream is only read
/// output    = (residual - mean) / sqrt(variance + epsilon) * weight + bias
/// ```
///
/// RMSNorm takes the mean as 0, so that its variance is the mean square. `weight` and `bias` are f32 `[features]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    pub(crate) kind: NormKind,
    pub(crate) features: usize,
    pub(crate) epsilon: f32,
}

impl Norm {
    /// RMSNorm; `epsilon` is added to the mean square.
    pub fn rms(features: usize, epsilon: f32) -> Result<Self> {
        Self::new(NormKind::Rms, features, epsilon)
    }

    /// LayerNorm; `epsilon` is added to the variance.
    pub fn layer(features: usize, epsilon: f32) -> Result<Self> {
        Self::new(NormKind::Layer, features, epsilon)
    }

    /// Either norm. `features` at least 1, `epsilon` finite and not negative.
    pub fn new(kind: NormKind, features: usize, epsilon: f32) -> Result<Self> {
        let norm = Self { kind, features, epsilon };
        norm.check().positive("features", features)?;
        let ok = epsilon.is_finite() && epsilon >= 0.0;
        norm.check().that(ok, "epsilon", "a finite number of at least 0", epsilon)?;
        Ok(norm)
    }

    /// Writes f32 `[tokens, features]`.
    pub fn reference(
        &self,
        weight: &[f32],
        bias: Option<&[f32]>,
        deltas: &[&[f32]],
        residual: &mut [f32],
        output: &mut [f32],
    ) -> Result<()> {
        self.check_host(weight, bias, deltas, residual)?;
        self.check().len("output", output, residual.len())?;
        add(deltas, residual);
        for (row, output) in residual.chunks_exact(self.features).zip(output.chunks_exact_mut(self.features))
        {
            reference::norm(self.kind, self.epsilon, row, weight, bias, output);
        }
        Ok(())
    }

    /// Writes e4m3 codes, scales and group sums as [`device::quantize_row`] makes them from the norm in f32.
    pub fn reference_quantized(
        &self,
        weight: &[f32],
        bias: Option<&[f32]>,
        deltas: &[&[f32]],
        residual: &mut [f32],
        output: &mut HostQuantized<'_>,
    ) -> Result<()> {
        let tokens = self.check_host(weight, bias, deltas, residual)?;
        let (codes, scales, group_sums) = (output.codes.len(), output.scales.len(), output.group_sums.len());
        let lens = QuantizedLens { codes, scales, group_sums };
        rows::quantized(self.check(), output.shape, lens, tokens, self.features)?;
        add(deltas, residual);
        rows::quantize_each(output, |token, output| {
            let row = &residual[token * self.features..][..self.features];
            reference::norm(self.kind, self.epsilon, row, weight, bias, output);
        });
        Ok(())
    }

    pub(crate) fn check(&self) -> Check {
        Check(match self.kind {
            NormKind::Rms => "rms_norm",
            NormKind::Layer => "layer_norm",
        })
    }

    fn check_host(
        &self,
        weight: &[f32],
        bias: Option<&[f32]>,
        deltas: &[&[f32]],
        residual: &[f32],
    ) -> Result<usize> {
        let lens = deltas.iter().map(|delta| delta.len());
        self.check_lens(weight.len(), bias.map(<[f32]>::len), lens, residual.len())
    }

    /// The number of tokens, once all lengths fit.
    pub(crate) fn check_lens(
        &self,
        weight: usize,
        bias: Option<usize>,
        deltas: impl ExactSizeIterator<Item = usize>,
        residual: usize,
    ) -> Result<usize> {
        let check = self.check();
        rows::len(check, "weight", weight, self.features)?;
        rows::optional_len(check, "bias", bias, self.features)?;
        let tokens = rows::tokens(check, "residual", residual, self.features)?;
        rows::deltas(check, deltas, residual)?;
        Ok(tokens)
    }
}

/// Deltas are summed before they meet the residual stream, whose magnitude is larger.
pub(crate) fn add(deltas: &[&[f32]], residual: &mut [f32]) {
    for (index, x) in residual.iter_mut().enumerate() {
        *x += deltas.iter().map(|delta| delta[index]).sum::<f32>();
    }
}
