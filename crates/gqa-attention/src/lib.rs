//! Prefill and decode attention over a paged KV cache, for MHA, MQA and GQA of any group size
