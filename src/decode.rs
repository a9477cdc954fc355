//! From the bytes of a message to a [`Frame`], or a reason why not.
//!
//! Second station of the path: ingest hands over a [`Message`], the pipeline gets a frame whose image has the bundle's shape.
//! Every byte here comes from outside. What is not fully understood is refused with a [`Reject`] that names the field, what came
//! and what is accepted; nothing is guessed, and no picture is used in part.
//! Invariants: sizes are checked before memory is taken; the same bytes give the same frame or the same reason, whatever came before.
//! Absent on purpose: clocks, logs and counters, which the shell has; EXIF, so that a picture is taken as it is stored, not
//! turned by its orientation tag.

mod envelope;
mod fit;
mod metadata;
mod picture;

use crate::frame::{Frame, FrameSeq, Image};
use crate::model::ImageShape;
use crate::wire::{MsgpackError, excerpt, is_camera_id};
use metadata::{Content, Metadata};

/// What a message may ask of the decoder; checked before any memory is taken for it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub payload_bytes_max: usize,
    /// Height times width, before the image is brought to the bundle's shape.
    pub pixels_max: usize,
    /// Of the height, and of the width.
    pub dimension_max: usize,
}

/// One message on `<prefix>.frames.<camera>`, as it came.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Last token of the subject.
    pub subject_camera: &'a str,
    /// Names are read case-insensitively; those that are not known here are left alone.
    pub headers: &'a [(String, String)],
    pub payload: &'a [u8],
    pub sequence: FrameSeq,
    /// Nanoseconds since 1970, by the broker's clock; JetStream only.
    pub broker_time_ns: Option<i64>,
}

/// How a picture is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Jpeg,
    Png,
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
        })
    }
}

/// A field whose value is not one of those accepted.
#[derive(Debug, thiserror::Error)]
#[error("{name} is {value:?}; accepted is {accepted}")]
pub struct FieldError {
    pub name: &'static str,
    /// The first characters of what came.
    pub value: String,
    pub accepted: &'static str,
}

/// Why a message gives no frame. The fault is the sender's; the daemon counts it and goes on.
#[derive(Debug, thiserror::Error)]
pub enum Reject {
    /// Given by the daemon, not by the decoder.
    #[error("the process ended each time this frame was worked on; it is passed over")]
    Deadly,
    #[error("the payload is empty; a JPEG, a PNG or a MessagePack envelope is accepted")]
    Empty,
    #[error("the payload has {got} bytes; up to {limit} are accepted")]
    TooLarge { got: usize, limit: usize },
    #[error("the payload begins with {found}; a JPEG or PNG is accepted, and an envelope under Content-Type application/msgpack")]
    Format { found: String },
    #[error("{codec} of the kind {found:?}; baseline and progressive JPEG and still PNG are accepted")]
    Kind { codec: Codec, found: &'static str },
    #[error("declared as {declared:?}, and the bytes are {found}; they must agree")]
    Declared { declared: String, found: Codec },
    #[error("the {codec} ends early, after {got} bytes; no part of a picture is used")]
    Truncated { codec: Codec, got: usize },
    #[error("{got} bytes follow the end of the {codec}; only zeros may")]
    Trailing { codec: Codec, got: usize },
    #[error("height {height} and width {width}; from 1 to {dimension_max} each and {pixels_max} pixels in all are accepted")]
    Dimensions { height: usize, width: usize, dimension_max: usize, pixels_max: usize },
    #[error("the {codec} has {found}; grey and RGB without transparency are accepted")]
    Channels { codec: Codec, found: &'static str },
    #[error("the {codec} has {got} bits a channel; 8 are accepted")]
    BitDepth { codec: Codec, got: u8 },
    #[error("the JPEG has more than {limit} scans")]
    Scans { limit: usize },
    #[error("the {codec} is damaged: {error}")]
    Corrupt { codec: Codec, error: String },
    #[error("the decoder of {codec} failed on this picture")]
    Decoder { codec: Codec },
    #[error("the envelope is not readable: {0}")]
    Msgpack(#[from] MsgpackError),
    #[error("in the envelope, {0}")]
    Envelope(FieldError),
    #[error("{encoding} of {height} x {width} has {got} bytes; it takes {expected}")]
    Length { encoding: &'static str, height: usize, width: usize, got: usize, expected: usize },
    #[error("value {index} of the image is {value}; finite numbers are accepted")]
    NotFinite { index: usize, value: f32 },
    #[error("value {index} of the image is {value}; 0 to 1 is accepted")]
    Range { index: usize, value: f32 },
    #[error("header {0}")]
    Header(FieldError),
    #[error("header {name} is there twice")]
    HeaderTwice { name: &'static str },
    #[error("{count} headers of {bytes} bytes in all; up to {count_max} of {bytes_max} are accepted")]
    HeaderSize { count: usize, bytes: usize, count_max: usize, bytes_max: usize },
    #[error("camera {camera:?}; 1 to 64 of A-Z a-z 0-9 _ - are accepted")]
    Camera { camera: String },
    #[error("the envelope names camera {envelope:?} and the subject {subject:?}; they must agree")]
    CameraDiffers { envelope: String, subject: String },
    #[error("label {got}; the bundle has {classes} classes, counted from 0")]
    Label { got: u64, classes: usize },
}

impl Reject {
    /// Every value that [`Reject::reason`] can take, so that the counters can start at zero.
    pub const ALL_REASONS: [&'static str; 19] = [
        "empty",
        "too_large",
        "format",
        "content_type",
        "truncated",
        "trailing",
        "dimensions",
        "channels",
        "bit_depth",
        "corrupt",
        "decoder",
        "envelope",
        "length",
        "not_finite",
        "range",
        "header",
        "camera",
        "label",
        "deadly",
    ];

    /// Value of the metric label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Deadly => "deadly",
            Self::Empty => "empty",
            Self::TooLarge { .. } => "too_large",
            Self::Format { .. } | Self::Kind { .. } => "format",
            Self::Declared { .. } => "content_type",
            Self::Truncated { .. } => "truncated",
            Self::Trailing { .. } => "trailing",
            Self::Dimensions { .. } => "dimensions",
            Self::Channels { .. } => "channels",
            Self::BitDepth { .. } => "bit_depth",
            Self::Scans { .. } | Self::Corrupt { .. } => "corrupt",
            Self::Decoder { .. } => "decoder",
            Self::Msgpack(_) | Self::Envelope(_) => "envelope",
            Self::Length { .. } => "length",
            Self::NotFinite { .. } => "not_finite",
            Self::Range { .. } => "range",
            Self::Header(_) | Self::HeaderTwice { .. } | Self::HeaderSize { .. } => "header",
            Self::Camera { .. } | Self::CameraDiffers { .. } => "camera",
            Self::Label { .. } => "label",
        }
    }
}

impl Limits {
    /// The number of pixels of `height` x `width`, where it is within the limits.
    fn pixels(&self, height: usize, width: usize) -> Result<usize, Reject> {
        let is_side = |side: usize| (1..=self.dimension_max).contains(&side);
        let pixels = height.checked_mul(width).filter(|&pixels| is_side(height) && is_side(width) && pixels <= self.pixels_max);
        let Self { pixels_max, dimension_max, .. } = *self;
        pixels.ok_or(Reject::Dimensions { height, width, dimension_max, pixels_max })
    }
}

/// The frame of a message, its image brought to `shape` (see [`crate::decode`] for what is accepted).
///
/// Grey becomes RGB by repeating it, and RGB grey by the luma of Rec. 601. An image of the shape's size is used as it is; one that
/// is up to 8 pixels smaller in each dimension is centred in zeros, as in training; any other is resized to the shape, aspect
/// ratio not kept, with a triangle filter.
/// Where header and envelope say the same thing, the envelope goes first.
///
/// # Errors
/// [`Reject`], always for a fault of the message.
///
/// # Panics
/// When `shape` has other than 1 or 3 channels: the configuration is checked for that.
pub fn decode(message: &Message<'_>, limits: &Limits, shape: ImageShape, classes: usize) -> Result<Frame, Reject> {
    let camera = message.subject_camera;
    if !is_camera_id(camera) {
        return Err(Reject::Camera { camera: excerpt(camera) });
    }
    let (content, headers) = metadata::read_headers(message.headers, classes)?;
    let (image, metadata) = decode_payload(message, content, limits, classes)?;
    let metadata = metadata.or(headers);
    Ok(Frame {
        camera: camera.to_owned(),
        frame_id: metadata.frame_id.unwrap_or_else(|| format!("{camera}:{}", message.sequence.0)),
        sequence: message.sequence,
        capture_time_ns: metadata.capture_time_ns,
        broker_time_ns: message.broker_time_ns,
        label: metadata.label,
        domain: metadata.domain,
        payload_hash: *blake3::hash(message.payload).as_bytes(),
        image: fit::fit(image, shape),
    })
}

/// The image as it was sent, and what its envelope says.
fn decode_payload(message: &Message<'_>, content: Content, limits: &Limits, classes: usize) -> Result<(Image, Metadata), Reject> {
    let payload = message.payload;
    if payload.is_empty() {
        return Err(Reject::Empty);
    }
    if payload.len() > limits.payload_bytes_max {
        return Err(Reject::TooLarge { got: payload.len(), limit: limits.payload_bytes_max });
    }
    let declared = match content {
        Content::Envelope => return envelope::open(payload, message.subject_camera, limits, classes),
        Content::Picture(codec) => Some(codec),
        Content::Undeclared => None,
    };
    Ok((picture::decode_picture(payload, declared, limits)?, Metadata::default()))
}

#[cfg(test)]
mod tests;
