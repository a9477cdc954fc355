//! Noise of sensors and wires. Every channel of every pixel is drawn for itself, in row order.
//!
//! Source of all: `make_cifar_c.py`, the function of the same name; x is in 0..=1.

use crate::lab::corruptions::draws::Draws;
use crate::lab::corruptions::raster::Raster;

/// x + N(0, sigma): noise of the electronics in poor light.
pub fn gaussian_noise(clean: &Raster, sigma: f64, draws: &mut Draws) -> Raster {
    clean.map(|value| value + draws.normal(0.0, sigma))
}

/// Poisson(x photons) / photons: noise of counting light; `photons` make a pixel of full brightness.
pub fn shot_noise(clean: &Raster, photons: f64, draws: &mut Draws) -> Raster {
    clean.map(|value| draws.poisson(value * photons) / photons)
}

/// A share `amount` of the values becomes 1 or 0, each with probability 1/2 (`skimage.util.random_noise`, mode `s&p`).
pub fn impulse_noise(clean: &Raster, amount: f64, draws: &mut Draws) -> Raster {
    clean.map(|value| match draws.uniform(0.0, 1.0) {
        chance if chance < amount / 2.0 => 1.0,
        chance if chance < amount => 0.0,
        _ => value,
    })
}

/// x + x N(0, sigma): noise in proportion to brightness.
pub fn speckle_noise(clean: &Raster, sigma: f64, draws: &mut Draws) -> Raster {
    clean.map(|value| value + value * draws.normal(0.0, sigma))
}
