//! Layer normalisation with modulation: the normalisation of the DiT (arXiv 2212.09748, adaLN) and, with learned
//! constants in place of conditioned ones, that of the ViT.

use super::elementwise::fold_rows;
use super::slices::{LANES, sum, sum_of_lanes, tensor, values, with_values};
use super::vectorized;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Added to the variance (DiT, `models.py`: `nn.LayerNorm(.., eps=1e-6)`).
const NORM_EPS: f32 = 1e-6;

/// y (N, T, D) = norm(x) * (1 + scale) + shift, the mean and variance over D; `shift` and `scale` are (R, D), R is N or 1.
pub fn modulated_norm(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&shift.contiguous()?, &scale.contiguous()?, ModulatedNorm)
}

struct ModulatedNorm;

/// Row `n` of `rows`, or its only row.
#[inline]
pub fn row(rows: &[f32], n: usize, d: usize) -> &[f32] {
    if rows.len() == d { rows } else { &rows[n * d..(n + 1) * d] }
}

/// y (T, D) = norm(x) * (1 + scale) + shift of one image; `shift` and `scale` are (D).
pub fn modulate(y: &mut [f32], x: &[f32], shift: &[f32], scale: &[f32]) {
    let d = scale.len();
    assert_eq!((y.len(), shift.len()), (x.len(), d), "lengths of a modulated norm");
    vectorized(
        #[inline(always)]
        || {
            for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                let (mean, reciprocal) = statistics(x);
                for (((y, &x), &shift), &scale) in y.iter_mut().zip(x).zip(shift).zip(scale) {
                    *y = ((x - mean) * reciprocal).mul_add(1.0 + scale, shift);
                }
            }
        },
    );
}

/// Mean and reciprocal standard deviation, in two passes.
#[inline(always)]
fn statistics(x: &[f32]) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = sum(x, |value| value) / count;
    let variance = sum(x, |value| (value - mean) * (value - mean)) / count;
    (mean, 1.0 / (variance + NORM_EPS).sqrt())
}

impl CustomOp3 for ModulatedNorm {
    fn name(&self) -> &'static str {
        "modulated-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, t, d) = x_layout.shape().dims3()?;
        let (x, shift, scale) = (values(x, x_layout)?, values(shift, shift_layout)?, values(scale, scale_layout)?);
        if shift.len() != scale.len() || (scale.len() != d && scale.len() != n * d) {
            bail!("modulation of {} and {} values for ({n}, {t}, {d})", shift.len(), scale.len());
        }
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(t * d).zip(x.par_chunks(t * d)).enumerate().for_each(|(n, (y, x))| {
            modulate(y, x, row(shift, n, d), row(scale, n, d));
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        shift: &Tensor,
        scale: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (n, t, d) = x.dims3()?;
        let mut dx = vec![0f32; n * t * d];
        let mut dshift = vec![0f32; n * d];
        let mut dscale = vec![0f32; n * d];
        with_values(x, |x| {
            with_values(scale, |scale| {
                with_values(gradient, |g| {
                    let outputs = dx.par_chunks_mut(t * d).zip(dshift.par_chunks_mut(d)).zip(dscale.par_chunks_mut(d));
                    let inputs = x.par_chunks(t * d).zip(g.par_chunks(t * d));
                    outputs.zip(inputs).enumerate().for_each(|(n, (((dx, dshift), dscale), (x, g)))| {
                        modulate_backward(dx, dshift, dscale, x, g, row(scale, n, d));
                    });
                    Ok(())
                })
            })
        })?;
        let dshift = tensor(fold_rows(dshift, shift.elem_count()), shift.shape());
        let dscale = tensor(fold_rows(dscale, scale.elem_count()), scale.shape());
        Ok((Some(tensor(dx, x.shape())), Some(dshift), Some(dscale)))
    }
}

/// Adds the gradients of one image's [`modulate`] to `dx` (T, D), `dshift` (D) and `dscale` (D), for the gradient `g` (T, D).
///
/// With x^ = (x - mean) r and gh = g (1 + scale): dx = r (gh - mean(gh) - x^ mean(gh x^)), dshift = g, dscale = g x^.
pub fn modulate_backward(dx: &mut [f32], dshift: &mut [f32], dscale: &mut [f32], x: &[f32], g: &[f32], scale: &[f32]) {
    let d = scale.len();
    assert_eq!((dx.len(), g.len(), dshift.len(), dscale.len()), (x.len(), x.len(), d, d), "lengths of a modulated norm");
    vectorized(
        #[inline(always)]
        || {
            for ((dx, x), g) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(g.chunks_exact(d)) {
                backward_token(dx, dshift, dscale, x, g, scale);
            }
        },
    );
}

#[inline(always)]
fn backward_token(dx: &mut [f32], dshift: &mut [f32], dscale: &mut [f32], x: &[f32], g: &[f32], scale: &[f32]) {
    let count = x.len() as f32;
    let (mean, reciprocal) = statistics(x);
    let (mut gradients, mut projections) = ([0f32; LANES], [0f32; LANES]);
    let mut add = |x: &[f32], g: &[f32], scale: &[f32]| {
        for i in 0..x.len() {
            let gradient = g[i] * (1.0 + scale[i]);
            gradients[i] += gradient;
            projections[i] = gradient.mul_add((x[i] - mean) * reciprocal, projections[i]);
        }
    };
    let ((chunks, x_rest), (of_g, g_rest), (of_scale, scale_rest)) =
        (x.as_chunks::<LANES>(), g.as_chunks::<LANES>(), scale.as_chunks::<LANES>());
    for ((x, g), scale) in chunks.iter().zip(of_g).zip(of_scale) {
        add(x, g, scale);
    }
    add(x_rest, g_rest, scale_rest);
    let (mean_gradient, mean_projection) = (sum_of_lanes(gradients) / count, sum_of_lanes(projections) / count);
    let places = dx.iter_mut().zip(dshift).zip(dscale);
    for ((((dx, dshift), dscale), (&x, &g)), &scale) in places.zip(x.iter().zip(g)).zip(scale) {
        let normal = (x - mean) * reciprocal;
        *dshift += g;
        *dscale = g.mul_add(normal, *dscale);
        *dx += reciprocal * (g * (1.0 + scale) - mean_gradient - normal * mean_projection);
    }
}
