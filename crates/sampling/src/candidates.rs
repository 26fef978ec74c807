//! The tokens a draw chooses from, and the filters that thin them out.

use std::cmp::Ordering;

/// A token with its logit after penalties and bias.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    pub token: u32,
    pub logit: f32,
}

/// Larger logits first, lower ids first among equals.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

/// Every token of a row.
pub fn all(logits: &[f32]) -> Vec<Candidate> {
    logits.iter().zip(0..).map(|(&logit, token)| Candidate { token, logit }).collect()
}

/// The `count` that rank first, unordered.
pub fn keep_top(kept: &mut Vec<Candidate>, count: usize) {
    if count < kept.len() {
        kept.select_nth_unstable_by(count, by_rank);
        kept.truncate(count);
    }
}

/// The `count` that rank first, in order.
pub fn ranked(logits: &[f32], count: usize) -> Vec<Candidate> {
    let mut kept = all(logits);
    keep_top(&mut kept, count);
    kept.sort_unstable_by(by_rank);
    kept
}

/// The shortest run of first ranks whose weights reach `share` of all.
///
/// Sorts only as far as it has to look: a chunk of first ranks is split off and sorted, then one four times as long.
pub fn keep_share(kept: &mut Vec<Candidate>, share: f64, weight: impl Fn(f32) -> f64) {
    let target = share * kept.iter().map(|candidate| weight(candidate.logit)).sum::<f64>();
    let (mut start, mut chunk, mut reached) = (0, 64, 0.0);
    while start < kept.len() {
        let end = kept.len().min(start + chunk);
        let rest = &mut kept[start..];
        if chunk < rest.len() {
            rest.select_nth_unstable_by(chunk, by_rank);
        }
        kept[start..end].sort_unstable_by(by_rank);
        for index in start..end {
            reached += weight(kept[index].logit);
            if reached >= target {
                kept.truncate(index + 1);
                return;
            }
        }
        (start, chunk) = (end, chunk * 4);
    }
}

/// The token at `uniform` (0 to 1) of the kept weights laid end to end in the order of token ids.
pub fn draw(kept: &mut [Candidate], uniform: f64, weight: impl Fn(f32) -> f64) -> u32 {
    kept.sort_unstable_by_key(|candidate| candidate.token);
    let target = uniform * kept.iter().map(|candidate| weight(candidate.logit)).sum::<f64>();
    let (mut reached, mut drawn) = (0.0, 0);
    for candidate in kept {
        let weight = weight(candidate.logit);
        reached += weight;
        // Where rounding lets no sum pass the target, the last token that has any weight.
        if weight > 0.0 {
            drawn = candidate.token;
        }
        if reached > target {
            break;
        }
    }
    drawn
}
