//! The device side of the products: the crate's only unsafe code.

mod w4a8;
mod weights;

pub use w4a8::W4A8Workspace;
pub use weights::DeviceInt4Weights;
