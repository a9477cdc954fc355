//! The classifier with its parameters, of which some learn: gradients from gradients of the logits.

use super::config::TrainablePart;
use super::optimizer::{StepError, accumulate, collect};
use crate::model::{
    BackwardWorkspace, ClassifierConfig, Gradients, LearningVit, NormStatistics, ParameterError, Parameters, ResNet, Tape, Tensors,
};
use candle_core::{Device, Tensor};
use parking_lot::Mutex;
use rayon::prelude::*;

/// Images that one task takes: small enough that activations stay in the cache. Fixed, so that bits do not depend on the
/// number of threads.
const SHARD_IMAGES: usize = 8;

/// A classifier and its parameters.
#[derive(Clone, Debug)]
pub struct Classifier {
    parameters: Parameters,
    model: Model,
    image_elements: usize,
}

#[derive(Clone, Debug)]
enum Model {
    /// As it was loaded; each pass packs the weights anew, which may have learned since.
    Vit(Box<LearningVit>),
    ResNet(Box<ResNet>),
}

/// Logits of a window, with what leads back from them. Its buffers can be used again.
#[derive(Default)]
pub struct Forward {
    graph: Graph,
    /// n of all shards but the last, which may have fewer.
    shard_images: usize,
    /// A row for each image.
    pub logits: Vec<Vec<f64>>,
}

enum Graph {
    Vit {
        /// With the weights of the forward pass.
        model: Option<Box<LearningVit>>,
        shards: Vec<Shard>,
    },
    /// (n, K) for each shard, tracked.
    ResNet(Vec<Tensor>),
}

impl Default for Graph {
    fn default() -> Self {
        Self::Vit { model: None, shards: Vec::new() }
    }
}

/// Images that one task takes, forward and backward.
struct Shard {
    /// Of each image; those from `images` on rest.
    tapes: Vec<Tape>,
    images: usize,
    desk: Mutex<Desk>,
}

/// What a task writes on.
struct Desk {
    workspace: BackwardWorkspace,
    /// Gradient of the loss by one image's logits, (K).
    dlogits: Vec<f32>,
    gradients: Gradients,
}

/// What the head sees of a window, and what it says; rows are images.
pub struct Description {
    /// Of D values.
    pub features: Vec<Vec<f64>>,
    pub logits: Vec<Vec<f64>>,
}

impl Classifier {
    /// A classifier none of whose parameters learn.
    pub(super) fn frozen(config: &ClassifierConfig, tensors: Tensors) -> Result<Self, ParameterError> {
        Self::of(config, Parameters::frozen(tensors))
    }

    /// A classifier of which `part` can learn; values are copied.
    pub fn trainable(config: &ClassifierConfig, tensors: &Tensors, part: TrainablePart) -> Result<Self, ParameterError> {
        Self::of(config, Parameters::trainable(tensors, |name| part.contains(name))?)
    }

    fn of(config: &ClassifierConfig, parameters: Parameters) -> Result<Self, ParameterError> {
        let model = match config {
            ClassifierConfig::Vit(vit) => Model::Vit(Box::new(LearningVit::load(vit, &parameters)?)),
            ClassifierConfig::ResNet(resnet) => Model::ResNet(Box::new(ResNet::load(resnet, &parameters)?)),
        };
        Ok(Self { parameters, model, image_elements: config.image().elements() })
    }

    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Logits of images (N, C, H, W) that gradients can be taken of.
    pub fn forward(&self, images: &[f32]) -> Result<Forward, ParameterError> {
        self.forward_with(images, NormStatistics::Running)
    }

    /// The same; batch norm, where the model has it, takes `statistics`.
    pub fn forward_with(&self, images: &[f32], statistics: NormStatistics) -> Result<Forward, ParameterError> {
        let mut forward = Forward::default();
        self.forward_into(&mut forward, images, statistics)?;
        Ok(forward)
    }

    /// The same, into buffers that were there before. A vision transformer takes no memory for as many images as before.
    pub fn forward_into(&self, forward: &mut Forward, images: &[f32], statistics: NormStatistics) -> Result<(), ParameterError> {
        match &self.model {
            Model::Vit(model) => {
                forward.shard_images = SHARD_IMAGES;
                forward.graph.run(model, &self.parameters, images, forward.shard_images)?;
            }
            Model::ResNet(model) => {
                // Statistics of a window are those of all its images, so that it is one task.
                let is_whole = statistics != NormStatistics::Running;
                forward.shard_images = if is_whole { (images.len() / self.image_elements).max(1) } else { SHARD_IMAGES };
                let shards = images.par_chunks(forward.shard_images * self.image_elements);
                let logits = |images| model.features(images, statistics).and_then(|features| model.head(&features));
                forward.graph = Graph::ResNet(shards.map(logits).collect::<candle_core::Result<_>>()?);
            }
        }
        Ok(forward.graph.read_logits(&mut forward.logits)?)
    }

    /// Moves the statistics that batch norm serves with the share `share` of their way to those of `images`; nothing to a model
    /// without it.
    pub fn absorb(&mut self, images: &[f32], share: f32) -> candle_core::Result<()> {
        if let Model::ResNet(model) = &mut self.model {
            model.absorb(images, share)?;
            self.parameters.replace(model.domains()?);
        }
        Ok(())
    }

    /// Takes images (N, C, H, W), one after the other, into the statistics of the domains that they belong to ([`ResNet::remember`]);
    /// nothing to a model without batch norm.
    pub fn remember(&mut self, images: &[f32], share: f32, own_share: f32, distance_max: f64) -> candle_core::Result<()> {
        if let Model::ResNet(model) = &mut self.model {
            images.chunks_exact(self.image_elements).try_for_each(|image| model.remember(image, share, own_share, distance_max))?;
            self.parameters.replace(model.domains()?);
        }
        Ok(())
    }

    /// Whether an answer can depend on statistics of images.
    pub fn has_batch_norm(&self) -> bool {
        matches!(self.model, Model::ResNet(_))
    }

    /// Features of images, and the logits that the head makes of them.
    pub(super) fn describe(&self, images: &[f32]) -> Result<Description, ParameterError> {
        match &self.model {
            Model::Vit(_) => {
                let forward = self.forward(images)?;
                Ok(Description { features: forward.graph.features(), logits: forward.logits })
            }
            Model::ResNet(model) => {
                let shards = images.par_chunks(SHARD_IMAGES * self.image_elements);
                let features = shards.map(|images| model.features(images, NormStatistics::Running));
                let features = features.collect::<candle_core::Result<Vec<_>>>()?;
                let logits = features.iter().map(|features| model.head(features)).collect::<candle_core::Result<Vec<_>>>()?;
                Ok(Description { features: rows(&features)?, logits: rows(&logits)? })
            }
        }
    }

    /// Gradients of the trainable parameters, for the gradient of the loss by each image's logits.
    ///
    /// # Errors
    /// `NoGradient` where the graph is cut.
    pub fn gradients(&self, forward: &Forward, logit_gradients: &[Vec<f64>]) -> Result<Gradients, StepError> {
        let mut gradients = Gradients::new();
        self.gradients_into(&mut gradients, forward, logit_gradients)?;
        Ok(gradients)
    }

    /// The same, into the places of gradients of the same parameters. A vision transformer takes no memory if they were there.
    ///
    /// # Errors
    /// `NoGradient` where the graph is cut.
    pub fn gradients_into(&self, total: &mut Gradients, forward: &Forward, logit_gradients: &[Vec<f64>]) -> Result<(), StepError> {
        self.clear(total);
        let rows = logit_gradients.par_chunks(forward.shard_images.max(1));
        match &forward.graph {
            Graph::Vit { model, shards } => {
                let Some(model) = model else { return Ok(()) };
                shards.par_iter().zip(rows).for_each(|(shard, rows)| shard.backward(model, rows, |gradients| self.clear(gradients)));
                // In the order of the shards.
                for shard in shards.iter().filter(|shard| shard.images > 0) {
                    accumulate(total, &shard.desk.lock().gradients);
                }
            }
            Graph::ResNet(shards) => {
                let of_shard = |(logits, rows): (&Tensor, &[Vec<f64>])| {
                    let values: Vec<f32> = rows.iter().flatten().map(|&g| g as f32).collect();
                    let gradient = Tensor::from_vec(values, logits.shape(), &Device::Cpu)?;
                    // The gradient of sum(logits * gradient) by the logits is `gradient`.
                    let store = logits.mul(&gradient)?.sum_all()?.backward()?;
                    collect(self.parameters.variables(), &store)
                };
                for term in shards.par_iter().zip(rows).map(of_shard).collect::<Result<Vec<_>, StepError>>()? {
                    accumulate(total, &term);
                }
            }
        }
        Ok(())
    }

    /// A zero for each value of a parameter that learns.
    fn clear(&self, gradients: &mut Gradients) {
        for (name, variable) in self.parameters.variables() {
            match gradients.get_mut(name) {
                Some(gradient) => gradient.fill(0.0),
                None => drop(gradients.insert(name.clone(), vec![0f32; variable.elem_count()])),
            }
        }
    }
}

impl Graph {
    /// Forward passes of `images`, in shards of `shard_images`, with the values that `parameters` have now.
    fn run(&mut self, loaded: &LearningVit, parameters: &Parameters, images: &[f32], shard_images: usize) -> Result<(), ParameterError> {
        if !matches!(self, Self::Vit { .. }) {
            *self = Self::default();
        }
        let Self::Vit { model, shards } = self else { return Ok(()) };
        let model = model.get_or_insert_with(|| Box::new(loaded.clone()));
        model.pack(parameters)?;
        let shard_elements = shard_images * model.config().trunk.image.elements();
        shards.iter_mut().for_each(|shard| shard.images = 0);
        while shards.len() < images.len().div_ceil(shard_elements) {
            shards.push(Shard::new(model));
        }
        shards.par_iter_mut().zip(images.par_chunks(shard_elements)).for_each(|(shard, images)| shard.forward(model, images));
        Ok(())
    }

    /// A row of logits for each image.
    fn read_logits(&self, rows: &mut Vec<Vec<f64>>) -> candle_core::Result<()> {
        let shards = match self {
            Self::Vit { shards, .. } => shards,
            Self::ResNet(shards) => return self::rows(shards).map(|of_shards| *rows = of_shards),
        };
        rows.resize_with(shards.iter().map(|shard| shard.images).sum(), Vec::new);
        for (row, tape) in rows.iter_mut().zip(shards.iter().flat_map(Shard::tapes)) {
            row.clear();
            row.extend(tape.logits.iter().copied().map(f64::from));
        }
        Ok(())
    }

    /// A row of features for each image.
    fn features(&self) -> Vec<Vec<f64>> {
        let Self::Vit { shards, .. } = self else { return Vec::new() };
        shards.iter().flat_map(Shard::tapes).map(|tape| tape.features.iter().copied().map(f64::from).collect()).collect()
    }
}

impl Shard {
    fn new(model: &LearningVit) -> Self {
        let config = model.config();
        let (workspace, dlogits) = (BackwardWorkspace::new(config), vec![0f32; config.classes]);
        Self { tapes: Vec::new(), images: 0, desk: Mutex::new(Desk { workspace, dlogits, gradients: Gradients::new() }) }
    }

    fn tapes(&self) -> &[Tape] {
        &self.tapes[..self.images]
    }

    fn forward(&mut self, model: &LearningVit, images: &[f32]) {
        let elements = model.config().trunk.image.elements();
        self.images = images.len() / elements;
        while self.tapes.len() < self.images {
            self.tapes.push(Tape::new(model.config()));
        }
        let desk = self.desk.get_mut();
        for (tape, image) in self.tapes.iter_mut().zip(images.chunks_exact(elements)) {
            model.forward(image, tape, &mut desk.workspace);
        }
    }

    /// Gradients of its images, on its desk; an image that the loss does not depend on costs nothing.
    fn backward(&self, model: &LearningVit, rows: &[Vec<f64>], clear: impl Fn(&mut Gradients)) {
        let Desk { workspace, dlogits, gradients } = &mut *self.desk.lock();
        clear(gradients);
        for (tape, row) in self.tapes().iter().zip(rows).filter(|(_, row)| row.iter().any(|&g| g != 0.0)) {
            dlogits.iter_mut().zip(row).for_each(|(to, &from)| *to = from as f32);
            model.backward(dlogits, tape, gradients, workspace);
        }
    }
}

/// Rows of all shards, in order.
fn rows(shards: &[Tensor]) -> candle_core::Result<Vec<Vec<f64>>> {
    let mut rows = Vec::new();
    for shard in shards {
        rows.extend(shard.to_vec2::<f32>()?.into_iter().map(|row| row.into_iter().map(f64::from).collect()));
    }
    Ok(rows)
}
