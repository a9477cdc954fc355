//! The randomness of the lab: one seeded generator with the few distributions that corruptions need.
//!
//! Invariant: seed and stream determine all draws, on every platform (ChaCha8 is defined in words of 32 bit).
//! Absent on purpose: draws from the operating system, and any link to the keyed noise of the daemon.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma, Normal, Poisson};

/// A seeded source of random numbers.
#[derive(Clone, Debug)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// Draws of `stream` under `seed`. An image that has its own stream is corrupted alike in any order of work.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        Self(generator)
    }

    /// Uniform in `low..high`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.0.random::<f64>()
    }

    /// Uniform in `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0.random_range(0..bound)
    }

    /// Normal with this mean and standard deviation.
    pub fn normal(&mut self, mean: f64, deviation: f64) -> f64 {
        Normal::new(mean, deviation).expect("the deviations of the tables are finite").sample(&mut self.0)
    }

    /// A Poisson count; a rate of zero, as of a black pixel, counts zero.
    pub fn poisson(&mut self, rate: f64) -> f64 {
        Poisson::new(rate).map_or(0.0, |distribution| distribution.sample(&mut self.0))
    }

    /// A gamma value of this shape, above 0, and scale 1; several of them over their sum are a Dirichlet value.
    pub fn gamma(&mut self, shape: f64) -> f64 {
        Gamma::new(shape, 1.0).expect("the shapes of the lab are positive").sample(&mut self.0)
    }

    /// An index, with a probability in proportion to its weight; the last one where all weights are 0.
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let mut left = self.uniform(0.0, weights.iter().sum());
        let is_here = |weight: &f64| {
            left -= weight;
            left < 0.0
        };
        weights.iter().position(is_here).unwrap_or(weights.len() - 1)
    }

    /// Puts the items in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        items.shuffle(&mut self.0);
    }
}
