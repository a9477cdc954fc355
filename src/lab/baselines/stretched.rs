//! The source on frames stretched to the full range of intensities, as the diffusion model sees them.
//!
//! No published method: it is here because who can stretch a classifier's input has much of what adaptation to light and weather
//! gains, at no cost.

use super::competitor::{Competitor, Context, Setting};
use crate::diffusion::stretch;
use crate::learner::objective::argmax;
use crate::learner::{AdaptError, FrozenClassifier};

pub struct Stretched {
    source: FrozenClassifier,
    /// Values of an image.
    elements: usize,
}

impl Stretched {
    pub fn new(setting: &Setting) -> Result<Self, AdaptError> {
        Ok(Self { source: setting.source()?, elements: setting.image().elements() })
    }
}

impl Competitor for Stretched {
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError> {
        let mut stretched = images.to_vec();
        stretched.chunks_exact_mut(self.elements).for_each(stretch);
        let logits = self.source.logits(&stretched)?;
        context.passes.classifier_forward += logits.len() as f64;
        Ok(logits.iter().map(argmax).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::baselines::competitor::Tuning;
    use crate::lab::baselines::stage::{Stage, images};

    #[test]
    fn a_dimmed_frame_gets_the_answer_of_the_frame_itself() {
        let stage = Stage::new();
        let mut method = Stretched::new(&stage.setting(Tuning::default())).expect("a method");
        let frames = images(16, 3);
        let dimmed: Vec<f32> = frames.iter().map(|value| 0.25 * value - 0.5).collect();
        let mut answers = |frames: &[f32]| method.answer(frames, &mut Context::default()).expect("answers");
        assert_eq!(answers(&dimmed), answers(&frames));
        let source = stage.setting(Tuning::default()).source().expect("a classifier");
        let plain: Vec<usize> = source.logits(&dimmed).expect("logits").iter().map(argmax).collect();
        assert_ne!(answers(&dimmed), plain, "the source itself is misled");
    }
}
