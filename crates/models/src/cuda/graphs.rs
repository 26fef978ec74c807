//! Decode steps captured once and replayed: one call to the driver instead of some eight hundred launches.

use super::Logits;
use device::Result;
use device::gpu::{Graph, Pool};
use std::collections::HashMap;
use std::sync::Arc;

/// What the launches of a decode step depend on; all else they read from the step's indices as they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The KV cache, and with it the model.
    pub cache: u64,
    /// Rows, padding included.
    pub sequences: usize,
    /// Pages to a row of the block tables.
    pub max_pages: usize,
}

/// Shapes beyond this many are forgotten, all at once: a graph of a large model holds some megabytes.
const MOST: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Graphs {
    seen: HashMap<Key, Option<Captured>>,
}

#[derive(Debug)]
struct Captured {
    graph: Graph,
    /// Where every replay leaves its logits.
    logits: Arc<Logits>,
}

impl Graphs {
    /// Forgets all of them: what they read has moved.
    pub fn clear(&mut self) {
        self.seen.clear();
    }

    /// Runs `forward` the first time that `key` comes, captures it the second time, replays it from then on.
    pub fn run(
        &mut self,
        key: Key,
        pool: &Pool,
        mut forward: impl FnMut() -> Result<Arc<Logits>>,
    ) -> Result<Arc<Logits>> {
        match self.seen.get(&key) {
            None => {
                // Loads kernels, plans products, and leaves in the pool all buffers that the capture wants.
                let logits = forward()?;
                if self.seen.len() >= MOST {
                    self.seen.clear();
                }
                self.seen.insert(key, None);
                return Ok(logits);
            }
            Some(Some(captured)) => {
                captured.graph.replay()?;
                return Ok(captured.logits.clone());
            }
            Some(None) => {}
        }
        let mut logits = None;
        // SAFETY: what `forward` launches reads and writes weights and pages of the model, which outlives its backend's
        // graphs, the step's indices, for whose sake `clear` is called when they move, and buffers of the pool, which keeps
        // them; all of it on the pool's one stream.
        let graph = unsafe {
            Graph::capture(pool.stream(), || {
                logits = Some(forward()?);
                Ok(())
            })
        };
        match (graph, logits) {
            (Ok(graph), Some(logits)) => {
                graph.replay()?;
                self.seen.insert(key, Some(Captured { graph, logits: logits.clone() }));
                Ok(logits)
            }
            // The pool ran short of a buffer, as where one was kept by another graph meanwhile: this run makes it.
            _ => forward(),
        }
    }
}
