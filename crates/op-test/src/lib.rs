//! What every op's tests share: random tensors, per-element comparison, poisoned and guarded buffers.
#![forbid(unsafe_code)]
// Test support: a failed expectation is a panic by design.
#![allow(clippy::panic, clippy::expect_used)]

mod compare;
mod guarded;
mod random;

pub use compare::{Bound, assert_close, assert_close_f64, gamma};
pub use guarded::Guarded;
pub use random::Rng;

/// The configuration of every property test: 256 cases, or `PROPTEST_CASES`, no files written beside the sources.
/// A failing case prints its input; its seed comes with `PROPTEST_RNG_SEED`.
pub fn cases() -> proptest::test_runner::Config {
    proptest::test_runner::Config { failure_persistence: None, ..Default::default() }
}
