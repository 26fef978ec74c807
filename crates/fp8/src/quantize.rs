//! The plan of quantization.

use crate::reference;
use device::{ActivationShape, Check, E4m3, QuantizedActivation, Result};

/// Where the scale comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ScaleChoice {
    /// Each token's own: `max |x[t]| / 448`.
    PerToken,
    /// One for the whole tensor: `max |x| / 448`.
    PerTensor,
    /// This one, found beforehand (by calibration).
    Given(f32),
}

/// Quantization of activations `[tokens, features]` to e4m3.
///
/// ```text
/// scale[t]         = max |x| / 448 over the token or the tensor (1 where that is not a normal f32), or the given one
/// codes[t][f]      = e4m3(x[t][f] / scale[t])              an IEEE division in f32, then nearest, ties to even, saturating
/// group_sums[t][g] = sum of codes[t][f] over f in g * group_size .. (g + 1) * group_size, rounded to f32 once
/// ```
///
/// Codes and scales of host and device agree bit for bit, group sums in value. A NaN in `x` becomes a NaN code (on the
/// device without its sign) and a NaN group sum, and leaves the scale to the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantize {
    pub(crate) features: usize,
    pub(crate) group_size: usize,
    pub(crate) scale: ScaleChoice,
}

impl Quantize {
    pub(crate) const CHECK: Check = Check("fp8_quantize");

    /// A scale for each token.
    pub fn per_token(features: usize) -> Result<Self> {
        Self::new(features, ScaleChoice::PerToken)
    }

    /// One scale for all tokens, from their largest magnitude.
    pub fn per_tensor(features: usize) -> Result<Self> {
        Self::new(features, ScaleChoice::PerTensor)
    }

    /// A given scale for all tokens, a positive normal f32.
    pub fn with_scale(features: usize, scale: f32) -> Result<Self> {
        Self::new(features, ScaleChoice::Given(scale))
    }

    /// Any of the three. `features` at least 1.
    pub fn new(features: usize, scale: ScaleChoice) -> Result<Self> {
        Self::CHECK.positive("features", features)?;
        if let ScaleChoice::Given(scale) = scale {
            let ok = scale.is_normal() && scale > 0.0;
            Self::CHECK.that(ok, "scale", "a positive normal number", scale)?;
        }
        Ok(Self { features, group_size: 0, scale })
    }

    /// Writes group sums too, for the INT4 product. `group_size` divides `features`.
    pub fn with_group_sums(self, group_size: usize) -> Result<Self> {
        let ok = group_size > 0 && self.features.is_multiple_of(group_size);
        Self::CHECK.that(ok, "group_size", format_args!("a divisor of {}", self.features), group_size)?;
        Ok(Self { group_size, ..self })
    }

    /// The shape of what is written for so many tokens.
    pub fn shape(&self, tokens: usize) -> ActivationShape {
        ActivationShape { tokens, features: self.features, group_size: self.group_size }
    }

    /// Quantizes `x`, f32 `[tokens, features]`.
    pub fn reference(
        &self,
        x: &[f32],
        output: &mut QuantizedActivation<&mut [E4m3], &mut [f32]>,
    ) -> Result<()> {
        let lens = (output.codes.len(), output.scales.len(), output.group_sums.len());
        self.check(x.len(), output.shape, lens)?;
        reference::quantize(self.scale, x, output);
        Ok(())
    }

    /// `lens` of codes, scales and group sums.
    pub(crate) fn check(&self, x: usize, shape: ActivationShape, lens: (usize, usize, usize)) -> Result<()> {
        let check = Self::CHECK;
        let expected = self.shape(x / self.features);
        let rows = format_args!("whole rows of {} elements", self.features);
        check.that(x.is_multiple_of(self.features), "x", rows, format_args!("{x} elements"))?;
        check.that(
            shape == expected,
            "output.shape",
            format_args!("{expected:?}"),
            format_args!("{shape:?}"),
        )?;
        let len =
            |argument, got, want| check.that(got == want, argument, format_args!("{want} elements"), got);
        len("output.codes", lens.0, x)?;
        len("output.scales", lens.1, shape.tokens)?;
        len("output.group_sums", lens.2, shape.tokens * shape.groups())
    }
}
