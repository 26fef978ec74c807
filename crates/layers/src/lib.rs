//! Fused elementwise steps of a decoder: norms, rotary embedding, activations, embedding
