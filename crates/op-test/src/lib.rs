//! What every op's tests share: random tensors, per-element comparison, poisoned and guarded buffers.
#![forbid(unsafe_code)]
// Test support: a failed expectation is a panic by design.
#![allow(clippy::panic, clippy::expect_used)]

mod compare;
#[cfg(feature = "cuda")]
mod device_guarded;
mod guarded;
mod random;

use proptest::test_runner::{Config, RngSeed};
use std::hash::{BuildHasher, RandomState};

pub use compare::{Bound, assert_close, assert_close_f64, gamma};
#[cfg(feature = "cuda")]
pub use device_guarded::DeviceGuarded;
pub use guarded::Guarded;
pub use random::Rng;

/// The configuration of every property test: 256 cases, or `PROPTEST_CASES`, no files written beside the sources.
///
/// The seed is new for every test, or `PROPTEST_RNG_SEED`. It is printed, so that a failing test (whose output cargo
/// shows) can be run again with the same cases.
pub fn cases() -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(RandomState::new().hash_one("seed"));
    }
    if let RngSeed::Fixed(seed) = config.rng_seed {
        println!("{} cases, PROPTEST_RNG_SEED={seed}", config.cases);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    #[test]
    fn a_seed_repeats_its_cases() {
        let draw = |config: Config| {
            let mut runner = TestRunner::new(config);
            any::<u64>().new_tree(&mut runner).expect("a number").current()
        };
        let config = cases();
        assert_eq!(draw(config.clone()), draw(config.clone()));
        assert_ne!(draw(config), draw(cases()));
    }
}
