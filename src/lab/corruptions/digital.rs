//! What processing does to an image: contrast, elastic deformation, pixelation, JPEG, saturation.
//!
//! Source of all: `make_cifar_c.py`, the function of the same name.

use crate::frame::Image;
use crate::lab::corruptions::raster::{Border, Raster, byte, floor, real, signed};
use crate::lab::corruptions::tables::{Elastic, Saturate};
use image::ImageFormat;
use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder, SamplingFactor};
use std::ops::Range;

/// Where scipy cuts off the Gaussian that smooths an elastic displacement, in deviations.
const ELASTIC_TRUNCATE: f64 = 3.0;

/// (x - mean) factor + mean, with the mean of each channel.
pub fn contrast(clean: &Raster, factor: f64) -> Raster {
    let area = real(signed(clean.height() * clean.width()));
    let mut pulled = clean.clone();
    for channel in 0..clean.channels() {
        let mean = clean.values().iter().skip(channel).step_by(clean.channels()).sum::<f64>() / area;
        pulled.pixels_mut().for_each(|pixel| pixel[channel] = (pixel[channel] - mean) * factor + mean);
    }
    pulled
}

/// The random input of [`elastic_transform`].
#[derive(Clone, Debug)]
pub struct ElasticDraws {
    /// Shifts (x, y) of the three points that fix the affine map, uniform in -1..1, to be scaled by `affine`.
    pub shifts: [[f64; 2]; 3],
    /// Displacement along x, uniform in -1..1, not yet smoothed.
    pub across: Raster,
    /// Displacement along y, uniform in -1..1, not yet smoothed.
    pub down: Raster,
}

/// A random affine map, then a random smooth displacement; both look up bilinearly.
///
/// OpenCV computes the places of its affine map in steps of 1/32 pixel in some versions; this has no such steps.
pub fn elastic_transform(clean: &Raster, Elastic { alpha, sigma, affine }: Elastic, draws: &ElasticDraws) -> Raster {
    let smooth = |noise: &Raster| noise.gaussian(sigma, ELASTIC_TRUNCATE, Border::Symmetric).map(|value| value * alpha);
    let (across, down) = (smooth(&draws.across), smooth(&draws.down));
    let source = inverse_affine(clean, draws.shifts.map(|shift| shift.map(|part| part * affine)));
    let warped = Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let [from_x, from_y] = source([real(signed(x)), real(signed(y))]);
        clean.sample(from_y, from_x, channel, Border::Reflect101)
    });
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let (from_y, from_x) = (real(signed(y)) + down.at(y, x, 0), real(signed(x)) + across.at(y, x, 0));
        warped.sample(from_y, from_x, channel, Border::Symmetric)
    })
}

/// The map from a place (x, y) of the result to its place in the image, when three points around the centre move by `shifts`.
///
/// With the moved points as p + s, each place is written as p0 + s0 + u e1 + v e2 in their edges e; the source has the same u and v in the
/// edges of p.
fn inverse_affine(clean: &Raster, shifts: [[f64; 2]; 3]) -> impl Fn([f64; 2]) -> [f64; 2] {
    let half = |length: usize| real(signed(length / 2));
    let (x, y) = (half(clean.width()), half(clean.height()));
    let arm = real(signed(clean.height().min(clean.width()) / 3));
    let points = [[x + arm, y + arm], [x + arm, y - arm], [x - arm, y - arm]];
    let moved = |corner: usize| [points[corner][0] + shifts[corner][0], points[corner][1] + shifts[corner][1]];
    let minus = |[ax, ay]: [f64; 2], [bx, by]: [f64; 2]| [ax - bx, ay - by];
    let cross = |[ax, ay]: [f64; 2], [bx, by]: [f64; 2]| ax * by - ay * bx;
    let origin = moved(0);
    let (first, second) = (minus(moved(1), origin), minus(moved(2), origin));
    let (first_source, second_source) = (minus(points[1], points[0]), minus(points[2], points[0]));
    move |place| {
        let reach = minus(place, origin);
        let (u, v) = (cross(reach, second) / cross(first, second), cross(first, reach) / cross(first, second));
        [0, 1].map(|axis| points[0][axis] + u * first_source[axis] + v * second_source[axis])
    }
}

/// Shrinks both sides to `share` of their length with a box filter, and enlarges again.
pub fn pixelate(clean: &Image, share: f64) -> Image {
    let shrunk = |length: usize| floor(real(signed(length)) * share).max(1);
    let small = box_resize(clean, shrunk(clean.height()), shrunk(clean.width()));
    box_resize(&small, clean.height(), clean.width())
}

/// `Image.resize` of Pillow with its `BOX` filter: means over whole pixels, rounded, first along rows and then along columns.
fn box_resize(image: &Image, height: usize, width: usize) -> Image {
    let (rows, columns) = (box_windows(image.height(), height), box_windows(image.width(), width));
    let pixels = image.pixels();
    let narrow = resized(image.channels(), image.height(), width, |y, x, channel| {
        rounded_mean(columns[x].clone().map(|column| pixels[(y * image.width() + column) * image.channels() + channel]))
    });
    let pixels = narrow.pixels();
    resized(image.channels(), height, width, |y, x, channel| {
        rounded_mean(rows[y].clone().map(|row| pixels[(row * width + x) * image.channels() + channel]))
    })
}

fn resized(channels: usize, height: usize, width: usize, value: impl Fn(usize, usize, usize) -> u8) -> Image {
    let value = &value;
    let places = (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..channels).map(move |channel| value(y, x, channel))));
    Image::new(channels, height, width, places.collect())
}

/// The pixels of a row of `from` whose centres lie within each pixel of a row of `to`.
fn box_windows(from: usize, to: usize) -> Vec<Range<usize>> {
    let scale = real(signed(from)) / real(signed(to));
    let reach = scale.max(1.0) / 2.0;
    let inside = |center: f64, index: usize| {
        let distance = real(signed(index)) + 0.5 - center;
        -reach < distance && distance <= reach
    };
    let window = |center: f64| {
        let first = (0..from).position(|index| inside(center, index)).unwrap_or(0);
        let count = (first..from).take_while(|&index| inside(center, index)).count();
        first..first + count.max(1)
    };
    (0..to).map(|index| window((real(signed(index)) + 0.5) * scale)).collect()
}

fn rounded_mean(bytes: impl ExactSizeIterator<Item = u8>) -> u8 {
    let count = real(signed(bytes.len()));
    byte(bytes.map(f64::from).sum::<f64>() / count + 0.5)
}

/// Through a JPEG file and back, baseline with the tables of the standard; colour at half resolution (4:2:0), as Pillow's default.
///
/// Blocks in which a coefficient lies halfway between two quantisation levels may come out a few levels other than from Pillow.
pub fn jpeg_compression(clean: &Image, quality: u8) -> Image {
    let side = |length: usize| u16::try_from(length).expect("images of the lab are far below 65536 pixels wide");
    let color = if clean.channels() == 1 { ColorType::Luma } else { ColorType::Rgb };
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, quality);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    encoder.encode(clean.pixels(), side(clean.width()), side(clean.height()), color).expect("memory takes any image");
    let decoded = image::load_from_memory_with_format(&file, ImageFormat::Jpeg).expect("the file was just written");
    let pixels = if clean.channels() == 1 { decoded.into_luma8().into_raw() } else { decoded.into_rgb8().into_raw() };
    Image::new(clean.channels(), clean.height(), clean.width(), pixels)
}

/// Saturation S of HSV becomes `factor` S + `offset`, hue and value kept: each channel's distance to the largest one scales with S.
///
/// A grey pixel has the hue 0, red, and with an `offset` it becomes reddish, as in the reference. Takes RGB.
pub fn saturate(clean: &Raster, Saturate { factor, offset }: Saturate) -> Raster {
    let mut vivid = clean.clone();
    for pixel in vivid.pixels_mut() {
        let value = pixel.iter().copied().fold(0.0, f64::max);
        let least = pixel.iter().copied().fold(1.0, f64::min);
        let saturation = if value > 0.0 { (value - least) / value } else { 0.0 };
        let target = (saturation * factor + offset).clamp(0.0, 1.0);
        for (index, channel) in pixel.iter_mut().enumerate() {
            let depth = if saturation > 0.0 { (value - *channel) / saturation } else { value * f64::from(u8::from(index > 0)) };
            *channel = value - depth * target;
        }
    }
    vivid
}
