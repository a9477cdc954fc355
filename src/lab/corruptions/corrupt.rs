//! Names, severities, and [`corrupt`], which draws the random input of a corruption and applies it.

use crate::frame::Image;
use crate::lab::corruptions::draws::Draws;
use crate::lab::corruptions::raster::{Raster, signed};
use crate::lab::corruptions::tables::{Glass, Table};
use crate::lab::corruptions::{blur, digital, noise, spatter, weather};
use std::fmt;
use std::str::FromStr;

/// The smallest side of an image; the shuffled and filtered neighbourhoods reach no further.
const SIDE_MIN: usize = 16;

/// Directions in degrees in which things move: cameras, and falling snow.
const MOTION_ANGLES: [f64; 2] = [-45.0, 45.0];
const SNOW_ANGLES: [f64; 2] = [-135.0, -45.0];

/// What is done to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Corruption {
    GaussianNoise,
    ShotNoise,
    ImpulseNoise,
    DefocusBlur,
    GlassBlur,
    MotionBlur,
    ZoomBlur,
    Snow,
    Frost,
    Fog,
    Brightness,
    Contrast,
    ElasticTransform,
    Pixelate,
    JpegCompression,
    SpeckleNoise,
    GaussianBlur,
    Spatter,
    Saturate,
}

/// Why a corruption cannot be named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CorruptionError {
    #[error("find corruption {name:?}: expected one of {}", Corruption::ALL.map(Corruption::name).join(", "))]
    Unknown { name: String },
    #[error("read severity {value}: expected 1 to 5")]
    SeverityOutOfRange { value: u8 },
}

impl Corruption {
    /// The standard ones, in the order in which continual adaptation meets them, then the extra ones.
    pub const ALL: [Self; 19] = [
        Self::GaussianNoise,
        Self::ShotNoise,
        Self::ImpulseNoise,
        Self::DefocusBlur,
        Self::GlassBlur,
        Self::MotionBlur,
        Self::ZoomBlur,
        Self::Snow,
        Self::Frost,
        Self::Fog,
        Self::Brightness,
        Self::Contrast,
        Self::ElasticTransform,
        Self::Pixelate,
        Self::JpegCompression,
        Self::SpeckleNoise,
        Self::GaussianBlur,
        Self::Spatter,
        Self::Saturate,
    ];

    /// The 15 on which results are reported.
    pub const STANDARD: &[Self] = Self::ALL.split_at(15).0;

    /// The 4 on which choices may be made, so that the 15 stay unseen.
    pub const EXTRA: &[Self] = Self::ALL.split_at(15).1;

    /// The name in the benchmarks' file names.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GaussianNoise => "gaussian_noise",
            Self::ShotNoise => "shot_noise",
            Self::ImpulseNoise => "impulse_noise",
            Self::DefocusBlur => "defocus_blur",
            Self::GlassBlur => "glass_blur",
            Self::MotionBlur => "motion_blur",
            Self::ZoomBlur => "zoom_blur",
            Self::Snow => "snow",
            Self::Frost => "frost",
            Self::Fog => "fog",
            Self::Brightness => "brightness",
            Self::Contrast => "contrast",
            Self::ElasticTransform => "elastic_transform",
            Self::Pixelate => "pixelate",
            Self::JpegCompression => "jpeg_compression",
            Self::SpeckleNoise => "speckle_noise",
            Self::GaussianBlur => "gaussian_blur",
            Self::Spatter => "spatter",
            Self::Saturate => "saturate",
        }
    }

    fn needs_colour(self) -> bool {
        matches!(self, Self::Frost | Self::Spatter | Self::Saturate)
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Corruption {
    type Err = CorruptionError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|corruption| corruption.name() == name).ok_or_else(|| CorruptionError::Unknown { name: name.to_owned() })
    }
}

/// How strong a corruption is: 1 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Severity(u8);

impl Severity {
    pub const ALL: [Self; 5] = [Self(1), Self(2), Self(3), Self(4), Self(5)];

    /// 1 to 5.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The column in a table of constants.
    pub fn index(self) -> usize {
        usize::from(self.0) - 1
    }
}

impl TryFrom<u8> for Severity {
    type Error = CorruptionError;

    fn try_from(value: u8) -> Result<Self, Self::Error> {
        if (1..=5).contains(&value) { Ok(Self(value)) } else { Err(CorruptionError::SeverityOutOfRange { value }) }
    }
}

/// Corrupts an image with the constants of `table`.
///
/// Grey or RGB, of any size from 16 x 16; the constants stay those of the table.
///
/// # Panics
/// When a side is below 16 pixels, or there are other than 1 or 3 channels.
pub fn corrupt(image: &Image, corruption: Corruption, severity: Severity, table: Table, draws: &mut Draws) -> Image {
    assert!(image.height().min(image.width()) >= SIDE_MIN, "image of {} x {} pixels", image.height(), image.width());
    assert!(matches!(image.channels(), 1 | 3), "image of {} channels", image.channels());
    let clean = Raster::from(image);
    if image.channels() == 1 && corruption.needs_colour() {
        return corrupt_raster(&clean.to_rgb(), corruption, severity, table, draws).map(|value| value.clamp(0.0, 1.0)).luma().to_image();
    }
    corrupt_raster(&clean, corruption, severity, table, draws).to_image()
}

fn corrupt_raster(clean: &Raster, corruption: Corruption, severity: Severity, table: Table, draws: &mut Draws) -> Raster {
    let (constants, index) = (table.constants(), severity.index());
    match corruption {
        Corruption::GaussianNoise => noise::gaussian_noise(clean, constants.gaussian_noise[index], draws),
        Corruption::ShotNoise => noise::shot_noise(clean, constants.shot_noise[index], draws),
        Corruption::ImpulseNoise => noise::impulse_noise(clean, constants.impulse_noise[index], draws),
        Corruption::SpeckleNoise => noise::speckle_noise(clean, constants.speckle_noise[index], draws),
        Corruption::GaussianBlur => blur::gaussian_blur(clean, constants.gaussian_blur[index]),
        Corruption::DefocusBlur => blur::defocus_blur(clean, constants.defocus_blur[index]),
        Corruption::GlassBlur => {
            let glass @ Glass { max_delta, .. } = constants.glass_blur[index];
            blur::glass_blur(clean, glass, || signed(draws.below(2 * max_delta)) - signed(max_delta))
        }
        Corruption::MotionBlur => blur::motion_blur(clean, constants.motion_blur[index], within(MOTION_ANGLES, draws)),
        Corruption::ZoomBlur => blur::zoom_blur(clean, constants.zoom_blur[index]),
        Corruption::Snow => {
            let snow = constants.snow[index];
            let layer = clean.layer(|| draws.normal(snow.mean, snow.deviation));
            weather::snow(clean, snow, &layer, within(SNOW_ANGLES, draws))
        }
        Corruption::Frost => {
            let texture = &weather::frost_textures(table)[draws.below(weather::FROST_TEXTURES)];
            let top = draws.below(texture.height().saturating_sub(clean.height()).max(1));
            let left = draws.below(texture.width().saturating_sub(clean.width()).max(1));
            weather::frost(clean, constants.frost[index], texture, [top, left])
        }
        Corruption::Fog => {
            let side = clean.height().max(clean.width()).next_power_of_two();
            let plasma = weather::plasma_fractal(side, constants.fog[index].decay, || draws.uniform(-1.0, 1.0));
            weather::fog(clean, constants.fog[index].density, &plasma)
        }
        Corruption::Brightness => weather::brightness(clean, constants.brightness[index]),
        Corruption::Contrast => digital::contrast(clean, constants.contrast[index]),
        Corruption::Pixelate => Raster::from(&digital::pixelate(&clean.to_image(), constants.pixelate[index])),
        Corruption::JpegCompression => Raster::from(&digital::jpeg_compression(&clean.to_image(), constants.jpeg_compression[index])),
        Corruption::ElasticTransform => {
            let shifts = [(); 3].map(|()| [draws.uniform(-1.0, 1.0), draws.uniform(-1.0, 1.0)]);
            let (across, down) = (clean.layer(|| draws.uniform(-1.0, 1.0)), clean.layer(|| draws.uniform(-1.0, 1.0)));
            digital::elastic_transform(clean, constants.elastic_transform[index], &digital::ElasticDraws { shifts, across, down })
        }
        Corruption::Spatter => {
            let drops = constants.spatter[index];
            spatter::spatter(clean, drops, &clean.layer(|| draws.normal(drops.mean, drops.deviation)))
        }
        Corruption::Saturate => digital::saturate(clean, constants.saturate[index]),
    }
}

fn within([low, high]: [f64; 2], draws: &mut Draws) -> f64 {
    draws.uniform(low, high)
}
