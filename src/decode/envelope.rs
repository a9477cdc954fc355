//! The MessagePack envelope: a named map that carries an image with its metadata.
//!
//! Keys that are not known are refused, not skipped: skipping walks values of any depth, and a misspelt `label` would be lost
//! without a word. New keys come with a new `v`.

use super::metadata::{self, Metadata};
use super::{FieldError, Limits, Reject, picture};
use crate::decode::Codec;
use crate::frame::Image;
use crate::wire::{excerpt, read_named_map};
use serde::Deserialize;

const ENVELOPE_VERSION: u32 = 1;
const ENCODINGS_ACCEPTED: &str = "jpeg, png, gray8, rgb8 or gray_f32 (little-endian, 0 to 1)";

/// As on the wire; every text and the image borrow from the payload.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    v: u32,
    /// Where it is there, it must be the subject's: permissions are given by subject, and an envelope must not go around them.
    camera: Option<&'a str>,
    frame_id: Option<&'a str>,
    capture_time_ns: Option<i64>,
    encoding: &'a str,
    /// Needed for `gray8`, `rgb8` and `gray_f32`; of a JPEG or PNG they must agree with the picture.
    height: Option<usize>,
    width: Option<usize>,
    #[serde(with = "serde_bytes")]
    image: &'a [u8],
    label: Option<u64>,
    domain: Option<&'a str>,
}

/// The image and the metadata of an envelope.
pub(super) fn open(payload: &[u8], subject_camera: &str, limits: &Limits, classes: usize) -> Result<(Image, Metadata), Reject> {
    let envelope: Envelope<'_> = read_named_map(payload)?;
    if envelope.v != ENVELOPE_VERSION {
        return Err(field_error("v", &envelope.v.to_string(), "1"));
    }
    if let Some(camera) = envelope.camera.filter(|&camera| camera != subject_camera) {
        return Err(Reject::CameraDiffers { envelope: excerpt(camera), subject: subject_camera.to_owned() });
    }
    if let Some(time) = envelope.capture_time_ns.filter(|&time| time < 0) {
        return Err(field_error("capture_time_ns", &time.to_string(), "a count of nanoseconds since 1970"));
    }
    let metadata = Metadata {
        frame_id: envelope.frame_id.map(|value| metadata::frame_id("frame_id", value)).transpose().map_err(Reject::Envelope)?,
        capture_time_ns: envelope.capture_time_ns,
        label: envelope.label.map(|index| metadata::label(index, classes)).transpose()?,
        domain: envelope.domain.map(|value| metadata::domain("domain", value)).transpose().map_err(Reject::Envelope)?,
    };
    Ok((image(&envelope, limits)?, metadata))
}

fn field_error(name: &'static str, value: &str, accepted: &'static str) -> Reject {
    Reject::Envelope(FieldError { name, value: excerpt(value), accepted })
}

fn image(envelope: &Envelope<'_>, limits: &Limits) -> Result<Image, Reject> {
    if envelope.image.is_empty() {
        return Err(Reject::Empty);
    }
    match envelope.encoding {
        "jpeg" => packed(envelope, Codec::Jpeg, limits),
        "png" => packed(envelope, Codec::Png, limits),
        "gray8" => Ok(raw(envelope, "gray8", (1, 1), limits)?.image(envelope.image.to_vec())),
        "rgb8" => Ok(raw(envelope, "rgb8", (3, 1), limits)?.image(envelope.image.to_vec())),
        "gray_f32" => {
            let raw = raw(envelope, "gray_f32", (1, 4), limits)?;
            Ok(raw.image(bytes_of_floats(envelope.image)?))
        }
        other => Err(field_error("encoding", other, ENCODINGS_ACCEPTED)),
    }
}

fn packed(envelope: &Envelope<'_>, codec: Codec, limits: &Limits) -> Result<Image, Reject> {
    let image = picture::decode_picture(envelope.image, Some(codec), limits)?;
    for (name, said, got) in [("height", envelope.height, image.height()), ("width", envelope.width, image.width())] {
        if let Some(said) = said.filter(|&said| said != got) {
            return Err(field_error(name, &said.to_string(), "what the picture has, or nothing"));
        }
    }
    Ok(image)
}

/// Checked shape of an unpacked image.
struct Raw {
    channels: usize,
    height: usize,
    width: usize,
}

impl Raw {
    fn image(self, pixels: Vec<u8>) -> Image {
        Image::new(self.channels, self.height, self.width, pixels)
    }
}

/// The shape of an unpacked image whose pixels have `channels` values of `bytes` each, where the image has the length for it.
fn raw(envelope: &Envelope<'_>, encoding: &'static str, (channels, bytes): (usize, usize), limits: &Limits) -> Result<Raw, Reject> {
    let side = |name, value: Option<usize>| value.ok_or_else(|| field_error(name, "missing", "needed for an unpacked image"));
    let (height, width) = (side("height", envelope.height)?, side("width", envelope.width)?);
    let pixels = limits.pixels(height, width)?;
    // Cannot overflow: `pixels` is within the limits of a configuration, far below a twelfth of the address space.
    let (expected, got) = (pixels.saturating_mul(channels * bytes), envelope.image.len());
    if got != expected {
        return Err(Reject::Length { encoding, height, width, got, expected });
    }
    Ok(Raw { channels, height, width })
}

fn bytes_of_floats(bytes: &[u8]) -> Result<Vec<u8>, Reject> {
    let (values, _) = bytes.as_chunks::<4>();
    let byte = |(index, value): (usize, &[u8; 4])| match f32::from_le_bytes(*value) {
        value if !value.is_finite() => Err(Reject::NotFinite { index, value }),
        value if !(0.0..=1.0).contains(&value) => Err(Reject::Range { index, value }),
        value => Ok(unit_to_byte(value)),
    };
    values.iter().enumerate().map(byte).collect()
}

/// 0..=1 to 0..=255, to the nearest.
fn unit_to_byte(value: f32) -> u8 {
    (value * 255.0).round() as u8
}
