//! Norm: the source, with the statistics of the window for batch norm (arXiv 2006.10963, "prediction-time batch
//! normalization"; arXiv 2006.16971; mariodoebler/test-time-adaptation, `classification/methods/norm.py`).
//!
//! No weight changes. A window of one frame has too little to say: there the source's statistics count as sixteen frames
//! against it, as in arXiv 2006.16971, figure 3. Invariant: the model has batch norm; without it this would be the source.

use super::competitor::{Competitor, Context, Setting};
use crate::learner::objective::argmax;
use crate::learner::{AdaptError, FrozenClassifier};
use crate::model::NormStatistics;

/// Frames that the source's statistics count as, N.
const PRIOR_FRAMES: f32 = 16.0;

pub struct Norm {
    source: FrozenClassifier,
    elements: usize,
}

impl Norm {
    pub fn new(setting: &Setting) -> Result<Self, AdaptError> {
        Ok(Self { source: setting.source()?, elements: setting.image().elements() })
    }
}

impl Competitor for Norm {
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError> {
        let statistics = match images.len() / self.elements {
            1 => NormStatistics::Mixed { share: 1.0 / (PRIOR_FRAMES + 1.0) },
            _ => NormStatistics::Batch,
        };
        let logits = self.source.logits_with(images, statistics)?;
        context.passes.classifier_forward += logits.len() as f64;
        Ok(logits.iter().map(argmax).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::baselines::competitor::{Passes, Tuning};
    use crate::lab::baselines::stage::{Stage, images};

    #[test]
    fn the_window_is_one_batch_and_a_frame_alone_hardly_moves_the_source() {
        let stage = Stage::with_batch_norm();
        let norm = Norm::new(&stage.setting(Tuning::default())).expect("a method");
        // More than the classifier takes at once where frames do not depend on each other.
        let images = images(20, 1);
        let logits = |images: &[f32], statistics| norm.source.logits_with(images, statistics).expect("a pass");
        let [batch, running] = [NormStatistics::Batch, NormStatistics::Running].map(|statistics| logits(&images, statistics));
        assert_ne!(batch[..8], logits(&images[..8 * 64], NormStatistics::Batch)[..], "the first frames depend on the last");
        assert_eq!(running[..8], logits(&images[..8 * 64], NormStatistics::Running)[..]);
        let mixed = &logits(&images[..64], NormStatistics::Mixed { share: 1.0 / 17.0 })[0];
        let alone = &logits(&images[..64], NormStatistics::Batch)[0];
        let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        assert!(distance(mixed, &running[0]) < 0.25 * distance(alone, &running[0]), "{mixed:?}, {alone:?}, {:?}", running[0]);
    }

    #[test]
    fn each_frame_takes_one_pass() {
        let stage = Stage::with_batch_norm();
        let mut context = Context::default();
        let answers = Norm::new(&stage.setting(Tuning::default())).and_then(|mut norm| norm.answer(&images(4, 1), &mut context));
        assert_eq!(answers.expect("answers").len(), 4);
        assert_eq!(context.passes, Passes { classifier_forward: 4.0, ..Passes::default() });
    }
}
