//! Floating-point images and the filters that the corruptions share.
//!
//! The reference mixes numpy, scipy, scikit-image, OpenCV and Pillow, in `f32` and `f64`; here all is `f64`, so results differ from it
//! by rounding only. What differs between those libraries and matters is how they go on past the edge: see [`Border`].
//! Invariant: a [`Raster`] holds exactly `height * width * channels` values.

use crate::frame::Image;

/// Weights of red, green and blue in the luma (ITU-R BT.601), as in OpenCV and Pillow.
const LUMA: [f64; 3] = [0.299, 0.587, 0.114];

/// Keeps a value that is whole but for rounding from being truncated to the level below; in levels of 255.
const TRUNCATION_SLACK: f64 = 1e-4;

/// An image in floating point, (H, W, C); 0.0 is black and 1.0 full, and values outside are kept until [`Raster::to_image`].
#[derive(Clone, Debug, PartialEq)]
pub struct Raster {
    channels: usize,
    height: usize,
    width: usize,
    values: Vec<f64>,
}

/// How an image goes on past its edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// `aaa|abcd|ddd`: scikit-image's `gaussian`.
    Nearest,
    /// `cba|abcd|dcb`: called `reflect` by scipy.
    Symmetric,
    /// `dcb|abcd|cba`: `BORDER_REFLECT_101`, OpenCV's default.
    Reflect101,
}

/// A weight of a filter and where it looks, relative to the pixel that it computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tap {
    pub down: isize,
    pub right: isize,
    pub weight: f64,
}

impl Border {
    /// Index in `0..length` of the pixel that stands at `index`.
    fn fold(self, index: isize, length: usize) -> usize {
        let (length, last) = (signed(length), signed(length) - 1);
        let folded = match self {
            Self::Nearest => index.clamp(0, last),
            Self::Symmetric => {
                let phase = index.rem_euclid(2 * length);
                phase.min(2 * length - 1 - phase)
            }
            Self::Reflect101 => {
                let phase = index.rem_euclid((2 * last).max(1));
                phase.min(2 * last - phase)
            }
        };
        folded.unsigned_abs()
    }
}

impl From<&Image> for Raster {
    fn from(image: &Image) -> Self {
        let values = image.pixels().iter().map(|&byte| f64::from(byte) / 255.0).collect();
        Self { channels: image.channels(), height: image.height(), width: image.width(), values }
    }
}

impl Raster {
    /// Calls `value(y, x, channel)` for each value, row by row, so that `value` may draw random numbers.
    pub fn from_fn(channels: usize, height: usize, width: usize, mut value: impl FnMut(usize, usize, usize) -> f64) -> Self {
        let mut values = Vec::with_capacity(channels * height * width);
        for y in 0..height {
            for x in 0..width {
                values.extend((0..channels).map(|channel| value(y, x, channel)));
            }
        }
        Self { channels, height, width, values }
    }

    /// A grey raster of the size of `self`, filled as by [`Raster::from_fn`].
    pub fn layer(&self, mut value: impl FnMut() -> f64) -> Self {
        Self::from_fn(1, self.height, self.width, |_, _, _| value())
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

    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Pixel by pixel, each a slice of `channels` values.
    pub fn pixels_mut(&mut self) -> impl Iterator<Item = &mut [f64]> {
        self.values.chunks_exact_mut(self.channels)
    }

    pub fn at(&self, y: usize, x: usize, channel: usize) -> f64 {
        self.values[(y * self.width + x) * self.channels + channel]
    }

    /// The value at a place that may lie past the edge.
    pub fn beyond(&self, y: usize, x: usize, channel: usize, border: Border) -> f64 {
        self.at(border.fold(signed(y), self.height), border.fold(signed(x), self.width), channel)
    }

    pub fn set(&mut self, y: usize, x: usize, channel: usize, value: f64) {
        self.values[(y * self.width + x) * self.channels + channel] = value;
    }

    /// Each value by itself, row by row.
    pub fn map(&self, mut change: impl FnMut(f64) -> f64) -> Self {
        Self { values: self.values.iter().map(|&value| change(value)).collect(), ..*self }
    }

    /// Each value with the one at its place in `other`; a grey `other` serves all channels.
    pub fn zip(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        Self::from_fn(self.channels, self.height, self.width, |y, x, channel| {
            combine(self.at(y, x, channel), other.at(y, x, channel % other.channels))
        })
    }

    /// The largest value.
    pub fn max(&self) -> f64 {
        self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// One channel: the brightness that the eye sees.
    pub fn luma(&self) -> Self {
        if self.channels == 1 {
            return self.clone();
        }
        Self::from_fn(1, self.height, self.width, |y, x, _| (0..3).map(|channel| LUMA[channel] * self.at(y, x, channel)).sum())
    }

    /// Three channels, each equal to the grey one.
    pub fn to_rgb(&self) -> Self {
        Self::from_fn(3, self.height, self.width, |y, x, channel| self.at(y, x, channel % self.channels))
    }

    /// Weighted sum over the taps around each pixel.
    pub fn correlate(&self, taps: &[Tap], border: Border) -> Self {
        Self::from_fn(self.channels, self.height, self.width, |y, x, channel| {
            let term = |tap: &Tap| {
                let row = border.fold(signed(y) + tap.down, self.height);
                let column = border.fold(signed(x) + tap.right, self.width);
                tap.weight * self.at(row, column, channel)
            };
            taps.iter().map(term).sum()
        })
    }

    /// Gaussian filter as in scipy: cut off at `truncate` deviations, weights normalised. A tiny `sigma` is the identity.
    pub fn gaussian(&self, sigma: f64, truncate: f64, border: Border) -> Self {
        let radius = signed(floor(truncate * sigma + 0.5));
        let weights = normalised((-radius..=radius).map(|offset| bell(real(offset), sigma)));
        let vertical: Vec<_> = (-radius..).zip(&weights).map(|(down, &weight)| Tap { down, right: 0, weight }).collect();
        let horizontal: Vec<_> = (-radius..).zip(&weights).map(|(right, &weight)| Tap { down: 0, right, weight }).collect();
        self.correlate(&vertical, border).correlate(&horizontal, border)
    }

    /// Bilinear interpolation at a place between pixels.
    pub fn sample(&self, y: f64, x: f64, channel: usize, border: Border) -> f64 {
        let (row, column) = (y.floor(), x.floor());
        let (low, right) = (y - row, x - column);
        let corner = |down: f64, across: f64| {
            let (row, column) = (border.fold(round(row + down), self.height), border.fold(round(column + across), self.width));
            self.at(row, column, channel)
        };
        let top = corner(0.0, 0.0) * (1.0 - right) + corner(0.0, 1.0) * right;
        let bottom = corner(1.0, 0.0) * (1.0 - right) + corner(1.0, 1.0) * right;
        top * (1.0 - low) + bottom * low
    }

    /// Enlarges the middle by `factor` and keeps the size: `clipped_zoom` of the reference, `scipy.ndimage.zoom` of order 1.
    pub fn zoom(&self, factor: f64) -> Self {
        let rows = ZoomedAxis::new(self.height, factor);
        let columns = ZoomedAxis::new(self.width, factor);
        Self::from_fn(self.channels, self.height, self.width, |y, x, channel| {
            self.sample(rows.place(y), columns.place(x), channel, Border::Nearest)
        })
    }

    /// 8 bit: clipped to 0..=1, scaled to 0..=255 and truncated, as `numpy.uint8` does.
    pub fn to_image(&self) -> Image {
        let bytes = self.values.iter().map(|&value| byte(value.clamp(0.0, 1.0) * 255.0 + TRUNCATION_SLACK)).collect();
        Image::new(self.channels, self.height, self.width, bytes)
    }
}

/// Where the pixels of a zoomed axis come from.
struct ZoomedAxis {
    /// First index of the crop that is enlarged.
    crop_start: f64,
    /// Indices cut off before the first one kept.
    trimmed: f64,
    /// Pixels of the crop for one pixel of the enlargement.
    pitch: f64,
}

impl ZoomedAxis {
    fn new(length: usize, factor: f64) -> Self {
        let crop = (real(signed(length)) / factor).ceil();
        let enlarged = (crop * factor).round_ties_even();
        let crop_start = ((real(signed(length)) - crop) / 2.0).floor();
        let trimmed = ((enlarged - real(signed(length))) / 2.0).floor();
        Self { crop_start, trimmed, pitch: (crop - 1.0) / (enlarged - 1.0) }
    }

    fn place(&self, index: usize) -> f64 {
        self.crop_start + (real(signed(index)) + self.trimmed) * self.pitch
    }
}

/// The height of a Gaussian at `offset`, up to a factor.
pub(super) fn bell(offset: f64, sigma: f64) -> f64 {
    if offset == 0.0 { 1.0 } else { (-0.5 * (offset / sigma).powi(2)).exp() }
}

/// Weights scaled to the sum 1.
pub(super) fn normalised(weights: impl Iterator<Item = f64>) -> Vec<f64> {
    let weights: Vec<f64> = weights.collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// A pixel index or size as an offset; no image comes near the limit of `isize`.
pub(super) fn signed(index: usize) -> isize {
    index.cast_signed()
}

/// A small whole number in floating point, without loss below 2^53.
#[expect(clippy::cast_precision_loss, reason = "offsets within an image are far below 2^53")]
pub(super) fn real(offset: isize) -> f64 {
    offset as f64
}

/// The nearest offset; saturates.
#[expect(clippy::cast_possible_truncation, reason = "the value is rounded and of the order of an image's size")]
pub(super) fn round(value: f64) -> isize {
    value.round() as isize
}

/// The whole part of a value that is not negative.
pub(super) fn floor(value: f64) -> usize {
    round(value.floor()).unsigned_abs()
}

/// The whole part of a value in 0..=255.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "truncation is what numpy does; the value is in range")]
pub(super) fn byte(value: f64) -> u8 {
    value as u8
}
