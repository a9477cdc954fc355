//! The classifier of a method, which learns, and that of its teacher, which follows.

use super::competitor::Passes;
use crate::kernels::Variable;
use crate::learner::{AdaptError, Classifier, Forward, Optimizer, OptimizerConfig, OptimizerState, StepError};
use crate::model::{Gradients, NormStatistics};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Values of the trainable parameters, by name.
pub type Weights = BTreeMap<String, Vec<f32>>;

/// A classifier that learns. Batch norm, where it has it, takes the statistics of the window, as in the methods' public code.
pub struct Student {
    classifier: Classifier,
    statistics: NormStatistics,
    optimizer: Optimizer,
    learning_rate: f32,
    source: Weights,
}

impl Student {
    pub fn new(classifier: Classifier, optimizer: OptimizerConfig, learning_rate: f32) -> Result<Self, AdaptError> {
        let source = weights(&classifier)?;
        Ok(Self { classifier, statistics: NormStatistics::Batch, optimizer: Optimizer::new(optimizer), learning_rate, source })
    }

    /// With other statistics for batch norm.
    pub fn with_statistics(self, statistics: NormStatistics) -> Self {
        Self { statistics, ..self }
    }

    /// Moves the statistics that batch norm has of the source the share `share` of their way to those of `images`.
    pub fn absorb(&mut self, images: &[f32], share: f32) -> Result<(), AdaptError> {
        Ok(self.classifier.absorb(images, share)?)
    }

    pub fn forward(&self, images: &[f32], passes: &mut Passes) -> Result<Forward, AdaptError> {
        let forward = self.classifier.forward_with(images, self.statistics)?;
        passes.classifier_forward += forward.logits.len() as f64;
        Ok(forward)
    }

    /// Gradients of the parameters, for the gradient of the loss by each image's logits.
    pub fn gradients(&self, forward: &Forward, logit_gradients: &[Vec<f64>], passes: &mut Passes) -> Result<Gradients, AdaptError> {
        let is_felt = |row: &&Vec<f64>| row.iter().any(|&g| g != 0.0);
        passes.classifier_backward += logit_gradients.iter().filter(is_felt).count() as f64;
        self.classifier.gradients(forward, logit_gradients).map_err(AdaptError::Step)
    }

    /// One step of the optimizer. A gradient that is not finite moves nothing; public code goes on without numbers.
    pub fn step(&mut self, gradients: &Gradients) -> Result<(), AdaptError> {
        match self.optimizer.step(self.classifier.parameters().variables(), gradients, self.learning_rate, f32::MAX, None) {
            Ok(_) | Err(StepError::NotFinite { .. }) => Ok(()),
            Err(error) => Err(AdaptError::Step(error)),
        }
    }

    /// One step along the gradient of the loss by each image's logits.
    pub fn learn(&mut self, forward: &Forward, logit_gradients: &[Vec<f64>], passes: &mut Passes) -> Result<(), AdaptError> {
        let gradients = self.gradients(forward, logit_gradients, passes)?;
        self.step(&gradients)
    }

    pub fn weights(&self) -> Result<Weights, AdaptError> {
        weights(&self.classifier)
    }

    pub fn set_weights(&self, weights: &Weights) -> Result<(), AdaptError> {
        set_weights(&self.classifier, weights)
    }

    pub fn source(&self) -> &Weights {
        &self.source
    }

    /// Moves the weights the share `pull` of their way back to the source.
    pub fn pull_to_source(&self, pull: f32) -> Result<(), AdaptError> {
        let mut weights = self.weights()?;
        approach(&mut weights, &self.source, pull);
        self.set_weights(&weights)
    }

    /// Back to the source weights and a fresh optimizer.
    pub fn reset(&mut self) -> Result<(), AdaptError> {
        self.optimizer.restore(OptimizerState::default());
        self.set_weights(&self.source)
    }
}

/// A classifier that follows a student by a moving average.
pub struct Teacher {
    classifier: Classifier,
    /// Share of the way to the student that each window takes.
    pace: f32,
}

impl Teacher {
    pub fn new(classifier: Classifier, pace: f32) -> Self {
        Self { classifier, pace }
    }

    /// Logits, with the window's statistics for batch norm.
    pub fn logits(&self, images: &[f32], passes: &mut Passes) -> Result<Vec<Vec<f64>>, AdaptError> {
        self.logits_with(images, NormStatistics::Batch, passes)
    }

    pub fn logits_with(&self, images: &[f32], statistics: NormStatistics, passes: &mut Passes) -> Result<Vec<Vec<f64>>, AdaptError> {
        let logits = self.classifier.forward_with(images, statistics)?.logits;
        passes.classifier_forward += logits.len() as f64;
        Ok(logits)
    }

    /// Moves the statistics that batch norm has of the source the share `share` of their way to those of `images`.
    pub fn absorb(&mut self, images: &[f32], share: f32) -> Result<(), AdaptError> {
        Ok(self.classifier.absorb(images, share)?)
    }

    pub fn follow(&self, student: &Student) -> Result<(), AdaptError> {
        let mut weights = weights(&self.classifier)?;
        approach(&mut weights, &student.weights()?, self.pace);
        set_weights(&self.classifier, &weights)
    }

    #[cfg(test)]
    pub fn weights(&self) -> Result<Weights, AdaptError> {
        weights(&self.classifier)
    }
}

fn weights(classifier: &Classifier) -> Result<Weights, AdaptError> {
    let values = |(name, variable): (&String, &Variable)| Ok((name.clone(), variable.flatten_all()?.to_vec1::<f32>()?));
    classifier.parameters().variables().iter().map(values).collect()
}

fn set_weights(classifier: &Classifier, weights: &Weights) -> Result<(), AdaptError> {
    for (name, variable) in classifier.parameters().variables() {
        variable.set(&Tensor::from_slice(&weights[name], variable.shape(), variable.device())?)?;
    }
    Ok(())
}

fn approach(weights: &mut Weights, goal: &Weights, share: f32) {
    for (name, values) in weights {
        for (value, goal) in values.iter_mut().zip(&goal[name]) {
            *value += share * (goal - *value);
        }
    }
}
