//! The frozen diffusion model as a judge: which class explains a frame best, and how sure that is.

use super::objective::{argmax, mean_terms};
use crate::diffusion::{Schedule, Timestep, stretch};
use crate::kernels::{self, GramTerms};
use crate::model::{Dit, DitConfig, DitWorkspace, InferenceDit, ParameterError, Parameters, Tensors, published};
use crate::noise::NoiseKey;
use parking_lot::Mutex;
use rayon::prelude::*;

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
#[derive(Debug)]
pub struct Judge {
    /// With tensors and gradients: for the `condition` objective.
    model: Dit,
    /// The same, forward only.
    inference: InferenceDit,
    schedule: Schedule,
    /// Buffers at rest: as many as there were threads at work at once.
    desks: Mutex<Vec<Desk>>,
}

/// Buffers for the judgement of one draw.
#[derive(Debug)]
struct Desk {
    /// (C, H, W)
    noise: Vec<f32>,
    /// (C, H, W)
    x_t: Vec<f32>,
    /// (T, P): the noise in the order of predictions.
    patches: Vec<f32>,
    workspace: DitWorkspace,
}

impl Judge {
    /// A judge of `tensors` in our layout or the [`published`] one.
    ///
    /// # Errors
    /// Where the tensors are not those of `config`.
    pub fn new(config: &DitConfig, tensors: Tensors) -> Result<Self, ParameterError> {
        let parameters = Parameters::frozen(published::to_own_layout(tensors, config)?);
        Ok(Self {
            model: Dit::load(config, &parameters)?,
            inference: InferenceDit::load(config, &parameters)?,
            schedule: Schedule::linear(config.num_timesteps),
            desks: Mutex::default(),
        })
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
    /// Forward passes only, one for each draw, on as many threads as there are: a single frame, which a camera waits for, has
    /// all cores at work.
    ///
    /// # Errors
    /// When there is not one image for each key.
    pub fn verdicts(&self, images: &[f32], keys: &[NoiseKey], timesteps: &[Timestep]) -> candle_core::Result<Vec<Verdict>> {
        let elements = self.model.config().trunk.image.elements();
        if images.len() != keys.len() * elements {
            candle_core::bail!("{} values for {} images of {elements}", images.len(), keys.len());
        }
        let x_start = self.x_start(images);
        let draws = (0..keys.len() * timesteps.len()).into_par_iter().with_max_len(1).map(|index| {
            let (n, draw) = (index / timesteps.len(), index % timesteps.len());
            let mut desk = self.desks.lock().pop().unwrap_or_else(|| Desk::new(self.model.config()));
            keys[n].fill_normal(u32::try_from(draw).expect("at most 64 draws"), &mut desk.noise);
            let terms = self.terms(&x_start[n * elements..][..elements], timesteps[draw], &mut desk);
            self.desks.lock().push(desk);
            terms
        });
        Ok(draws.collect::<Vec<_>>().chunks_exact(timesteps.len()).map(Verdict::of).collect())
    }

    /// Gram terms of `x_start` at `timestep`, with the noise that lies on the desk.
    fn terms(&self, x_start: &[f32], timestep: Timestep, desk: &mut Desk) -> GramTerms {
        let Desk { noise, x_t, patches, workspace } = desk;
        let DitConfig { trunk, classes, .. } = self.model.config();
        self.schedule.q_sample(x_start, timestep, noise, x_t);
        trunk.patches_into(noise, patches);
        let pred_noise = self.inference.pred_noise_of_classes(x_t, timestep, workspace); // (T, K P)
        kernels::gram_terms(pred_noise, patches, *classes, trunk.patch_elements())
    }
}

impl Desk {
    fn new(config: &DitConfig) -> Self {
        let image = || vec![0f32; config.trunk.image.elements()];
        Self { noise: image(), x_t: image(), patches: image(), workspace: DitWorkspace::new(config) }
    }
}
