//! Random choices in a row, by key.

use crate::noise::NoiseKey;

/// A sequence of choices that a key determines.
pub struct Dice {
    key: NoiseKey,
    rolled: u32,
}

impl Dice {
    pub fn new(key: NoiseKey) -> Self {
        Self { key, rolled: 0 }
    }

    /// Uniform in 0..limit.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.rolled += 1;
        self.key.uniform_below(self.rolled, limit)
    }

    /// Uniform from `low` to `high`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * f64::from(self.below(u32::MAX)) / f64::from(u32::MAX)
    }

    /// Whether an event of this `probability` happens.
    pub fn happens(&mut self, probability: f64) -> bool {
        self.between(0.0, 1.0) < probability
    }

    /// 1 or -1.
    pub fn sign(&mut self) -> f64 {
        if self.happens(0.5) { 1.0 } else { -1.0 }
    }

    /// Index of one of `weights`, drawn in proportion to them.
    pub fn choose(&mut self, weights: &[f64]) -> usize {
        let mut left = self.between(0.0, weights.iter().sum());
        let is_reached = |weight: &f64| {
            left -= weight;
            left < 0.0
        };
        weights.iter().position(is_reached).unwrap_or(weights.len() - 1)
    }

    /// Three shares of one, uniform over all such (Dirichlet(1, 1, 1)): the gaps between two uniform values.
    pub fn shares(&mut self) -> [f64; 3] {
        let (a, b) = (self.between(0.0, 1.0), self.between(0.0, 1.0));
        [a.min(b), (a - b).abs(), 1.0 - a.max(b)]
    }
}
