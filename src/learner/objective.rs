//! The losses by which the diffusion model teaches, on small vectors in f64: no tensors, no randomness.
//!
//! What gives an iterator takes no memory: its values are computed as they are asked for.
//!
//! Letters: p (K) the classifier's probabilities, z (K) its logits, e_k the noise predicted under class k, G[j,k] =
//! <e_j, e_k> and h[k] = <e_k, noise> per element, the mean over a frame's draws.

use crate::kernels::GramTerms;
use std::borrow::Borrow;

/// softmax(z), with the maximum subtracted.
pub fn softmax(logits: &[f64]) -> Vec<f64> {
    probabilities(logits.iter().copied()).collect()
}

/// The same, as an iterator.
pub fn probabilities(logits: impl Iterator<Item = f64> + Clone) -> impl Iterator<Item = f64> + Clone {
    let maximum = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    let exponentials = logits.map(move |z| (z - maximum).exp());
    let sum: f64 = exponentials.clone().sum();
    exponentials.map(move |e| e / sum)
}

/// -sum_k p_k ln p_k, in nats.
pub fn entropy(probabilities: impl IntoIterator<Item: Borrow<f64>>) -> f64 {
    probabilities.into_iter().map(|p| *p.borrow()).filter(|&p| p > 0.0).map(|p| -p * p.ln()).sum()
}

/// Gradient of the entropy of probabilities p by their logits: dH/dz_k = -p_k (ln p_k + H).
pub fn entropy_gradient(p: &[f64]) -> impl Iterator<Item = f64> {
    let entropy = entropy(p);
    p.iter().map(move |&p| -p * (p.max(f64::MIN_POSITIVE).ln() + entropy))
}

/// <a, b> / (|a| |b|) of vectors that are not zero, by pairs of their values.
pub fn cosine(pairs: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let inner = |of: fn((f64, f64)) -> f64| pairs.clone().map(of).sum::<f64>();
    inner(|(a, b)| a * b) / (inner(|(a, _)| a * a) * inner(|(_, b)| b * b)).sqrt()
}

/// Index of the largest value; the first of equals.
pub fn argmax(values: impl IntoIterator<Item: Borrow<f64>>) -> usize {
    let values = values.into_iter().map(|value| *value.borrow()).enumerate();
    let larger = |best: (usize, f64), next: (usize, f64)| if next.1.total_cmp(&best.1).is_gt() { next } else { best };
    values.reduce(larger).map_or(0, |(index, _)| index)
}

/// Mean of the logits (K) of a frame's views.
///
/// # Panics
/// Without a view.
pub fn mean_logits(views: &[Vec<f64>]) -> impl Iterator<Item = f64> + Clone {
    (0..views[0].len()).map(move |k| views.iter().map(|logits| logits[k]).sum::<f64>() / views.len() as f64)
}

/// Puts the mean of the terms of several draws into `mean`.
///
/// # Panics
/// When there is no draw.
pub fn mean_terms(mean: &mut GramTerms, draws: &[GramTerms]) {
    let (first, rest) = draws.split_first().expect("a frame has at least one draw");
    copy_terms(mean, first);
    for draw in rest {
        mean.gram.iter_mut().zip(&draw.gram).for_each(|(sum, term)| *sum += term);
        mean.cross.iter_mut().zip(&draw.cross).for_each(|(sum, term)| *sum += term);
    }
    let count = draws.len() as f64;
    mean.gram.iter_mut().chain(mean.cross.iter_mut()).for_each(|value| *value /= count);
}

/// Makes `to` equal to `from`, in the memory that it has.
pub fn copy_terms(to: &mut GramTerms, from: &GramTerms) {
    to.gram.clone_from(&from.gram);
    to.cross.clone_from(&from.cross);
}

/// A loss and its gradient with respect to the logits (K).
#[derive(Clone, Debug, PartialEq)]
pub struct LossAndGradient {
    pub loss: f64,
    pub logit_gradient: Vec<f64>,
}

/// The `score` objective (DUSA, arXiv 2501.00873, eq. 8): |sum_k p_k e_k - noise|^2 = p'Gp - 2h'p + |noise|^2, times
/// `scale`, without its constant.
///
/// With g = dL/dp = 2 (Gp - h) scale, dL/dz_k = p_k (g_k - sum_j p_j g_j).
pub fn score(logits: &[f64], terms: &GramTerms, scale: f64) -> LossAndGradient {
    let p = softmax(logits);
    let k = p.len();
    let gram_p: Vec<f64> = (0..k).map(|j| (0..k).map(|i| terms.gram[j * k + i] * p[i]).sum()).collect();
    let loss = (0..k).map(|j| p[j] * (gram_p[j] - 2.0 * terms.cross[j])).sum::<f64>() * scale;
    let g: Vec<f64> = (0..k).map(|j| 2.0 * scale * (gram_p[j] - terms.cross[j])).collect();
    let mean: f64 = p.iter().zip(&g).map(|(p, g)| p * g).sum();
    LossAndGradient { loss, logit_gradient: p.iter().zip(&g).map(|(p, g)| p * (g - mean)).collect() }
}

/// The posterior over classes, q_k ~ p_k^prior_weight exp(-scale errors_k): what the classifier should say after it has
/// heard the diffusion model, whose log-likelihood is minus half the summed squared error.
pub fn posterior(
    logits: impl Iterator<Item = f64> + Clone,
    errors: &[f64],
    prior_weight: f64,
    scale: f64,
) -> impl Iterator<Item = f64> + Clone {
    probabilities(logits.zip(errors).map(move |(z, error)| prior_weight * z - scale * error))
}

/// p_k prior_k^weight, of sum 1.
pub fn weighted(probabilities: impl Iterator<Item = f64> + Clone, prior: &[f64], weight: f64) -> impl Iterator<Item = f64> + Clone {
    let products = probabilities.zip(prior).map(move |(p, prior)| p * prior.powf(weight));
    let sum: f64 = products.clone().sum();
    products.map(move |product| product / sum)
}

/// Cross entropy -sum_k q_k ln p_k to a fixed target q; dL/dz = p - q.
pub fn cross_entropy(logits: &[f64], target: &[f64]) -> LossAndGradient {
    let mut logit_gradient = Vec::new();
    let loss = cross_entropy_into(&mut logit_gradient, logits.iter().copied(), target);
    LossAndGradient { loss, logit_gradient }
}

/// The same loss; its gradient goes to where one was before.
pub fn cross_entropy_into(logit_gradient: &mut Vec<f64>, logits: impl Iterator<Item = f64> + Clone, target: &[f64]) -> f64 {
    let p = probabilities(logits);
    logit_gradient.clear();
    logit_gradient.extend(p.clone().zip(target).map(|(p, q)| p - q));
    target.iter().zip(p).map(|(q, p)| -q * p.max(f64::MIN_POSITIVE).ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> GramTerms {
        // Three predicted noises of four elements, and the noise itself.
        let e = [[0.5, -1.0, 0.3, 0.8], [0.1, 0.4, -0.6, 1.2], [-0.7, 0.2, 0.9, -0.1]];
        let noise = [0.4, -0.8, 0.1, 1.1];
        let inner = |a: &[f64; 4], b: &[f64; 4]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / 4.0;
        let gram = e.iter().flat_map(|a| e.iter().map(move |b| (a, b))).map(|(a, b)| inner(a, b)).collect();
        GramTerms { gram, cross: e.iter().map(|a| inner(a, &noise)).collect() }
    }

    fn errors() -> Vec<f64> {
        terms().errors().collect()
    }

    fn assert_matches_finite_differences(logits: &[f64], loss: impl Fn(&[f64]) -> LossAndGradient) {
        const STEP: f64 = 1e-5;
        let analytic = loss(logits).logit_gradient;
        for (k, analytic) in analytic.iter().enumerate() {
            let at = |shift: f64| {
                let mut moved = logits.to_vec();
                moved[k] += shift;
                loss(&moved).loss
            };
            let numeric = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            assert!((analytic - numeric).abs() < 1e-9, "logit {k}: {analytic} against {numeric}");
        }
    }

    #[test]
    fn gradients_of_the_losses_equal_finite_differences() {
        let logits = [0.3, -1.2, 0.8];
        assert_matches_finite_differences(&logits, |z| score(z, &terms(), 3.0));
        let target: Vec<f64> = posterior(logits.into_iter(), &errors(), 1.0, 2.0).collect();
        assert_matches_finite_differences(&logits, |z| cross_entropy(z, &target));
    }

    #[test]
    fn score_is_the_error_of_the_mixed_prediction() {
        // At a certain class the score is that class's error; both leave out |noise|^2.
        let certain = [0.0, 60.0, 0.0];
        assert!((score(&certain, &terms(), 1.0).loss - errors()[1]).abs() < 1e-12);
    }

    #[test]
    fn posterior_is_bayes_rule() {
        let prior = softmax(&[0.3, -1.2, 0.8]);
        let errors = [0.1, 0.5, 0.2];
        let joint: Vec<f64> = prior.iter().zip(&errors).map(|(p, e): (&f64, &f64)| p * (-4.0 * e).exp()).collect();
        let sum: f64 = joint.iter().sum();
        for (q, joint) in posterior([0.3, -1.2, 0.8].into_iter(), &errors, 1.0, 4.0).zip(&joint) {
            assert!((q - joint / sum).abs() < 1e-12);
        }
    }
}
