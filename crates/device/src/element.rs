//! Elements a KV cache or an activation can be stored in.

use crate::E4m3;
use bytemuck::Pod;
use half::{bf16, f16};

/// A storage type of tensors, with its exact widening and its rounding (nearest, ties to even).
pub trait Element: Pod + Send + Sync + PartialEq + std::fmt::Debug + 'static {
    /// The type's short name (`bf16`).
    const NAME: &'static str;
    /// The exact value.
    fn to_f32(self) -> f32;
    /// The nearest element; [`E4m3`] saturates.
    fn from_f32(value: f32) -> Self;
}

macro_rules! element {
    ($type:ty, $name:literal) => {
        impl Element for $type {
            const NAME: &'static str = $name;
            fn to_f32(self) -> f32 {
                <$type>::to_f32(self)
            }
            fn from_f32(value: f32) -> Self {
                <$type>::from_f32(value)
            }
        }
    };
}

element!(bf16, "bf16");
element!(f16, "f16");
element!(E4m3, "e4m3");

impl Element for f32 {
    const NAME: &'static str = "f32";
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(value: f32) -> Self {
        value
    }
}
