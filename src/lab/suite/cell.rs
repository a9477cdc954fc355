//! What is run at a time: one method on one stream, with all that its result depends on.

use crate::bundle::Bundle;
use crate::lab::baselines::{Tuning, Weights};
use crate::lab::corruptions::Table;
use crate::lab::dataset::Labelled;
use crate::lab::methods::{COMPETITOR_WINDOW, Method, published};
use crate::lab::streams::{Calibration, Stream};
use crate::learner::AdaptConfig;
use serde::Serialize;
use std::sync::OnceLock;

/// Frames, and the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scenario {
    pub table: Table,
    pub stream: Stream,
    pub frames: usize,
    /// Of each domain, in `recurring`.
    pub visits: usize,
    pub seed: u64,
}

/// One method on one scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Name of the model.
    pub model: String,
    pub scenario: Scenario,
    pub method: Method,
}

/// A model under comparison.
pub struct Subject {
    /// Its architecture: `vit` or `resnet`.
    pub name: String,
    pub bundle: Bundle,
    /// Of the methods that the daemon is configured for.
    pub adapt: AdaptConfig,
    /// BLAKE3 of the bundle's list of hashes.
    pub hash: String,
    /// BLAKE3 of the classifier's weights.
    pub classifier_hash: String,
    /// What EATA measured on source images.
    pub importance: OnceLock<Weights>,
}

/// What streams and methods are made from, next to the model.
pub struct Materials {
    /// Test images, which the streams show.
    pub images: Vec<Labelled>,
    /// BLAKE3 of them and their labels.
    pub images_hash: String,
    /// Planes of clean training images, which EATA looks at first.
    pub source_images: Vec<f32>,
    pub tuning: Tuning,
}

/// Name of a table of constants, as on the command line.
pub fn table_name(table: Table) -> &'static str {
    match table {
        Table::Cifar => "cifar",
        Table::Tiny => "tiny",
    }
}

impl Cell {
    /// Name of its file, without what follows the dot. No two cells of a suite have the same.
    pub fn name(&self) -> String {
        let Scenario { table, stream, frames, seed, .. } = self.scenario;
        format!("{}-{}-{}-{frames}-{seed}-{}", self.model, table_name(table), stream.name(), self.method.name())
    }

    /// Frames of a competitor's window.
    pub fn window(&self) -> usize {
        self.scenario.stream.window().unwrap_or(COMPETITOR_WINDOW)
    }

    /// BLAKE3, in hex, of all that the result depends on. The diffusion model and the configuration count for the methods that look at them,
    /// a calibration for the stream that it makes.
    pub fn fingerprint(&self, subject: &Subject, materials: &Materials, calibration: Option<&Calibration>) -> String {
        let Scenario { table, stream, frames, visits, seed } = self.scenario;
        let adapt = subject.adapt.clone();
        let (adapt, timesteps) = match self.method {
            Method::Undrift => (Some(adapt), None),
            Method::DiffusionTta => (Some(published(&adapt)), None),
            Method::DiffusionClassifier => (None, Some(adapt.timesteps)),
            _ => (None, None),
        };
        let is_tuned = !matches!(
            self.method,
            Method::Source | Method::Undrift | Method::DiffusionTta | Method::Stretched | Method::DiffusionClassifier | Method::Lame
        );
        let judge = self.method.is_judged().then_some((&subject.hash, &subject.bundle.diffusion_config));
        let models = (&subject.classifier_hash, &subject.bundle.classifier_config, judge);
        let scenario = (table_name(table), stream.name(), frames, visits, seed, &materials.images_hash, calibration);
        let method = (self.method.name(), self.window(), adapt, timesteps, is_tuned.then_some(materials.tuning));
        hash(&(env!("CARGO_PKG_VERSION"), models, scenario, method))
    }
}

/// BLAKE3, in hex, of the fields of `value`.
pub fn hash(value: &impl Serialize) -> String {
    let bytes = rmp_serde::to_vec_named(value).expect("plain structs always encode");
    blake3::hash(&bytes).to_hex().to_string()
}

impl Materials {
    /// Takes the images, and remembers their hash.
    pub fn new(images: Vec<Labelled>, source_images: Vec<f32>, tuning: Tuning) -> Self {
        let mut hasher = blake3::Hasher::new();
        for Labelled { image, label } in &images {
            hasher.update(image.pixels()).update(&label.0.to_le_bytes());
        }
        Self { images_hash: hasher.finalize().to_hex().to_string(), images, source_images, tuning }
    }
}

impl Scenario {
    /// Whether the stream walks on a calibration.
    pub fn is_calibrated(&self) -> bool {
        self.stream == Stream::Ccc
    }
}
