//! The device side of the products: the crate's only unsafe code.

mod pack;
mod schedule;
mod w4a16;
mod w4a8;
mod w4a8_widened;
mod weights;

pub use pack::DeviceTensors;
pub use schedule::Tiling;
pub use w4a8::W4A8Workspace;
pub use w4a16::{Activation, W4A16Workspace};
pub use weights::DeviceInt4Weights;
