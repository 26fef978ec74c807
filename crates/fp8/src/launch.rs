//! The device side of the plans: the crate's only unsafe code.

mod cublaslt;
mod product;
mod quantize;
mod synthetic;

/// What vectors of 16 bytes, the copy engine and cuBLASLt ask of addresses.
const ALIGNMENT: u64 = 16;
