//! What a launch has to do at least, and how long that takes a card at best.

use criterion::Throughput;
use device::Card;

/// How a launch uses memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// It reads; what it writes is small beside that.
    Read,
    /// It reads and writes.
    Copy,
}

/// What the operations are done by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Fp8,
    Bf16,
}

/// What a launch has to do at least.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Bytes that are read and written.
    pub bytes: f64,
    /// Multiplications and additions.
    pub operations: f64,
    memory: Memory,
    unit: Unit,
}

impl Work {
    /// Reads `bytes`.
    pub fn read(bytes: usize) -> Self {
        Self { bytes: bytes as f64, operations: 0.0, memory: Memory::Read, unit: Unit::Fp8 }
    }

    /// Reads and writes `bytes`, both counted.
    pub fn copy(bytes: usize) -> Self {
        Self { memory: Memory::Copy, ..Self::read(bytes) }
    }

    /// With so many FP8 operations.
    pub fn fp8(self, operations: f64) -> Self {
        Self { operations, unit: Unit::Fp8, ..self }
    }

    /// With so many 16-bit operations.
    pub fn bf16(self, operations: f64) -> Self {
        Self { operations, unit: Unit::Bf16, ..self }
    }

    /// Seconds at a card's rates: bytes and operations overlap.
    pub fn seconds(&self, card: &Card) -> f64 {
        let (memory, arithmetic) = self.parts(card);
        memory.max(arithmetic)
    }

    /// Whether bytes, not operations, set the floor.
    pub fn is_bound_by_memory(&self, card: &Card) -> bool {
        let (memory, arithmetic) = self.parts(card);
        memory >= arithmetic
    }

    /// Bytes where they set the floor, else operations.
    pub fn throughput(&self, card: &Card) -> Throughput {
        match self.is_bound_by_memory(card) {
            true => Throughput::Bytes(self.bytes as u64),
            false => Throughput::Elements(self.operations as u64),
        }
    }

    fn parts(&self, card: &Card) -> (f64, f64) {
        let bandwidth = match self.memory {
            Memory::Read => card.read,
            Memory::Copy => card.copy,
        };
        let rate = match self.unit {
            Unit::Fp8 => card.fp8,
            Unit::Bf16 => card.bf16,
        };
        (self.bytes / bandwidth, self.operations / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: Card = Card { name: "a card", read: 4e12, copy: 2e12, fp8: 1e15, bf16: 0.5e15, l2: 1 << 20 };

    #[test]
    fn the_larger_of_bytes_and_operations_sets_the_floor() {
        assert_eq!(Work::read(4_000_000).seconds(&CARD), 1e-6);
        assert_eq!(Work::copy(4_000_000).seconds(&CARD), 2e-6);
        assert_eq!(Work::read(4_000_000).fp8(3e9).seconds(&CARD), 3e-6);
        assert_eq!(Work::read(4_000_000).bf16(3e9).seconds(&CARD), 6e-6);
        assert!(Work::read(4_000_000).fp8(0.9e9).is_bound_by_memory(&CARD));
        assert!(!Work::read(4_000_000).fp8(1.1e9).is_bound_by_memory(&CARD));
    }
}
