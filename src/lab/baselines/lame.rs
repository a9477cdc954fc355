//! LAME: the source's probabilities, made alike for frames with like features (arXiv 2201.05718; fiveai/LAME,
//! `src/adaptation/lame.py`).
//!
//! No weight changes; a window is answered after it was looked at as a whole. The affinity is that of the five nearest
//! neighbours, one of the three of the paper (the repository's default is a Gaussian of distance).

use super::competitor::{Competitor, Context, Setting};
use super::losses::cosine;
use crate::learner::objective::{argmax, softmax};
use crate::learner::{AdaptError, Description, FrozenClassifier};

/// `LAME_KNN`.
const NEIGHBOURS: usize = 5;
/// `lame.py`, `max_steps`.
const ITERATIONS_MAX: usize = 100;
/// Relative change of the energy at which iterations end.
const TOLERANCE: f64 = 1e-8;

pub struct Lame {
    source: FrozenClassifier,
}

impl Lame {
    pub fn new(setting: &Setting) -> Result<Self, AdaptError> {
        Ok(Self { source: setting.source()? })
    }
}

impl Competitor for Lame {
    fn answer(&mut self, images: &[f32], context: &mut Context) -> Result<Vec<usize>, AdaptError> {
        let Description { features, logits } = self.source.describe(images)?;
        context.passes.classifier_forward += logits.len() as f64;
        let probabilities: Vec<Vec<f64>> = logits.iter().map(|logits| softmax(logits)).collect();
        let smoothed = smooth(&probabilities, &nearest(&features, NEIGHBOURS));
        Ok(smoothed.iter().map(argmax).collect())
    }
}

/// For each row the indices of the `count` others with the largest cosine, which are those at the least distance once rows
/// have unit length.
fn nearest(features: &[Vec<f64>], count: usize) -> Vec<Vec<usize>> {
    let of_row = |n: usize| {
        let mut others: Vec<usize> = (0..features.len()).filter(|&other| other != n).collect();
        others.sort_by(|&a, &b| cosine(&features[n], &features[b]).total_cmp(&cosine(&features[n], &features[a])));
        others.truncate(count);
        others
    };
    (0..features.len()).map(of_row).collect()
}

/// Rows y of least -sum y ln p + sum y ln y - sum over neighbours of <y, y'>, by the fixed point
/// y_n ~ p_n exp(sum of y over the neighbours of n).
fn smooth(probabilities: &[Vec<f64>], neighbours: &[Vec<usize>]) -> Vec<Vec<f64>> {
    let unary: Vec<Vec<f64>> = probabilities.iter().map(|row| row.iter().map(|p| (p + 1e-10).ln()).collect()).collect();
    let mut rows: Vec<Vec<f64>> = unary.iter().map(|row| softmax(row)).collect();
    let mut last = f64::NAN;
    for _ in 0..ITERATIONS_MAX {
        let pairwise: Vec<Vec<f64>> = neighbours.iter().map(|of_row| sum(&rows, of_row, unary[0].len())).collect();
        rows = unary.iter().zip(&pairwise).map(|(unary, pairwise)| softmax(&added(unary, pairwise))).collect();
        let energy = energy(&rows, &unary, &pairwise);
        // Before there is a last energy, the comparison is with none, which is no number.
        if (energy - last).abs() <= TOLERANCE * last.abs() {
            break;
        }
        last = energy;
    }
    rows
}

fn sum(rows: &[Vec<f64>], chosen: &[usize], length: usize) -> Vec<f64> {
    chosen.iter().fold(vec![0.0; length], |sum, &n| added(&sum, &rows[n]))
}

fn added(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn energy(rows: &[Vec<f64>], unary: &[Vec<f64>], pairwise: &[Vec<f64>]) -> f64 {
    let terms = rows.iter().flatten().zip(unary.iter().flatten()).zip(pairwise.iter().flatten());
    terms.map(|((y, unary), pairwise)| y * (y.max(1e-20).ln() - unary - pairwise)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<f64>> {
        vec![vec![0.6, 0.3, 0.1], vec![0.2, 0.5, 0.3], vec![0.8, 0.1, 0.1]]
    }

    #[test]
    fn without_neighbours_probabilities_stay_as_they_are() {
        for (smoothed, row) in smooth(&rows(), &[vec![], vec![], vec![]]).iter().zip(rows()) {
            for (smoothed, p) in smoothed.iter().zip(row) {
                // 1e-10 is added to each probability.
                assert!((smoothed - p).abs() < 1e-9, "{smoothed} against {p}");
            }
        }
    }

    #[test]
    fn answers_are_distributions_and_neighbours_win_over_a_doubtful_frame() {
        let smoothed = smooth(&rows(), &[vec![2], vec![0, 2], vec![0]]);
        for row in &smoothed {
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12 && row.iter().all(|p| *p >= 0.0), "{row:?}");
        }
        assert_eq!((argmax(&rows()[1]), argmax(&smoothed[1])), (1, 0));
    }

    #[test]
    fn iterations_go_on_to_the_fixed_point() {
        let neighbours = [vec![2], vec![0, 2], vec![0]];
        let smoothed = smooth(&rows(), &neighbours);
        for (n, row) in smoothed.iter().enumerate() {
            let pairwise = sum(&smoothed, &neighbours[n], 3);
            let unary: Vec<f64> = rows()[n].iter().map(|p| p.ln()).collect();
            for (next, y) in softmax(&added(&unary, &pairwise)).iter().zip(row) {
                // The energy is flat there: a relative change of 1e-8 leaves about its root.
                assert!((next - y).abs() < 1e-3, "{next} after {y}");
            }
        }
    }

    #[test]
    fn nearest_are_those_of_the_same_direction_whatever_their_length() {
        let features = [vec![1.0, 0.0], vec![0.0, 1.0], vec![9.0, 1.0], vec![0.1, 0.9]];
        assert_eq!(nearest(&features, 1), [[2], [3], [0], [1]]);
    }
}
