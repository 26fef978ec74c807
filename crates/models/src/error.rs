//! What can go wrong between a checkpoint and a model that runs.

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The files are not what they should be.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// An op refused its arguments, or the device failed.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// Layers that are computed as one do not fit together.
    #[error("{name}: cannot be fused: {what}")]
    Fused {
        /// The first of them.
        name: String,
        /// Why not.
        what: String,
    },
    /// config.json and the tensors disagree on a bias.
    #[error("{name}.bias: config.json says there is {}, the tensors say otherwise", if *.expected { "one" } else { "none" })]
    Bias {
        /// The layer.
        name: String,
        /// What config.json says.
        expected: bool,
    },
    /// A weight, a bias or a norm has a NaN or an infinity.
    #[error(
        "{name}: has values that are not finite; the file is damaged or was exported from a diverged model"
    )]
    NotFinite {
        /// The layer.
        name: String,
    },
}
