//! Subjects, and the encodings of everything on them but frames: predictions, labels, control, records.
//!
//! What goes out is JSON, but predictions, which are a MessagePack named map unless the configuration says JSON. What comes
//! in is small, typed and strict: a size limit before parsing, no unknown keys, nothing after the value.
//! Invariant: text that came from outside is shortened before it goes into an error or a record.
//! Absent on purpose: NATS itself, which is in the shell.

mod control;

pub use control::{Command, ControlError, DECISION_HEADER, EXPIRES_HEADER, Terms, accepted, parse_control, refused};

use crate::decode::{Message, Reject};
use crate::frame::{ClassIndex, FrameSeq, WeightsVersion};
use crate::observation::DriftState;
use crate::prediction::Prediction;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

/// Of a label or control message.
const SMALL_PAYLOAD_BYTES_MAX: usize = 4096;
const CAMERA_CHARACTERS_MAX: usize = 64;
const FRAME_ID_BYTES_MAX: usize = 128;
const PREFIX_CHARACTERS_MAX: usize = 128;
const EXCERPT_CHARACTERS_MAX: usize = 160;
const RECORDED_HEADERS_MAX: usize = 16;
/// Nothing that is read here nests deeper than two.
const MSGPACK_DEPTH_MAX: usize = 16;
const RECORD_VERSION: u32 = 1;

/// Encoding of predictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Msgpack,
    Json,
}

/// Bytes that are not the one MessagePack map that was expected.
#[derive(Debug, thiserror::Error)]
pub enum MsgpackError {
    #[error("it is not a map")]
    NotAMap,
    #[error("{0}")]
    Malformed(String),
    #[error("something follows the map")]
    Trailing,
}

/// Reads one MessagePack map with named keys and nothing after it. No memory is taken on the word of a length: what is borrowed
/// must be there.
pub(crate) fn read_named_map<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, MsgpackError> {
    if !matches!(bytes.first(), Some(0x80..=0x8f | 0xde | 0xdf)) {
        return Err(MsgpackError::NotAMap);
    }
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(MSGPACK_DEPTH_MAX);
    let value = T::deserialize(&mut deserializer).map_err(|error| MsgpackError::Malformed(excerpt(&error.to_string())))?;
    // The reader does not tell where it is; but no next value can begin where no byte is left, and only there.
    match IgnoredAny::deserialize(&mut deserializer) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(MsgpackError::Trailing),
    }
}

/// JSON or MessagePack: `{`, which begins a JSON object, is the number 123 in MessagePack and begins no map.
fn read_either<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    if payload.trim_ascii_start().first() == Some(&b'{') {
        serde_json::from_slice(payload).map_err(|error| excerpt(&error.to_string()))
    } else {
        read_named_map(payload).map_err(|error| error.to_string())
    }
}

/// The first characters of foreign text, fit for one line of a log.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(EXCERPT_CHARACTERS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// 1 to 64 of `A-Z a-z 0-9 _ -`: what is safe in a subject, a file name and a metric label.
pub fn is_camera_id(camera: &str) -> bool {
    camera.len() <= CAMERA_CHARACTERS_MAX && is_token(camera)
}

/// Whether `text` can stand between two dots of a subject, without wildcards or the broker's own `$`.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// The class with this index, where the bundle has it.
pub(crate) fn class_index(index: u64, classes: usize) -> Option<ClassIndex> {
    let is_known = usize::try_from(index).is_ok_and(|index| index < classes);
    u32::try_from(index).ok().filter(|_| is_known).map(ClassIndex)
}

/// # Panics
/// Never: a prediction holds only what both encodings can hold.
pub fn encode_prediction(prediction: &Prediction, format: Format) -> Vec<u8> {
    match format {
        Format::Msgpack => rmp_serde::to_vec_named(prediction).expect("a prediction fits MessagePack"),
        Format::Json => json(prediction),
    }
}

/// A prediction that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("not a prediction: {0}")]
pub struct PredictionError(String);

/// Reads a prediction in either encoding; its first byte tells which.
pub fn decode_prediction(payload: &[u8]) -> Result<Prediction, PredictionError> {
    read_either(payload).map_err(PredictionError)
}

/// Truth that came after its frame; for metrics only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMessage {
    pub frame_id: String,
    pub label: ClassIndex,
}

/// Why a label message is not used.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    #[error("the label message has {got} bytes; 1 to {limit} are accepted")]
    Size { got: usize, limit: usize },
    #[error("not {{frame_id, label}} in JSON or MessagePack: {0}")]
    Format(String),
    #[error("frame_id has {got} bytes; 1 to {limit} are accepted")]
    FrameId { got: usize, limit: usize },
    #[error("label {got}; the bundle has {classes} classes, counted from 0")]
    Label { got: u64, classes: usize },
}

impl LabelError {
    pub const ALL_REASONS: [&'static str; 4] = ["size", "format", "frame_id", "label"];

    /// Value of the metric label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Size { .. } => "size",
            Self::Format(_) => "format",
            Self::FrameId { .. } => "frame_id",
            Self::Label { .. } => "label",
        }
    }
}

/// Reads `{frame_id, label}`, as JSON or as MessagePack.
pub fn parse_label(payload: &[u8], classes: usize) -> Result<LabelMessage, LabelError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Raw {
        frame_id: String,
        label: u64,
    }
    if payload.is_empty() || payload.len() > SMALL_PAYLOAD_BYTES_MAX {
        return Err(LabelError::Size { got: payload.len(), limit: SMALL_PAYLOAD_BYTES_MAX });
    }
    let Raw { frame_id, label } = read_either(payload).map_err(LabelError::Format)?;
    if frame_id.is_empty() || frame_id.len() > FRAME_ID_BYTES_MAX {
        return Err(LabelError::FrameId { got: frame_id.len(), limit: FRAME_ID_BYTES_MAX });
    }
    let label = class_index(label, classes).ok_or(LabelError::Label { got: label, classes })?;
    Ok(LabelMessage { frame_id, label })
}

pub const TIME_ACCEPTED: &str = "RFC 3339 or a count of nanoseconds since 1970, up to the year 2262";

/// Nanoseconds since 1970; none for a time before.
pub fn time_ns(value: &str) -> Option<i64> {
    let is_count = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let nanoseconds = match is_count {
        true => value.parse().ok(),
        false => value.parse::<jiff::Timestamp>().ok().and_then(|time| i64::try_from(time.as_nanosecond()).ok()),
    };
    nanoseconds.filter(|&nanoseconds| nanoseconds >= 0)
}

/// The record of a message that gave no frame: why, and its first headers, shortened; never its payload.
pub fn encode_rejected(message: &Message<'_>, reject: &Reject) -> Vec<u8> {
    #[derive(Serialize)]
    struct Rejected {
        v: u32,
        reason: &'static str,
        error: String,
        camera: String,
        sequence: FrameSeq,
        payload_bytes: usize,
        headers: Vec<(String, String)>,
        broker_time_ns: Option<i64>,
    }
    let headers = message.headers.iter().take(RECORDED_HEADERS_MAX);
    json(&Rejected {
        v: RECORD_VERSION,
        reason: reject.reason(),
        error: reject.to_string(),
        camera: excerpt(message.subject_camera),
        sequence: message.sequence,
        payload_bytes: message.payload.len(),
        headers: headers.map(|(name, value)| (excerpt(name), excerpt(value))).collect(),
        broker_time_ns: message.broker_time_ns,
    })
}

/// Where a frame that waits is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// The broker has it and does not deliver it.
    Stream,
    /// The device thread works on it.
    Device,
    /// It needs a window that the adapter works on.
    Adapter,
    /// The broker does not take the answers before it.
    Publisher,
}

impl Lane {
    /// As in the record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Device => "device",
            Self::Adapter => "adapter",
            Self::Publisher => "publisher",
        }
    }
}

/// Something that a person may want to look at: the record on `<prefix>.events.<kind>`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventRecord {
    Drift {
        state: DriftState,
        score: f64,
    },
    Collapse {
        is_collapsed: bool,
        diversity: f64,
    },
    Checkpoint {
        generation: u64,
        weights_version: WeightsVersion,
        bytes: u64,
    },
    /// The frames' stream is another than the checkpoint's: read from its beginning, the weights kept.
    NewStream {
        incarnation: String,
    },
    /// The frames' stream lost its end: read from what is left, the weights kept.
    StreamTruncated {
        incarnation: String,
    },
    /// The frames' stream holds other frames under numbers that were applied: read from the first new one, the weights kept.
    StreamRewritten {
        incarnation: String,
    },
    /// The stream does not hold so many frames after `sequence`.
    Gap {
        missing: u64,
    },
    /// Frames wait, and none was finished for longer than is put up with.
    Stall {
        lane: Lane,
    },
    /// A prediction made again after a restart is not the one that was stored.
    ReplayMismatch {
        frame: FrameSeq,
    },
    Adapt {
        enabled: bool,
    },
    /// What was learned did harm on the canary: it was taken back, and nothing is learned until adaptation is switched on again.
    Freeze {
        weights_version: WeightsVersion,
    },
    Reset {},
    RollBack {
        weights_version: WeightsVersion,
    },
}

impl EventRecord {
    /// Last token of the subject, as in the record.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Drift { .. } => "drift",
            Self::Collapse { .. } => "collapse",
            Self::Checkpoint { .. } => "checkpoint",
            Self::NewStream { .. } => "new_stream",
            Self::StreamTruncated { .. } => "stream_truncated",
            Self::StreamRewritten { .. } => "stream_rewritten",
            Self::Gap { .. } => "gap",
            Self::Stall { .. } => "stall",
            Self::ReplayMismatch { .. } => "replay_mismatch",
            Self::Adapt { .. } => "adapt",
            Self::Freeze { .. } => "freeze",
            Self::Reset {} => "reset",
            Self::RollBack { .. } => "roll_back",
        }
    }
}

/// The record as JSON; `sequence` is the last frame that was applied before it.
pub fn encode_event(event: &EventRecord, sequence: FrameSeq) -> Vec<u8> {
    #[derive(Serialize)]
    struct Record<'a> {
        v: u32,
        sequence: FrameSeq,
        #[serde(flatten)]
        event: &'a EventRecord,
    }
    json(&Record { v: RECORD_VERSION, sequence, event })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records have text keys and no foreign types, so that JSON can hold them")
}

pub(crate) const PREFIX_ACCEPTED: &str = "accepted are tokens of A-Z a-z 0-9 _ - with dots between, up to 128 characters";

/// A prefix that is not one.
#[derive(Debug, thiserror::Error)]
#[error("prefix {prefix:?}; {PREFIX_ACCEPTED}")]
pub struct PrefixError {
    prefix: String,
}

/// The subjects under a prefix.
#[derive(Clone, Debug)]
pub struct Subjects {
    prefix: String,
}

impl Subjects {
    /// # Errors
    /// For a prefix that is not a subject, or that could match more than one.
    pub fn new(prefix: &str) -> Result<Self, PrefixError> {
        if prefix.len() > PREFIX_CHARACTERS_MAX || !prefix.split('.').all(is_token) {
            return Err(PrefixError { prefix: excerpt(prefix) });
        }
        Ok(Self { prefix: prefix.to_owned() })
    }

    /// Every camera's frames, for a subscription or a stream.
    pub fn all_frames(&self) -> String {
        self.subject("frames", "*")
    }

    pub fn frames(&self, camera: &str) -> String {
        self.subject("frames", camera)
    }

    pub fn all_predictions(&self) -> String {
        self.subject("predictions", "*")
    }

    pub fn predictions(&self, camera: &str) -> String {
        self.subject("predictions", camera)
    }

    pub fn all_labels(&self) -> String {
        self.subject("labels", "*")
    }

    pub fn labels(&self, camera: &str) -> String {
        self.subject("labels", camera)
    }

    pub fn control(&self, verb: &str) -> String {
        self.subject("control", verb)
    }

    /// A camera that cannot be a token goes to `<prefix>.rejected.invalid`.
    pub fn rejected(&self, camera: &str) -> String {
        self.subject("rejected", if is_camera_id(camera) { camera } else { "invalid" })
    }

    pub fn events(&self, event: &EventRecord) -> String {
        self.subject("events", event.kind())
    }

    fn subject(&self, function: &str, token: &str) -> String {
        format!("{}.{function}.{token}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prediction::{PREDICTION_VERSION, RankedClass, StageLatency};
    use serde_json::{Value, json};

    fn prediction() -> Prediction {
        Prediction {
            v: PREDICTION_VERSION,
            frame_id: "cam-1:7".to_owned(),
            camera: "cam-1".to_owned(),
            sequence: FrameSeq(7),
            capture_time_ns: Some(1_700_000_000_000_000_001),
            broker_time_ns: None,
            label: ClassIndex(2),
            label_name: "coat".to_owned(),
            confidence: 0.75,
            top_k: vec![RankedClass { label: ClassIndex(2), label_name: "coat".to_owned(), probability: 0.75 }],
            entropy: 0.5,
            weights_version: WeightsVersion(3),
            source_label: ClassIndex(4),
            adapted: true,
            judged: true,
            latency: StageLatency { queue_ms: 0.1, decode_ms: 0.2, predict_ms: 0.3 },
            input_chain: [0; 32],
        }
    }

    fn value(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).expect("JSON")
    }

    #[test]
    fn a_prediction_reads_back_from_both_encodings() {
        for format in [Format::Msgpack, Format::Json] {
            let bytes = encode_prediction(&prediction(), format);
            assert_eq!(decode_prediction(&bytes).expect("readable"), prediction(), "{format:?}");
        }
        let json = value(&encode_prediction(&prediction(), Format::Json));
        assert_eq!((&json["label"], &json["weights_version"], &json["sequence"]), (&json!(2), &json!(3), &json!(7)));
        assert_eq!(encode_prediction(&prediction(), Format::Msgpack)[0], 0xde, "a map of 16 bits of length");
    }

    #[test]
    fn a_label_reads_from_json_and_from_messagepack() {
        let expected = LabelMessage { frame_id: "cam-1:7".to_owned(), label: ClassIndex(9) };
        let msgpack = rmp_serde::to_vec_named(&json!({ "frame_id": "cam-1:7", "label": 9 })).expect("a map");
        for payload in [br#" {"frame_id": "cam-1:7", "label": 9} "#.as_slice(), &msgpack] {
            assert_eq!(parse_label(payload, 10).expect("a label"), expected);
        }
    }

    #[test]
    fn a_rejected_record_is_bounded_whatever_was_sent() {
        let headers = vec![("N".repeat(1000), "V\n".repeat(10_000)); 60];
        let camera = "c".repeat(1000);
        let message = Message { subject_camera: &camera, headers: &headers, payload: &[1; 9], sequence: FrameSeq(5), broker_time_ns: None };
        let bytes = encode_rejected(&message, &Reject::Empty);
        assert!(bytes.len() < 8192, "{} bytes", bytes.len());
        let record = value(&bytes);
        assert_eq!((&record["reason"], &record["sequence"], &record["payload_bytes"]), (&json!("empty"), &json!(5), &json!(9)));
    }

    #[test]
    fn an_event_carries_the_kind_of_its_subject() {
        let events = [
            EventRecord::Drift { state: DriftState::Warning, score: 3.5 },
            EventRecord::Collapse { is_collapsed: true, diversity: 0.2 },
            EventRecord::Checkpoint { generation: 1, weights_version: WeightsVersion(2), bytes: 3 },
            EventRecord::NewStream { incarnation: "a@1".to_owned() },
            EventRecord::StreamTruncated { incarnation: "a@1+7".to_owned() },
            EventRecord::Stall { lane: Lane::Publisher },
            EventRecord::Adapt { enabled: false },
            EventRecord::Reset {},
            EventRecord::RollBack { weights_version: WeightsVersion(2) },
        ];
        let subjects = Subjects::new("undrift.v1").expect("a prefix");
        for event in events {
            let record = value(&encode_event(&event, FrameSeq(8)));
            assert_eq!((&record["kind"], &record["sequence"]), (&json!(event.kind()), &json!(8)));
            assert_eq!(subjects.events(&event), format!("undrift.v1.events.{}", event.kind()));
        }
    }

    #[test]
    fn a_camera_that_cannot_be_a_token_is_rejected_as_invalid() {
        let subjects = Subjects::new("undrift.v1").expect("a prefix");
        assert_eq!(subjects.rejected("cam-1"), "undrift.v1.rejected.cam-1");
        assert_eq!(subjects.rejected("a b"), "undrift.v1.rejected.invalid");
    }

    #[test]
    fn a_prefix_is_tokens_with_dots_between() {
        for prefix in ["undrift.v1", "a", "a-b_C.9"] {
            assert!(Subjects::new(prefix).is_ok(), "{prefix:?}");
        }
        let long = "p".repeat(129);
        for prefix in ["", ".", "a.", ".a", "a..b", "a.*", "a.>", "$SYS", "a b", "a\tb", "é", &long] {
            assert!(Subjects::new(prefix).is_err(), "{prefix:?}");
        }
    }
}
