//! What a camera has shown lately, as a prior over classes.
//!
//! A camera looks at one thing for a while, or at some kinds of things more than at others; how long a while is, nobody says. So means of its
//! answers over several spans of frames foretell the next one, beside a prior that foretells nothing, and each is believed as far as it has
//! foretold well lately (Bayesian model averaging, with forgetting).
//!
//! A judge or a classifier that mistakes one class for another also shows a camera more of the latter. That foretells little: so the even
//! prior is ahead, and what was shown counts where it foretells much. The frames that are foretold are the answers without the prior, or
//! it would bear itself out.
//!
//! Pure: probabilities in, a prior and new memory out.

use serde::{Deserialize, Serialize};

/// Frames that the means reach back, roughly.
const SPANS: [f64; 4] = [2.0, 4.0, 16.0, 64.0];
/// Share of what a span foretells that is spread evenly over the classes.
const DOUBT: f64 = 0.1;
/// Frames that the evidence reaches back, roughly.
const EVIDENCE_FRAMES: f64 = 50.0;
/// How far the even prior is ahead of each span, nats.
const EVEN_AHEAD: f64 = 10.0;

/// Of one camera.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recent {
    /// Empty before the first frame.
    spans: Vec<Span>,
}

/// What the frames of one span foretell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Span {
    /// Of the answers' probabilities, (K).
    mean: Vec<f64>,
    /// How much better it has foretold the frames lately than an even prior, nats.
    evidence: f64,
}

impl Span {
    /// Probabilities of the next frame's classes, (K).
    fn foretold(&self) -> impl Iterator<Item = f64> {
        let even = 1.0 / self.mean.len() as f64;
        self.mean.iter().map(move |mean| DOUBT * even + (1.0 - DOUBT) * mean)
    }
}

impl Recent {
    /// Probabilities of the next frame's classes, (K).
    pub fn prior(&self, classes: usize) -> Vec<f64> {
        let evidence = self.spans.iter().map(|span| span.evidence);
        let largest = evidence.clone().fold(EVEN_AHEAD, f64::max);
        let weights = evidence.map(|evidence| (evidence - largest).exp());
        let of_even = (EVEN_AHEAD - largest).exp();
        let mut prior = vec![of_even / classes as f64; classes];
        for (span, weight) in self.spans.iter().zip(weights.clone()) {
            prior.iter_mut().zip(span.foretold()).for_each(|(sum, foretold)| *sum += weight * foretold);
        }
        let sum = of_even + weights.sum::<f64>();
        prior.iter_mut().for_each(|share| *share /= sum);
        prior
    }

    /// All that is remembered.
    pub fn values(&self) -> impl Iterator<Item = f64> {
        self.spans.iter().flat_map(|span| span.mean.iter().copied().chain([span.evidence]))
    }

    /// Takes in a frame, by the probabilities (K) of its answer without this prior.
    pub fn see(&mut self, probabilities: &[f64]) {
        let classes = probabilities.len() as f64;
        if self.spans.is_empty() {
            self.spans = vec![Span { mean: vec![1.0 / classes; probabilities.len()], evidence: 0.0 }; SPANS.len()];
        }
        for (span, frames) in self.spans.iter_mut().zip(SPANS) {
            let chance: f64 = span.foretold().zip(probabilities).map(|(foretold, p)| foretold * p).sum();
            span.evidence += (classes * chance).ln() - span.evidence / EVIDENCE_FRAMES;
            span.mean.iter_mut().zip(probabilities).for_each(|(mean, p)| *mean += (p - *mean) / frames);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learner::objective::argmax;

    const CLASSES: usize = 5;

    /// An answer that is nearly sure of `label`.
    fn answer(label: usize) -> Vec<f64> {
        (0..CLASSES).map(|k| if k == label { 0.9 } else { 0.1 / (CLASSES - 1) as f64 }).collect()
    }

    /// What a camera has shown that was answered so.
    fn shown(labels: impl IntoIterator<Item = usize>) -> Recent {
        let mut recent = Recent::default();
        labels.into_iter().for_each(|label| recent.see(&answer(label)));
        recent
    }

    /// How far the largest share of a prior is above an even one.
    fn excess(prior: &[f64]) -> f64 {
        prior[argmax(prior)] - 1.0 / CLASSES as f64
    }

    #[test]
    fn a_camera_that_has_shown_nothing_has_an_even_prior() {
        assert_eq!(Recent::default().prior(CLASSES), [0.2; CLASSES]);
    }

    #[test]
    fn a_prior_is_of_probabilities_above_zero_whatever_was_shown() {
        for seed in 0..50u64 {
            let label = |n: u64| (seed.wrapping_mul(n * n + 17) >> 3) as usize % CLASSES;
            let sure = |n: u64| (0..CLASSES).map(|k| f64::from(u8::from(k == label(n)))).collect::<Vec<_>>();
            let mut recent = Recent::default();
            for n in 0..200 {
                recent.see(&sure(n));
                let prior = recent.prior(CLASSES);
                assert!(
                    (prior.iter().sum::<f64>() - 1.0).abs() < 1e-9 && prior.iter().all(|&share| share > 1e-4),
                    "seed {seed}: {prior:?}"
                );
            }
        }
    }

    #[test]
    fn a_run_of_one_class_is_foretold_and_forgotten_when_another_comes() {
        let run = || std::iter::repeat_n(2, 30);
        let during = shown(run()).prior(CLASSES);
        assert!(argmax(&during) == 2 && during[2] > 0.8, "{during:?}");
        let after = shown(run().chain(std::iter::repeat_n(4, 8))).prior(CLASSES);
        assert!(argmax(&after) == 4 && after[4] > 0.8, "{after:?}");
    }

    #[test]
    fn runs_are_foretold_by_short_spans_and_shares_by_long_ones() {
        // Runs of four frames, and three of four frames of one class, the others of each of four.
        let runs = shown((0..400).map(|n| n / 4 % CLASSES)).prior(CLASSES);
        assert!(argmax(&runs) == 399 / 4 % CLASSES && excess(&runs) > 0.4, "{runs:?}");
        let shares = shown((0..400).map(|n| if n % 4 > 0 { 0 } else { 1 + n / 4 % 4 })).prior(CLASSES);
        assert!(argmax(&shares) == 0 && excess(&shares) > 0.4, "{shares:?}");
    }

    #[test]
    fn classes_in_turn_and_one_that_is_named_a_little_too_often_leave_the_prior_even() {
        let turns = shown((0..400).map(|n| n % CLASSES)).prior(CLASSES);
        // Of eleven frames one that should be of another class is of class 0.
        let biased = shown((0..400).map(|n| if n % 11 == 10 { 0 } else { n % CLASSES })).prior(CLASSES);
        assert!(excess(&turns) < 0.01 && excess(&biased) < 0.01, "{turns:?} and {biased:?}");
    }
}
