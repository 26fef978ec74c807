//! Pages copied: the plan.

use device::{Check, KvLayout, Result};

pub(crate) const CHECK: Check = Check("copy_pages");

/// A page's content that must be copied, in every layer.
///
/// Copies are to be made in the order in which [`crate::BlockAllocator::take_copies`] tells them: a later one may write what
/// an earlier one reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CopyPage {
    /// The page that is read.
    pub from: u32,
    /// The page that is written.
    pub to: u32,
    /// Which of them is whose.
    pub direction: Direction,
}

/// From which pool to which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Copy on write: a sequence's own page, others go on reading the old one.
    OnDevice,
    /// Eviction.
    ToHost,
    /// A prefix that is found again.
    ToDevice,
}

/// Copies pages of all layers among the device's pools, one a layer, and between them and the host's. As scales belong to
/// heads, not to pages, the elements are all there is to a page.
///
/// ```text
///   device   layer 0  | 0 | 1 | 2 | 3 | ..      host   [layer][page]   | 0 | 1 | 2 | 0 | 1 | 2 | ..
///            layer 1  | 0 | 1 | 2 | 3 | ..                               layer 0   │ layer 1
///                           └───┴── neighbours that stay neighbours go in one piece
/// ```
///
/// ```
/// use device::KvLayout;
/// use kv_cache::{CopyPage, CopyPages, Direction};
///
/// let layout = KvLayout::new(1, 2)?;
/// let page = layout.page_elements();
/// let (mut pool, mut host) = (vec![7f32; 2 * page], vec![0f32; page]);
/// let out = CopyPage { from: 1, to: 0, direction: Direction::ToHost };
/// CopyPages::new(layout, &[out]).reference(&mut [&mut pool], &mut host)?;
/// assert_eq!(host, pool[page..]);
/// # device::Result::Ok(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyPages {
    pub(crate) layout: KvLayout,
    pub(crate) runs: Vec<Run>,
}

/// Neighbouring pages copied in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first page.
    pub from: usize,
    /// Where the first page goes.
    pub to: usize,
    pub pages: usize,
    pub direction: Direction,
}

impl Run {
    fn of(CopyPage { from, to, direction }: CopyPage) -> Self {
        Self { from: from as usize, to: to as usize, pages: 1, direction }
    }

    /// Takes `next` along, which stands behind it or before it on both sides; whether it does.
    fn take(&mut self, next: Self) -> bool {
        // What is read and what is written are different pools: the order within a run does not matter.
        let alike = self.direction == next.direction && self.direction != Direction::OnDevice;
        let behind = (self.from + self.pages, self.to + self.pages) == (next.from, next.to);
        let before = (next.from + 1, next.to + 1) == (self.from, self.to);
        let joins = alike && (behind || before);
        if joins {
            self.pages += 1;
            (self.from, self.to) = (self.from.min(next.from), self.to.min(next.to));
        }
        joins
    }
}

impl CopyPages {
    /// The copies, in order, for pools of this layout.
    pub fn new(layout: KvLayout, copies: &[CopyPage]) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for next in copies.iter().copied().map(Run::of) {
            if !runs.last_mut().is_some_and(|run| run.take(next)) {
                runs.push(next);
            }
        }
        Self { layout, runs }
    }

    /// Checks page numbers against one layer's pools of so many elements.
    fn check(&self, pool: usize, host: usize) -> Result<()> {
        let (device, host) = (self.layout.pages(CHECK.0, pool)?, self.layout.pages(CHECK.0, host)?);
        for run in &self.runs {
            let (readable, writable) = match run.direction {
                Direction::OnDevice => (device, device),
                Direction::ToHost => (device, host),
                Direction::ToDevice => (host, device),
            };
            let below = |argument, page: usize, pages: usize| {
                CHECK.that(page < pages, argument, format_args!("pages below {pages}"), page)
            };
            below("from", run.from + run.pages - 1, readable)?;
            below("to", run.to + run.pages - 1, writable)?;
        }
        Ok(())
    }

    /// Checks the lengths of all pools and the page numbers; the elements of a layer on the host.
    pub(crate) fn check_layers(
        &self,
        pools: impl ExactSizeIterator<Item = usize>,
        host: usize,
    ) -> Result<usize> {
        let layers = pools.len();
        let whole = host.is_multiple_of(layers.max(1));
        CHECK.that(whole, "host", format_args!("as many elements for each of {layers} layers"), host)?;
        let on_host = host.checked_div(layers).unwrap_or(0);
        for pool in pools {
            self.check(pool, on_host)?;
        }
        Ok(on_host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{OnDevice, ToDevice, ToHost};

    #[test]
    fn neighbours_go_in_one_piece() {
        let runs = |copies: &[(u32, u32, Direction)]| -> Vec<(usize, usize, usize)> {
            let copies = copies.iter().map(|&(from, to, direction)| CopyPage { from, to, direction });
            let plan = CopyPages::new(KvLayout::new(1, 2).unwrap(), &copies.collect::<Vec<_>>());
            plan.runs.iter().map(|run| (run.from, run.to, run.pages)).collect()
        };
        assert_eq!(
            runs(&[(3, 5, ToHost), (4, 6, ToHost), (2, 4, ToHost), (9, 3, ToHost)]),
            [(2, 4, 3), (9, 3, 1)]
        );
        // The other side runs the other way, another direction, pages of one pool: piece by piece.
        assert_eq!(runs(&[(3, 5, ToDevice), (4, 4, ToDevice)]), [(3, 5, 1), (4, 4, 1)]);
        assert_eq!(runs(&[(3, 5, ToDevice), (4, 6, ToHost)]), [(3, 5, 1), (4, 6, 1)]);
        assert_eq!(runs(&[(0, 1, OnDevice), (1, 2, OnDevice)]), [(0, 1, 1), (1, 2, 1)]);
        assert_eq!(runs(&[]), []);
    }
}
