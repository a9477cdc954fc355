//! The second six of [`super::HeldOut`]: what mountings, lamps, exposure, things before the lens and wires do to a picture.
//!
//! They were invented when the first six had been used, without sight of what they test, and stood for the unknown until settings were chosen
//! on them. Each has one strength, set by one rule: the source (vision transformer) is right in about 70 of 100
//! images, as on the nineteen. The other constants are what such a thing looks like. Lengths are shares of the image's side.
//! Invariant: the same image, corruption and [`Draws`] give the same bytes.

use super::held_out::{length, lit, place};
use crate::lab::corruptions::draws::Draws;
use crate::lab::corruptions::raster::{Border, Raster};
use std::f64::consts::TAU;

/// Strength of the turned mounting, 0 to 180: how far the camera has turned about its line of sight, to either side.
const TURN_DEGREES: f64 = 19.3;

/// Strength of the stray light, from 0: what a lamp at the edge of the view adds to the picture where it stands.
const STRAY_LIGHT: f64 = 1.39;

/// Where the lamp is, from the middle of the picture, and how far from it half of its light is left.
const LAMP_DISTANCE: f64 = 0.5;
const GLOW_REACH: f64 = 0.25;

/// Strength of the overexposure, from 1: how many times too long the shutter is open.
const EXPOSURE: f64 = 2.8;

/// Strength of the obstruction, 0 to 2: width of the cable; from 2 on nothing else can be seen.
const CABLE_WIDTH: f64 = 0.33;

/// How far the cable may pass the middle, the part of its edge that is out of focus, and its own brightness: black plastic by day.
const CABLE_SHIFT: f64 = 0.2;
const CABLE_EDGE: f64 = 0.1;
const CABLE_LIGHT: f64 = 0.1;

/// Strength of the lost packets, 0 to 1: the probability that one does not arrive.
const PACKETS_LOST: f64 = 0.056;

/// Packets in a row of blocks, which is as many as there are such rows, and the grey that a decoder shows where it has nothing.
const PACKETS: usize = 8;
const UNDECODED: f64 = 0.5;

/// Strength of the line jitter, from 0: deviation of where a line begins.
const LINE_JITTER: f64 = 0.053;

/// Turned about its middle; what comes into view at the corners goes on as the edge ends.
pub(super) fn turned_mounting(clean: &Raster, draws: &mut Draws) -> Raster {
    let degrees = [-TURN_DEGREES, TURN_DEGREES][draws.below(2)];
    let (sine, cosine) = degrees.to_radians().sin_cos();
    let (middle_y, middle_x) = ((length(clean.height()) - 1.0) / 2.0, (length(clean.width()) - 1.0) / 2.0);
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let (down, right) = (length(y) - middle_y, length(x) - middle_x);
        let (from_y, from_x) = (middle_y + cosine * down - sine * right, middle_x + sine * down + cosine * right);
        clean.sample(from_y, from_x, channel, Border::Nearest)
    })
}

/// x + light that falls off with the distance to the lamp, which may be anywhere around the middle.
pub(super) fn stray_light(clean: &Raster, draws: &mut Draws) -> Raster {
    let angle = draws.uniform(0.0, TAU);
    let (lamp_y, lamp_x) = (LAMP_DISTANCE * angle.sin(), LAMP_DISTANCE * angle.cos());
    lit(clean, |y, x| STRAY_LIGHT / (1.0 + ((y - lamp_y).hypot(x - lamp_x) / GLOW_REACH).powi(2)))
}

/// What a pixel cannot hold is shared out evenly over its column.
pub(super) fn overexposure(clean: &Raster) -> Raster {
    let exposed = clean.map(|value| EXPOSURE * value);
    let spill = Raster::from_fn(clean.channels(), 1, clean.width(), |_, x, channel| {
        let excess: f64 = (0..clean.height()).map(|y| (exposed.at(y, x, channel) - 1.0).max(0.0)).sum();
        excess / length(clean.height())
    });
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        exposed.at(y, x, channel).min(1.0) + spill.at(0, x, channel)
    })
}

/// A dark bar near the middle, in any direction.
pub(super) fn obstruction(clean: &Raster, draws: &mut Draws) -> Raster {
    let (sine, cosine) = draws.uniform(0.0, TAU).sin_cos();
    let shift = draws.uniform(-CABLE_SHIFT, CABLE_SHIFT);
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let distance = (sine * place(y, clean.height()) + cosine * place(x, clean.width()) - shift).abs();
        let cover = ((CABLE_WIDTH / 2.0 - distance) / CABLE_EDGE).clamp(0.0, 1.0);
        (1.0 - cover) * clean.at(y, x, channel) + cover * CABLE_LIGHT
    })
}

/// The decoder puts the blocks that arrive one after the other, and finds its place again at the next row of blocks.
pub(super) fn lost_packets(clean: &Raster, draws: &mut Draws) -> Raster {
    let arrived: Vec<Vec<usize>> =
        (0..PACKETS).map(|_| (0..PACKETS).filter(|_| draws.uniform(0.0, 1.0) >= PACKETS_LOST).collect()).collect();
    let left = |block: usize| block * clean.width() / PACKETS;
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let (row, column) = (y * PACKETS / clean.height(), x * PACKETS / clean.width());
        // Where the width is no multiple of the blocks, the last one may be too narrow for its new place.
        arrived[row].get(column).map_or(UNDECODED, |&sent| clean.beyond(y, x + left(sent) - left(column), channel, Border::Nearest))
    })
}

/// Each line moves sideways by a draw of its own.
pub(super) fn line_jitter(clean: &Raster, draws: &mut Draws) -> Raster {
    let shifts: Vec<f64> = (0..clean.height()).map(|_| draws.normal(0.0, LINE_JITTER * length(clean.width()))).collect();
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        clean.sample(length(y), length(x) + shifts[y], channel, Border::Nearest)
    })
}
