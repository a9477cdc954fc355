//! How well each class explains the noise: errors for training, Gram terms for the `score` objective.

use super::slices::{LANES, tensor, values, with_values};
use super::vectorized;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::Arc;

/// errors (N, K) = mean over T and P of (pred_noise - noise)^2, for `pred_noise` (N, T, K P) and `noise` (N, T, P).
pub fn class_errors(pred_noise: &Tensor, noise: Arc<Vec<f32>>, classes: usize) -> Result<Tensor> {
    pred_noise.contiguous()?.apply_op1(ClassErrors { noise, classes })
}

struct ClassErrors {
    noise: Arc<Vec<f32>>,
    classes: usize,
}

impl ClassErrors {
    /// (N, T, K, P)
    fn sizes(&self, shape: &Shape) -> Result<(usize, usize, usize, usize)> {
        let (n, t, width) = shape.dims3()?;
        let p = width / self.classes;
        if width % self.classes != 0 || self.noise.len() != n * t * p {
            bail!("class errors: predictions {:?}, {} classes, noise of {} values", shape.dims(), self.classes, self.noise.len());
        }
        Ok((n, t, self.classes, p))
    }
}

impl CustomOp1 for ClassErrors {
    fn name(&self) -> &'static str {
        "class-errors"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, t, k, p) = self.sizes(layout.shape())?;
        let pred_noise = values(storage, layout)?;
        let mut errors = vec![0f32; n * k];
        let images = pred_noise.par_chunks(t * k * p).zip(self.noise.par_chunks(t * p));
        errors.par_chunks_mut(k).zip(images).for_each(|(errors, (pred_noise, noise))| {
            for (pred_noise, noise) in pred_noise.chunks_exact(k * p).zip(noise.chunks_exact(p)) {
                for (error, pred_noise) in errors.iter_mut().zip(pred_noise.chunks_exact(p)) {
                    *error += pred_noise.iter().zip(noise).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
                }
            }
            errors.iter_mut().for_each(|error| *error /= (t * p) as f32);
        });
        Ok((CpuStorage::F32(errors), Shape::from((n, k))))
    }

    /// d errors[k] / d pred_noise = 2 (pred_noise - noise) / (T P).
    fn bwd(&self, pred_noise: &Tensor, _errors: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (_, t, k, p) = self.sizes(pred_noise.shape())?;
        let mut d = vec![0f32; pred_noise.elem_count()];
        with_values(pred_noise, |pred_noise| {
            with_values(gradient, |g| {
                let images = pred_noise.par_chunks(t * k * p).zip(self.noise.par_chunks(t * p)).zip(g.par_chunks(k));
                d.par_chunks_mut(t * k * p).zip(images).for_each(|(d, ((pred_noise, noise), g))| {
                    let tokens = d.chunks_exact_mut(k * p).zip(pred_noise.chunks_exact(k * p)).zip(noise.chunks_exact(p));
                    for ((d, pred_noise), noise) in tokens {
                        for class in 0..k {
                            let factor = 2.0 * g[class] / (t * p) as f32;
                            for i in 0..p {
                                d[class * p + i] = factor * (pred_noise[class * p + i] - noise[i]);
                            }
                        }
                    }
                });
                Ok(())
            })
        })?;
        Ok(Some(tensor(d, pred_noise.shape())))
    }
}

/// What the `score` objective needs of one draw: G[j,k] = <e_j, e_k> and h[k] = <e_k, noise>, both divided by the number
/// of elements, e_k being the predicted noise under class k.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GramTerms {
    /// (K, K), row-major, symmetric.
    pub gram: Vec<f64>,
    /// (K)
    pub cross: Vec<f64>,
}

impl GramTerms {
    /// Error of each class without the term that all share: G[k,k] - 2 h[k]. The least is the Diffusion Classifier's answer.
    pub fn errors(&self) -> impl Iterator<Item = f64> {
        let k = self.cross.len();
        (0..k).map(move |class| self.gram[class * k + class] - 2.0 * self.cross[class])
    }
}

/// Gram terms of one draw of one image: `pred_noise` (T, K P), `noise` (T, P).
///
/// # Panics
/// When lengths do not match: a bug of the caller.
pub fn gram_terms(pred_noise: &[f32], noise: &[f32], classes: usize, patch_elements: usize) -> GramTerms {
    let mut terms = GramTerms::default();
    gram_terms_into(&mut terms, pred_noise, noise, classes, patch_elements);
    terms
}

/// The same, in the place of terms of as many classes.
///
/// # Panics
/// When lengths do not match: a bug of the caller.
pub fn gram_terms_into(terms: &mut GramTerms, pred_noise: &[f32], noise: &[f32], classes: usize, patch_elements: usize) {
    let (k, p) = (classes, patch_elements);
    assert_eq!(pred_noise.len(), noise.len() * k, "predictions of {k} classes");
    let elements = noise.len() as f64;
    terms.gram.resize(k * k, 0.0);
    terms.cross.resize(k, 0.0);
    let of_class = |class: usize| pred_noise.chunks_exact(k * p).map(move |tokens| &tokens[class * p..(class + 1) * p]);
    vectorized(
        #[inline(always)]
        || {
            for j in 0..k {
                terms.cross[j] = inner(of_class(j), noise.chunks_exact(p)) / elements;
                for i in j..k {
                    terms.gram[j * k + i] = inner(of_class(j), of_class(i)) / elements;
                    terms.gram[i * k + j] = terms.gram[j * k + i];
                }
            }
        },
    );
}

/// Inner product of two vectors that come in pieces of equal lengths.
#[inline(always)]
fn inner<'a>(left: impl Iterator<Item = &'a [f32]>, right: impl Iterator<Item = &'a [f32]>) -> f64 {
    let (mut lanes, mut rest) = ([0f32; LANES], 0f64);
    for (left, right) in left.zip(right) {
        let ((left, left_rest), (right, right_rest)) = (left.as_chunks::<LANES>(), right.as_chunks::<LANES>());
        for (left, right) in left.iter().zip(right) {
            for i in 0..LANES {
                lanes[i] = left[i].mul_add(right[i], lanes[i]);
            }
        }
        rest += left_rest.iter().zip(right_rest).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    }
    rest + lanes.into_iter().map(f64::from).sum::<f64>()
}
