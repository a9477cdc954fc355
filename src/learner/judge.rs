//! The frozen diffusion model as a judge: which class explains a frame best, and how sure that is.

use super::config::AdaptConfig;
use super::objective::{copy_terms, mean_terms};
use crate::bundle::Bundle;
use crate::diffusion::{Schedule, Timestep, stretch, stretch_into};
use crate::kernels::{self, GramTerms};
use crate::model::{Dit, DitConfig, DitWorkspace, InferenceDit, ParameterError, Parameters, Tensors, published};
use crate::noise::NoiseKey;
use parking_lot::Mutex;
use rayon::prelude::*;

/// What the judge says of one frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Mean over the draws.
    pub terms: GramTerms,
    /// Of the mean terms, (K): see [`GramTerms::errors`].
    pub errors: Vec<f64>,
    /// Best class of each draw.
    pub draw_labels: Vec<usize>,
}

impl Verdict {
    /// Becomes the verdict of `draws`.
    fn weigh(&mut self, draws: &[GramTerms]) {
        mean_terms(&mut self.terms, draws);
        self.errors.clear();
        self.errors.extend(self.terms.errors());
        self.draw_labels.clear();
        self.draw_labels.extend(draws.iter().map(|draw| best_class(draw.errors())));
    }

    /// Becomes equal to `other`, in the memory that it has.
    fn copy_from(&mut self, other: &Self) {
        copy_terms(&mut self.terms, &other.terms);
        self.errors.clone_from(&other.errors);
        self.draw_labels.clone_from(&other.draw_labels);
    }

    /// The Diffusion Classifier's answer (arXiv 2303.16203): the class of the least error.
    pub fn label(&self) -> usize {
        best_class(self.errors.iter().copied())
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

/// The class of the least error; the first of equals.
fn best_class(errors: impl IntoIterator<Item = f64>) -> usize {
    errors.into_iter().enumerate().min_by(|(_, a), (_, b)| a.total_cmp(b)).map_or(0, |(class, _)| class)
}

/// Verdicts on a window, with what they are made of. Its buffers can be used again.
#[derive(Default)]
pub struct Judgement {
    keys: Vec<NoiseKey>,
    /// (N, C, H, W)
    x_start: Vec<f32>,
    /// Of each image, one after the other, at each of the timesteps.
    draws: Vec<GramTerms>,
    /// One for each image.
    pub verdicts: Vec<Verdict>,
}

impl Judgement {
    /// Takes verdicts that are there already.
    pub fn copy_from<'a>(&mut self, verdicts: impl Iterator<Item = &'a Verdict> + Clone) {
        self.verdicts.resize_with(verdicts.clone().count(), Verdict::default);
        self.verdicts.iter_mut().zip(verdicts).for_each(|(to, from)| to.copy_from(from));
    }
}

/// The diffusion model, frozen, with its schedule.
#[derive(Debug)]
pub struct Judge {
    /// With tensors and gradients: for the `condition` objective.
    model: Dit,
    /// The same, forward only.
    inference: InferenceDit,
    schedule: Schedule,
    /// Whether every other draw is of the mirrored image.
    is_mirroring: bool,
    /// Buffers at rest: as many as there were threads at work at once.
    desks: Mutex<Vec<Desk>>,
}

/// Buffers for the judgement of one draw.
#[derive(Debug)]
struct Desk {
    /// (C, H, W)
    x_start: Vec<f32>,
    /// (C, H, W)
    noise: Vec<f32>,
    /// (C, H, W)
    x_t: Vec<f32>,
    /// (T, P): the noise in the order of predictions.
    patches: Vec<f32>,
    workspace: DitWorkspace,
}

impl Judge {
    /// A judge of `tensors` in our layout or the [`published`] one, all of whose draws are of the image as it is.
    ///
    /// # Errors
    /// Where the tensors are not those of `config`.
    pub fn new(config: &DitConfig, tensors: Tensors) -> Result<Self, ParameterError> {
        let parameters = Parameters::frozen(published::to_own_layout(tensors, config)?);
        Ok(Self {
            model: Dit::load(config, &parameters)?,
            inference: InferenceDit::load(config, &parameters)?,
            schedule: Schedule::linear(config.num_timesteps),
            is_mirroring: false,
            desks: Mutex::default(),
        })
    }

    /// The judge of a bundle, as it is configured.
    ///
    /// # Errors
    /// Where the bundle's weights do not fit its configuration.
    pub fn of(bundle: &Bundle, config: &AdaptConfig) -> Result<Self, ParameterError> {
        let judge = Self::new(&bundle.diffusion_config, bundle.diffusion.clone())?;
        Ok(Self { is_mirroring: config.mirrored, ..judge })
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

    /// Verdicts on images (N, C, H, W), one draw at each of `timesteps`, noise by each image's key; every other draw is of the mirrored
    /// image where that is configured.
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
        let mut judgement = Judgement::default();
        self.verdicts_into(&mut judgement, keys.iter().copied().zip(images.chunks_exact(elements)), timesteps);
        Ok(judgement.verdicts)
    }

    /// The same, of images (C, H, W) with their keys, into buffers that were there before.
    pub fn verdicts_into<'a>(
        &self,
        judgement: &mut Judgement,
        images: impl Iterator<Item = (NoiseKey, &'a [f32])>,
        timesteps: &[Timestep],
    ) {
        let Judgement { keys, x_start, draws, verdicts } = judgement;
        let elements = self.model.config().trunk.image.elements();
        keys.clear();
        x_start.clear();
        for (key, image) in images {
            keys.push(key);
            x_start.resize(keys.len() * elements, 0.0);
            stretch_into(&mut x_start[(keys.len() - 1) * elements..], image);
        }
        draws.resize_with(keys.len() * timesteps.len(), GramTerms::default);
        draws.par_iter_mut().with_max_len(1).enumerate().for_each(|(index, terms)| {
            let (n, draw) = (index / timesteps.len(), index % timesteps.len());
            let mut desk = self.desks.lock().pop().unwrap_or_else(|| Desk::new(self.model.config()));
            let Desk { x_start: judged, noise, x_t, .. } = &mut desk;
            judged.copy_from_slice(&x_start[n * elements..][..elements]);
            if self.is_mirroring && draw % 2 == 1 {
                self.model.config().trunk.image.mirror(judged);
            }
            self.schedule.sample(keys[n], u32::try_from(draw).expect("at most 64 draws"), timesteps[draw], judged, noise, x_t);
            self.terms_into(terms, timesteps[draw], &mut desk);
            self.desks.lock().push(desk);
        });
        verdicts.resize_with(keys.len(), Verdict::default);
        verdicts.iter_mut().zip(draws.chunks_exact(timesteps.len())).for_each(|(verdict, draws)| verdict.weigh(draws));
    }

    /// Puts the Gram terms of the noised image and the noise that lie on the desk into `terms`.
    fn terms_into(&self, terms: &mut GramTerms, timestep: Timestep, desk: &mut Desk) {
        let Desk { noise, x_t, patches, workspace, .. } = desk;
        let DitConfig { trunk, classes, .. } = self.model.config();
        trunk.patches_into(noise, patches);
        let pred_noise = self.inference.pred_noise_of_classes(x_t, timestep, workspace); // (T, K P)
        kernels::gram_terms_into(terms, pred_noise, patches, *classes, trunk.patch_elements());
    }
}

impl Desk {
    fn new(config: &DitConfig) -> Self {
        let image = || vec![0f32; config.trunk.image.elements()];
        Self { x_start: image(), noise: image(), x_t: image(), patches: image(), workspace: DitWorkspace::new(config) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ClassConditioning;
    use crate::tiny;

    #[test]
    fn what_a_judgement_held_before_changes_no_verdict() {
        let bundle = tiny::bundle(1, ClassConditioning::Readout);
        let judge = Judge::new(&bundle.diffusion_config, bundle.diffusion).expect("a judge");
        let timesteps = [Timestep(10), Timestep(70)];
        let keys: Vec<NoiseKey> = (0..3).map(|index| NoiseKey::from_seed(1, "judgement", index)).collect();
        let images: Vec<f32> = (0..3 * 64u8).map(|value| f32::from(value) / 191.0).collect();
        let expected = judge.verdicts(&images, &keys, &timesteps).expect("verdicts");
        let mut used = Judgement::default();
        // Fewer images, other images, and more than before.
        for range in [0..2, 2..3, 0..3] {
            let subjects = || keys.iter().copied().zip(images.chunks_exact(64)).take(range.end).skip(range.start);
            judge.verdicts_into(&mut used, subjects(), &timesteps);
            assert_eq!(used.verdicts, expected[range.clone()]);
            let mut copy = Judgement::default();
            copy.copy_from(expected.iter());
            copy.copy_from(used.verdicts.iter());
            assert_eq!(copy.verdicts, used.verdicts);
        }
    }

    #[test]
    fn every_other_draw_judges_the_mirrored_image_where_that_is_configured() {
        let bundle = tiny::bundle(1, ClassConditioning::Readout);
        let judge = |mirrored| Judge::of(&bundle, &AdaptConfig { mirrored, ..tiny::config() }).expect("a judge");
        let key = NoiseKey::from_seed(1, "judgement", 0);
        let image: Vec<f32> = (0..64u8).map(|value| f32::from(value) / 63.0).collect();
        let mut mirrored = image.clone();
        bundle.diffusion_config.trunk.image.mirror(&mut mirrored);
        let draws = |judge: &Judge, image: &[f32]| {
            let mut judgement = Judgement::default();
            judge.verdicts_into(&mut judgement, std::iter::once((key, image)), &[Timestep(10), Timestep(70), Timestep(10)]);
            judgement.draws
        };
        let (plain, other) = (draws(&judge(false), &image), draws(&judge(false), &mirrored));
        assert_eq!(draws(&judge(true), &image), [plain[0].clone(), other[1].clone(), plain[2].clone()]);
        assert_ne!(plain[1], other[1]);
    }
}
