//! The losses of the competitors: pure functions of logits in f64, each with its gradient by the logits.
//!
//! Letters: z (K) logits, p = softmax(z), g = dL/dp; then dL/dz_k = p_k (g_k - sum_j p_j g_j), which is [`through_softmax`].

use crate::kernels::GramTerms;
use crate::learner::objective::{self, LossAndGradient, score, softmax};

/// ln p of a probability that may have become 0.
fn ln(p: f64) -> f64 {
    p.max(f64::MIN_POSITIVE).ln()
}

fn through_softmax(p: &[f64], g: &[f64]) -> Vec<f64> {
    let mean: f64 = p.iter().zip(g).map(|(p, g)| p * g).sum();
    p.iter().zip(g).map(|(p, g)| p * (g - mean)).collect()
}

/// H = -sum_k p_k ln p_k (Tent, arXiv 2006.10726).
pub fn entropy(logits: &[f64]) -> LossAndGradient {
    let p = softmax(logits);
    LossAndGradient { loss: objective::entropy(&p), logit_gradient: objective::entropy_gradient(&p).collect() }
}

/// Soft likelihood ratio -sum_k p_k ln(p_k / (1 - p_k)) (ROID, arXiv 2306.00650), p clipped at 0.99 and 1e-5
/// added to the ratio as in its `utils/losses.py`.
pub fn soft_likelihood_ratio(logits: &[f64]) -> LossAndGradient {
    const CLIP: f64 = 0.99;
    const RATIO_EPS: f64 = 1e-5;
    let p = softmax(logits);
    let ratio = |p: f64| p / (1.0 - p) + RATIO_EPS;
    let clipped = p.iter().map(|p| p.min(CLIP));
    let loss = clipped.map(|p| -p * ratio(p).ln()).sum();
    // d ratio / dp = 1 / (1 - p)^2; nothing where p is clipped.
    let slope = |&p: &f64| if p < CLIP { -ratio(p).ln() - p / ((1.0 - p).powi(2) * ratio(p)) } else { 0.0 };
    let g: Vec<f64> = p.iter().map(slope).collect();
    LossAndGradient { loss, logit_gradient: through_softmax(&p, &g) }
}

/// Mean of the cross entropies of p against q and of q against p, and its gradient by the logits of each.
pub fn symmetric_cross_entropy(logits: [&[f64]; 2]) -> (f64, [Vec<f64>; 2]) {
    let [p, q] = logits.map(softmax);
    let loss = p.iter().zip(&q).map(|(&p, &q)| -0.5 * (q * ln(p) + p * ln(q))).sum();
    // By z: p - q of -sum q ln p, and of -sum p ln q through the softmax.
    let gradient = |p: &[f64], q: &[f64]| {
        let g: Vec<f64> = q.iter().map(|&q| -ln(q)).collect();
        through_softmax(p, &g).iter().zip(p.iter().zip(q)).map(|(through, (p, q))| 0.5 * (through + p - q)).collect()
    };
    (loss, [gradient(&p, &q), gradient(&q, &p)])
}

/// Entropy of the mean of the rows' probabilities (MEMO, arXiv 2110.09506), and its gradient by each row.
pub fn marginal_entropy(rows: &[Vec<f64>]) -> (f64, Vec<Vec<f64>>) {
    let probabilities: Vec<Vec<f64>> = rows.iter().map(|row| softmax(row)).collect();
    let marginal = mean(&probabilities);
    let g: Vec<f64> = marginal.iter().map(|&m| (-ln(m) - 1.0) / rows.len() as f64).collect();
    let gradients = probabilities.iter().map(|p| through_softmax(p, &g)).collect();
    (marginal.iter().map(|&m| -m * ln(m)).sum(), gradients)
}

/// The score objective over some classes (DUSA, arXiv 2501.00873): logits of unit length, softmax over `candidates` alone,
/// error of the mixture of their predicted noises.
///
/// With u = z / |z|, dL/dz = (dL/du - u <u, dL/du>) / |z|.
pub fn candidate_score(logits: &[f64], terms: &GramTerms, candidates: &[usize]) -> LossAndGradient {
    let length = logits.iter().map(|z| z * z).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    let unit: Vec<f64> = logits.iter().map(|z| z / length).collect();
    let chosen: Vec<f64> = candidates.iter().map(|&k| unit[k]).collect();
    let LossAndGradient { loss, logit_gradient } = score(&chosen, &terms_of(terms, candidates), 1.0);
    let mut by_unit = vec![0.0; logits.len()];
    candidates.iter().zip(logit_gradient).for_each(|(&k, g)| by_unit[k] = g);
    let along: f64 = unit.iter().zip(&by_unit).map(|(u, g)| u * g).sum();
    LossAndGradient { loss, logit_gradient: unit.iter().zip(&by_unit).map(|(u, g)| (g - u * along) / length).collect() }
}

fn terms_of(terms: &GramTerms, classes: &[usize]) -> GramTerms {
    let k = terms.cross.len();
    GramTerms {
        gram: classes.iter().flat_map(|&row| classes.iter().map(move |&column| terms.gram[row * k + column])).collect(),
        cross: classes.iter().map(|&class| terms.cross[class]).collect(),
    }
}

/// Mean of rows of one length; there is at least one.
pub fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    let count = rows.len() as f64;
    (0..rows[0].len()).map(|k| rows.iter().map(|row| row[k]).sum::<f64>() / count).collect()
}

/// `row` times `factor`.
pub fn scaled(row: &[f64], factor: f64) -> Vec<f64> {
    row.iter().map(|value| value * factor).collect()
}

/// <a, b> / (|a| |b|), of vectors that are not zero.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    objective::cosine(a.iter().copied().zip(b.iter().copied()))
}

/// Moves `average` the share `1 - momentum` of its way to `value`.
pub fn moving_average(average: &mut [f64], value: &[f64], momentum: f64) {
    average.iter_mut().zip(value).for_each(|(average, value)| *average = momentum * *average + (1.0 - momentum) * value);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f64; 4] = [0.3, -1.2, 0.8, 0.1];
    const OTHERS: [f64; 4] = [-0.4, 0.9, 1.1, -2.0];

    fn assert_is_derivative(name: &str, analytic: &[f64], logits: &[f64], loss: impl Fn(&[f64]) -> f64) {
        const STEP: f64 = 1e-5;
        for (k, analytic) in analytic.iter().enumerate() {
            let at = |shift: f64| {
                let mut moved = logits.to_vec();
                moved[k] += shift;
                loss(&moved)
            };
            let numeric = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            // Central differences of f64 at this step: 1e-10 of the curvature, 1e-11 of rounding.
            assert!((analytic - numeric).abs() < 1e-9, "{name}, logit {k}: {analytic} against {numeric}");
        }
    }

    fn terms() -> GramTerms {
        let e = [[0.5, -1.0, 0.3], [0.1, 0.4, -0.6], [-0.7, 0.2, 0.9], [0.8, 0.6, -0.2]];
        let noise = [0.4, -0.8, 0.1];
        let inner = |a: &[f64; 3], b: &[f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / 3.0;
        let gram = e.iter().flat_map(|a| e.iter().map(move |b| inner(a, b))).collect();
        GramTerms { gram, cross: e.iter().map(|a| inner(a, &noise)).collect() }
    }

    #[test]
    fn gradients_of_single_rows_equal_finite_differences() {
        let confident = [9.0, -1.2, 0.8, 0.1];
        for logits in [LOGITS, OTHERS, confident] {
            assert_is_derivative("entropy", &entropy(&logits).logit_gradient, &logits, |z| entropy(z).loss);
            let ratio = soft_likelihood_ratio(&logits).logit_gradient;
            assert_is_derivative("soft likelihood ratio", &ratio, &logits, |z| soft_likelihood_ratio(z).loss);
            let dusa = |z: &[f64]| candidate_score(z, &terms(), &[2, 0, 3]);
            assert_is_derivative("candidate score", &dusa(&logits).logit_gradient, &logits, |z| dusa(z).loss);
        }
    }

    #[test]
    fn gradients_of_several_rows_equal_finite_differences() {
        let (_, [left, right]) = symmetric_cross_entropy([&LOGITS, &OTHERS]);
        assert_is_derivative("left", &left, &LOGITS, |z| symmetric_cross_entropy([z, &OTHERS]).0);
        assert_is_derivative("right", &right, &OTHERS, |z| symmetric_cross_entropy([&LOGITS, z]).0);
        let (_, gradients) = marginal_entropy(&[LOGITS.to_vec(), OTHERS.to_vec()]);
        assert_is_derivative("first view", &gradients[0], &LOGITS, |z| marginal_entropy(&[z.to_vec(), OTHERS.to_vec()]).0);
        assert_is_derivative("second view", &gradients[1], &OTHERS, |z| marginal_entropy(&[LOGITS.to_vec(), z.to_vec()]).0);
    }

    #[test]
    fn losses_have_their_known_values() {
        let even = [0.0; 4];
        assert!((entropy(&even).loss - 4f64.ln()).abs() < 1e-12);
        // p = 1/4 each: -ln(1/3 + 1e-5).
        assert!((soft_likelihood_ratio(&even).loss + (1.0 / 3.0 + 1e-5f64).ln()).abs() < 1e-12);
        assert!((symmetric_cross_entropy([&LOGITS, &LOGITS]).0 - entropy(&LOGITS).loss).abs() < 1e-12);
        assert!((marginal_entropy(&[LOGITS.to_vec()]).0 - entropy(&LOGITS).loss).abs() < 1e-12);
    }

    #[test]
    fn classes_that_are_no_candidates_do_not_enter_the_mixture() {
        let mut other = terms();
        other.cross[1] += 5.0;
        other.gram[5] += 5.0;
        assert_eq!(candidate_score(&LOGITS, &terms(), &[2, 0]), candidate_score(&LOGITS, &other, &[2, 0]));
    }
}
