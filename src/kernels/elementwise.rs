//! GELU and the gated residual, with vectorised exponentials.

use super::slices::{add_into, tensor, values, with_values};
use super::vectorized;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Values that one task takes.
const TASK_VALUES: usize = 16_384;

/// At this size a unit in the last place is 1: adding it rounds to a whole number, which the lowest bits hold.
const WHOLE: f32 = 12_582_912.0;

/// exp(x) for x in [-87, 88], within 2 units in the last place.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // log2 e in two parts, so that the reduced argument keeps its low bits.
    const LOG2_E_LOW: f32 = 1.925_963e-8;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, WHOLE);
    let part = x.mul_add(std::f32::consts::LOG2_E, WHOLE - shifted);
    power_of_two(shifted, x.mul_add(LOG2_E_LOW, part))
}

/// 2^x for x in [-126, 126], within a unit in the last place.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    let x = if x < -126.0 { -126.0 } else { x };
    let x = if x > 126.0 { 126.0 } else { x };
    let shifted = x + WHOLE;
    power_of_two(shifted, x - (shifted - WHOLE))
}

/// 2^(`shifted` - [`WHOLE`] + `part`), for a part in [-0.5, 0.5]: the polynomial of Cephes' `exp2f`, in a form that the compiler vectorises.
#[inline(always)]
fn power_of_two(shifted: f32, part: f32) -> f32 {
    let mut p = 1.535_336_2e-4f32;
    for coefficient in [1.339_887_4e-3f32, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0] {
        p = p.mul_add(part, coefficient);
    }
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// sqrt(2 / pi), of the tanh form of GELU (arXiv 1606.08415).
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// With u = s x (1 + c x^2): 0.5 x (1 + tanh u) = x / (1 + exp(-2 u)).
#[inline(always)]
pub fn gelu_value(x: f32) -> f32 {
    const LINEAR: f32 = -2.0 * GELU_SCALE * std::f32::consts::LOG2_E;
    const CUBIC: f32 = LINEAR * GELU_CUBIC;
    x / (1.0 + exp2(x * (x * x).mul_add(CUBIC, LINEAR)))
}

/// With u = s x (1 + c x^2): d/dx 0.5 x (1 + tanh u) = 0.5 (1 + tanh u) + 0.5 x (1 - tanh^2 u) s (1 + 3 c x^2).
#[inline(always)]
fn gelu_derivative(x: f32) -> f32 {
    let squared = x * x;
    let t = tanh(GELU_SCALE * x * (GELU_CUBIC * squared + 1.0));
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * squared)
}

/// GELU in its tanh form, any shape.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Gelu)
}

/// y = gelu(x), value by value.
pub fn gelu_into(y: &mut [f32], x: &[f32]) {
    vectorized(
        #[inline(always)]
        || {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = gelu_value(x);
            }
        },
    );
}

/// Gives each value of `g`, the gradient of gelu(x), its factor: now it is that of x.
pub fn gelu_backward(g: &mut [f32], x: &[f32]) {
    vectorized(
        #[inline(always)]
        || {
            for (g, &x) in g.iter_mut().zip(x) {
                *g *= gelu_derivative(x);
            }
        },
    );
}

/// Puts silu(x) = x / (1 + exp(-x)) in the place of each value.
pub fn silu_in_place(x: &mut [f32]) {
    for x in x {
        *x /= 1.0 + exp(-*x);
    }
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(TASK_VALUES).zip(x.par_chunks(TASK_VALUES)).for_each(|(y, x)| gelu_into(y, x));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = with_values(gradient, |g| Ok(g.to_vec()))?;
        with_values(x, |x| {
            dx.par_chunks_mut(TASK_VALUES).zip(x.par_chunks(TASK_VALUES)).for_each(|(dx, x)| gelu_backward(dx, x));
            Ok(())
        })?;
        Ok(Some(tensor(dx, x.shape())))
    }
}

/// y (N, T, D) = x (N, T, D) + gate (R, D) * h (N, T, D), where R is N or 1.
pub fn gated_residual(x: &Tensor, gate: &Tensor, h: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&gate.contiguous()?, &h.contiguous()?, GatedResidual)
}

/// x (T, D) += gate (D) * h (T, D) of one image.
pub fn add_gated(x: &mut [f32], h: &[f32], gate: &[f32]) {
    let d = gate.len();
    vectorized(
        #[inline(always)]
        || {
            for (x, h) in x.chunks_exact_mut(d).zip(h.chunks_exact(d)) {
                for ((x, &h), &gate) in x.iter_mut().zip(h).zip(gate) {
                    *x = gate.mul_add(h, *x);
                }
            }
        },
    );
}

/// Writes dh (T, D) of one image's gate * h, for the gradient `g` (T, D), and adds to `dgate` (D).
pub fn gate_backward(dh: &mut [f32], dgate: &mut [f32], h: &[f32], g: &[f32], gate: &[f32]) {
    let d = gate.len();
    vectorized(
        #[inline(always)]
        || {
            for ((dh, g), h) in dh.chunks_exact_mut(d).zip(g.chunks_exact(d)).zip(h.chunks_exact(d)) {
                for ((((dh, dgate), &h), &g), &gate) in dh.iter_mut().zip(dgate.iter_mut()).zip(h).zip(g).zip(gate) {
                    *dh = g * gate;
                    *dgate = g.mul_add(h, *dgate);
                }
            }
        },
    );
}

struct GatedResidual;

impl CustomOp3 for GatedResidual {
    fn name(&self) -> &'static str {
        "gated-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gate: &CpuStorage,
        gate_layout: &Layout,
        h: &CpuStorage,
        h_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, t, d) = x_layout.shape().dims3()?;
        let (x, gate, h) = (values(x, x_layout)?, values(gate, gate_layout)?, values(h, h_layout)?);
        let mut y = x.to_vec();
        y.par_chunks_mut(t * d).zip(h.par_chunks(t * d)).enumerate().for_each(|(n, (y, h))| {
            add_gated(y, h, super::normalize::row(gate, n, d));
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gate: &Tensor,
        h: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (n, t, d) = x.dims3()?;
        let mut dh = vec![0f32; n * t * d];
        let mut dgate = vec![0f32; n * d];
        with_values(gradient, |g| {
            with_values(gate, |gate| {
                with_values(h, |h| {
                    let tasks = dh.par_chunks_mut(t * d).zip(dgate.par_chunks_mut(d)).zip(g.par_chunks(t * d)).zip(h.par_chunks(t * d));
                    tasks.enumerate().for_each(|(n, (((dh, dgate), g), h))| {
                        gate_backward(dh, dgate, h, g, super::normalize::row(gate, n, d));
                    });
                    Ok(())
                })
            })
        })?;
        let dgate = fold_rows(dgate, gate.elem_count());
        Ok((Some(gradient.clone()), Some(tensor(dgate, gate.shape())), Some(tensor(dh, h.shape()))))
    }
}

/// Sums the per-image rows of a gradient when one row served all images; else gives them back as they are.
pub fn fold_rows(rows: Vec<f32>, length: usize) -> Vec<f32> {
    if rows.len() == length {
        return rows;
    }
    let mut sum = vec![0f32; length];
    rows.chunks_exact(length).for_each(|row| add_into(&mut sum, row));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_within_units_in_the_last_place() {
        for i in -8_700..8_800 {
            let x = i as f32 / 100.0;
            let expected = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(relative < 2.0 * f64::from(f32::EPSILON), "exp({x}) is off by {relative:e}");
            let expected = f64::from(x).exp2();
            let relative = (f64::from(exp2(x)) - expected).abs() / expected;
            assert!(relative < f64::from(f32::EPSILON), "exp2({x}) is off by {relative:e}");
        }
        assert!(exp(f32::NAN).is_nan() && exp2(f32::NAN).is_nan(), "what is not a number stays visible");
    }
}
