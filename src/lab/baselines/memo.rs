//! MEMO: one step on a frame's marginal entropy over augmentations, then its answer, then back to the source
//! (arXiv 2110.09506; zhangmarvin/memo, `cifar-10-exps/test_calls/test_adapt.py`).
//!
//! Each frame on its own: the window has no effect. Answers with the weights from after the step. Batch norm, where the
//! model has it, takes source statistics mixed with those of the views, and of the frame, as in the paper's code for
//! ImageNet (`imagenet-exps/utils/adapt_helpers.py`). Departure: the gradient goes through the share of the views.

use super::augment::augmix;
use super::competitor::{ByNorm, Competitor, Context, Setting};
use super::losses::marginal_entropy;
use super::student::Student;
use crate::learner::objective::argmax;
use crate::learner::{AdaptError, OptimizerConfig, TrainablePart};
use crate::model::{ImageShape, NormStatistics};

/// Of SGD; published: 0.005 (`test_adapt.py`, `lr`).
const LEARNING_RATES: ByNorm<f32> = ByNorm { layer_norm: 0.015, batch_norm: 0.005 };
/// Images that the source's statistics of batch norm count as, against one; `test_adapt.py`, `prior_strength`.
const PRIOR_STRENGTH: f32 = 16.0;
/// `test_adapt.py`, `batch_size`.
const AUGMENTATIONS: usize = 32;

pub struct Memo {
    student: Student,
    image: ImageShape,
}

impl Memo {
    pub fn new(setting: &Setting) -> Result<Self, AdaptError> {
        let student = setting.student(TrainablePart::All, OptimizerConfig::Sgd { momentum: 0.0 }, LEARNING_RATES)?;
        Ok(Self { student: student.with_statistics(NormStatistics::Mixed { share: 1.0 / (PRIOR_STRENGTH + 1.0) }), image: setting.image() })
    }

    fn learn(&mut self, image: &[f32], position: usize, context: &mut Context) -> Result<(), AdaptError> {
        let view = |view| augmix(image, self.image, context.key(&format!("memo view {view}"), position));
        let views: Vec<f32> = (0..AUGMENTATIONS).flat_map(view).collect();
        let forward = self.student.forward(&views, &mut context.passes)?;
        let (_, rows) = marginal_entropy(&forward.logits);
        self.student.learn(&forward, &rows, &mut context.passes)
    }
}

impl Competitor for Memo {
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError> {
        let mut answers = Vec::new();
        for (position, image) in images.chunks_exact(self.image.elements()).enumerate() {
            self.learn(image, position, context)?;
            answers.push(argmax(&self.student.forward(image, &mut context.passes)?.logits[0]));
            self.student.reset()?;
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::baselines::competitor::Tuning;
    use crate::lab::baselines::stage::{Stage, images};

    #[test]
    fn nothing_of_a_frame_is_left_for_the_next() {
        let stage = Stage::new();
        let mut memo = Memo::new(&stage.setting(Tuning { learning_rate: Some(1.0), ..Tuning::default() })).expect("a method");
        let (images, mut context) = (images(3, 1), Context::default());
        memo.learn(&images[..64], 0, &mut context).expect("a step");
        assert_ne!(&memo.student.weights().expect("weights"), memo.student.source());
        memo.student.reset().expect("weights");
        let together = memo.answer(&images, &mut context).expect("answers");
        assert_eq!(&memo.student.weights().expect("weights"), memo.student.source());
        let alone = memo.answer(&images[128..], &mut Context { frame: 2, ..Context::default() }).expect("answers");
        assert_eq!(together[2], alone[0]);
    }
}
