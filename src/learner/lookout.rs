//! Looks at the canary with the weights that are about to serve, and with the source's.

use super::config::AdaptConfig;
use super::frozen::FrozenClassifier;
use super::objective::{argmax, mean_logits};
use crate::bundle::Bundle;
use crate::guard::canary::{Canary, Evidence};
use crate::model::{ImageShape, ParameterError};
use crate::noise::NoiseKey;
use std::collections::BTreeMap;

/// The noise key's draws from here on choose images of the canary; a frame has fewer draws.
const CANARY_DRAWS: u32 = 1 << 31;

/// The canary, and what the source makes of it.
pub struct Lookout {
    canary: Canary,
    source: FrozenClassifier,
    /// Of its images.
    shape: ImageShape,
    /// Whether the source is right, of the images that were looked at.
    source_hits: BTreeMap<usize, bool>,
}

impl Lookout {
    /// None where the bundle has no canary.
    ///
    /// # Errors
    /// Where the weights are not those of the bundle's classifier.
    pub fn new(bundle: &Bundle) -> Result<Option<Self>, ParameterError> {
        if bundle.canary.labels.is_empty() {
            return Ok(None);
        }
        let source = FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier)?;
        let shape = bundle.classifier_config.image();
        Ok(Some(Self { canary: bundle.canary.clone(), source, shape, source_hits: BTreeMap::new() }))
    }

    /// Draws images by `key`, and takes into `evidence` who is right on them.
    ///
    /// # Errors
    /// Where a classifier cannot answer.
    pub fn look(
        &mut self,
        adapted: &FrozenClassifier,
        key: NoiseKey,
        config: &AdaptConfig,
        evidence: &mut Evidence,
    ) -> Result<(), ParameterError> {
        let count = u32::try_from(self.canary.labels.len()).expect("a canary has fewer images than 2^32");
        for draw in 0..config.guard.canary_images {
            let image = key.uniform_below(CANARY_DRAWS + draw, count) as usize;
            let views = config.views(self.canary.image(image), self.shape);
            let is_right = |classifier: &FrozenClassifier| {
                Ok::<_, ParameterError>(argmax(mean_logits(&classifier.logits(&views)?)) == self.canary.labels[image])
            };
            let is_source_hit = match self.source_hits.get(&image) {
                Some(&is_hit) => is_hit,
                None => is_right(&self.source)?,
            };
            let is_hit = is_right(adapted)?;
            self.source_hits.insert(image, is_source_hit);
            evidence.add(is_source_hit, is_hit, config.guard.canary_tolerance);
        }
        Ok(())
    }
}
