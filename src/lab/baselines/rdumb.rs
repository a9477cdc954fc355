//! RDumb: ETA that starts again every 1000 steps (arXiv 2306.05401; oripress/CCC, `models/rdumb.py`).
//!
//! Answers with the logits from before its step. Departure: constants of ETA for CIFAR-10, not for ImageNet.

use super::competitor::{ByNorm, Competitor, Context, Setting};
use super::eata::{Choices, Eata};
use crate::learner::AdaptError;

/// Windows from one reset to the next.
const RESET_WINDOWS: u32 = 1000;
/// Published for ETA, for CIFAR-10: 0.005; 0.4.
const CHOICES: Choices = Choices {
    learning_rates: ByNorm { layer_norm: 0.005, batch_norm: 0.005 },
    entropy_margins: ByNorm { layer_norm: 0.4, batch_norm: 0.4 },
};

pub struct Rdumb {
    eata: Eata,
    /// Since the last reset.
    windows: u32,
}

impl Rdumb {
    pub fn new(setting: &Setting) -> Result<Self, AdaptError> {
        Ok(Self { eata: Eata::without_fisher(setting, CHOICES)?, windows: 0 })
    }
}

impl Competitor for Rdumb {
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError> {
        if self.windows == RESET_WINDOWS {
            self.eata.reset()?;
            self.windows = 0;
        }
        self.windows += 1;
        self.eata.answer(images, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::baselines::competitor::Tuning;
    use crate::lab::baselines::stage::{Stage, images};

    #[test]
    fn after_a_thousand_windows_it_is_as_at_first_to_the_bit() {
        let stage = Stage::new();
        let tuning = Tuning { entropy_margin: Some(1.0), ..Tuning::default() };
        let rdumb = || Rdumb::new(&stage.setting(tuning)).expect("a method");
        let (mut old, mut fresh) = (rdumb(), rdumb());
        for window in 0..u64::from(RESET_WINDOWS) {
            old.answer(&images(1, window), &mut Context::default()).expect("answers");
        }
        let weights = |rdumb: &Rdumb| rdumb.eata.student.weights().expect("weights");
        assert_ne!(weights(&old), weights(&fresh));
        for window in 5000..5003 {
            let images = images(4, window);
            let answers = [&mut old, &mut fresh].map(|rdumb| rdumb.answer(&images, &mut Context::default()).expect("answers"));
            assert_eq!(answers[0], answers[1]);
            assert_eq!(weights(&old), weights(&fresh));
        }
    }
}
