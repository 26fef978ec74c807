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
use rayon::prelude::*;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};

pub use compare::{Bound, Worst, assert_close, assert_close_f64, gamma};
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

/// Whether a sanitizer runs the tests, which scripts/gpu-tests.sh says by `PEREGRINE_SANITIZER`. A kernel takes a hundred times as
/// long there, so tests of many shapes leave out some.
pub fn sanitized() -> bool {
    std::env::var_os("PEREGRINE_SANITIZER").is_some()
}

/// Runs `body` for as many random cases as [`cases`] has, on all cores at once, each with random numbers of its own: for
/// tests whose references take longer than the kernels. After a failure no further case is begun.
///
/// A case that fails prints its seed: as `PROPTEST_RNG_SEED` with `PROPTEST_CASES=1` it gives that case alone.
pub fn random_cases(body: impl Fn(&mut Rng) + Sync) {
    struct Announce<'a>(u64, &'a AtomicBool);
    impl Drop for Announce<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.1.store(true, Ordering::Relaxed);
                eprintln!("this case alone: PROPTEST_CASES=1 PROPTEST_RNG_SEED={}", self.0);
            }
        }
    }
    let config = cases();
    let RngSeed::Fixed(seed) = config.rng_seed else { panic!("`cases` fixes the seed") };
    let failed = AtomicBool::new(false);
    (0..u64::from(config.cases)).into_par_iter().for_each(|case| {
        if !failed.load(Ordering::Relaxed) {
            let announce = Announce(seed.wrapping_add(case), &failed);
            body(&mut Rng::new(announce.0));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    use std::sync::atomic::AtomicUsize;

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

    #[test]
    fn every_case_has_numbers_of_its_own() {
        let seen = std::sync::Mutex::new(std::collections::HashSet::new());
        random_cases(|rng| assert!(seen.lock().expect("no case failed").insert(rng.bits())));
        assert_eq!(seen.into_inner().expect("no case failed").len(), cases().cases as usize);
    }

    #[test]
    fn a_failing_case_fails_the_test() {
        let run = AtomicUsize::new(0);
        let result = std::panic::catch_unwind(|| {
            random_cases(|_| assert!(run.fetch_add(1, Ordering::Relaxed) != 0, "the first"));
        });
        assert!(result.is_err());
    }
}
