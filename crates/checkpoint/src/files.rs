//! Where a checkpoint's files come from.

use crate::Result;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A checkpoint's files: a folder, or a model embedded in the binary.
#[derive(Debug, Clone)]
pub enum Files {
    /// A folder; links in it are followed.
    Folder(PathBuf),
    /// Files by name.
    Memory(BTreeMap<String, &'static [u8]>),
}

impl Files {
    /// The files of `folder`, which must exist.
    pub fn folder(folder: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::Folder(folder.as_ref().to_path_buf()))
    }

    /// Files that are already in memory, by name (`config.json`, `model.safetensors`, ...).
    pub fn memory<'a>(files: impl IntoIterator<Item = (&'a str, &'static [u8])>) -> Self {
        Self::Memory(files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect())
    }
}
