//! The end of every decoder: only the rows a token is chosen from reach the final norm and the head.

use crate::backend::Backend;
use device::Result;

/// `head(norm(x + deltas))` of the sampled rows, `[sampled, vocab_size]`.
pub(crate) fn logits<B: Backend>(
    b: &B,
    batch: &B::Batch,
    x: &B::Tensor,
    deltas: &[B::Tensor],
    norm: &B::Norm,
    head: &B::Linear,
) -> Result<B::Logits> {
    let mut x = b.sampled_rows(x, batch)?;
    let deltas = deltas.iter().map(|delta| b.sampled_rows(delta, batch)).collect::<Result<Vec<_>>>()?;
    let input = b.add_norm(&mut x, &deltas, norm, head)?;
    b.logits(&input, head)
}
