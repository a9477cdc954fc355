//! What goes into the pipeline and what comes out: plain values.

use crate::frame::{ClassIndex, Frame, FrameSeq};
use crate::guard::Withheld;
use crate::learner::{FrozenClassifier, Verdict};
use crate::model::ParameterError;
use crate::noise::NoiseKey;
use crate::observation::{DriftState, Observation, SkipReason, WindowReport};
use crate::prediction::Prediction;
use crate::state::{DurableState, LearnerState};
use std::sync::Arc;

/// What the shell tells the pipeline.
pub enum Event {
    /// The next frame, in order. `is_overloaded`: too many frames wait behind it, so that it is not judged, and the window
    /// that it ends is not learned from.
    Frame { frame: Box<Frame>, is_overloaded: bool },
    /// The adapter has finished a window.
    Adapted(Box<Adapted>),
    /// Truth that came later; for metrics only.
    Label { camera: String, frame_id: String, label: ClassIndex },
    /// An operator has decided; it counts from the next frame on.
    Decided(Decision),
}

/// What an operator wants of the classifier.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Off holds the weights that answer now.
    Adapt { enabled: bool },
    /// The source weights, as if no camera had shown anything.
    Reset,
    /// The weights of an earlier state.
    RollBack(Arc<LearnerState>),
}

/// A decision that was made before, at its place in the stream.
#[derive(Clone, Debug)]
pub struct Scheduled {
    /// Last frame that was applied before it.
    pub after: FrameSeq,
    pub decision: Decision,
}

/// What the pipeline wants done, in this order.
pub enum Effect {
    Answer(Box<Prediction>),
    /// Hand to the adapter, whose answer comes back as [`Event::Adapted`].
    Adapt(Job),
    /// Write a checkpoint of this state.
    Persist(Box<DurableState>),
    Observe(Observation),
}

/// Frames to learn from, or a state to go on from.
pub enum Job {
    Window { index: u64, frames: Vec<WindowFrame> },
    Restore(Arc<LearnerState>),
}

/// What the adapter needs of a frame.
#[derive(Clone, Debug)]
pub struct WindowFrame {
    pub camera: String,
    /// Key of the noise that the judge adds.
    pub key: NoiseKey,
    /// (V, C, H, W), -1..=1: the views of the frame, as it was taken and, where that is configured, stretched to full range and
    /// mirrored.
    pub views: Vec<f32>,
    /// Of the source classifier, (V, K).
    pub source_logits: Vec<Vec<f64>>,
    /// Where the answer needed it.
    pub verdict: Option<Verdict>,
    /// Of its classes, (K), by what the camera has shown before.
    pub prior: Vec<f64>,
}

/// What came of a window.
pub struct Adapted {
    pub index: u64,
    pub withheld: Withheld,
    /// A deep copy: shares no memory with the adapter.
    pub learner: Arc<LearnerState>,
    /// Its weights, ready to answer, where they are new: no frame is to wait while they are made so.
    pub classifier: Option<FrozenClassifier>,
    pub outcome: Outcome,
}

/// Whether the weights moved.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Learned(WindowReport),
    Skipped(SkipReason, Option<WindowReport>),
}

impl Outcome {
    /// Where the window was judged.
    pub fn report(&self) -> Option<&WindowReport> {
        match self {
            Self::Learned(report) => Some(report),
            Self::Skipped(_, report) => report.as_ref(),
        }
    }
}

/// Where the pipeline starts.
pub enum Start {
    /// With the source weights, on the stream `incarnation`; for `birth` see [`DurableState`].
    Source { incarnation: String, birth: u64 },
    /// Where a checkpoint was taken, with what was decided after it, in that order.
    Resume { state: Box<DurableState>, decisions: Vec<Scheduled> },
}

/// The numbers behind `status` and the page.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Status {
    /// "on" or "off": the operators' last word.
    pub adapt: &'static str,
    /// Number of the operators' last decision, from 1; 0 before the first.
    pub decision: u64,
    /// Whether the guard has stopped adaptation, whatever they said.
    pub frozen: bool,
    /// Share of the canary that the source gets right and the weights do not, less the reverse: -1..=1, a running mean.
    pub canary_harm: f64,
    /// See [`crate::guard::canary::Evidence::value`].
    pub canary_evidence: f64,
    /// Version of the weights that answer.
    pub weights_version: u64,
    /// Last applied sequence.
    pub sequence: u64,
    pub frames: u64,
    /// Prequential, over the last labelled frames; null without labels.
    pub source_accuracy: Option<f64>,
    pub adapted_accuracy: Option<f64>,
    /// Without labels; null before the first window was judged.
    pub estimated_accuracy: Option<f64>,
    pub drift: DriftState,
    pub drift_score: f64,
    /// Whether predictions are concentrated on few classes.
    pub collapsed: bool,
    /// Entropy of the mean prediction over its maximum, 0..=1.
    pub diversity: f64,
    /// How far the diffusion model is believed, 0..=1.
    pub reliability: Option<f64>,
    pub weights_distance: Option<f64>,
    pub windows_adapted: u64,
    pub windows_skipped: u64,
}

/// A state or a bundle that cannot be worked with; fatal.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error("weights do not fit the bundle's classifier: {0}")]
    Parameters(#[from] ParameterError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
