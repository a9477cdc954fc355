//! What is known about a frame besides its pixels: the optional headers, and the rules that the envelope's fields share with them.

use super::{Codec, FieldError, Reject};
use crate::frame::ClassIndex;
use crate::wire::{self, excerpt};

const HEADERS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 16 * 1024;
const FRAME_ID_CHARACTERS_MAX: usize = 128;
const DOMAIN_CHARACTERS_MAX: usize = 64;

const FRAME_ID_ACCEPTED: &str = "1 to 128 printable ASCII characters";
const DOMAIN_ACCEPTED: &str = "1 to 64 printable ASCII characters";
const LABEL_ACCEPTED: &str = "the index of a class, in digits";
const CONTENT_TYPE_ACCEPTED: &str = "image/jpeg, image/png, application/octet-stream or application/msgpack";

/// What the sender says that the payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Envelope,
    Picture(Codec),
    /// A picture; its first bytes tell which.
    Undeclared,
}

/// What may travel with a frame; see [`crate::frame::Frame`].
#[derive(Clone, Debug, Default)]
pub(super) struct Metadata {
    pub frame_id: Option<String>,
    pub capture_time_ns: Option<i64>,
    pub label: Option<ClassIndex>,
    pub domain: Option<String>,
}

impl Metadata {
    /// What `self` says, and else what `other` says.
    pub fn or(self, other: Self) -> Self {
        Self {
            frame_id: self.frame_id.or(other.frame_id),
            capture_time_ns: self.capture_time_ns.or(other.capture_time_ns),
            label: self.label.or(other.label),
            domain: self.domain.or(other.domain),
        }
    }
}

/// Reads the known headers, and leaves the others alone.
///
/// # Errors
/// For headers of more than 64 or 16 KiB, and for a known one that is malformed or there twice: a camera that
/// sends a label or a time wants it used.
pub(super) fn read_headers(headers: &[(String, String)], classes: usize) -> Result<(Content, Metadata), Reject> {
    let (count, bytes) = (headers.len(), headers.iter().map(|(name, value)| name.len() + value.len()).sum());
    if count > HEADERS_MAX || bytes > HEADER_BYTES_MAX {
        return Err(Reject::HeaderSize { count, bytes, count_max: HEADERS_MAX, bytes_max: HEADER_BYTES_MAX });
    }
    let content = find(headers, "Content-Type")?.map(content).transpose().map_err(Reject::Header)?;
    let metadata = Metadata {
        frame_id: find(headers, "Frame-Id")?.map(|value| frame_id("Frame-Id", value)).transpose().map_err(Reject::Header)?,
        capture_time_ns: find(headers, "Capture-Time")?.map(capture_time).transpose().map_err(Reject::Header)?,
        label: find(headers, "Label")?.map(|value| label_header(value, classes)).transpose()?,
        domain: find(headers, "Domain")?.map(|value| domain("Domain", value)).transpose().map_err(Reject::Header)?,
    };
    Ok((content.unwrap_or(Content::Undeclared), metadata))
}

fn find<'a>(headers: &'a [(String, String)], name: &'static str) -> Result<Option<&'a str>, Reject> {
    let mut values = headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim());
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Reject::HeaderTwice { name }),
        (value, None) => Ok(value),
    }
}

/// The media type; its parameters do not matter.
fn content(value: &str) -> Result<Content, FieldError> {
    match value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack" => Ok(Content::Envelope),
        "image/jpeg" | "image/jpg" => Ok(Content::Picture(Codec::Jpeg)),
        "image/png" => Ok(Content::Picture(Codec::Png)),
        "application/octet-stream" => Ok(Content::Undeclared),
        _ => Err(FieldError { name: "Content-Type", value: excerpt(value), accepted: CONTENT_TYPE_ACCEPTED }),
    }
}

pub(super) fn frame_id(name: &'static str, value: &str) -> Result<String, FieldError> {
    printable(value, FRAME_ID_CHARACTERS_MAX).ok_or_else(|| FieldError { name, value: excerpt(value), accepted: FRAME_ID_ACCEPTED })
}

pub(super) fn domain(name: &'static str, value: &str) -> Result<String, FieldError> {
    printable(value, DOMAIN_CHARACTERS_MAX).ok_or_else(|| FieldError { name, value: excerpt(value), accepted: DOMAIN_ACCEPTED })
}

fn printable(value: &str, characters_max: usize) -> Option<String> {
    let is_printable = value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    ((1..=characters_max).contains(&value.len()) && is_printable).then(|| value.to_owned())
}

/// Nanoseconds since 1970. Times before are refused: no camera took a frame then.
fn capture_time(value: &str) -> Result<i64, FieldError> {
    wire::time_ns(value).ok_or_else(|| FieldError { name: "Capture-Time", value: excerpt(value), accepted: wire::TIME_ACCEPTED })
}

fn label_header(value: &str, classes: usize) -> Result<ClassIndex, Reject> {
    let index = is_digits(value).then(|| value.parse().ok()).flatten();
    let error = || Reject::Header(FieldError { name: "Label", value: excerpt(value), accepted: LABEL_ACCEPTED });
    label(index.ok_or_else(error)?, classes)
}

/// # Errors
/// `Label` where the bundle has no such class.
pub(super) fn label(index: u64, classes: usize) -> Result<ClassIndex, Reject> {
    crate::wire::class_index(index, classes).ok_or(Reject::Label { got: index, classes })
}

/// Rust's own integers accept a sign.
fn is_digits(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit())
}
