//! Draws a few tokens from one row of logits.

use sampling::{History, Params, Sampler};

fn main() -> device::Result<()> {
    let logits = [0.1, 2.0, 1.5, -3.0, 1.9];
    let params = Params { temperature: 0.8, top_p: 0.95, seed: 42, logprobs: Some(2), ..Params::default() };
    let sampler = Sampler::new(logits.len(), &params)?;
    let mut text = vec![0];
    for draw in 0..5 {
        let sampled = sampler.sample(&logits, History { tokens: &text, prompt_len: 1 }, draw)?;
        println!(
            "token {} log-probability {:?} best {:?}",
            sampled.token, sampled.logprob, sampled.top_logprobs
        );
        text.push(sampled.token);
    }
    Ok(())
}
