//! The `condition` objective: Diffusion-TTA as published (arXiv 2311.16102, algorithm 1), through the diffusion model.
//!
//! p = softmax(f(x)); c = sum_k p_k l_k; L = mean over draws of |eps(x_t, c, t) - noise|^2, timesteps uniform over the
//! schedule; the gradient runs back through the frozen diffusion model into the classifier. The released code repeats the
//! classifier's forward pass for each micro-batch; here it is run once a step, which gives the same gradient.

use super::classifier::Forward;
use super::config::ConditionConfig;
use super::judge::Judge;
use crate::diffusion::Timestep;
use crate::kernels;
use crate::noise::NoiseKey;
use candle_core::{Device, Tensor, Var};
use std::sync::Arc;

/// Loss and gradient by the logits of each image.
pub struct ConditionGradient {
    /// Mean over images and draws, per element.
    pub loss: f64,
    pub logit_gradients: Vec<Vec<f64>>,
}

/// The gradient of one adaptation step (`step`, 0-based) for images (N, C, H, W).
pub fn gradient(
    judge: &Judge,
    forward: &Forward,
    images: &[f32],
    keys: &[NoiseKey],
    config: &ConditionConfig,
    step: u32,
) -> candle_core::Result<ConditionGradient> {
    let elements = judge.model().config().trunk.image.elements();
    let mut total = ConditionGradient { loss: 0.0, logit_gradients: Vec::new() };
    let count = keys.len() as f64;
    let x_start = judge.x_start(images);
    for ((image, key), logits) in x_start.chunks_exact(elements).zip(keys).zip(&forward.logits) {
        let (loss, gradient) = image_gradient(judge, image, *key, logits, config, step)?;
        total.loss += loss / count;
        total.logit_gradients.push(gradient.iter().map(|g| g / count).collect());
    }
    Ok(total)
}

fn image_gradient(
    judge: &Judge,
    x_start: &[f32],
    key: NoiseKey,
    logits: &[f64],
    config: &ConditionConfig,
    step: u32,
) -> candle_core::Result<(f64, Vec<f64>)> {
    let values: Vec<f32> = logits.iter().map(|&z| z as f32).collect();
    let logits = Var::from_vec(values, (1, logits.len()), &Device::Cpu)?;
    let draws = config.draws_per_step * config.accumulation_steps;
    let first = if config.same_noise { 0 } else { step * draws };
    let (mut loss_sum, mut gradient_sum) = (0.0, vec![0f64; logits.elem_count()]);
    for pass in 0..config.accumulation_steps {
        let start = first + pass * config.draws_per_step;
        let loss = pass_loss(judge, x_start, key, &logits, start..start + config.draws_per_step)?;
        let store = loss.backward()?;
        let Some(gradient) = store.get(&logits) else {
            candle_core::bail!("the diffusion model gave no gradient to the condition");
        };
        loss_sum += f64::from(loss.to_scalar::<f32>()?);
        gradient_sum.iter_mut().zip(gradient.flatten_all()?.to_vec1::<f32>()?).for_each(|(sum, g)| *sum += f64::from(g));
    }
    let passes = f64::from(config.accumulation_steps);
    Ok((loss_sum / passes, gradient_sum.iter().map(|g| g / passes).collect()))
}

/// Mean denoising loss of the draws under the condition softmax(logits), a scalar.
fn pass_loss(judge: &Judge, x_start: &[f32], key: NoiseKey, logits: &Tensor, draws: std::ops::Range<u32>) -> candle_core::Result<Tensor> {
    let trunk = &judge.model().config().trunk;
    let elements = trunk.image.elements();
    let count = draws.len();
    let mut noise = vec![0f32; count * elements];
    let mut x_t = vec![0f32; count * elements];
    let mut timesteps = Vec::with_capacity(count);
    for (draw, (noise, x_t)) in draws.zip(noise.chunks_exact_mut(elements).zip(x_t.chunks_exact_mut(elements))) {
        let timestep = Timestep(key.uniform_below(draw, judge.schedule().num_timesteps()));
        judge.schedule().sample(key, draw, timestep, x_start, noise, x_t);
        timesteps.push(timestep);
    }
    let probabilities = candle_nn::ops::softmax(logits, 1)?; // (1, K)
    let pred_noise = judge.model().pred_noise_of_mixture(&x_t, &timesteps, &probabilities)?; // (N, T, P)
    kernels::class_errors(&pred_noise, Arc::new(trunk.patches(&noise)), 1)?.mean_all()
}
