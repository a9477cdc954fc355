//! The sixth six of [`super::HeldOut`]: what full registers, lost sync, unlike amplifiers, edge filters, leaves and bursts of errors do to
//! a picture.
//!
//! They were invented when the fifth six had been looked at, without sight of what they test, but that the shape of two of them,
//! overflow and lost level, was settled when the configuration file had been seen, as they were too easy for the source at first. They
//! stand for the unknown as those do: nothing may be chosen by how it does on them. Each has one strength, set by one rule: the source
//! (vision transformer) is right in about 70 of 100 images, as on the third to fifth six. The other constants are what such a thing
//! looks like. Lengths are shares of the image's side.
//! Invariant: the same image, corruption and [`Draws`] give the same bytes.

use super::held_out::{TRUNCATE, length, place, shaded};
use crate::lab::corruptions::draws::Draws;
use crate::lab::corruptions::raster::{Border, Raster, bell, floor};

/// Strength of the overflow, 0 to 1: what is added to all pixels, at most.
const OVERFLOW: f64 = 0.28;

/// Strength of the rolling picture, 0 to 1: how far it has rolled at most; at 1, it may begin at any line.
const ROLL: f64 = 0.575;

/// Height of the black bar between the end of a picture and the beginning of the next.
const BLANKING: f64 = 0.08;

/// Strength of the unmatched taps, from 0: deviation of what a tap reads as black from 0, and of its gain from 1.
const TAP_SPREAD: f64 = 0.264;

/// Strength of the lost level, from 0: how many times the difference to the blurred picture is shown.
const EDGE_GAIN: f64 = 4.0;

/// Deviation of that blur, at least and at most.
const LEVEL_SIGMAS: [f64; 2] = [0.03, 0.08];

/// Strength of the dappled light, 0 to 1: share of the light that the leaves keep back.
const LEAF_SHADE: f64 = 0.81;

/// Gaps between the leaves, and deviation of the light that falls through one.
const GAPS: usize = 8;
const GAP_SIGMA: f64 = 0.06;

/// Strength of the held lines, 0 to 1: height of what a burst of errors destroys.
const BURST_HEIGHT: f64 = 0.2;

/// Bursts in a picture.
const BURSTS: usize = 3;

/// What the register of a pixel cannot hold begins again at black.
pub(super) fn overflow(clean: &Raster, draws: &mut Draws) -> Raster {
    let black = draws.uniform(0.0, OVERFLOW);
    clean.map(|value| (value + black).rem_euclid(1.0))
}

/// Without its sync a picture begins further down, and the end of the one before stands above it.
pub(super) fn rolling_picture(clean: &Raster, draws: &mut Draws) -> Raster {
    let lines = clean.height() + floor(BLANKING * length(clean.height()));
    let roll = floor(draws.uniform(0.0, ROLL) * length(lines));
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let line = (y + lines - roll) % lines;
        if line < clean.height() { clean.at(line, x, channel) } else { 0.0 }
    })
}

/// Each quarter of the sensor is read through an amplifier of its own.
pub(super) fn unmatched_taps(clean: &Raster, draws: &mut Draws) -> Raster {
    let taps = [(); 2].map(|()| [(); 2].map(|()| (draws.normal(0.0, TAP_SPREAD), draws.normal(1.0, TAP_SPREAD))));
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let (black, gain) = taps[2 * y / clean.height()][2 * x / clean.width()];
        black + gain * clean.at(y, x, channel)
    })
}

/// An edge filter of which only the difference arrives: bright inner sides of edges, and black where all is even.
pub(super) fn lost_level(clean: &Raster, draws: &mut Draws) -> Raster {
    let [least, most] = LEVEL_SIGMAS.map(|sigma| sigma * length(clean.height().max(clean.width())));
    let level = clean.gaussian(draws.uniform(least, most), TRUNCATE, Border::Nearest);
    clean.zip(&level, |value, level| EDGE_GAIN * (value - level))
}

/// The sun shines through a few gaps, and the rest is in the shade of the leaves.
pub(super) fn dappled_light(clean: &Raster, draws: &mut Draws) -> Raster {
    let gaps = [(); GAPS].map(|()| [(); 2].map(|()| draws.uniform(-0.5, 0.5)));
    shaded(clean, |down, right| {
        let through = |[gap_down, gap_right]: [f64; 2]| bell((down - gap_down).hypot(right - gap_right), GAP_SIGMA);
        1.0 - LEAF_SHADE * (1.0 - gaps.into_iter().map(through).fold(0.0, f64::max))
    })
}

/// In place of lines that are lost in a burst, the last one before it is shown again.
pub(super) fn held_lines(clean: &Raster, draws: &mut Draws) -> Raster {
    let bursts = [(); BURSTS].map(|()| draws.uniform(-0.5, 0.5));
    let is_lost = |y: usize| bursts.into_iter().any(|burst| (0.0..BURST_HEIGHT).contains(&(place(y, clean.height()) - burst)));
    let shown: Vec<usize> = (0..clean.height())
        .scan(0, |last, y| {
            *last = if is_lost(y) { *last } else { y };
            Some(*last)
        })
        .collect();
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| clean.at(shown[y], x, channel))
}
