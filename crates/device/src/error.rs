//! The one error type of all op crates.

/// Shorthand for results of op crates.
pub type Result<T> = std::result::Result<T, Error>;

/// A bad argument: which op, which argument, what was expected and what came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {argument}: expected {expected}, got {got}")]
pub struct ArgumentError {
    /// The op's name, as in its crate's README (`rms_norm`).
    pub op: &'static str,
    /// The argument's name, as in the signature.
    pub argument: &'static str,
    /// What would have been accepted.
    pub expected: String,
    /// What came.
    pub got: String,
}

/// Everything that can go wrong in an op.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument was refused before any work was done.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// This binary was built without the feature `cuda`.
    #[error("this binary was built without CUDA; build it with `--features cuda`")]
    BuiltWithoutCuda,
    /// No CUDA driver library on this machine.
    #[error("no NVIDIA driver found (libcuda.so.1); install the driver or use the CPU backend")]
    NoDriver,
    /// The driver reports no GPU.
    #[error(
        "the NVIDIA driver reports no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the CPU backend"
    )]
    NoGpu,
    /// A driver that cannot load the embedded kernels.
    #[error(
        "the NVIDIA driver supports CUDA up to {}.{}; the kernels need {}.{}: update the driver (580 or newer)",
        .found.0, .found.1, .needed.0, .needed.1
    )]
    DriverTooOld {
        /// The newest CUDA version the driver supports, major and minor part.
        found: (u32, u32),
        /// The version that the kernels were compiled for.
        needed: (u32, u32),
    },
    /// A GPU that the embedded kernels cannot run on.
    #[error("{name} has compute capability {major}.{minor}; the kernels need 9.0 (H100, H200)")]
    UnsupportedComputeCapability {
        /// The GPU's name as the driver gives it.
        name: String,
        /// Major part of what was found.
        major: i32,
        /// Minor part of what was found.
        minor: i32,
    },
    /// No cuBLASLt library on this machine, which products without a kernel of their own go through.
    #[error("no cuBLASLt found (libcublasLt.so.13); install CUDA 13's, or add its folder to LD_LIBRARY_PATH")]
    NoCublasLt,
    /// A device allocation failed.
    #[error("out of GPU memory allocating {what}: {requested} bytes requested, {free} bytes free of {total}")]
    OutOfMemory {
        /// What was being allocated.
        what: String,
        /// Bytes asked for.
        requested: u64,
        /// Bytes free at that moment.
        free: u64,
        /// Bytes on the card.
        total: u64,
    },
    /// A driver or library call failed.
    #[error("{call} failed: {message}")]
    Driver {
        /// The call, or the kernel launched.
        call: String,
        /// The driver's name and text of the status.
        message: String,
    },
}
