//! Per-element comparison against a reference: no aggregate that could hide a wrong tile.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far one element may lie from its reference: `absolute + relative * |reference|`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bound {
    /// A floor, for results near zero.
    pub absolute: f64,
    /// The rounding of the result's own format (bf16: 2^-8, f16: 2^-11).
    pub relative: f64,
}

/// The classic bound on the relative error of a sum of `terms` products in arithmetic of unit roundoff `unit`
/// (Higham, Accuracy and Stability of Numerical Algorithms, 3.1): `n u / (1 - n u)`, to be multiplied with the sum
/// of the products' magnitudes.
pub fn gamma(terms: usize, unit: f64) -> f64 {
    let nu = terms as f64 * unit;
    nu / (1.0 - nu)
}

/// Holds every element of `got` against `want` under one bound; panics with the first, the worst and the count.
#[track_caller]
pub fn assert_close(got: &[f32], want: &[f32], bound: Bound) {
    let want: Vec<f64> = want.iter().map(|&x| f64::from(x)).collect();
    let bounds: Vec<f64> = want.iter().map(|w| bound.absolute + bound.relative * w.abs()).collect();
    assert_close_f64(got, &want, &bounds);
}

/// Holds every element of `got` against `want` under its own bound; NaN never passes.
#[track_caller]
pub fn assert_close_f64(got: &[f32], want: &[f64], bounds: &[f64]) {
    assert_eq!(got.len(), want.len(), "lengths differ");
    assert_eq!(got.len(), bounds.len(), "one bound an element");
    let excess = |i: usize| {
        let error = (f64::from(got[i]) - want[i]).abs();
        if error <= bounds[i] { None } else { Some(error / bounds[i].max(f64::MIN_POSITIVE)) }
    };
    let wrong: Vec<(usize, f64)> = (0..got.len()).filter_map(|i| Some((i, excess(i)?))).collect();
    let Some(&(first, _)) = wrong.first() else { return };
    // A NaN's excess is NaN, which total_cmp places above every number.
    let &(worst, times) = wrong.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("not empty");
    panic!(
        "{} of {} elements out of bounds; first [{first}]: got {}, want {} +- {}; worst [{worst}]: got {}, want {} \
         +- {} ({times:.2} times the bound)",
        wrong.len(),
        got.len(),
        got[first],
        want[first],
        bounds[first],
        got[worst],
        want[worst],
        bounds[worst],
    );
}

/// The largest error seen so far as a share of its bound, by cases that run at once: what a test prints to show how much
/// room its bounds leave.
#[derive(Debug, Default)]
pub struct Worst(AtomicU64);

impl Worst {
    /// Takes in elements that [`assert_close_f64`] has let pass.
    pub fn add(&self, got: &[f32], want: &[f64], bounds: &[f64]) {
        let shares = got.iter().zip(want).zip(bounds).map(|((&got, want), bound)| {
            let error = (f64::from(got) - want).abs();
            if error == 0.0 { 0.0 } else { error / bound }
        });
        self.raise(shares.fold(0.0, f64::max));
    }

    /// Takes in a share that is known already: not negative.
    pub fn raise(&self, share: f64) {
        // Such numbers are ordered as their bits are.
        self.0.fetch_max(share.to_bits(), Ordering::Relaxed);
    }

    /// The largest share.
    pub fn share(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "1 of 2 elements out of bounds")]
    fn nan_never_passes() {
        assert_close(&[1.0, f32::NAN], &[1.0, 1.0], Bound { absolute: 1e9, relative: 1e9 });
    }

    #[test]
    fn the_worst_share_is_kept() {
        let worst = Worst::default();
        worst.add(&[1.0, 2.5], &[1.0, 2.0], &[0.0, 2.0]);
        worst.add(&[3.0], &[3.0], &[1.0]);
        assert_eq!(worst.share(), 0.25);
    }
}
