//! Labelled frames in a folder: image files, and `frames.csv` with the columns `file,label,domain` in the order to play.

use serde::Deserialize;
use std::path::{Path, PathBuf};

/// One row of `frames.csv`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FolderFrame {
    /// Relative to the folder.
    pub file: PathBuf,
    /// Index of the class.
    pub label: u32,
    /// Name of the scenario.
    pub domain: String,
}

/// A folder that is not one of frames.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{path}: {source}; expected a header line file,label,domain and one row a frame", path = path.display())]
    Table { path: PathBuf, source: csv::Error },
    #[error("{path} has no frames", path = path.display())]
    Empty { path: PathBuf },
    #[error("frame file {path}: {source}", path = path.display())]
    Frame { path: PathBuf, source: std::io::Error },
}

/// The rows of `dir/frames.csv`, in order.
///
/// # Errors
/// `Table` with the line that is wrong, `Empty` for none.
pub fn list(dir: &Path) -> Result<Vec<FolderFrame>, FolderError> {
    let path = dir.join("frames.csv");
    let rows = csv::Reader::from_path(&path).and_then(|mut reader| reader.deserialize().collect::<Result<Vec<_>, _>>());
    match rows {
        Err(source) => Err(FolderError::Table { path, source }),
        Ok(rows) if rows.is_empty() => Err(FolderError::Empty { path }),
        Ok(rows) => Ok(rows),
    }
}

/// The bytes of a frame's file.
pub fn read(dir: &Path, frame: &FolderFrame) -> Result<Vec<u8>, FolderError> {
    let path = dir.join(&frame.file);
    std::fs::read(&path).map_err(|source| FolderError::Frame { path, source })
}
