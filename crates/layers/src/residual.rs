//! The residual addition on its own, for where no norm follows at once.

use crate::norm;
use crate::rows;
use device::{Check, Result};

/// `residual += deltas[0] + deltas[1]`, rows `[tokens, features]`: attention and MLP of a parallel block at once, or one
/// of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddResidual {
    pub(crate) features: usize,
}

/// The op's name in errors.
pub(crate) const ADD_RESIDUAL: Check = Check("add_residual");

impl AddResidual {
    /// `features` at least 1.
    pub fn new(features: usize) -> Result<Self> {
        ADD_RESIDUAL.positive("features", features)?;
        Ok(Self { features })
    }

    /// At most two deltas, each as long as `residual`, f32.
    pub fn reference(&self, deltas: &[&[f32]], residual: &mut [f32]) -> Result<()> {
        self.check_lens(deltas.iter().map(|delta| delta.len()), residual.len())?;
        norm::add(deltas, residual);
        Ok(())
    }

    pub(crate) fn check_lens(
        &self,
        deltas: impl ExactSizeIterator<Item = usize>,
        residual: usize,
    ) -> Result<()> {
        rows::tokens(ADD_RESIDUAL, "residual", residual, self.features)?;
        rows::deltas(ADD_RESIDUAL, deltas, residual)
    }
}
