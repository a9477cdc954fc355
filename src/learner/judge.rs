//! The frozen diffusion model as a judge: which class explains a frame best, and how sure that is.

use super::objective::{argmax, mean_terms};
use crate::diffusion::{Schedule, Timestep, stretch};
use crate::kernels::{self, GramTerms};
use crate::model::{Dit, DitConfig, ParameterError, Parameters, Tensors, published};
use crate::noise::NoiseKey;
use rayon::prelude::*;

/// Draws that one forward pass takes: small enough that its activations stay in the cache.
const PASS_DRAWS: usize = 16;
/// Passes that few draws are parted into at least: a single frame, which a camera waits for, has two cores at work.
const PASSES_MIN: usize = 2;

/// What the judge says of one frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Mean over the draws.
    pub terms: GramTerms,
    /// Best class of each draw.
    pub draw_labels: Vec<usize>,
}

impl Verdict {
    fn of(draws: &[GramTerms]) -> Self {
        Self { terms: mean_terms(draws), draw_labels: draws.iter().map(|draw| best_class(&draw.errors())).collect() }
    }

    /// The Diffusion Classifier's answer (arXiv 2303.16203): the class of the least error.
    pub fn label(&self) -> usize {
        best_class(&self.terms.errors())
    }

    /// Share of the draws that name `label`, 0..=1.
    pub fn share_naming(&self, label: usize) -> f64 {
        self.draw_labels.iter().filter(|&&named| named == label).count() as f64 / self.draw_labels.len() as f64
    }

    /// Share of pairs of draws that name the same class, 0..=1; 1 for a single draw.
    pub fn draw_agreement(&self) -> f64 {
        let count = self.draw_labels.len();
        let alike = |i: usize| self.draw_labels[..i].iter().filter(|&&other| other == self.draw_labels[i]).count();
        let pairs = count * (count - 1) / 2;
        if pairs == 0 { 1.0 } else { (0..count).map(alike).sum::<usize>() as f64 / pairs as f64 }
    }

    /// Whether all draws name one class.
    pub fn is_unanimous(&self) -> bool {
        self.draw_labels.iter().all(|label| *label == self.draw_labels[0])
    }
}

fn best_class(errors: &[f64]) -> usize {
    let scores: Vec<f64> = errors.iter().map(|error| -error).collect();
    argmax(&scores)
}

/// The diffusion model, frozen, with its schedule.
#[derive(Clone, Debug)]
pub struct Judge {
    model: Dit,
    schedule: Schedule,
}

impl Judge {
    /// A judge of `tensors` in our layout or the [`published`] one.
    ///
    /// # Errors
    /// Where the tensors are not those of `config`.
    pub fn new(config: &DitConfig, tensors: Tensors) -> Result<Self, ParameterError> {
        let model = Dit::load(config, &Parameters::frozen(published::to_own_layout(tensors, config)?))?;
        Ok(Self { model, schedule: Schedule::linear(config.num_timesteps) })
    }

    pub fn model(&self) -> &Dit {
        &self.model
    }

    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Images (N, C, H, W) as the diffusion model is to see them: each stretched to the full range of intensities.
    pub fn x_start(&self, images: &[f32]) -> Vec<f32> {
        let mut x_start = images.to_vec();
        x_start.chunks_exact_mut(self.model.config().trunk.image.elements()).for_each(stretch);
        x_start
    }

    /// Half the number of elements: turns an error per element into minus a log-likelihood, for unit variance.
    pub fn likelihood_scale(&self) -> f64 {
        0.5 * self.model.config().trunk.image.elements() as f64
    }

    /// Verdicts on images (N, C, H, W), one draw at each of `timesteps`, noise by each image's key.
    ///
    /// Forward passes only: no graph is built, as no parameter is trainable.
    pub fn verdicts(&self, images: &[f32], keys: &[NoiseKey], timesteps: &[Timestep]) -> candle_core::Result<Vec<Verdict>> {
        let draws: Vec<(usize, usize)> = (0..keys.len()).flat_map(|n| (0..timesteps.len()).map(move |draw| (n, draw))).collect();
        let x_start = self.x_start(images);
        // By the number of draws alone, so that bits do not depend on the number of threads.
        let pass_draws = PASS_DRAWS.min(draws.len().div_ceil(PASSES_MIN));
        let passes = draws.par_chunks(pass_draws).map(|pass| self.pass(&x_start, keys, timesteps, pass));
        let terms = passes.collect::<candle_core::Result<Vec<_>>>()?.concat();
        Ok(terms.chunks_exact(timesteps.len()).map(Verdict::of).collect())
    }

    /// Gram terms of the draws (image, position in `timesteps`) of one pass.
    fn pass(
        &self,
        x_start: &[f32],
        keys: &[NoiseKey],
        timesteps: &[Timestep],
        draws: &[(usize, usize)],
    ) -> candle_core::Result<Vec<GramTerms>> {
        let trunk = &self.model.config().trunk;
        let elements = trunk.image.elements();
        let mut noise = vec![0f32; draws.len() * elements];
        let mut x_t = vec![0f32; draws.len() * elements];
        for (&(n, draw), (noise, x_t)) in draws.iter().zip(noise.chunks_exact_mut(elements).zip(x_t.chunks_exact_mut(elements))) {
            keys[n].fill_normal(u32::try_from(draw).expect("at most 64 draws"), noise);
            self.schedule.q_sample(&x_start[n * elements..(n + 1) * elements], timesteps[draw], noise, x_t);
        }
        let at: Vec<Timestep> = draws.iter().map(|&(_, draw)| timesteps[draw]).collect();
        let pred_noise = self.model.pred_noise_of_classes(&x_t, &at)?; // (N, T, K P)
        kernels::gram_terms(&pred_noise, &trunk.patches(&noise), self.model.config().classes)
    }
}
