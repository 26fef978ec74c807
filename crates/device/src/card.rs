//! What cards can do at best: what figures are held against.

/// The best rates measured on a card, in bursts: a long run is held lower by the power cap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Card {
    /// The driver's name for it.
    pub name: &'static str,
    /// Bytes read a second.
    pub read: f64,
    /// Bytes read and written a second by a copy.
    pub copy: f64,
    /// FP8 operations a second of a product (a multiplication and an addition are two).
    pub fp8: f64,
    /// bf16 operations a second of a product.
    pub bf16: f64,
    /// Bytes of L2 cache.
    pub l2: usize,
}

const CARDS: [Card; 1] =
    [Card { name: "NVIDIA H200", read: 4.565e12, copy: 4.3e12, fp8: 1.497e15, bf16: 0.788e15, l2: 60 << 20 }];

impl Card {
    /// The card that the driver calls `name`, where its rates are known.
    ///
    /// ```
    /// assert!(device::Card::named("NVIDIA H200").is_some());
    /// assert!(device::Card::named("NVIDIA H100 80GB HBM3").is_none());
    /// ```
    pub fn named(name: &str) -> Option<&'static Self> {
        CARDS.iter().find(|card| card.name == name)
    }
}
