//! What the daemon says of a frame: the record on `<prefix>.predictions.<camera>`.

use crate::frame::{ClassIndex, FrameSeq, WeightsVersion};
use serde::{Deserialize, Serialize};

/// Version of the record's layout.
pub const PREDICTION_VERSION: u32 = 1;

/// One class and its probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankedClass {
    pub label: ClassIndex,
    pub label_name: String,
    /// 0..=1
    pub probability: f32,
}

/// How long each stage took; filled by the shell, as the core has no clock. Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageLatency {
    pub queue_ms: f32,
    pub decode_ms: f32,
    pub predict_ms: f32,
}

/// The answer to one frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    pub v: u32,
    pub frame_id: String,
    pub camera: String,
    pub sequence: FrameSeq,
    /// Nanoseconds since 1970, by the camera's clock.
    pub capture_time_ns: Option<i64>,
    /// Nanoseconds since 1970, by the broker's clock; JetStream only.
    pub broker_time_ns: Option<i64>,
    pub label: ClassIndex,
    pub label_name: String,
    /// Probability of `label`.
    pub confidence: f32,
    pub top_k: Vec<RankedClass>,
    /// Of the probabilities, in nats (natural logarithm).
    pub entropy: f32,
    /// The weights that answered.
    pub weights_version: WeightsVersion,
    /// What the source model, before any adaptation, says of the same frame.
    pub source_label: ClassIndex,
    /// Whether the weights that answered differ from the source weights.
    pub adapted: bool,
    /// Whether the diffusion model's likelihood of the frame went into the answer.
    pub judged: bool,
    pub latency: StageLatency,
    /// Hash chain of all frames up to this one; not in the record.
    #[serde(skip)]
    pub input_chain: [u8; 32],
}
