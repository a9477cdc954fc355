//! The fifth six of [`super::HeldOut`]: what rain, insects, interlaced video, trembling masts, privacy masks and dew do to a picture.
//!
//! They were invented when the fourth six had been looked at, without sight of what they test, and stand for the unknown as those do:
//! nothing may be chosen by how it does on them. Each has one strength, set by one rule: the source (vision transformer) is right in about
//! 70 of 100 images, as on the third and fourth six. The other constants are what such a thing looks like. Lengths are shares of the
//! image's side, but for the fields of interlaced video, which are the lines themselves.
//! Invariant: the same image, corruption and [`Draws`] give the same bytes.

use super::held_out::{length, lit, place};
use crate::lab::corruptions::draws::Draws;
use crate::lab::corruptions::raster::{Border, Raster, bell};
use std::f64::consts::TAU;

/// Strength of the rain, from 0: the light that a drop adds along the middle of its way.
const RAIN_LIGHT: f64 = 0.306;

/// Drops that fall while the shutter is open, the way that each falls, its deviation across, and how far the wind slants it.
const DROPS_FALLING: usize = 12;
const FALL: f64 = 0.4;
const DROP_SIGMA: f64 = 0.015;
const SLANT_RANGE: f64 = 0.3;

/// Strength of the insects, from 0: deviation of their light, as they are too near to be in focus.
const INSECT_SIGMA: f64 = 0.076;

/// Insects before the camera's lamp, and how bright they are in their middle: brighter than white.
const INSECTS: usize = 3;
const INSECT_LIGHT: f64 = 1.5;

/// Strength of the combing, from 0: how far the scene moves across from one field to the next.
const FIELD_SHIFT: f64 = 0.239;

/// Strength of the wobble, from 0: how far a line is displaced at most; and the waves in the time that a picture takes to be read.
const WOBBLE: f64 = 0.0535;
const WOBBLE_WAVES: f64 = 3.0;

/// Strength of the privacy mask, 0 to 1: its mean side.
const MASK_SIDE: f64 = 0.359;

/// How grey it is, by how much a side may differ from that, as a share of it, and how far the middle of the mask may be off that of the
/// picture.
const MASK_LEVEL: f64 = 0.5;
const MASK_STRETCH: f64 = 0.25;
const MASK_RANGE: f64 = 0.3;

/// Strength of the dew, from 0: radius of the largest drop; the others are at least half as large.
const DEW_RADIUS: f64 = 0.131;

/// Drops on the dome, and how far the view in a drop is drawn together: a drop is a lens of a wide angle, and stands on its head.
const DEW_DROPS: usize = 8;
const DEW_ANGLE: f64 = 3.0;

/// x + bright lines, as the drops fall faster than the shutter; all slanted alike.
pub(super) fn rain(clean: &Raster, draws: &mut Draws) -> Raster {
    let slant = draws.uniform(-SLANT_RANGE, SLANT_RANGE);
    let drops = [(); DROPS_FALLING].map(|()| [(); 2].map(|()| draws.uniform(-0.5, 0.5)));
    lit(clean, |down, right| {
        let light = |[drop_down, drop_right]: [f64; 2]| {
            let along = down - drop_down;
            if along.abs() > FALL / 2.0 { 0.0 } else { bell(right - drop_right - slant * along, DROP_SIGMA) }
        };
        RAIN_LIGHT * drops.into_iter().map(light).sum::<f64>()
    })
}

/// x + large soft spots.
pub(super) fn insects(clean: &Raster, draws: &mut Draws) -> Raster {
    let insects = [(); INSECTS].map(|()| [(); 2].map(|()| draws.uniform(-0.5, 0.5)));
    lit(clean, |down, right| {
        let light = |[insect_down, insect_right]: [f64; 2]| bell((down - insect_down).hypot(right - insect_right), INSECT_SIGMA);
        INSECT_LIGHT * insects.into_iter().map(light).sum::<f64>()
    })
}

/// Every second line is of a field that was taken later, when the scene had moved to one side.
pub(super) fn combing(clean: &Raster, draws: &mut Draws) -> Raster {
    let shift = [-FIELD_SHIFT, FIELD_SHIFT][draws.below(2)] * length(clean.width());
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        clean.sample(length(y), length(x) - length(y % 2) * shift, channel, Border::Nearest)
    })
}

/// Lines are read one after the other, while the mast trembles from side to side.
pub(super) fn wobble(clean: &Raster, draws: &mut Draws) -> Raster {
    let phase = draws.uniform(0.0, TAU);
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let shift = WOBBLE * (TAU * WOBBLE_WAVES * place(y, clean.height()) + phase).sin() * length(clean.width());
        clean.sample(length(y), length(x) - shift, channel, Border::Nearest)
    })
}

/// A grey rectangle over what may not be seen.
pub(super) fn privacy_mask(clean: &Raster, draws: &mut Draws) -> Raster {
    let [middle_down, middle_right] = [(); 2].map(|()| draws.uniform(-MASK_RANGE, MASK_RANGE));
    let [high, wide] = [(); 2].map(|()| MASK_SIDE * draws.uniform(1.0 - MASK_STRETCH, 1.0 + MASK_STRETCH));
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let (down, right) = (place(y, clean.height()) - middle_down, place(x, clean.width()) - middle_right);
        if down.abs() <= high / 2.0 && right.abs() <= wide / 2.0 { MASK_LEVEL } else { clean.at(y, x, channel) }
    })
}

/// In each drop is a small view of the scene, upside down.
pub(super) fn dew(clean: &Raster, draws: &mut Draws) -> Raster {
    let drops = [(); DEW_DROPS].map(|()| {
        let middle = [(); 2].map(|()| draws.uniform(-0.5, 0.5));
        (middle, DEW_RADIUS * draws.uniform(0.5, 1.0))
    });
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let (down, right) = (place(y, clean.height()), place(x, clean.width()));
        let is_over = |&&([drop_down, drop_right], radius): &&([f64; 2], f64)| (down - drop_down).hypot(right - drop_right) <= radius;
        let Some(&([drop_down, drop_right], _)) = drops.iter().find(is_over) else { return clean.at(y, x, channel) };
        let from = |place: f64, drop: f64, size: usize| (drop - DEW_ANGLE * (place - drop) + 0.5) * length(size) - 0.5;
        clean.sample(from(down, drop_down, clean.height()), from(right, drop_right, clean.width()), channel, Border::Nearest)
    })
}
