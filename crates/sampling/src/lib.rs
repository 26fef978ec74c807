//! Logits to tokens: greedy, temperature, top-k, top-p, min-p, penalties, log-probabilities
