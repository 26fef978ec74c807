//! The exact probability of every token, by full sorts and dense vectors.

use sampling::{History, Params};

/// Logits after penalties and bias.
pub fn adjusted(logits: &[f32], history: History<'_>, params: &Params) -> Vec<f32> {
    let count = |tokens: &[u32], id: usize| tokens.iter().filter(|&&token| token as usize == id).count();
    let one = |(id, &logit): (usize, &f32)| {
        let mut logit = logit;
        if count(history.tokens, id) > 0 {
            let penalty = params.repetition_penalty;
            logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
        }
        let times = count(&history.tokens[history.prompt_len..], id);
        if times > 0 {
            logit -= params.presence_penalty + times as f32 * params.frequency_penalty;
        }
        params
            .logit_bias
            .iter()
            .filter(|bias| bias.0 as usize == id)
            .fold(logit, |logit, bias| logit + bias.1)
    };
    logits.iter().enumerate().map(one).collect()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

/// What each token is drawn with: each filter masks logits with minus infinity, and the next one takes a new softmax.
pub fn probabilities(logits: &[f32], history: History<'_>, params: &Params) -> Vec<f64> {
    let adjusted = adjusted(logits, history, params);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| adjusted[b].partial_cmp(&adjusted[a]).unwrap().then(a.cmp(&b)));
    if params.temperature == 0.0 {
        return (0..logits.len()).map(|id| f64::from(id == order[0])).collect();
    }
    let mut scaled: Vec<f64> =
        adjusted.iter().map(|&x| f64::from(x) / f64::from(params.temperature)).collect();
    if params.top_k > 0 {
        order.iter().skip(params.top_k).for_each(|&id| scaled[id] = f64::NEG_INFINITY);
    }
    let share = softmax(&scaled);
    let mut before = 0.0;
    for &id in &order {
        if params.top_p < 1.0 && before >= f64::from(params.top_p) {
            scaled[id] = f64::NEG_INFINITY;
        }
        before += share[id];
    }
    let share = softmax(&scaled);
    for &id in &order {
        if share[id] < f64::from(params.min_p) * share[order[0]] {
            scaled[id] = f64::NEG_INFINITY;
        }
    }
    softmax(&scaled)
}
