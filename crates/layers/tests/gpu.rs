//! The kernels against f64 formulas, outputs poisoned and guarded.
#![cfg(feature = "cuda")]
// Helpers beside the tests; a failed expectation is the test's failure.
#![allow(clippy::unwrap_used)]

#[path = "gpu/activation.rs"]
mod activation;
#[path = "gpu/elementwise.rs"]
mod elementwise;
#[path = "gpu/norm.rs"]
mod norm;
#[path = "gpu/refusals.rs"]
mod refusals;
#[path = "gpu/support.rs"]
mod support;
