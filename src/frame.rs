//! A frame: one image of one camera, with what is known about it.
//!
//! First station of the path: ingest makes a [`Frame`] out of a message, [`crate::decode`] fills its [`Image`].
//! Invariant: an [`Image`] holds exactly `channels * height * width` bytes.
//! Absent on purpose: time of arrival. The core has no clock; stages are timed by the shell.

use serde::{Deserialize, Serialize};

/// Position in the stream: the JetStream sequence, or a count of received frames in core mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FrameSeq(pub u64);

/// Count of changes that the weights have gone through since the source weights (version 0). Never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WeightsVersion(pub u64);

/// Index of a class, in the order of the bundle's labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClassIndex(pub u32);

impl ClassIndex {
    /// The index as an array index; a `u32` always fits a `usize` on the supported targets.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Decoded pixels, 8 bit, row by row, channels interleaved: (H, W, C).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredImage")]
pub struct Image {
    channels: usize,
    height: usize,
    width: usize,
    #[serde(with = "serde_bytes")]
    pixels: Vec<u8>,
}

/// An image as it is read, before it is believed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredImage {
    channels: usize,
    height: usize,
    width: usize,
    #[serde(with = "serde_bytes")]
    pixels: Vec<u8>,
}

impl TryFrom<StoredImage> for Image {
    type Error = String;

    fn try_from(stored: StoredImage) -> Result<Self, String> {
        let StoredImage { channels, height, width, pixels } = stored;
        let elements = channels.checked_mul(height).and_then(|elements| elements.checked_mul(width));
        match elements == Some(pixels.len()) {
            true => Ok(Self { channels, height, width, pixels }),
            false => Err(format!("{} bytes are no image of {channels} x {height} x {width}", pixels.len())),
        }
    }
}

impl Image {
    /// An image of `channels` (1 grey, 3 RGB) x `height` x `width`.
    ///
    /// # Panics
    /// When `pixels` has another length than the shape says: callers check it at the border.
    pub fn new(channels: usize, height: usize, width: usize, pixels: Vec<u8>) -> Self {
        assert_eq!(pixels.len(), channels * height * width, "pixel count of a {channels} x {height} x {width} image");
        Self { channels, height, width, pixels }
    }

    pub fn channels(&self) -> usize {
        self.channels
    }

    pub fn height(&self) -> usize {
        self.height
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// (H, W, C), 0..=255.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The pixels as planes (C, H, W): see [`Self::write_planes`].
    pub fn planes(&self) -> Vec<f32> {
        let mut planes = vec![0f32; self.pixels.len()];
        self.write_planes(&mut planes);
        planes
    }

    /// Writes the pixels as planes (C, H, W), scaled from 0..=255 to -1..=1: the `x_start` of the diffusion model and
    /// the input of the classifier.
    ///
    /// # Panics
    /// When `planes` is not `channels * height * width` long.
    pub fn write_planes(&self, planes: &mut [f32]) {
        assert_eq!(planes.len(), self.pixels.len(), "length of the planes");
        let area = self.height * self.width;
        for (position, pixel) in self.pixels.chunks_exact(self.channels).enumerate() {
            for (channel, &value) in pixel.iter().enumerate() {
                planes[channel * area + position] = f32::from(value) / 127.5 - 1.0;
            }
        }
    }

    /// BLAKE3 of shape and pixels: what the noise of this frame is bound to.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for dimension in [self.channels, self.height, self.width] {
            hasher.update(&(dimension as u64).to_le_bytes());
        }
        hasher.update(&self.pixels);
        *hasher.finalize().as_bytes()
    }
}

/// What tells a frame of the stream from another that was given its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrameMark {
    /// BLAKE3 of the payload as it came.
    pub payload_hash: [u8; 32],
    /// Nanoseconds since 1970, by the broker's clock; JetStream only.
    pub broker_time_ns: Option<i64>,
}

/// One image of one camera, decoded and brought to the bundle's shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frame {
    /// Last token of the subject, or of the envelope; 1 to 64 characters of `[A-Za-z0-9_-]`.
    pub camera: String,
    /// From the header or envelope, else `<camera>:<sequence>`.
    pub frame_id: String,
    /// Position in the stream; strictly increasing.
    pub sequence: FrameSeq,
    /// When the camera took it, nanoseconds since 1970 (UTC); by the camera's own clock.
    pub capture_time_ns: Option<i64>,
    /// When the broker stored it, nanoseconds since 1970 (UTC); JetStream only.
    pub broker_time_ns: Option<i64>,
    /// Truth that travelled with the frame: for metrics only, never for adaptation.
    pub label: Option<ClassIndex>,
    /// Name of the scenario, for evaluation only.
    pub domain: Option<String>,
    /// BLAKE3 of the payload as it came.
    pub payload_hash: [u8; 32],
    pub image: Image,
}

impl Frame {
    pub fn mark(&self) -> FrameMark {
        FrameMark { payload_hash: self.payload_hash, broker_time_ns: self.broker_time_ns }
    }
}
