//! What a cell leaves behind: one JSON file.

use super::cell::{Cell, Scenario, table_name};
use crate::frame::Frame;
use crate::lab::baselines::Passes;
use crate::lab::methods::Answers;
use serde::{Deserialize, Serialize};

/// Values that stay for a while: each with the index of its first frame.
pub type Runs<T> = Vec<(usize, T)>;

/// The answers of one method on one scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Of all that the answers depend on, see [`Cell::fingerprint`].
    pub fingerprint: String,
    pub model: String,
    pub table: String,
    pub stream: String,
    pub seed: u64,
    pub method: String,
    pub frames: usize,
    /// Processor time of one core, without the making of the frames.
    pub seconds: f64,
    #[serde(with = "PassesFields")]
    pub passes: Passes,
    /// For each frame 1 where the answer was right, else 0.
    pub hits: String,
    /// Names of the corruptions.
    pub domains: Runs<String>,
    /// Accuracy as estimated without labels, 0..=1; empty before the first window and for methods without an estimate.
    pub estimates: Runs<f64>,
}

/// The fields of [`Passes`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "Passes", deny_unknown_fields)]
struct PassesFields {
    classifier_forward: f64,
    classifier_backward: f64,
    diffusion_forward: f64,
    diffusion_backward: f64,
}

/// A file that is no record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("read record: {0}")]
    Json(#[from] serde_json::Error),
    #[error("read record: {got} hits, expected {frames} of 0 and 1")]
    Hits { got: usize, frames: usize },
    #[error("read record: {what} do not begin frames in order below {frames}")]
    Runs { what: &'static str, frames: usize },
    #[error("read record: {seconds} seconds")]
    Seconds { seconds: f64 },
}

impl Record {
    pub fn new<'a>(cell: &Cell, fingerprint: String, answers: &Answers, frames: impl IntoIterator<Item = &'a Frame>) -> Self {
        let Scenario { table, stream, seed, .. } = cell.scenario;
        let domain = |frame: &Frame| frame.domain.clone().unwrap_or_default();
        let estimates = answers.estimates.iter().map(|estimate| (1e4 * estimate).round() / 1e4);
        Self {
            fingerprint,
            model: cell.model.clone(),
            table: table_name(table).to_owned(),
            stream: stream.name().to_owned(),
            seed,
            method: cell.method.name().to_owned(),
            frames: answers.hits.len(),
            seconds: answers.seconds,
            passes: answers.passes,
            hits: answers.hits.iter().map(|&is_hit| if is_hit { '1' } else { '0' }).collect(),
            domains: runs(frames.into_iter().map(domain).enumerate()),
            estimates: runs(estimates.enumerate().filter(|(_, estimate)| estimate.is_finite())),
        }
    }

    /// Reads what [`Record::to_json`] wrote, and checks it.
    ///
    /// # Errors
    /// `Json` for other text, the others for fields that do not fit each other.
    pub fn from_json(text: &[u8]) -> Result<Self, RecordError> {
        let record: Self = serde_json::from_slice(text)?;
        let frames = record.frames;
        if record.hits.len() != frames || !record.hits.bytes().all(|hit| matches!(hit, b'0' | b'1')) {
            return Err(RecordError::Hits { got: record.hits.len(), frames });
        }
        if !are_ordered(&record.domains, frames) || record.domains.first().is_some_and(|&(first, _)| first != 0) {
            return Err(RecordError::Runs { what: "domains", frames });
        }
        if !are_ordered(&record.estimates, frames) {
            return Err(RecordError::Runs { what: "estimates", frames });
        }
        if record.seconds.is_nan() || record.seconds < 0.0 {
            return Err(RecordError::Seconds { seconds: record.seconds });
        }
        Ok(record)
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a record has no maps with keys that are no text")
    }

    /// Whether the answer was right, by frame.
    pub fn hits(&self) -> impl ExactSizeIterator<Item = bool> + '_ {
        self.hits.bytes().map(|hit| hit == b'1')
    }

    /// By frame; none before the first window.
    pub fn estimates(&self) -> impl Iterator<Item = Option<f64>> + '_ {
        let mut rest = self.estimates.iter().peekable();
        let mut current = None;
        (0..self.frames).map(move |frame| {
            while let Some((_, value)) = rest.next_if(|(first, _)| *first <= frame) {
                current = Some(*value);
            }
            current
        })
    }

    /// The stretches of one domain: its name, its first frame, and the frame after its last.
    pub fn stretches(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        let ends = self.domains.iter().skip(1).map(|&(first, _)| first).chain([self.frames]);
        self.domains.iter().zip(ends).map(|((first, name), end)| (name.as_str(), *first, end))
    }
}

/// Leaves out what is as the value before.
fn runs<T: PartialEq>(values: impl Iterator<Item = (usize, T)>) -> Runs<T> {
    let mut runs: Runs<T> = Vec::new();
    for (frame, value) in values {
        if runs.last().is_none_or(|(_, last)| *last != value) {
            runs.push((frame, value));
        }
    }
    runs
}

fn are_ordered<T>(runs: &[(usize, T)], frames: usize) -> bool {
    runs.is_sorted_by(|one, next| one.0 < next.0) && runs.iter().all(|&(first, _)| first < frames)
}
