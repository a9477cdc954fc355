//! The canary: labelled images on which harm shows, and the test that says when it does.
//!
//! Each look draws some of the images by the noise key, so nobody can know which, and compares the answers of the weights that are
//! about to serve with those of the source. The test bets on harm: with x = 1 where the source alone is right, -1 where the weights
//! alone are, 0 else, its wealth is multiplied by 1 + bet (x - tolerance) for each image, and never falls under 1. While the mean
//! of x is at most the tolerance, such an e-detector (Shin, Ramdas, Rinaldo 2023, arXiv 2203.03532) reaches a wealth of w no more than
//! once in w images on average, however often the weights change.

use serde::{Deserialize, Serialize};

/// Shares of the wealth that are bet. A small bet finds little harm, a large one finds much harm soon; their mean is a test too.
const BETS: [f64; 3] = [0.1, 0.3, 0.6];

/// Share of a new image in the running mean of the harm, which looks back on some 200 images.
const HARM_SHARE: f64 = 0.005;

/// Labelled images that no camera has sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Canary {
    /// (N, C, H, W), -1..=1
    pub images: Vec<f32>,
    pub labels: Vec<usize>,
}

impl Canary {
    /// One image, (C, H, W).
    pub fn image(&self, index: usize) -> &[f32] {
        let elements = self.images.len() / self.labels.len();
        &self.images[index * elements..][..elements]
    }
}

/// Evidence that the weights answer the canary worse than the source does, by more than the tolerance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    wealth: [f64; BETS.len()],
    /// Running mean of what the source gets right more than the weights, -1..=1.
    pub harm: f64,
}

impl Default for Evidence {
    fn default() -> Self {
        Self { wealth: [1.0; BETS.len()], harm: 0.0 }
    }
}

impl Evidence {
    /// Takes in an image, by whether source and weights answer it rightly.
    pub fn add(&mut self, is_source_hit: bool, is_hit: bool, tolerance: f64) {
        let harm = f64::from(u8::from(is_source_hit)) - f64::from(u8::from(is_hit));
        for (wealth, bet) in self.wealth.iter_mut().zip(BETS) {
            *wealth = wealth.max(1.0) * (1.0 + bet * (harm - tolerance));
        }
        self.harm += HARM_SHARE * (harm - self.harm);
    }

    /// The mean wealth: about 1 without harm.
    pub fn value(&self) -> f64 {
        self.wealth.iter().sum::<f64>() / BETS.len() as f64
    }

    /// Whether nothing speaks for harm.
    pub fn is_none(&self) -> bool {
        self.value() <= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::NoiseKey;

    const TOLERANCE: f64 = 0.05;
    const EVIDENCE_MAX: f64 = 1e4;

    /// Images until the evidence is reached, `images_max` at most, where the source alone is right with probability `loss` and the
    /// weights alone with probability `gain`.
    fn images_until_found(loss: f64, gain: f64, seed: u64, images_max: u32) -> Option<u32> {
        let key = NoiseKey::from_seed(seed, "canary", 0);
        let mut evidence = Evidence::default();
        (0..images_max).find(|&image| {
            let place = f64::from(key.uniform_below(image, 1 << 20)) / f64::from(1 << 20);
            evidence.add(place >= gain, place < gain || place >= gain + loss, TOLERANCE);
            evidence.value() >= EVIDENCE_MAX
        })
    }

    #[test]
    fn harm_is_found_the_sooner_the_greater_it_is() {
        let median = |loss: f64| {
            let mut found: Vec<u32> = (0..31).map(|seed| images_until_found(loss, 0.02, seed, 100_000).expect("harm is found")).collect();
            found.sort_unstable();
            found[15]
        };
        let (much, some, little) = (median(0.6), median(0.3), median(0.12));
        assert!(much < 60 && much < some && some < 200 && some < little && little < 5000, "{much}, {some}, {little} images");
    }

    #[test]
    fn what_is_within_the_tolerance_is_not_found_sooner_than_promised() {
        // Harm of just the tolerance, the worst that is no harm: 10^4 images on average at least, so 40 runs of 2000 find 8 at most on average.
        let found = (0..40).filter(|&seed| images_until_found(0.10, 0.05, seed, 2000).is_some()).count();
        assert!(found <= 12, "{found} of 40");
        assert!((0..10).all(|seed| images_until_found(0.05, 0.05, seed, 50_000).is_none()), "no harm at all was taken for some");
    }

    #[test]
    fn evidence_of_before_does_not_outlive_what_speaks_against_it() {
        let mut evidence = Evidence::default();
        (0..4).for_each(|_| evidence.add(true, false, TOLERANCE));
        assert!(!evidence.is_none());
        (0..400).for_each(|_| evidence.add(true, true, TOLERANCE));
        assert!(evidence.is_none());
    }
}
