//! Argument checks at the door of an op.

use crate::{ArgumentError, Error, Result};

/// Checks arguments in the name of one op.
///
/// ```
/// let check = device::Check("rms_norm");
/// assert!(check.len("weight", &[1.0, 2.0], 2).is_ok());
/// assert_eq!(
///     check.len("weight", &[1.0], 2).unwrap_err().to_string(),
///     "rms_norm: weight: expected 2 elements, got 1"
/// );
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Check(
    /// The op's name.
    pub &'static str,
);

impl Check {
    /// The error for `argument`.
    pub fn error(self, argument: &'static str, expected: impl ToString, got: impl ToString) -> Error {
        ArgumentError { op: self.0, argument, expected: expected.to_string(), got: got.to_string() }.into()
    }

    /// `ok`, or the error.
    pub fn that(
        self,
        ok: bool,
        argument: &'static str,
        expected: impl ToString,
        got: impl ToString,
    ) -> Result<()> {
        if ok { Ok(()) } else { Err(self.error(argument, expected, got)) }
    }

    /// A slice of exactly `expected` elements.
    pub fn len<T>(self, argument: &'static str, slice: &[T], expected: usize) -> Result<()> {
        self.that(slice.len() == expected, argument, format_args!("{expected} elements"), slice.len())
    }

    /// A size of at least one.
    pub fn positive(self, argument: &'static str, size: usize) -> Result<()> {
        self.that(size > 0, argument, "at least 1", size)
    }

    /// A size that is a positive multiple of `unit`.
    pub fn multiple(self, argument: &'static str, size: usize, unit: usize) -> Result<()> {
        let ok = size > 0 && size.is_multiple_of(unit);
        self.that(ok, argument, format_args!("a positive multiple of {unit}"), size)
    }

    /// A finite number.
    pub fn finite(self, argument: &'static str, value: f32) -> Result<()> {
        self.that(value.is_finite(), argument, "a finite number", value)
    }

    /// The product of sizes, or an error that names `argument` where it overflows.
    pub fn product(self, argument: &'static str, sizes: &[usize]) -> Result<usize> {
        sizes
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size))
            .ok_or_else(|| self.error(argument, "a product that fits in memory", format_args!("{sizes:?}")))
    }
}
