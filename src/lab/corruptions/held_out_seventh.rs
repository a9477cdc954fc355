//! The seventh six of [`super::HeldOut`]: what zoom lenses, line buffers, panes, clamps, lost key frames and noise filters do to a picture.
//!
//! They were invented when the sixth six had been looked at, without sight of what they test. They stand for the unknown as those do:
//! nothing may be chosen by how it does on them. Each has one strength, set by one rule: the source (vision transformer) is right in about
//! 70 of 100 images, as on the third to sixth six; for that, the floating black's had to go beyond 1, where the source was right in 73. The
//! other constants are what such a thing looks like. Lengths are shares of the image's side.
//! Invariant: the same image, corruption and [`Draws`] give the same bytes.

use super::held_out::{length, lit, place};
use crate::lab::corruptions::draws::Draws;
use crate::lab::corruptions::raster::{Border, Raster, bell, floor, real, round, signed};

/// Strength of the wrong zoom, from 1: how many times too large or too small the picture is, at most.
const ZOOM: f64 = 2.0;

/// Strength of the wrong pitch, from 0: how far the last line is displaced at most, to either side.
const LEAN: f64 = 0.63;

/// Strength of the mirrored window, from 0: the light that the pane mirrors; at 1, it is as bright as white.
const WINDOW_LIGHT: f64 = 0.52;

/// Height and width of the window, its panes down and across, and the width of the bars between them.
const WINDOW_SIDES: [f64; 2] = [0.6, 0.45];
const WINDOW_PANES: [f64; 2] = [3.0, 2.0];
const WINDOW_BAR: f64 = 0.05;

/// How far the middle of the window may be off that of the picture, and how far it may lean to either side: it is seen at an angle.
const WINDOW_RANGE: f64 = 0.25;
const WINDOW_LEAN: f64 = 0.2;

/// Strength of the floating black, from 0: how many times a line's mean is lost; at 1, all lines are equally bright, and beyond it the
/// amplifier overshoots.
const CLAMP_LOSS: f64 = 1.1;

/// The grey about which the lines then float, at least and at most: it is the amplifier's own, and drifts.
const FLOAT_LEVELS: [f64; 2] = [0.2, 0.6];

/// Strength of the lost key frame, from 0: deviation of how far a block is moved, down and to the right.
const VECTOR_SHIFT: f64 = 0.0625;

/// Blocks along a side, and the probability that a block is moved.
const BLOCKS: usize = 8;
const BLOCKS_MOVED: f64 = 0.5;

/// Strength of the smudging, from 0: deviation of the weights with which the pixels about one are heard.
const SMUDGE_SIGMA: f64 = 0.065;

/// Deviations from a pixel beyond which none is heard.
const SMUDGE_REACH: f64 = 2.0;

/// Enlarged or made smaller about its middle; what comes into view goes on as the edge ends.
pub(super) fn wrong_zoom(clean: &Raster, draws: &mut Draws) -> Raster {
    let scale = ZOOM.powf(draws.uniform(-1.0, 1.0));
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let from = |place: f64, size: usize| (scale * place + 0.5) * length(size) - 0.5;
        let (down, right) = (place(y, clean.height()), place(x, clean.width()));
        clean.sample(from(down, clean.height()), from(right, clean.width()), channel, Border::Nearest)
    })
}

/// The buffer is read in lines that are a little too long or too short, so that each begins further off, and goes on in the next one.
pub(super) fn wrong_pitch(clean: &Raster, draws: &mut Draws) -> Raster {
    let lean = draws.uniform(-LEAN, LEAN) * length(clean.width()) / length(clean.height());
    let pixels = signed(clean.height() * clean.width());
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let read = signed(y * clean.width() + x) + round(lean * length(y));
        let pixel = read.rem_euclid(pixels).unsigned_abs();
        clean.at(pixel / clean.width(), pixel % clean.width(), channel)
    })
}

/// x + the panes of a bright window behind the camera, which the glass before it mirrors.
pub(super) fn mirrored_window(clean: &Raster, draws: &mut Draws) -> Raster {
    let [middle_down, middle_right] = [(); 2].map(|()| draws.uniform(-WINDOW_RANGE, WINDOW_RANGE));
    let lean = draws.uniform(-WINDOW_LEAN, WINDOW_LEAN);
    let is_pane = |place: f64, side: f64, panes: f64| {
        let pitch = side / panes;
        let past = (place + side / 2.0).rem_euclid(pitch);
        place.abs() < side / 2.0 && past.min(pitch - past) >= WINDOW_BAR / 2.0
    };
    lit(clean, |down, right| {
        let across = right - middle_right;
        let along = down - middle_down - lean * across;
        let [high, wide] = WINDOW_SIDES;
        let [rows, columns] = WINDOW_PANES;
        if is_pane(along, high, rows) && is_pane(across, wide, columns) { WINDOW_LIGHT } else { 0.0 }
    })
}

/// A line's mean is lost, and all of the line stands higher or lower: what is beside bright things turns dark.
pub(super) fn floating_black(clean: &Raster, draws: &mut Draws) -> Raster {
    let [least, most] = FLOAT_LEVELS;
    let level = draws.uniform(least, most);
    let means = Raster::from_fn(clean.channels(), clean.height(), 1, |y, _, channel| {
        (0..clean.width()).map(|x| clean.at(y, x, channel)).sum::<f64>() / length(clean.width())
    });
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        clean.at(y, x, channel) + CLAMP_LOSS * (level - means.at(y, 0, channel))
    })
}

/// What moved is drawn from where the decoder believes it was, and it believes wrong.
pub(super) fn lost_key_frame(clean: &Raster, draws: &mut Draws) -> Raster {
    let mut vector = || {
        let is_moved = draws.uniform(0.0, 1.0) < BLOCKS_MOVED;
        [(); 2].map(|()| draws.normal(0.0, VECTOR_SHIFT)).map(|shift| if is_moved { shift } else { 0.0 })
    };
    let vectors = [(); BLOCKS].map(|()| [(); BLOCKS].map(|()| vector()));
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let [down, right] = vectors[y * BLOCKS / clean.height()][x * BLOCKS / clean.width()];
        let (from_y, from_x) = (length(y) + down * length(clean.height()), length(x) + right * length(clean.width()));
        clean.sample(from_y, from_x, channel, Border::Nearest)
    })
}

/// Each pixel is the median of those about it, the nearer the weightier: edges stay, and what is small is gone.
pub(super) fn smudging(clean: &Raster) -> Raster {
    let sigma = SMUDGE_SIGMA * length(clean.height().max(clean.width()));
    let reach = signed(floor(SMUDGE_REACH * sigma + 0.5));
    let offsets = || (-reach..=reach).map(real);
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let about = |down: f64, right: f64| {
            (clean.sample(length(y) + down, length(x) + right, channel, Border::Nearest), bell(down.hypot(right), sigma))
        };
        let mut heard: Vec<(f64, f64)> = offsets().flat_map(|down| offsets().map(move |right| about(down, right))).collect();
        heard.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let half = heard.iter().map(|(_, weight)| weight).sum::<f64>() / 2.0;
        let mut sum = 0.0;
        let is_middle = |(_, weight): &&(f64, f64)| {
            sum += weight;
            sum >= half
        };
        heard.iter().find(is_middle).map_or(0.0, |&(value, _)| value)
    })
}
