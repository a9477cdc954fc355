//! The third six of [`super::HeldOut`]: what lenses, the sun, fences, buffers, burnt-in text and motors do to a picture.
//!
//! They were invented when the second six had been looked at, without sight of what they test, and stood for the unknown as those
//! did. Each has one strength, set by one rule: the source (vision transformer) is right in about
//! 70 of 100 images, as on the second six. The other constants are what such a thing looks like. Lengths are shares of the image's side.
//! Invariant: the same image, corruption and [`Draws`] give the same bytes.

use super::held_out::{length, lit, place};
use crate::lab::corruptions::draws::Draws;
use crate::lab::corruptions::raster::{Border, Raster, floor};
use std::f64::consts::{FRAC_1_SQRT_2, TAU};

/// Strength of the wide angle, from 0: how much larger the middle is than through a lens that keeps lines straight.
const BARREL: f64 = 1.2;

/// Strength of the cast shadow, 0 to 1: share of the light that is gone in it; the rest comes from the sky.
const SHADOW_DEPTH: f64 = 0.825;

/// How far the edge of the shadow may be from the middle, and the width over which the light goes.
const SHADOW_SHIFT: f64 = 0.1;
const PENUMBRA: f64 = 0.05;

/// Strength of the wire mesh, from 0: width of a wire, with its soft edges.
const WIRE_WIDTH: f64 = 0.048;

/// From wire to wire, the part of a wire's edge that is out of focus, and its own brightness: galvanised steel by day.
const MESH_PITCH: f64 = 0.25;
const WIRE_EDGE: f64 = 0.03;
const WIRE_LIGHT: f64 = 0.6;

/// Strength of the torn frame, from 0: how far the view moved sideways from one frame to the next.
const TEAR_SHIFT: f64 = 0.2;

/// How far the tear may be from the middle.
const TEAR_RANGE: f64 = 0.25;

/// Strength of the burnt-in clock, from 0: height of its digits; from 0.25 on, not all of them fit.
const DIGIT_HEIGHT: f64 = 0.24;

/// Between the clock and the edges of the picture.
const CLOCK_MARGIN: f64 = 0.03;

/// Digits and colon of three by five dots: rows from the top, the left dot in the highest bit.
const GLYPHS: [[u8; GLYPH_ROWS]; 11] = [
    [0b111, 0b101, 0b101, 0b101, 0b111],
    [0b010, 0b110, 0b010, 0b010, 0b111],
    [0b111, 0b001, 0b111, 0b100, 0b111],
    [0b111, 0b001, 0b111, 0b001, 0b111],
    [0b101, 0b101, 0b111, 0b001, 0b001],
    [0b111, 0b100, 0b111, 0b001, 0b111],
    [0b111, 0b100, 0b111, 0b101, 0b111],
    [0b111, 0b001, 0b010, 0b010, 0b010],
    [0b111, 0b101, 0b111, 0b101, 0b111],
    [0b111, 0b101, 0b111, 0b001, 0b111],
    [0b000, 0b010, 0b000, 0b010, 0b000],
];
const COLON: usize = 10;
const GLYPH_ROWS: usize = 5;
const GLYPH_COLUMNS: usize = 3;

/// Hours, colon and minutes; columns of dots from one glyph to the next, and of all.
const CLOCK_GLYPHS: usize = 5;
const GLYPH_PITCH: usize = GLYPH_COLUMNS + 1;
const CLOCK_COLUMNS: usize = CLOCK_GLYPHS * GLYPH_PITCH - 1;

/// Places along a pixel's side at which it is asked whether there is a dot.
const PIXEL_PARTS: usize = 4;

/// Strength of the interference, from 0: amplitude of its wave.
const WAVE: f64 = 0.235;

/// Waves in a line, and how many more or less begin from the first line to the last, at most.
const WAVES_ACROSS: f64 = 7.0;
const WAVES_DOWN: f64 = 7.0;

/// A barrel: the middle swells, what is near the edge is pressed together, and the corners see further than before.
pub(super) fn wide_angle(clean: &Raster) -> Raster {
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let (down, right) = (place(y, clean.height()), place(x, clean.width()));
        // The middles of the sides, at a distance of a half, stay where they are.
        let scale = (1.0 + BARREL * (2.0 * down.hypot(right)).powi(2)) / (1.0 + BARREL);
        let from = |place: f64, size: usize| (scale * place + 0.5) * length(size) - 0.5;
        clean.sample(from(down, clean.height()), from(right, clean.width()), channel, Border::Nearest)
    })
}

/// Dark on one side of a line near the middle, in any direction.
pub(super) fn cast_shadow(clean: &Raster, draws: &mut Draws) -> Raster {
    let (sine, cosine) = draws.uniform(0.0, TAU).sin_cos();
    let shift = draws.uniform(-SHADOW_SHIFT, SHADOW_SHIFT);
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let inside = sine * place(y, clean.height()) + cosine * place(x, clean.width()) - shift;
        clean.at(y, x, channel) * (1.0 - SHADOW_DEPTH * (0.5 + inside / PENUMBRA).clamp(0.0, 1.0))
    })
}

/// Diamonds of wire, as of a fence, anywhere.
pub(super) fn wire_mesh(clean: &Raster, draws: &mut Draws) -> Raster {
    let shifts = [(); 2].map(|()| draws.uniform(0.0, MESH_PITCH));
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let (down, right) = (FRAC_1_SQRT_2 * place(y, clean.height()), FRAC_1_SQRT_2 * place(x, clean.width()));
        let to_wire = |along: f64| {
            let past = along.rem_euclid(MESH_PITCH);
            past.min(MESH_PITCH - past)
        };
        let distance = to_wire(down + right - shifts[0]).min(to_wire(down - right - shifts[1]));
        let cover = ((WIRE_WIDTH / 2.0 - distance) / WIRE_EDGE).clamp(0.0, 1.0);
        (1.0 - cover) * clean.at(y, x, channel) + cover * WIRE_LIGHT
    })
}

/// Above a line is one frame, below it the one before, with the view further to one side.
pub(super) fn torn_frame(clean: &Raster, draws: &mut Draws) -> Raster {
    let tear = draws.uniform(-TEAR_RANGE, TEAR_RANGE);
    let shift = [-TEAR_SHIFT, TEAR_SHIFT][draws.below(2)] * length(clean.width());
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let moved = if place(y, clean.height()) < tear { 0.0 } else { shift };
        clean.sample(length(y), length(x) + moved, channel, Border::Nearest)
    })
}

/// White digits in a corner, at any time of the day.
pub(super) fn burnt_in_clock(clean: &Raster, draws: &mut Draws) -> Raster {
    let (hour, minute, at_bottom, at_right) = (draws.below(24), draws.below(60), draws.below(2), draws.below(2));
    let glyphs = [hour / 10, hour % 10, COLON, minute / 10, minute % 10].map(|glyph| GLYPHS[glyph]);
    let (height, width) = (length(clean.height()), length(clean.width()));
    // Dots are square: pixels for one, in both directions.
    let dot = DIGIT_HEIGHT * height / length(GLYPH_ROWS);
    let margin = CLOCK_MARGIN * height;
    let top = [margin, height - margin - dot * length(GLYPH_ROWS)][at_bottom];
    let left = [margin, width - margin - dot * length(CLOCK_COLUMNS)][at_right];
    let parts = || (0..PIXEL_PARTS).map(|part| (length(part) + 0.5) / length(PIXEL_PARTS));
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let is_lit = |(low, right): (f64, f64)| is_dot(&glyphs, (length(y) + low - top) / dot, (length(x) + right - left) / dot);
        let lit = parts().flat_map(|low| parts().map(move |right| (low, right))).filter(|&part| is_lit(part)).count();
        let cover = length(lit) / length(PIXEL_PARTS * PIXEL_PARTS);
        (1.0 - cover) * clean.at(y, x, channel) + cover
    })
}

/// Whether a dot is lit so far from the top left of the clock, in dots.
fn is_dot(glyphs: &[[u8; GLYPH_ROWS]; CLOCK_GLYPHS], down: f64, right: f64) -> bool {
    if down < 0.0 || right < 0.0 {
        return false;
    }
    let (row, column) = (floor(down), floor(right));
    let dots = glyphs.get(column / GLYPH_PITCH).and_then(|glyph| glyph.get(row)).copied().unwrap_or(0);
    // The column between two glyphs is past the lowest bit.
    (dots << 1) >> (GLYPH_COLUMNS - column % GLYPH_PITCH) & 1 == 1
}

/// x + a wave that slants as its frequency and that of the lines have it.
pub(super) fn interference(clean: &Raster, draws: &mut Draws) -> Raster {
    let (slant, phase) = (draws.uniform(-WAVES_DOWN, WAVES_DOWN), draws.uniform(0.0, TAU));
    lit(clean, |y, x| WAVE * (TAU * (WAVES_ACROSS * x + slant * y) + phase).sin())
}
