//! Shapes that all plans check alike.

use device::{ActivationShape, Check, QuantizedActivation, Result};

/// Deltas to a residual stream: what attention and MLP add to it (both at once in a parallel block).
pub const MAX_DELTAS: usize = 2;

/// The rows in a slice of `len` elements.
pub fn tokens(check: Check, argument: &'static str, len: usize, features: usize) -> Result<usize> {
    let whole = len.is_multiple_of(features);
    check.that(
        whole,
        argument,
        format_args!("whole rows of {features} elements"),
        format_args!("{len} elements"),
    )?;
    Ok(len / features)
}

/// A slice of exactly `expected` elements, on the host or on the device.
pub fn len(check: Check, argument: &'static str, len: usize, expected: usize) -> Result<()> {
    check.that(len == expected, argument, format_args!("{expected} elements"), len)
}

/// An optional slice of exactly `expected` elements.
pub fn optional_len(
    check: Check,
    argument: &'static str,
    slice: Option<usize>,
    expected: usize,
) -> Result<()> {
    slice.map_or(Ok(()), |slice| len(check, argument, slice, expected))
}

/// At most [`MAX_DELTAS`] slices as long as the residual stream.
pub fn deltas(check: Check, mut lens: impl ExactSizeIterator<Item = usize>, residual: usize) -> Result<()> {
    let count = lens.len();
    check.that(count <= MAX_DELTAS, "deltas", format_args!("at most {MAX_DELTAS}"), count)?;
    lens.try_for_each(|delta| len(check, "deltas", delta, residual))
}

/// The lengths of a quantized activation's parts.
pub struct QuantizedLens {
    pub codes: usize,
    pub scales: usize,
    pub group_sums: usize,
}

/// A quantized activation of `tokens` rows of `features`.
pub fn quantized(
    check: Check,
    shape: ActivationShape,
    lens: QuantizedLens,
    tokens: usize,
    features: usize,
) -> Result<()> {
    check.that(shape.tokens == tokens, "output.shape.tokens", tokens, shape.tokens)?;
    check.that(shape.features == features, "output.shape.features", features, shape.features)?;
    let divides = shape.group_size == 0 || features.is_multiple_of(shape.group_size);
    let expected = format_args!("0 or a divisor of {features}");
    check.that(divides, "output.shape.group_size", expected, shape.group_size)?;
    len(check, "output.codes", lens.codes, tokens * features)?;
    len(check, "output.scales", lens.scales, tokens)?;
    len(check, "output.group_sums", lens.group_sums, tokens * shape.groups())
}

/// A quantized activation on the host, to be written.
pub type HostQuantized<'a> = QuantizedActivation<&'a mut [device::E4m3], &'a mut [f32]>;

/// Fills a quantized activation row by row; `write(token, row)` gives each row.
pub fn quantize_each(output: &mut HostQuantized<'_>, mut write: impl FnMut(usize, &mut [f32])) {
    let ActivationShape { features, group_size, .. } = output.shape;
    let groups = output.shape.groups();
    let mut row = vec![0.0; features];
    let codes = output.codes.chunks_exact_mut(features);
    for (token, (codes, scale)) in codes.zip(output.scales.iter_mut()).enumerate() {
        write(token, &mut row);
        let group_sums = &mut output.group_sums[token * groups..][..groups];
        *scale = device::quantize_row(&row, group_size, codes, group_sums);
    }
}
