//! A classifier that only answers: the source's, and the one whose weights serve.
//!
//! Cameras wait for it, so a vision transformer keeps nothing for a backward pass; with batch norm, whose statistics can be those of a
//! window, it goes as the classifier that learns does. Either way the bits are those of the classifier that learns.

use super::classifier::{Classifier, Description};
use crate::model::{ClassifierConfig, InferenceVit, NormStatistics, ParameterError, Parameters, Tensors, VitConfig, VitWorkspace};
use parking_lot::Mutex;
use rayon::prelude::*;

/// A classifier whose parameters never change.
#[derive(Debug)]
pub struct FrozenClassifier {
    model: FrozenModel,
    image_elements: usize,
}

#[derive(Debug)]
enum FrozenModel {
    Vit(Box<FrozenVit>),
    ResNet(Classifier),
}

#[derive(Debug)]
struct FrozenVit {
    config: VitConfig,
    model: InferenceVit,
    /// Buffers at rest: as many as there were threads at work at once.
    workspaces: Mutex<Vec<VitWorkspace>>,
}

impl FrozenClassifier {
    /// # Errors
    /// `Missing` and `Shape` where the tensors are not those of `config`.
    pub fn new(config: &ClassifierConfig, tensors: &Tensors) -> Result<Self, ParameterError> {
        let model = match config {
            ClassifierConfig::Vit(vit) => {
                let model = InferenceVit::load(vit, &Parameters::frozen(tensors.clone()))?;
                FrozenModel::Vit(Box::new(FrozenVit { config: *vit, model, workspaces: Mutex::default() }))
            }
            ClassifierConfig::ResNet(_) => FrozenModel::ResNet(Classifier::frozen(config, tensors.clone())?),
        };
        Ok(Self { model, image_elements: config.image().elements() })
    }

    /// Logits of images (N, C, H, W), a row for each image, which depends on that image alone.
    ///
    /// # Errors
    /// When the values are not those of whole images.
    pub fn logits(&self, images: &[f32]) -> Result<Vec<Vec<f64>>, ParameterError> {
        self.logits_with(images, NormStatistics::Running)
    }

    /// The same; batch norm, where the model has it, takes `statistics`.
    ///
    /// # Errors
    /// When the values are not those of whole images.
    pub fn logits_with(&self, images: &[f32], statistics: NormStatistics) -> Result<Vec<Vec<f64>>, ParameterError> {
        self.check(images)?;
        match &self.model {
            FrozenModel::Vit(vit) => Ok(vit.describe(images).logits),
            FrozenModel::ResNet(classifier) => Ok(classifier.forward_with(images, statistics)?.logits),
        }
    }

    /// Features of images (N, C, H, W), and the logits that the head makes of them.
    ///
    /// # Errors
    /// When the values are not those of whole images.
    pub fn describe(&self, images: &[f32]) -> Result<Description, ParameterError> {
        self.check(images)?;
        match &self.model {
            FrozenModel::Vit(vit) => Ok(vit.describe(images)),
            FrozenModel::ResNet(classifier) => classifier.describe(images),
        }
    }

    fn check(&self, images: &[f32]) -> Result<(), ParameterError> {
        match images.len().is_multiple_of(self.image_elements) {
            true => Ok(()),
            false => Err(ParameterError::Images { values: images.len(), elements: self.image_elements }),
        }
    }
}

impl FrozenVit {
    /// One pass for each image, on as many threads as there are: the views of one frame have all cores at work.
    fn describe(&self, images: &[f32]) -> Description {
        let widened = |row: &[f32]| row.iter().copied().map(f64::from).collect::<Vec<f64>>();
        let of_image = |image: &[f32]| {
            let mut workspace = self.workspaces.lock().pop().unwrap_or_else(|| VitWorkspace::new(&self.config));
            self.model.forward(image, &mut workspace);
            let described = (widened(&workspace.features), widened(&workspace.logits));
            self.workspaces.lock().push(workspace);
            described
        };
        let (features, logits) = images.par_chunks_exact(self.config.trunk.image.elements()).map(of_image).unzip();
        Description { features, logits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learner::TrainablePart;
    use crate::model::{ClassConditioning, ImageShape, ResNetConfig};
    use crate::noise::NoiseKey;
    use crate::tiny;

    /// Both kinds of classifier, with random weights, for images of 1 x 8 x 8.
    fn classifiers() -> [(ClassifierConfig, Tensors); 2] {
        let bundle = tiny::bundle(1, ClassConditioning::Readout);
        let image = ImageShape { channels: 1, height: 8, width: 8 };
        let resnet = ClassifierConfig::ResNet(ResNetConfig { image, width: 3, blocks: 1, classes: tiny::CLASSES });
        let weights = tiny::shaken(resnet.initialize(1).expect("a model"), 1);
        [(bundle.classifier_config, bundle.classifier), (resnet, weights)]
    }

    fn images(count: usize) -> Vec<f32> {
        let mut images = vec![0f32; count * 64];
        NoiseKey::from_seed(5, "images", 0).fill_normal(0, &mut images);
        images
    }

    #[test]
    fn it_answers_with_the_bits_of_the_classifier_that_learns() {
        for (config, weights) in classifiers() {
            let images = images(11);
            let learning = Classifier::trainable(&config, &weights, TrainablePart::All).expect("a classifier");
            let expected = learning.forward(&images).expect("a pass").logits;
            let frozen = FrozenClassifier::new(&config, &weights).expect("a classifier");
            let described = frozen.describe(&images).expect("a pass");
            assert_eq!(frozen.logits(&images).expect("a pass"), described.logits);
            assert_eq!(described.features.len(), 11);
            assert_eq!(described.logits, expected, "{config:?}");
        }
    }

    #[test]
    fn the_bits_of_an_answer_depend_neither_on_other_images_nor_on_threads() {
        let [(config, weights), _] = classifiers();
        let frozen = FrozenClassifier::new(&config, &weights).expect("a classifier");
        let images = images(11);
        let alone: Vec<Vec<f64>> = images.chunks_exact(64).flat_map(|image| frozen.logits(image).expect("a pass")).collect();
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            assert_eq!(pool.install(|| frozen.logits(&images)).expect("a pass"), alone, "{threads} threads");
        }
    }

    #[test]
    fn half_an_image_and_foreign_weights_are_refused() {
        for (config, mut weights) in classifiers() {
            let frozen = FrozenClassifier::new(&config, &weights).expect("a classifier");
            assert!(frozen.logits(&images(2)[..96]).is_err(), "{config:?}");
            weights.remove("head.bias");
            let refused = FrozenClassifier::new(&config, &weights);
            assert!(matches!(refused, Err(ParameterError::Missing { name }) if name == "head.bias"), "{config:?}");
        }
    }
}
