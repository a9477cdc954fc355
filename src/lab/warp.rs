//! Planes with their pixels moved: turned, zoomed, sheared, shifted.

use crate::model::ImageShape;
use std::f64::consts::PI;

/// Where a pixel comes from: `matrix` (row by row) times its place about the centre, plus `shift`; pixels, (x, y).
pub struct Place {
    pub matrix: [f64; 4],
    pub shift: [f64; 2],
}

impl Place {
    /// A turn by `degrees` and a zoom by `scale`.
    pub fn turn(degrees: f64, scale: f64, shift: [f64; 2]) -> Self {
        let (sine, cosine) = (degrees * PI / 180.0).sin_cos();
        Self { matrix: [cosine / scale, sine / scale, -sine / scale, cosine / scale], shift }
    }

    pub fn shift(shift: [f64; 2]) -> Self {
        Self { matrix: [1.0, 0.0, 0.0, 1.0], shift }
    }
}

/// What lies outside the image.
#[derive(Clone, Copy)]
pub enum Outside {
    /// Its nearest pixel.
    Edge,
    /// Its mirror image about the last pixels.
    Reflect,
    Flat(f32),
}

/// Planes with each pixel taken from elsewhere, linear between pixels.
pub fn warp(values: &[f32], shape: ImageShape, place: &Place, outside: Outside) -> Vec<f32> {
    let (height, width) = (shape.height, shape.width);
    let (middle_x, middle_y) = ((width - 1) as f64 / 2.0, (height - 1) as f64 / 2.0);
    let [a, b, c, d] = place.matrix;
    let mut warped = Vec::with_capacity(values.len());
    for plane in values.chunks_exact(height * width) {
        for y in 0..height {
            for x in 0..width {
                let (dx, dy) = (x as f64 - middle_x, y as f64 - middle_y);
                let source = [middle_x + a * dx + b * dy + place.shift[0], middle_y + c * dx + d * dy + place.shift[1]];
                warped.push(between_pixels(plane, (height, width), source, outside));
            }
        }
    }
    warped
}

fn between_pixels(plane: &[f32], (height, width): (usize, usize), [x, y]: [f64; 2], outside: Outside) -> f32 {
    let pixel = |x: f64, y: f64| {
        let (last_x, last_y) = ((width - 1) as f64, (height - 1) as f64);
        match outside {
            Outside::Flat(value) if !(0.0..=last_x).contains(&x) || !(0.0..=last_y).contains(&y) => value,
            // Whole numbers within the image, or after one reflection.
            Outside::Reflect => {
                let reflected = |at: f64, last: f64| (last - (last - at.abs()).abs()).clamp(0.0, last) as usize;
                plane[reflected(y, last_y) * width + reflected(x, last_x)]
            }
            _ => plane[y.clamp(0.0, last_y) as usize * width + x.clamp(0.0, last_x) as usize],
        }
    };
    let (left, top) = (x.floor(), y.floor());
    let (right_share, bottom_share) = ((x - left) as f32, (y - top) as f32);
    let row = |y: f64| pixel(left, y) + right_share * (pixel(left + 1.0, y) - pixel(left, y));
    row(top) + bottom_share * (row(top + 1.0) - row(top))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ImageShape = ImageShape { channels: 1, height: 6, width: 6 };

    fn ramp() -> Vec<f32> {
        (0..36u8).map(|i| f32::from(i) / 35.0).collect()
    }

    #[test]
    fn staying_in_place_changes_nothing_and_a_shift_moves_by_pixels() {
        assert_eq!(warp(&ramp(), SHAPE, &Place::turn(0.0, 1.0, [0.0; 2]), Outside::Edge), ramp());
        let shifted = warp(&ramp(), SHAPE, &Place::shift([1.0, 0.0]), Outside::Flat(0.5));
        assert_eq!((shifted[0], shifted[5]), (ramp()[1], 0.5));
    }

    #[test]
    fn a_quarter_turn_four_times_is_none() {
        let turned = (0..4).fold(ramp(), |values, _| warp(&values, SHAPE, &Place::turn(90.0, 1.0, [0.0; 2]), Outside::Edge));
        for (turned, original) in turned.iter().zip(ramp()) {
            assert!((turned - original).abs() < 1e-5, "{turned} against {original}");
        }
    }

    #[test]
    fn what_lies_outside_is_the_edge_its_mirror_image_or_flat() {
        let shifted = |outside| warp(&ramp(), SHAPE, &Place::shift([2.0, 0.0]), outside)[3..6].to_vec();
        let ramp = ramp();
        assert_eq!(shifted(Outside::Edge), [ramp[5], ramp[5], ramp[5]]);
        assert_eq!(shifted(Outside::Reflect), [ramp[5], ramp[4], ramp[3]]);
        assert_eq!(shifted(Outside::Flat(0.5)), [ramp[5], 0.5, 0.5]);
    }
}
