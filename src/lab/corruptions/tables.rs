//! The constants of the corruptions, for severities 1 to 5, from left to right or from top to bottom.
//!
//! Sources: `CIFAR` from `make_cifar_c.py`, `TINY` from `make_tinyimagenet_c.py` (github.com/hendrycks/robustness, folder
//! ImageNet-C/create_c). Lengths are in pixels, colours in 0..=1. The constants belong to images of 32 and of 64 pixels; with images of
//! another size they stay as they are, and only the sizes that the reference derives from the image follow it.

/// Which benchmark's constants are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Table {
    /// CIFAR-10-C: 32 x 32.
    Cifar,
    /// Tiny-ImageNet-C: 64 x 64.
    Tiny,
}

impl Table {
    pub fn constants(self) -> &'static Constants {
        match self {
            Self::Cifar => &CIFAR,
            Self::Tiny => &TINY,
        }
    }
}

/// All constants of a table. The fields are those of the functions that take them.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    pub gaussian_noise: [f64; 5],
    pub shot_noise: [f64; 5],
    pub impulse_noise: [f64; 5],
    pub defocus_blur: [Defocus; 5],
    pub glass_blur: [Glass; 5],
    pub motion_blur: [Motion; 5],
    /// Count of zoom factors 1.00, 1.01, ...: the length of `numpy.arange(1, stop, 0.01)` for stops of 1.06, 1.11, 1.16, 1.21 and 1.26.
    /// Rounding includes the stop in the first two.
    pub zoom_blur: [u32; 5],
    pub snow: [Snow; 5],
    pub frost: [Frost; 5],
    pub fog: [Fog; 5],
    pub brightness: [f64; 5],
    pub contrast: [f64; 5],
    pub elastic_transform: [Elastic; 5],
    pub pixelate: [f64; 5],
    pub jpeg_compression: [u8; 5],
    pub speckle_noise: [f64; 5],
    pub gaussian_blur: [f64; 5],
    pub spatter: [Spatter; 5],
    pub saturate: [Saturate; 5],
}

#[derive(Clone, Copy, Debug)]
pub struct Defocus {
    pub radius: f64,
    pub alias_sigma: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Glass {
    pub sigma: f64,
    pub max_delta: usize,
    pub iterations: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct Motion {
    pub radius: isize,
    pub sigma: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Snow {
    pub mean: f64,
    pub deviation: f64,
    pub zoom: f64,
    pub threshold: f64,
    pub radius: isize,
    pub sigma: f64,
    pub blend: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Frost {
    pub clarity: f64,
    pub ice: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Fog {
    pub density: f64,
    pub decay: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Elastic {
    /// Reach of the displacement, before smoothing.
    pub alpha: f64,
    /// Deviation of the Gaussian that smooths the displacement.
    pub sigma: f64,
    /// Reach of the shift of each of the three points that fix the affine map.
    pub affine: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Spatter {
    pub mean: f64,
    pub deviation: f64,
    pub sigma: f64,
    pub threshold: f64,
    pub liquid: Liquid,
}

#[derive(Clone, Copy, Debug)]
pub enum Liquid {
    /// Adds pale turquoise, at most by this share.
    Water(f64),
    /// Covers with brown; the edge of the cover is smoothed with this deviation.
    Mud(f64),
}

#[derive(Clone, Copy, Debug)]
pub struct Saturate {
    pub factor: f64,
    pub offset: f64,
}

const fn defocus(radius: f64, alias_sigma: f64) -> Defocus {
    Defocus { radius, alias_sigma }
}

const fn glass(sigma: f64, max_delta: usize, iterations: u32) -> Glass {
    Glass { sigma, max_delta, iterations }
}

const fn motion(radius: isize, sigma: f64) -> Motion {
    Motion { radius, sigma }
}

const fn snow([mean, deviation, zoom, threshold]: [f64; 4], Motion { radius, sigma }: Motion, blend: f64) -> Snow {
    Snow { mean, deviation, zoom, threshold, radius, sigma, blend }
}

const fn frost(clarity: f64, ice: f64) -> Frost {
    Frost { clarity, ice }
}

const fn fog(density: f64, decay: f64) -> Fog {
    Fog { density, decay }
}

/// The reference gives these in parts of the image's side.
const fn elastic(side: f64, alpha: f64, sigma: f64, affine: f64) -> Elastic {
    Elastic { alpha: side * alpha, sigma: side * sigma, affine: side * affine }
}

const fn spatter(mean: f64, deviation: f64, sigma: f64, threshold: f64, liquid: Liquid) -> Spatter {
    Spatter { mean, deviation, sigma, threshold, liquid }
}

const fn saturate(factor: f64, offset: f64) -> Saturate {
    Saturate { factor, offset }
}

static CIFAR: Constants = Constants {
    gaussian_noise: [0.04, 0.06, 0.08, 0.09, 0.10],
    shot_noise: [500.0, 250.0, 100.0, 75.0, 50.0],
    impulse_noise: [0.01, 0.02, 0.03, 0.05, 0.07],
    defocus_blur: [defocus(0.3, 0.4), defocus(0.4, 0.5), defocus(0.5, 0.6), defocus(1.0, 0.2), defocus(1.5, 0.1)],
    glass_blur: [glass(0.05, 1, 1), glass(0.25, 1, 1), glass(0.4, 1, 1), glass(0.25, 1, 2), glass(0.4, 1, 2)],
    motion_blur: [motion(6, 1.0), motion(6, 1.5), motion(6, 2.0), motion(8, 2.0), motion(9, 2.5)],
    zoom_blur: [7, 12, 16, 21, 26],
    snow: [
        snow([0.1, 0.2, 1.0, 0.6], motion(8, 3.0), 0.95),
        snow([0.1, 0.2, 1.0, 0.5], motion(10, 4.0), 0.9),
        snow([0.15, 0.3, 1.75, 0.55], motion(10, 4.0), 0.9),
        snow([0.25, 0.3, 2.25, 0.6], motion(12, 6.0), 0.85),
        snow([0.3, 0.3, 1.25, 0.65], motion(14, 12.0), 0.8),
    ],
    frost: [frost(1.0, 0.2), frost(1.0, 0.3), frost(0.9, 0.4), frost(0.85, 0.4), frost(0.75, 0.45)],
    fog: [fog(0.2, 3.0), fog(0.5, 3.0), fog(0.75, 2.5), fog(1.0, 2.0), fog(1.5, 1.75)],
    brightness: [0.05, 0.1, 0.15, 0.2, 0.3],
    contrast: [0.75, 0.5, 0.4, 0.3, 0.15],
    elastic_transform: [
        elastic(32.0, 0.0, 0.0, 0.08),
        elastic(32.0, 0.05, 0.2, 0.07),
        elastic(32.0, 0.08, 0.06, 0.06),
        elastic(32.0, 0.1, 0.04, 0.05),
        elastic(32.0, 0.1, 0.03, 0.03),
    ],
    pixelate: [0.95, 0.9, 0.85, 0.75, 0.65],
    jpeg_compression: [80, 65, 58, 50, 40],
    speckle_noise: [0.06, 0.1, 0.12, 0.16, 0.2],
    gaussian_blur: [0.4, 0.6, 0.7, 0.8, 1.0],
    spatter: [
        spatter(0.62, 0.1, 0.7, 0.7, Liquid::Water(0.5)),
        spatter(0.65, 0.1, 0.8, 0.7, Liquid::Water(0.5)),
        spatter(0.65, 0.3, 1.0, 0.69, Liquid::Water(0.5)),
        spatter(0.65, 0.1, 0.7, 0.69, Liquid::Mud(0.6)),
        spatter(0.65, 0.1, 0.5, 0.68, Liquid::Mud(0.6)),
    ],
    saturate: [saturate(0.3, 0.0), saturate(0.1, 0.0), saturate(1.5, 0.0), saturate(2.0, 0.1), saturate(2.5, 0.2)],
};

static TINY: Constants = Constants {
    gaussian_noise: [0.04, 0.08, 0.12, 0.15, 0.18],
    shot_noise: [250.0, 100.0, 50.0, 30.0, 15.0],
    impulse_noise: [0.01, 0.02, 0.05, 0.08, 0.14],
    defocus_blur: [defocus(0.5, 0.6), defocus(1.0, 0.1), defocus(1.5, 0.1), defocus(2.5, 0.01), defocus(3.0, 0.1)],
    glass_blur: [glass(0.1, 1, 1), glass(0.5, 1, 1), glass(0.6, 1, 2), glass(0.7, 2, 1), glass(0.9, 2, 2)],
    motion_blur: [motion(10, 1.0), motion(10, 1.5), motion(10, 2.0), motion(10, 2.5), motion(12, 3.0)],
    zoom_blur: [7, 12, 16, 21, 26],
    snow: [
        snow([0.1, 0.2, 1.0, 0.6], motion(8, 3.0), 0.8),
        snow([0.1, 0.2, 1.0, 0.5], motion(10, 4.0), 0.8),
        snow([0.15, 0.3, 1.75, 0.55], motion(10, 4.0), 0.7),
        snow([0.25, 0.3, 2.25, 0.6], motion(12, 6.0), 0.65),
        snow([0.3, 0.3, 1.25, 0.65], motion(14, 12.0), 0.6),
    ],
    frost: [frost(1.0, 0.3), frost(0.9, 0.4), frost(0.8, 0.45), frost(0.75, 0.5), frost(0.7, 0.55)],
    fog: [fog(0.4, 3.0), fog(0.7, 3.0), fog(1.0, 2.5), fog(1.5, 2.0), fog(2.0, 1.75)],
    brightness: [0.1, 0.2, 0.3, 0.4, 0.5],
    contrast: [0.4, 0.3, 0.2, 0.1, 0.05],
    elastic_transform: [
        elastic(64.0, 0.0, 0.0, 0.08),
        elastic(64.0, 0.05, 0.3, 0.06),
        elastic(64.0, 0.1, 0.08, 0.06),
        elastic(64.0, 0.1, 0.03, 0.03),
        elastic(64.0, 0.16, 0.03, 0.02),
    ],
    pixelate: [0.9, 0.8, 0.7, 0.6, 0.5],
    jpeg_compression: [65, 58, 50, 40, 25],
    speckle_noise: [0.15, 0.2, 0.25, 0.3, 0.35],
    gaussian_blur: [0.5, 0.75, 1.0, 1.25, 1.5],
    spatter: [
        spatter(0.62, 0.1, 0.7, 0.7, Liquid::Water(0.6)),
        spatter(0.65, 0.1, 0.8, 0.7, Liquid::Water(0.6)),
        spatter(0.65, 0.3, 1.0, 0.69, Liquid::Water(0.6)),
        spatter(0.65, 0.1, 0.7, 0.68, Liquid::Mud(0.6)),
        spatter(0.65, 0.1, 0.5, 0.67, Liquid::Mud(0.6)),
    ],
    saturate: [saturate(0.3, 0.0), saturate(0.1, 0.0), saturate(2.0, 0.0), saturate(5.0, 0.1), saturate(30.0, 0.2)],
};
