//! Where a checkpoint's files come from: positioned reads, so that nothing is mapped and nothing is `unsafe`.

use crate::{FileError, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A checkpoint's files: a folder, or a model embedded in the binary.
#[derive(Debug, Clone)]
pub enum Files {
    /// A folder; links in it are followed.
    Folder(PathBuf),
    /// Files by name.
    Memory(BTreeMap<String, &'static [u8]>),
}

/// One opened file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Its path, for messages.
    pub path: String,
    /// Its bytes, as they were counted when it was opened.
    pub len: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    File(File),
    Memory(&'static [u8]),
}

impl Files {
    /// The files of `folder`, which must exist.
    pub fn folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        if !folder.is_dir() {
            return Err(FileError::NotAFolder { folder: folder.display().to_string() }.into());
        }
        Ok(Self::Folder(folder.to_path_buf()))
    }

    /// Files that are already in memory, by name (`config.json`, `model.safetensors`, ...).
    pub fn memory<'a>(files: impl IntoIterator<Item = (&'a str, &'static [u8])>) -> Self {
        Self::Memory(files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect())
    }

    /// Whether there is a file `name`.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).exists(),
            Self::Memory(files) => files.contains_key(name),
        }
    }

    /// The folder, for messages.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::Memory(_) => "embedded model".to_owned(),
        }
    }

    /// The path of `name`, for messages.
    pub(crate) fn path(&self, name: &str) -> String {
        match self {
            Self::Folder(folder) => folder.join(name).display().to_string(),
            Self::Memory(_) => name.to_owned(),
        }
    }

    /// Opens `name`, a plain file name; `None` where there is no such file.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Source>> {
        let path = self.path(name);
        let folder = match self {
            Self::Folder(folder) => folder,
            Self::Memory(files) => {
                let source = |bytes: &&'static [u8]| Source {
                    path,
                    len: bytes.len() as u64,
                    content: Content::Memory(bytes),
                };
                return Ok(files.get(name).map(source));
            }
        };
        // Asked first: opening a pipe would wait for somebody to write to it.
        let metadata = match std::fs::metadata(folder.join(name)) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path, &error).into()),
        };
        if !metadata.is_file() {
            return Err(FileError::NotAFile { file: path }.into());
        }
        let file = File::open(folder.join(name)).map_err(|error| failed(&path, &error))?;
        let len = file.metadata().map_err(|error| failed(&path, &error))?.len();
        Ok(Some(Source { path, len, content: Content::File(file) }))
    }

    /// All of a file of at most `limit` bytes; `None` where there is no such file.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(source) = self.open(name)? else { return Ok(None) };
        if source.len > limit {
            return Err(FileError::TooLarge { file: source.path, bytes: source.len, limit }.into());
        }
        let mut bytes = vec![0; source.len as usize];
        source.read_at(0, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// [`Self::read`], where the file must be there.
    pub(crate) fn read_needed(&self, name: &str, limit: u64, remedy: &'static str) -> Result<Vec<u8>> {
        let missing = || FileError::Missing { file: self.path(name), remedy };
        Ok(self.read(name, limit)?.ok_or_else(missing)?)
    }
}

impl Source {
    /// Fills `buffer` from byte `offset` on.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let read = match &self.content {
            Content::File(file) => file.read_exact_at(buffer, offset),
            Content::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let piece = start.checked_add(buffer.len()).and_then(|end| bytes.get(start..end));
                match piece {
                    Some(piece) => {
                        buffer.copy_from_slice(piece);
                        Ok(())
                    }
                    None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                }
            }
        };
        Ok(read.map_err(|error| failed(&self.path, &error))?)
    }
}

fn failed(path: &str, error: &io::Error) -> FileError {
    FileError::Io { file: path.to_owned(), message: error.to_string() }
}
