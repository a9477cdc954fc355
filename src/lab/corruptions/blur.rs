//! Blur: of focus, of frosted glass, of motion, of zoom, and the plain Gaussian.
//!
//! Sources: `make_cifar_c.py`, the function of the same name; motion blur as said there.

use crate::lab::corruptions::raster::{Border, Raster, Tap, bell, normalised, real, round, signed};
use crate::lab::corruptions::tables::{Defocus, Glass, Motion};

/// Where scikit-image cuts off its Gaussian, in deviations.
const TRUNCATE: f64 = 4.0;

/// Reach of the grid on which the disk of a lens is drawn, in pixels; all radii of the tables are below it.
const DISK_REACH: isize = 8;

/// Gaussian of deviation `sigma` pixels, edges continued.
pub fn gaussian_blur(clean: &Raster, sigma: f64) -> Raster {
    clean.gaussian(sigma, TRUNCATE, Border::Nearest)
}

/// A disk of `radius`, itself smoothed by a 3x3 Gaussian of deviation `alias_sigma`, laid over each pixel (`cv2.filter2D`).
pub fn defocus_blur(clean: &Raster, Defocus { radius, alias_sigma }: Defocus) -> Raster {
    let side = 2 * DISK_REACH.unsigned_abs() + 1;
    let inside = |y: usize, x: usize| {
        let (down, right) = (signed(y) - DISK_REACH, signed(x) - DISK_REACH);
        real(down * down + right * right) <= radius * radius
    };
    let disk = Raster::from_fn(1, side, side, |y, x, _| f64::from(u8::from(inside(y, x))));
    let area: f64 = disk.values().iter().sum();
    let weights = normalised((-1..=1).map(|offset| bell(real(offset), alias_sigma)));
    let row = |down: isize| (-1..).zip(weights.clone()).map(move |(right, weight)| (down, right, weight));
    let antialias: Vec<Tap> = (-1..)
        .zip(&weights)
        .flat_map(|(down, outer)| row(down).map(move |(down, right, inner)| Tap { down, right, weight: outer * inner }))
        .collect();
    let smooth = disk.correlate(&antialias, Border::Reflect101);
    let places = (-DISK_REACH..=DISK_REACH).flat_map(|down| (-DISK_REACH..=DISK_REACH).map(move |right| (down, right)));
    let taps: Vec<Tap> = places
        .zip(smooth.values())
        .filter(|&(_, &weight)| weight > 0.0)
        .map(|((down, right), &weight)| Tap { down, right, weight: weight / area })
        .collect();
    clean.correlate(&taps, Border::Reflect101)
}

/// Gaussian, then each pixel takes a near one's place, then Gaussian again. `offset` draws from `-max_delta..max_delta`, first across, then
/// down.
///
/// The reference means to swap two pixels; but its "swap" of two rows of an RGB array goes through views, so that one pixel is copied over
/// the other. The published images have the copy, and so has this.
pub fn glass_blur(clean: &Raster, Glass { sigma, max_delta, iterations }: Glass, mut offset: impl FnMut() -> isize) -> Raster {
    let mut shuffled = Raster::from(&gaussian_blur(clean, sigma).to_image());
    for _ in 0..iterations {
        for y in (max_delta + 1..=clean.height() - max_delta).rev() {
            for x in (max_delta + 1..=clean.width() - max_delta).rev() {
                let (right, down) = (offset(), offset());
                for channel in 0..clean.channels() {
                    let near = shuffled.at(y.strict_add_signed(down), x.strict_add_signed(right), channel);
                    shuffled.set(y, x, channel, near);
                }
            }
        }
    }
    gaussian_blur(&shuffled, sigma)
}

/// Weights of half a Gaussian along a line of `2 radius + 1` whole-pixel places at `angle` degrees from the row, edges continued.
///
/// `make_cifar_c.py` calls ImageMagick for it; this is `_motion_blur` of imagecorruptions, which needs no ImageMagick.
pub fn motion_blur(clean: &Raster, Motion { radius, sigma }: Motion, angle: f64) -> Raster {
    let (sine, cosine) = angle.to_radians().sin_cos();
    let place = |distance: isize, part: f64| round((real(distance) * part - 0.5).ceil());
    let weights = normalised((0..=2 * radius).map(|distance| bell(real(distance), sigma)));
    let fits = |tap: &Tap| tap.down.unsigned_abs() < clean.height() && tap.right.unsigned_abs() < clean.width();
    let taps: Vec<Tap> = (0..)
        .zip(weights)
        .map(|(distance, weight)| Tap { down: place(distance, sine), right: place(distance, cosine), weight })
        .take_while(fits)
        .collect();
    clean.correlate(&taps, Border::Nearest)
}

/// Mean of the image and its enlargements by 1.00, 1.01, ...: `factors` of them.
///
/// The increment is that of `numpy.arange`, 1.01 - 1.0 in `f64`: with 0.01, the enlargement by 1.25 would round to another size.
pub fn zoom_blur(clean: &Raster, factors: u32) -> Raster {
    let sum = (0..factors)
        .map(|index| 1.0 + f64::from(index) * (1.01 - 1.0))
        .fold(clean.clone(), |sum, factor| sum.zip(&clean.zoom(factor), |a, b| a + b));
    sum.map(|value| value / f64::from(factors + 1))
}
