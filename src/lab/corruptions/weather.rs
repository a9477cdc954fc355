//! Weather: snow, frost, fog, and the sun.
//!
//! Source of all: `make_cifar_c.py`, the function of the same name. Frost lays photographs over the image; see `frost/README.md`.

use crate::lab::corruptions::blur::motion_blur;
use crate::lab::corruptions::raster::{Border, Raster};
use crate::lab::corruptions::tables::{Frost, Motion, Snow, Table};
use std::sync::LazyLock;

/// Height of the first hills of the fog, before the decay.
const FIRST_WIBBLE: f64 = 100.0;

const DIAGONAL: [[isize; 2]; 4] = [[-1, -1], [-1, 1], [1, -1], [1, 1]];
const CROSS: [[isize; 2]; 4] = [[-1, 0], [1, 0], [0, -1], [0, 1]];

/// How many frost textures there are. The reference lists six and draws from five.
pub const FROST_TEXTURES: usize = 5;

static CIFAR_FROST: LazyLock<[Raster; FROST_TEXTURES]> = LazyLock::new(|| {
    [
        include_bytes!("frost/cifar-1.png").as_slice(),
        include_bytes!("frost/cifar-2.png"),
        include_bytes!("frost/cifar-2.png"),
        include_bytes!("frost/cifar-4.png"),
        include_bytes!("frost/cifar-5.png"),
    ]
    .map(texture)
});

static TINY_FROST: LazyLock<[Raster; FROST_TEXTURES]> = LazyLock::new(|| {
    [
        include_bytes!("frost/tiny-1.jpg").as_slice(),
        include_bytes!("frost/tiny-2.jpg"),
        include_bytes!("frost/tiny-2.jpg"),
        include_bytes!("frost/tiny-4.jpg"),
        include_bytes!("frost/tiny-5.jpg"),
    ]
    .map(texture)
});

fn texture(file: &[u8]) -> Raster {
    let decoded = image::load_from_memory(file).expect("the textures are part of the program").to_rgb8();
    let value = |y: u32, x: u32, channel: usize| f64::from(decoded.get_pixel(x, y)[channel]) / 255.0;
    let (width, height) = decoded.dimensions();
    let index = |index: usize| u32::try_from(index).expect("the textures are small");
    Raster::from_fn(3, height as usize, width as usize, |y, x, channel| value(index(y), index(x), channel))
}

/// The frost textures of a table, RGB. The second and the third are the same picture, as in the source.
pub fn frost_textures(table: Table) -> &'static [Raster; FROST_TEXTURES] {
    match table {
        Table::Cifar => &CIFAR_FROST,
        Table::Tiny => &TINY_FROST,
    }
}

/// Flakes from `layer`, grey noise of N(mean, deviation): enlarged, thresholded, and blurred at `angle` degrees; laid over the whitened
/// image as they are and turned by 180 degrees.
pub fn snow(clean: &Raster, constants: Snow, layer: &Raster, angle: f64) -> Raster {
    let Snow { zoom, threshold, radius, sigma, blend, .. } = constants;
    let flakes = layer.zoom(zoom).map(|value| if value < threshold { 0.0 } else { value });
    let flakes = motion_blur(&Raster::from(&flakes.to_image()), Motion { radius, sigma }, angle);
    let flakes = flakes.map(|value| (value * 255.0).round() / 255.0);
    let (bottom, right) = (clean.height() - 1, clean.width() - 1);
    let whitened = clean.zip(&clean.luma(), |value, luma| blend * value + (1.0 - blend) * value.max(luma * 1.5 + 0.5));
    let turned = Raster::from_fn(1, clean.height(), clean.width(), |y, x, _| flakes.at(bottom - y, right - x, 0));
    whitened.zip(&flakes, |value, flake| value + flake).zip(&turned, |value, flake| value + flake)
}

/// `clarity` x + `ice` texture, the texture cropped at (`top`, `left`). Where it is smaller than the image, it is mirrored.
pub fn frost(clean: &Raster, Frost { clarity, ice }: Frost, texture: &Raster, [top, left]: [usize; 2]) -> Raster {
    let crop =
        Raster::from_fn(3, clean.height(), clean.width(), |y, x, channel| texture.beyond(top + y, left + x, channel, Border::Symmetric));
    clean.zip(&crop, |value, frost| clarity * value + ice * frost)
}

/// (x + density plasma) max(x) / (max(x) + density): fog that keeps the brightest value of the image.
pub fn fog(clean: &Raster, density: f64, plasma: &Raster) -> Raster {
    let max = clean.max();
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        (clean.at(y, x, channel) + density * plasma.at(y, x, 0)) * max / (max + density)
    })
}

/// A square of clouds in 0..=1 by the diamond-square method, `side` a power of two; heights shrink by `decay` from each level to the next
/// finer one. `unit` draws from -1..1.
///
/// The map wraps around. The reference multiplies by the wibble twice, once outside and once as the range of the draw; so does this.
pub fn plasma_fractal(side: usize, decay: f64, mut unit: impl FnMut() -> f64) -> Raster {
    assert!(side.is_power_of_two(), "side of the plasma: {side}");
    let mut map = Raster::from_fn(1, side, side, |_, _, _| 0.0);
    let (mut stride, mut wibble) = (side, FIRST_WIBBLE);
    while stride >= 2 {
        let half = stride / 2;
        for (top, left, neighbours) in [(half, half, DIAGONAL), (0, half, CROSS), (half, 0, CROSS)] {
            for y in (top..side).step_by(stride) {
                for x in (left..side).step_by(stride) {
                    let wrapped = |index: usize, direction: isize| (index + side).strict_add_signed(direction * half.cast_signed()) % side;
                    let sum: f64 = neighbours.iter().map(|&[down, right]| map.at(wrapped(y, down), wrapped(x, right), 0)).sum();
                    map.set(y, x, 0, sum / 4.0 + wibble * wibble * unit());
                }
            }
        }
        stride = half;
        wibble /= decay;
    }
    let low = -map.map(|value| -value).max();
    let range = map.max() - low;
    map.map(|value| (value - low) / range)
}

/// Adds `amount` to the value V of HSV, hue and saturation kept. As V is the largest channel, that is a scaling of the pixel.
pub fn brightness(clean: &Raster, amount: f64) -> Raster {
    let mut bright = clean.clone();
    for pixel in bright.pixels_mut() {
        let value = pixel.iter().copied().fold(0.0, f64::max);
        let raised = (value + amount).clamp(0.0, 1.0);
        pixel.iter_mut().for_each(|channel| *channel = if value > 0.0 { *channel / value * raised } else { raised });
    }
    bright
}
