//! Corruptions that no benchmark has: what lenses, sensors and lamps do to a picture, at one fixed strength each; thirty-six more came
//! later.
//!
//! They stood for the unknown until settings were chosen on them; of the sets that came later the fourth to the seventh are those on which
//! nothing was. Their constants stay as they are. Lengths are shares of the image's side, so that the strength is that of the picture, not
//! of its pixels.
//! Invariant: the same image, corruption and [`Draws`] give the same bytes.

use super::{held_out_again, held_out_fifth, held_out_fourth, held_out_seventh, held_out_sixth, held_out_third};
use crate::frame::Image;
use crate::lab::corruptions::draws::Draws;
use crate::lab::corruptions::raster::{Border, Raster, floor, real, signed};
use std::f64::consts::{SQRT_2, TAU};

/// Tangent of the angle at which a corner sees the lens, for the law that light falls with the fourth power of the cosine.
const VIGNETTE_CORNER: f64 = 1.5;

/// How far the middle of the lens may be off the middle of the picture.
const VIGNETTE_SHIFT: f64 = 0.1;

/// Bands of mains flicker in a picture that is read row by row, and the share of the light that is gone in the darkest row.
const BANDS: f64 = 3.0;
const BAND_DEPTH: f64 = 0.8;

/// Of so many columns, one is stuck at white and one at black.
const COLUMNS_PER_STUCK: usize = 16;

/// Steps between black and white, beside black: a picture of two bits has three.
const POSTER_STEPS: f64 = 3.0;

/// Share of the light that takes the second way, and how far off it falls.
const GHOST_SHARE: f64 = 0.45;
const GHOST_SHIFT: f64 = 0.15;

/// Deviation of the blur at the far end of a tilted plane of focus, the blurs it is put together from, and where scikit-image cuts them.
const TILT_SIGMA: f64 = 0.1;
const TILT_BLURS: [f64; 4] = [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0];
pub(super) const TRUNCATE: f64 = 4.0;

/// What is done to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HeldOut {
    /// Dark corners
    Vignetting,
    /// Dark bands across, at a height that changes from image to image
    Banding,
    /// Columns of the sensor that always say white or black
    DeadColumns,
    /// Four levels of brightness
    Posterization,
    /// A second, weaker image beside the first
    Ghosting,
    /// Focus that is lost from one side of the image to the other
    TiltedFocus,
    /// A camera that has turned on its bracket
    TurnedMounting,
    /// The glow of a lamp at the edge of the view, anywhere around it
    StrayLight,
    /// Light that clips, and whose charge spills along the columns of the sensor
    Overexposure,
    /// A cable or strap across the lens, too near to be in focus
    Obstruction,
    /// Blocks that are missing, so that those after them in the row move up
    LostPackets,
    /// Lines that begin too early or too late, each by itself
    LineJitter,
    /// A lens of a wide angle, which swells the middle and presses the edges together
    WideAngle,
    /// The hard shadow of a wall over one side of the image
    CastShadow,
    /// A fence before the lens
    WireMesh,
    /// A buffer that is read while it is written: a part of this frame above a part of the one before
    TornFrame,
    /// The time, which the camera writes into a corner of the image
    BurntInClock,
    /// Slanting waves, from a motor or a radio near the cable
    Interference,
    /// A camera that looks at the scene from an angle, so that one side is nearer than the other
    ObliqueView,
    /// A pane that was hit, each of whose splinters shows the view displaced
    CrackedGlass,
    /// The sensor's own pixels under their colour filters, not put together
    RawMosaic,
    /// Lines that are too bright or too dark from a wrong bit on
    Streaks,
    /// Water below, which mirrors what stands above it
    StandingWater,
    /// The camera's own lamps, in a circle, as its dome mirrors them
    LampRing,
    /// Drops that fall while the shutter is open
    Rain,
    /// Insects at the camera's lamp, too near to be in focus
    Insects,
    /// Two fields of a moving scene, put together line by line
    Combing,
    /// A picture that is read line by line from a mast that trembles
    Wobble,
    /// A part of the view that is covered, as it may not be seen
    PrivacyMask,
    /// Drops on the dome, each of which shows the view upside down
    Dew,
    /// A black level that is set too high, so that bright things run over their register and begin again at black
    Overflow,
    /// A picture that has lost its sync, so that it begins further down, below the end of the one before
    RollingPicture,
    /// Quarters of the sensor, each read with a black and a gain of its own
    UnmatchedTaps,
    /// An edge filter that has lost the picture itself: edges alone
    LostLevel,
    /// The sun through leaves, in a few round spots
    DappledLight,
    /// Lines that are lost in bursts, in whose place the last one is shown again
    HeldLines,
    /// A zoom lens that has stopped too near or too far
    WrongZoom,
    /// Lines that are taken for longer or shorter than they are, so that the picture leans
    WrongPitch,
    /// A bright window behind the camera, which the pane before it mirrors
    MirroredWindow,
    /// A black that is not held, so that lines with bright things are darker than others
    FloatingBlack,
    /// Blocks that a decoder draws from the wrong place, as the picture that they refer to was lost
    LostKeyFrame,
    /// A filter against noise that is too strong: what is small is gone, and edges stay
    Smudging,
}

impl HeldOut {
    pub const ALL: [Self; 42] = [
        Self::Vignetting,
        Self::Banding,
        Self::DeadColumns,
        Self::Posterization,
        Self::Ghosting,
        Self::TiltedFocus,
        Self::TurnedMounting,
        Self::StrayLight,
        Self::Overexposure,
        Self::Obstruction,
        Self::LostPackets,
        Self::LineJitter,
        Self::WideAngle,
        Self::CastShadow,
        Self::WireMesh,
        Self::TornFrame,
        Self::BurntInClock,
        Self::Interference,
        Self::ObliqueView,
        Self::CrackedGlass,
        Self::RawMosaic,
        Self::Streaks,
        Self::StandingWater,
        Self::LampRing,
        Self::Rain,
        Self::Insects,
        Self::Combing,
        Self::Wobble,
        Self::PrivacyMask,
        Self::Dew,
        Self::Overflow,
        Self::RollingPicture,
        Self::UnmatchedTaps,
        Self::LostLevel,
        Self::DappledLight,
        Self::HeldLines,
        Self::WrongZoom,
        Self::WrongPitch,
        Self::MirroredWindow,
        Self::FloatingBlack,
        Self::LostKeyFrame,
        Self::Smudging,
    ];

    /// Those that were there before anything was chosen.
    pub const FIRST: &'static [Self] = Self::ALL.split_at(6).0;

    /// Those that were invented when the first had been used.
    pub const AGAIN: &'static [Self] = Self::ALL.split_at(6).1.split_at(6).0;

    /// Those that were invented when the second had been looked at.
    pub const THIRD: &'static [Self] = Self::ALL.split_at(12).1.split_at(6).0;

    /// Those that were invented when the third had been looked at.
    pub const FOURTH: &'static [Self] = Self::ALL.split_at(18).1.split_at(6).0;

    /// Those that were invented when the fourth had been looked at.
    pub const FIFTH: &'static [Self] = Self::ALL.split_at(24).1.split_at(6).0;

    /// Those that were invented when the fifth had been looked at.
    pub const SIXTH: &'static [Self] = Self::ALL.split_at(30).1.split_at(6).0;

    /// Those that were invented when the sixth had been looked at.
    pub const SEVENTH: &'static [Self] = Self::ALL.split_at(36).1;

    pub const fn name(self) -> &'static str {
        match self {
            Self::Vignetting => "vignetting",
            Self::Banding => "banding",
            Self::DeadColumns => "dead_columns",
            Self::Posterization => "posterization",
            Self::Ghosting => "ghosting",
            Self::TiltedFocus => "tilted_focus",
            Self::TurnedMounting => "turned_mounting",
            Self::StrayLight => "stray_light",
            Self::Overexposure => "overexposure",
            Self::Obstruction => "obstruction",
            Self::LostPackets => "lost_packets",
            Self::LineJitter => "line_jitter",
            Self::WideAngle => "wide_angle",
            Self::CastShadow => "cast_shadow",
            Self::WireMesh => "wire_mesh",
            Self::TornFrame => "torn_frame",
            Self::BurntInClock => "burnt_in_clock",
            Self::Interference => "interference",
            Self::ObliqueView => "oblique_view",
            Self::CrackedGlass => "cracked_glass",
            Self::RawMosaic => "raw_mosaic",
            Self::Streaks => "streaks",
            Self::StandingWater => "standing_water",
            Self::LampRing => "lamp_ring",
            Self::Rain => "rain",
            Self::Insects => "insects",
            Self::Combing => "combing",
            Self::Wobble => "wobble",
            Self::PrivacyMask => "privacy_mask",
            Self::Dew => "dew",
            Self::Overflow => "overflow",
            Self::RollingPicture => "rolling_picture",
            Self::UnmatchedTaps => "unmatched_taps",
            Self::LostLevel => "lost_level",
            Self::DappledLight => "dappled_light",
            Self::HeldLines => "held_lines",
            Self::WrongZoom => "wrong_zoom",
            Self::WrongPitch => "wrong_pitch",
            Self::MirroredWindow => "mirrored_window",
            Self::FloatingBlack => "floating_black",
            Self::LostKeyFrame => "lost_key_frame",
            Self::Smudging => "smudging",
        }
    }

    /// Corrupts an image, grey or RGB.
    pub fn apply(self, image: &Image, draws: &mut Draws) -> Image {
        let clean = Raster::from(image);
        let corrupted = match self {
            Self::Vignetting => vignetting(&clean, [(); 2].map(|()| draws.uniform(-VIGNETTE_SHIFT, VIGNETTE_SHIFT))),
            Self::Banding => banding(&clean, draws.uniform(0.0, TAU)),
            Self::DeadColumns => dead_columns(&clean, draws),
            Self::Posterization => clean.map(|value| (value * POSTER_STEPS).round() / POSTER_STEPS),
            Self::Ghosting => ghosting(&clean, draws.uniform(0.0, TAU)),
            Self::TiltedFocus => tilted_focus(&clean, draws.uniform(0.0, TAU)),
            Self::TurnedMounting => held_out_again::turned_mounting(&clean, draws),
            Self::StrayLight => held_out_again::stray_light(&clean, draws),
            Self::Overexposure => held_out_again::overexposure(&clean),
            Self::Obstruction => held_out_again::obstruction(&clean, draws),
            Self::LostPackets => held_out_again::lost_packets(&clean, draws),
            Self::LineJitter => held_out_again::line_jitter(&clean, draws),
            Self::WideAngle => held_out_third::wide_angle(&clean),
            Self::CastShadow => held_out_third::cast_shadow(&clean, draws),
            Self::WireMesh => held_out_third::wire_mesh(&clean, draws),
            Self::TornFrame => held_out_third::torn_frame(&clean, draws),
            Self::BurntInClock => held_out_third::burnt_in_clock(&clean, draws),
            Self::Interference => held_out_third::interference(&clean, draws),
            Self::ObliqueView => held_out_fourth::oblique_view(&clean, draws),
            Self::CrackedGlass => held_out_fourth::cracked_glass(&clean, draws),
            Self::RawMosaic => held_out_fourth::raw_mosaic(&clean),
            Self::Streaks => held_out_fourth::streaks(&clean, draws),
            Self::StandingWater => held_out_fourth::standing_water(&clean, draws),
            Self::LampRing => held_out_fourth::lamp_ring(&clean, draws),
            Self::Rain => held_out_fifth::rain(&clean, draws),
            Self::Insects => held_out_fifth::insects(&clean, draws),
            Self::Combing => held_out_fifth::combing(&clean, draws),
            Self::Wobble => held_out_fifth::wobble(&clean, draws),
            Self::PrivacyMask => held_out_fifth::privacy_mask(&clean, draws),
            Self::Dew => held_out_fifth::dew(&clean, draws),
            Self::Overflow => held_out_sixth::overflow(&clean, draws),
            Self::RollingPicture => held_out_sixth::rolling_picture(&clean, draws),
            Self::UnmatchedTaps => held_out_sixth::unmatched_taps(&clean, draws),
            Self::LostLevel => held_out_sixth::lost_level(&clean, draws),
            Self::DappledLight => held_out_sixth::dappled_light(&clean, draws),
            Self::HeldLines => held_out_sixth::held_lines(&clean, draws),
            Self::WrongZoom => held_out_seventh::wrong_zoom(&clean, draws),
            Self::WrongPitch => held_out_seventh::wrong_pitch(&clean, draws),
            Self::MirroredWindow => held_out_seventh::mirrored_window(&clean, draws),
            Self::FloatingBlack => held_out_seventh::floating_black(&clean, draws),
            Self::LostKeyFrame => held_out_seventh::lost_key_frame(&clean, draws),
            Self::Smudging => held_out_seventh::smudging(&clean),
        };
        corrupted.to_image()
    }
}

/// x cos^4 of the angle to the middle, which is `shift` (down, right) off that of the image.
fn vignetting(clean: &Raster, [down, right]: [f64; 2]) -> Raster {
    shaded(clean, |y, x| {
        // The corners are at a distance of 1.
        let distance = 2.0 * (y - down).hypot(x - right) / SQRT_2;
        (1.0 + (VIGNETTE_CORNER * distance).powi(2)).powi(-2)
    })
}

fn banding(clean: &Raster, phase: f64) -> Raster {
    shaded(clean, |y, _| 1.0 - BAND_DEPTH * (1.0 + (TAU * BANDS * y + phase).sin()) / 2.0)
}

/// Each value times `light(y, x)`, where y and x go from -0.5 to 0.5 over the image.
pub(super) fn shaded(clean: &Raster, light: impl Fn(f64, f64) -> f64) -> Raster {
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        clean.at(y, x, channel) * light(place(y, clean.height()), place(x, clean.width()))
    })
}

/// Each value + `light(y, x)`, where y and x go from -0.5 to 0.5 over the image.
pub(super) fn lit(clean: &Raster, light: impl Fn(f64, f64) -> f64) -> Raster {
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        clean.at(y, x, channel) + light(place(y, clean.height()), place(x, clean.width()))
    })
}

fn dead_columns(clean: &Raster, draws: &mut Draws) -> Raster {
    let mut columns: Vec<usize> = (0..clean.width()).collect();
    draws.shuffle(&mut columns);
    let stuck = clean.width() / COLUMNS_PER_STUCK;
    let (white, black) = (&columns[..stuck], &columns[stuck..2 * stuck]);
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| match x {
        _ if white.contains(&x) => 1.0,
        _ if black.contains(&x) => 0.0,
        _ => clean.at(y, x, channel),
    })
}

fn ghosting(clean: &Raster, angle: f64) -> Raster {
    let (down, right) = (GHOST_SHIFT * angle.sin() * length(clean.height()), GHOST_SHIFT * angle.cos() * length(clean.width()));
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let ghost = clean.sample(length(y) - down, length(x) - right, channel, Border::Nearest);
        (1.0 - GHOST_SHARE) * clean.at(y, x, channel) + GHOST_SHARE * ghost
    })
}

/// Sharp where the image ends in the direction opposite to `angle`, and less and less so from there.
fn tilted_focus(clean: &Raster, angle: f64) -> Raster {
    let sigma = TILT_SIGMA * length(clean.height().max(clean.width()));
    let blurs = TILT_BLURS.map(|share| clean.gaussian(share * sigma, TRUNCATE, Border::Nearest));
    let (sine, cosine) = angle.sin_cos();
    Raster::from_fn(clean.channels(), clean.height(), clean.width(), |y, x, channel| {
        let along = 0.5 + sine * place(y, clean.height()) + cosine * place(x, clean.width());
        let level = along.clamp(0.0, 1.0) * length(TILT_BLURS.len() - 1);
        let (lower, upper) = (floor(level), floor(level.ceil()));
        let share = level - length(lower);
        (1.0 - share) * blurs[lower].at(y, x, channel) + share * blurs[upper].at(y, x, channel)
    })
}

/// Where the middle of a pixel is, -0.5 to 0.5.
pub(super) fn place(index: usize, size: usize) -> f64 {
    (length(index) + 0.5) / length(size) - 0.5
}

pub(super) fn length(pixels: usize) -> f64 {
    real(signed(pixels))
}
