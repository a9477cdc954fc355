//! Spatter: drops of water or mud on the lens.
//!
//! Source: `make_cifar_c.py::spatter`. Water takes its relief from the outlines of the drops (Canny), the distance to them, and a filter
//! that lights it from one side; the small versions of OpenCV's functions that this needs follow. Layers of bytes are rasters with whole
//! values in 0..=255 here, because the filters are shared with the other corruptions.

use crate::lab::corruptions::raster::{Border, Raster, Tap, floor, real, signed};
use crate::lab::corruptions::tables::{Liquid, Spatter};

/// Pale turquoise and mud, RGB, 0..=255.
const WATER: [f64; 3] = [175.0, 238.0, 238.0];
const MUD: [f64; 3] = [63.0, 42.0, 20.0];

/// Cover below this is none.
const MUD_COVER_MIN: f64 = 0.8;

/// Where scikit-image cuts off its Gaussian, in deviations.
const TRUNCATE: f64 = 4.0;

/// Thresholds of the outlines, on |dx| + |dy| of a 3x3 Sobel filter.
const CANNY_LOW: f64 = 50.0;
const CANNY_HIGH: f64 = 150.0;

/// tan(22.5 degrees) as OpenCV's Canny has it, in 15 bits.
const TAN_22: f64 = 13573.0 / 32768.0;

/// Distances to an outline are cut off here, in pixels.
const DISTANCE_MAX: f64 = 20.0;

/// Half of the neighbours of a 5x5 chamfer distance, (down, right, distance), with OpenCV's weights for `DIST_L2`. The other half mirrors
/// it.
const CHAMFER: [(isize, isize, f64); 8] =
    [(0, -1, 1.0), (-1, 0, 1.0), (-1, -1, 1.4), (-1, 1, 1.4), (-1, -2, 2.1969), (-1, 2, 2.1969), (-2, -1, 2.1969), (-2, 1, 2.1969)];

const SOBEL_ACROSS: [[f64; 3]; 3] = [[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]];
const SOBEL_DOWN: [[f64; 3]; 3] = [[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]];
const EMBOSS: [[f64; 3]; 3] = [[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]];

/// Drops from `layer`, grey noise of N(mean, deviation), over an RGB image.
pub fn spatter(clean: &Raster, Spatter { sigma, threshold, liquid, .. }: Spatter, layer: &Raster) -> Raster {
    let drops = layer.gaussian(sigma, TRUNCATE, Border::Nearest).map(|value| if value < threshold { 0.0 } else { value });
    let (cover, color, kept) = match liquid {
        Liquid::Water(strength) => (water(&drops, strength), WATER, 0.0),
        Liquid::Mud(edge_sigma) => (mud(&drops, edge_sigma), MUD, 1.0),
    };
    Raster::from_fn(3, clean.height(), clean.width(), |y, x, channel| {
        let cover = cover.at(y, x, 0);
        clean.at(y, x, channel) * (1.0 - kept * cover) + cover * color[channel] / 255.0
    })
}

fn mud(drops: &Raster, edge_sigma: f64) -> Raster {
    let mask = drops.map(|value| if value > 0.0 { 1.0 } else { 0.0 });
    mask.gaussian(edge_sigma, TRUNCATE, Border::Nearest).map(|cover| if cover < MUD_COVER_MIN { 0.0 } else { cover })
}

/// Relief of the drops, scaled so that its peak is `strength`; without a drop there is none.
fn water(drops: &Raster, strength: f64) -> Raster {
    let drops = drops.map(|value| (value.min(1.0) * 255.0).floor());
    let distance = outline_distance(&drops, &outlines(&drops)).map(|value| value.min(DISTANCE_MAX));
    let relief = equalize(&box_blur(&distance).map(f64::floor));
    let lit = filter(&relief, EMBOSS, Border::Reflect101).map(|value| value.clamp(0.0, 255.0));
    let relief = drops.zip(&box_blur(&lit).map(f64::round), |drop, light| drop * light);
    let peak = relief.max().max(f64::MIN_POSITIVE);
    relief.map(|value| value / peak * strength)
}

fn filter(layer: &Raster, weights: [[f64; 3]; 3], border: Border) -> Raster {
    let row = |(down, row): (isize, [f64; 3])| (-1..).zip(row).map(move |(right, weight)| Tap { down, right, weight });
    layer.correlate(&(-1..).zip(weights).flat_map(row).collect::<Vec<_>>(), border)
}

/// Mean over 3x3. The division comes last, so that the mean of whole numbers is whole where it can be, and is not floored to one less.
fn box_blur(layer: &Raster) -> Raster {
    filter(layer, [[1.0; 3]; 3], Border::Reflect101).map(|sum| sum / 9.0)
}

/// Outlines by Canny (`cv2.Canny`): 1 on an outline, else 0.
fn outlines(layer: &Raster) -> Raster {
    let (across, down) = (filter(layer, SOBEL_ACROSS, Border::Nearest), filter(layer, SOBEL_DOWN, Border::Nearest));
    let strength = across.zip(&down, |x, y| x.abs() + y.abs());
    let thin = Raster::from_fn(1, layer.height(), layer.width(), |y, x, _| {
        let gradient = [across.at(y, x, 0), down.at(y, x, 0)];
        if is_ridge(&strength, (y, x), gradient) { strength.at(y, x, 0) } else { 0.0 }
    });
    let mut outlines = thin.map(|_| 0.0);
    let places = (0..layer.height()).flat_map(|y| (0..layer.width()).map(move |x| (y, x)));
    let mut open: Vec<_> = places.filter(|&(y, x)| thin.at(y, x, 0) > CANNY_HIGH).collect();
    while let Some((y, x)) = open.pop() {
        if outlines.at(y, x, 0) == 0.0 {
            outlines.set(y, x, 0, 1.0);
            let around =
                (y.saturating_sub(1)..=(y + 1).min(layer.height() - 1)).flat_map(|y| (x.saturating_sub(1)..x + 2).map(move |x| (y, x)));
            open.extend(around.filter(|&(y, x)| x < layer.width() && thin.at(y, x, 0) > CANNY_LOW));
        }
    }
    outlines
}

/// Whether the gradient is largest here along its own direction, which is rounded to 45 degrees.
fn is_ridge(strength: &Raster, (y, x): (usize, usize), [across, down]: [f64; 2]) -> bool {
    let here = strength.at(y, x, 0);
    let at = |below: isize, right: isize| inside(strength, y, x, below, right).map_or(0.0, |(y, x)| strength.at(y, x, 0));
    if down.abs() < across.abs() * TAN_22 {
        here > at(0, -1) && here >= at(0, 1)
    } else if down.abs() > across.abs() * (TAN_22 + 2.0) {
        here > at(-1, 0) && here >= at(1, 0)
    } else {
        let side = if (across < 0.0) == (down < 0.0) { 1 } else { -1 };
        here > at(-1, -side) && here > at(1, side)
    }
}

fn inside(layer: &Raster, y: usize, x: usize, down: isize, right: isize) -> Option<(usize, usize)> {
    let (y, x) = (y.checked_add_signed(down)?, x.checked_add_signed(right)?);
    (y < layer.height() && x < layer.width()).then_some((y, x))
}

/// Distance to the nearest outline in pixels, infinite if there is none (`cv2.distanceTransform`, `DIST_L2`, mask 5).
fn outline_distance(layer: &Raster, outlines: &Raster) -> Raster {
    let mut distance = outlines.map(|outline| if outline > 0.0 { 0.0 } else { f64::INFINITY });
    let (height, width) = (layer.height(), layer.width());
    let mut relax = |y: usize, x: usize, direction: isize| {
        let through = |&(down, right, step): &(isize, isize, f64)| {
            inside(layer, y, x, direction * down, direction * right).map_or(f64::INFINITY, |(y, x)| distance.at(y, x, 0) + step)
        };
        let nearest = CHAMFER.iter().map(through).fold(distance.at(y, x, 0), f64::min);
        distance.set(y, x, 0, nearest);
    };
    (0..height).for_each(|y| (0..width).for_each(|x| relax(y, x, 1)));
    (0..height).rev().for_each(|y| (0..width).rev().for_each(|x| relax(y, x, -1)));
    distance
}

/// Spreads the values so that their histogram is flat (`cv2.equalizeHist`). A layer of one value stays.
fn equalize(layer: &Raster) -> Raster {
    let mut histogram = [0; 256];
    layer.values().iter().for_each(|&value| histogram[floor(value)] += 1);
    let lowest = histogram.iter().copied().find(|&count| count > 0).unwrap_or(0);
    let rest = layer.values().len() - lowest;
    if rest == 0 {
        return layer.clone();
    }
    let rank = |value: f64| histogram[..=floor(value)].iter().sum::<usize>() - lowest;
    layer.map(|value| (255.0 * ratio(rank(value), rest)).round_ties_even())
}

fn ratio(part: usize, whole: usize) -> f64 {
    real(signed(part)) / real(signed(whole))
}
