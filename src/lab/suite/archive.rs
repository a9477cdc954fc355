//! The folder of the records.

use super::cell::{Subject, hash, table_name};
use super::record::Record;
use crate::lab::corruptions::Table;
use crate::lab::streams::Calibration;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A folder with a file for each cell and each calibration.
pub struct Archive {
    dir: PathBuf,
}

/// What the archive has of a cell.
#[derive(Debug)]
pub enum Found {
    Record(Box<Record>),
    Missing,
    /// Of other models, images or settings.
    Outdated,
    /// No record, as when a disk was full.
    Damaged,
}

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

/// The file of a calibration.
#[derive(Serialize, Deserialize)]
struct CalibrationFile {
    fingerprint: String,
    accuracies: Calibration,
}

impl Archive {
    /// Makes the folder where there is none.
    pub fn open(dir: &Path) -> Result<Self, ArchiveError> {
        fs::create_dir_all(dir).map_err(|source| ArchiveError::Write { path: dir.to_owned(), source })?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The record of the cell `name`, if its fingerprint is this one.
    pub fn find(&self, name: &str, fingerprint: &str) -> Result<Found, ArchiveError> {
        let Some(text) = self.read(&format!("{name}.json"))? else { return Ok(Found::Missing) };
        Ok(match Record::from_json(&text) {
            Err(_) => Found::Damaged,
            Ok(record) if record.fingerprint != fingerprint => Found::Outdated,
            Ok(record) => Found::Record(Box::new(record)),
        })
    }

    pub fn keep(&self, name: &str, record: &Record) -> Result<(), ArchiveError> {
        self.write(&format!("{name}.json"), &record.to_json())
    }

    /// The accuracies of `subject` under the constants of `table`, if they were measured on the data set whose test images have this hash.
    pub fn calibration(&self, subject: &Subject, table: Table, images_hash: &str) -> Result<Option<Calibration>, ArchiveError> {
        let text = self.read(&calibration_name(subject, table))?;
        let file = text.and_then(|text| serde_json::from_slice::<CalibrationFile>(&text).ok());
        Ok(file.filter(|file| file.fingerprint == calibration_fingerprint(subject, table, images_hash)).map(|file| file.accuracies))
    }

    pub fn keep_calibration(
        &self,
        subject: &Subject,
        table: Table,
        images_hash: &str,
        accuracies: Calibration,
    ) -> Result<(), ArchiveError> {
        let file = CalibrationFile { fingerprint: calibration_fingerprint(subject, table, images_hash), accuracies };
        let text = serde_json::to_string_pretty(&file).expect("a calibration's keys are text");
        self.write(&calibration_name(subject, table), &text)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ArchiveError> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ArchiveError::Read { path, source }),
        }
    }

    /// Writes beside, then renames: a file is there whole or not at all.
    pub fn write(&self, name: &str, text: &str) -> Result<(), ArchiveError> {
        let (path, temporary) = (self.dir.join(name), self.dir.join(format!(".{name}.part")));
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|source| ArchiveError::Write { path, source })
    }
}

fn calibration_name(subject: &Subject, table: Table) -> String {
    format!("calibration-{}-{}.json", subject.name, table_name(table))
}

fn calibration_fingerprint(subject: &Subject, table: Table, images_hash: &str) -> String {
    hash(&(&subject.classifier_hash, &subject.bundle.classifier_config, table_name(table), images_hash))
}
