//! The fourth six of [`super::HeldOut`]: what brackets, broken glass, raw sensors, lost bits, floods and lamps in domes do to a picture.
//!
//! They were invented when the third six had been looked at, without sight of what they test, and stand for the unknown as those do:
//! nothing may be chosen by how it does on them. Each has one strength, set by one rule: the source (vision transformer) is right in about
//! 70 of 100 images, as on the third six. The other constants are what such a thing looks like. Lengths are shares of the image's side,
//! but for the filters of the mosaic, which are the pixels themselves.
//! Invariant: the same image, corruption and [`Draws`] give the same bytes.

use super::held_out::{length, lit, place};
use crate::lab::corruptions::draws::Draws;
use crate::lab::corruptions::raster::{Border, Raster, bell};
use std::f64::consts::TAU;

/// Strength of the oblique view, 0 to 1.4: by how much nearness grows across the picture; at the square root of two, a corner may lie at
/// the horizon.
const OBLIQUENESS: f64 = 1.28;

/// Strength of the cracked glass, from 0: deviation of how far a splinter displaces the view, down and to the right.
const SPLINTER_SHIFT: f64 = 0.08;

/// Cracks from the point that was hit, how far it may be from the middle, the light that a crack scatters, and where none of it is left.
const CRACKS: usize = 5;
const HIT_RANGE: f64 = 0.2;
const CRACK_LIGHT: f64 = 0.3;
const CRACK_REACH: f64 = 0.02;

/// Strength of the raw mosaic, 0 to 1: share of the light that the blue filters keep back, as under a red lamp.
const BLUE_LOSS: f64 = 0.94;

/// What the filters over each two by two pixels keep back, in parts of that share: red and green above green and blue.
const FILTER_PARTS: [[f64; 2]; 2] = [[0.0, 0.9], [0.9, 1.0]];

/// Strength of the streaks, 0 to 1: the probability that a line has a wrong bit.
const LINES_HIT: f64 = 0.53;

/// What a wrong bit adds to all that follows it in its line, or takes away: it is the highest of its byte.
const STREAK_STEP: f64 = 0.5;

/// Strength of the standing water, 0 to 0.5: how high it stands in the picture; at a half, it is a mirror of all that is left.
const WATER_HEIGHT: f64 = 0.428;

/// How far from that its edge may be, the share of the light that it mirrors, and its own light: the sky's.
const WATER_RANGE: f64 = 0.05;
const WATER_MIRRORS: f64 = 0.7;
const WATER_LIGHT: f64 = 0.1;

/// Strength of the lamp ring, from 0: what the reflection of a lamp adds to the picture in its middle.
const RING_LIGHT: f64 = 0.48;

/// Lamps around the lens, how far they are from the middle of their ring, deviation of their light, and how far the ring may be off the
/// middle of the picture.
const RING_LAMPS: usize = 8;
const RING_RADIUS: f64 = 0.3;
const RING_LAMP_SIGMA: f64 = 0.05;
const RING_SHIFT: f64 = 0.1;

/// A plane that leans back in any direction: the near side is drawn out, the far one pressed together.
pub(super) fn oblique_view(clean: &Raster, draws: &mut Draws) -> Raster {
    let (sine, cosine) = draws.uniform(0.0, TAU).sin_cos();
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let (down, right) = (place(y, clean.height()), place(x, clean.width()));
        let scale = 1.0 / (1.0 - OBLIQUENESS * (sine * down + cosine * right));
        let from = |place: f64, size: usize| (scale * place + 0.5) * length(size) - 0.5;
        clean.sample(from(down, clean.height()), from(right, clean.width()), channel, Border::Nearest)
    })
}

/// Cracks run from one point to the edges, and between each two of them the glass sits at an angle of its own.
pub(super) fn cracked_glass(clean: &Raster, draws: &mut Draws) -> Raster {
    let [hit_down, hit_right] = [(); 2].map(|()| draws.uniform(-HIT_RANGE, HIT_RANGE));
    let cracks = [(); CRACKS].map(|()| draws.uniform(0.0, TAU));
    let shifts = [(); CRACKS].map(|()| [(); 2].map(|()| draws.normal(0.0, SPLINTER_SHIFT)));
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let (down, right) = (place(y, clean.height()) - hit_down, place(x, clean.width()) - hit_right);
        let angle = down.atan2(right).rem_euclid(TAU);
        // The splinter before the first crack is the one after the last.
        let splinter = cracks.iter().filter(|&&crack| crack < angle).count() % CRACKS;
        let [shift_down, shift_right] = shifts[splinter];
        let view = clean.sample(
            length(y) + shift_down * length(clean.height()),
            length(x) + shift_right * length(clean.width()),
            channel,
            Border::Nearest,
        );
        let to_crack = |crack: f64| {
            let (sine, cosine) = crack.sin_cos();
            let (along, across) = (sine * down + cosine * right, cosine * down - sine * right);
            if along > 0.0 { across.abs() } else { down.hypot(right) }
        };
        let distance = cracks.into_iter().map(to_crack).fold(f64::INFINITY, f64::min);
        view + CRACK_LIGHT * (1.0 - distance / CRACK_REACH).max(0.0)
    })
}

/// Each pixel is as dark as its own filter makes it, and nobody has evened that out.
pub(super) fn raw_mosaic(clean: &Raster) -> Raster {
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        clean.at(y, x, channel) * (1.0 - BLUE_LOSS * FILTER_PARTS[y % 2][x % 2])
    })
}

/// Lines are sent as differences from pixel to pixel, so that an error goes on to the end of its line.
pub(super) fn streaks(clean: &Raster, draws: &mut Draws) -> Raster {
    let steps = [-STREAK_STEP, STREAK_STEP];
    let mut error = || (draws.uniform(0.0, 1.0), draws.uniform(-0.5, 0.5), steps[draws.below(2)]);
    let errors: Vec<(f64, f64, f64)> = (0..clean.height()).map(|_| error()).collect();
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let (chance, start, step) = errors[y];
        let is_off = chance < LINES_HIT && place(x, clean.width()) >= start;
        clean.at(y, x, channel) + if is_off { step } else { 0.0 }
    })
}

/// Below its edge is what stands above it, upside down and paler.
pub(super) fn standing_water(clean: &Raster, draws: &mut Draws) -> Raster {
    let edge = (1.0 - WATER_HEIGHT + draws.uniform(-WATER_RANGE, WATER_RANGE)) * length(clean.height()) - 0.5;
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        if length(y) <= edge {
            clean.at(y, x, channel)
        } else {
            WATER_LIGHT + WATER_MIRRORS * clean.sample(2.0 * edge - length(y), length(x), channel, Border::Nearest)
        }
    })
}

/// x + a circle of small lights, turned and shifted as the dome happens to sit.
pub(super) fn lamp_ring(clean: &Raster, draws: &mut Draws) -> Raster {
    let [ring_down, ring_right] = [(); 2].map(|()| draws.uniform(-RING_SHIFT, RING_SHIFT));
    let phase = draws.uniform(0.0, TAU);
    let lamps: [(f64, f64); RING_LAMPS] = std::array::from_fn(|lamp| {
        let (sine, cosine) = (phase + TAU * length(lamp) / length(RING_LAMPS)).sin_cos();
        (ring_down + RING_RADIUS * sine, ring_right + RING_RADIUS * cosine)
    });
    lit(clean, |down, right| {
        let lights = lamps.iter().map(|&(lamp_down, lamp_right)| bell((down - lamp_down).hypot(right - lamp_right), RING_LAMP_SIGMA));
        RING_LIGHT * lights.sum::<f64>()
    })
}
