//! Scaled dot-product attention over a packed query, key and value; the backward pass recomputes the probabilities.

use super::elementwise::exp2;
use super::matmul::{Matrix, Write};
use super::outer::transposed_product;
use super::panels::{Finish, Panels, product};
use super::slices::{LANES, dot, maximum, sum_of_lanes, tensor, values, with_values};
use super::vectorized;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// out (N, T, D) of `qkv` (N, T, 3 D), whose last axis is (query | key | value), each cut into `heads`.
pub fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    qkv.contiguous()?.apply_op1(Attention { heads })
}

struct Attention {
    heads: usize,
}

/// Sizes of one image's attention.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    hidden: usize,
    head: usize,
}

/// What the attention of one image keeps between its stages.
#[derive(Clone, Debug, Default)]
pub struct AttentionWorkspace {
    /// One head's keys, transposed, and its values.
    keys: Panels,
    values: Panels,
    /// (T, T)
    probabilities: Vec<f32>,
    /// (T, T), in the backward pass.
    gradients: Vec<f32>,
}

/// out (T, D) of one image's `qkv` (T, 3 D).
pub fn attend(out: &mut [f32], qkv: &[f32], hidden: usize, heads: usize, workspace: &mut AttentionWorkspace) {
    let tokens = out.len() / hidden;
    let sizes = Sizes { tokens, hidden, head: hidden / heads };
    workspace.probabilities.resize(tokens * tokens, 0.0);
    for head in 0..heads {
        sizes.probabilities(qkv, head, &mut workspace.keys, &mut workspace.probabilities);
        workspace.values.pack(sizes.part(qkv, 2, head));
        let probabilities = Matrix::rows_of(&workspace.probabilities, tokens, tokens, tokens);
        product(&mut out[head * sizes.head..], hidden, probabilities, &workspace.values, Finish::Replace);
    }
}

impl Attention {
    fn sizes(&self, dims: (usize, usize, usize)) -> Result<Sizes> {
        let (_, tokens, packed) = dims;
        let hidden = packed / 3;
        if packed % 3 != 0 || hidden % self.heads != 0 {
            bail!("attention of {} heads over a packed axis of {packed}", self.heads);
        }
        Ok(Sizes { tokens, hidden, head: hidden / self.heads })
    }
}

impl Sizes {
    fn scale(self) -> f32 {
        1.0 / (self.head as f32).sqrt()
    }

    /// (T, head) part of one image's packed rows: `part` is 0 query, 1 key, 2 value.
    fn part(self, qkv: &[f32], part: usize, head: usize) -> Matrix<'_> {
        Matrix::rows_of(&qkv[part * self.hidden + head * self.head..], self.tokens, self.head, 3 * self.hidden)
    }

    /// softmax(q k' / sqrt(head)), (T, T).
    fn probabilities(self, qkv: &[f32], head: usize, keys: &mut Panels, into: &mut [f32]) {
        keys.pack(self.part(qkv, 1, head).transposed());
        product(into, self.tokens, self.part(qkv, 0, head), keys, Finish::Replace);
        let scale = self.scale();
        vectorized(
            #[inline(always)]
            || {
                for row in into.chunks_exact_mut(self.tokens) {
                    softmax(row, scale);
                }
            },
        );
    }

    /// Puts the gradient of the scores, (T, T), in the place of that of the probabilities.
    fn score_gradients(self, gradients: &mut [f32], probabilities: &[f32], y: &[f32], g: &[f32], head: usize) {
        let scale = self.scale();
        vectorized(
            #[inline(always)]
            || {
                for (token, (ds, p)) in gradients.chunks_exact_mut(self.tokens).zip(probabilities.chunks_exact(self.tokens)).enumerate() {
                    let own = token * self.hidden + head * self.head..token * self.hidden + (head + 1) * self.head;
                    let mean = dot(&g[own.clone()], &y[own]);
                    for (ds, &p) in ds.iter_mut().zip(p) {
                        *ds = (*ds - mean) * p * scale;
                    }
                }
            },
        );
    }
}

/// Puts softmax(scale row) in the place of `row`.
#[inline(always)]
fn softmax(row: &mut [f32], scale: f32) {
    // To the base of two, one multiplication and addition makes an exponent.
    let scale = scale * std::f32::consts::LOG2_E;
    let offset = -scale * maximum(row);
    let power = |value: f32| exp2(value.mul_add(scale, offset));
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = power(chunk[i]);
            lanes[i] += chunk[i];
        }
    }
    let mut sum = sum_of_lanes(lanes);
    for value in rest {
        *value = power(*value);
        sum += *value;
    }
    let reciprocal = 1.0 / sum;
    for value in row {
        *value *= reciprocal;
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dims = layout.shape().dims3()?;
        let Sizes { tokens: t, hidden: d, .. } = self.sizes(dims)?;
        let qkv = values(storage, layout)?;
        let mut y = vec![0f32; dims.0 * t * d];
        let images = y.par_chunks_mut(t * d).zip(qkv.par_chunks(3 * t * d));
        images.for_each_init(AttentionWorkspace::default, |workspace, (y, qkv)| attend(y, qkv, d, self.heads, workspace));
        Ok((CpuStorage::F32(y), Shape::from((dims.0, t, d))))
    }

    fn bwd(&self, qkv: &Tensor, y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let Sizes { tokens: t, hidden: d, .. } = self.sizes(qkv.dims3()?)?;
        let mut dqkv = vec![0f32; qkv.elem_count()];
        with_values(qkv, |qkv| {
            with_values(y, |y| {
                with_values(gradient, |g| {
                    let inputs = qkv.par_chunks(3 * t * d).zip(y.par_chunks(t * d)).zip(g.par_chunks(t * d));
                    dqkv.par_chunks_mut(3 * t * d)
                        .zip(inputs)
                        .for_each_init(AttentionWorkspace::default, |workspace, (dqkv, ((qkv, y), g))| {
                            attend_backward(dqkv, qkv, y, g, d, self.heads, workspace)
                        });
                    Ok(())
                })
            })
        })?;
        Ok(Some(tensor(dqkv, qkv.shape())))
    }
}

/// dqkv (T, 3 D) of one image, for the gradient `g` (T, D) of [`attend`]'s `y`.
///
/// For each head, with P the probabilities and s the scale: dV = P' g; dP = g V'; dS = P (dP - rowsum(g y)) s; dQ = dS K; dK = dS' Q.
pub fn attend_backward(
    dqkv: &mut [f32],
    qkv: &[f32],
    y: &[f32],
    g: &[f32],
    hidden: usize,
    heads: usize,
    workspace: &mut AttentionWorkspace,
) {
    let tokens = y.len() / hidden;
    let sizes = Sizes { tokens, hidden, head: hidden / heads };
    workspace.probabilities.resize(tokens * tokens, 0.0);
    workspace.gradients.resize(tokens * tokens, 0.0);
    let AttentionWorkspace { keys, values, probabilities, gradients } = workspace;
    for head in 0..heads {
        let (query, key, value) = (sizes.part(qkv, 0, head), sizes.part(qkv, 1, head), sizes.part(qkv, 2, head));
        let start = |part: usize| part * hidden + head * sizes.head;
        sizes.probabilities(qkv, head, keys, probabilities);
        let p = Matrix::rows_of(probabilities, tokens, tokens, tokens);
        let of_head = Matrix::rows_of(&g[start(0)..], tokens, sizes.head, hidden);
        transposed_product(&mut dqkv[start(2)..], 3 * hidden, p, of_head, Write::Replace);
        values.pack(value.transposed());
        product(gradients, tokens, of_head, values, Finish::Replace);
        sizes.score_gradients(gradients, probabilities, y, g, head);
        let ds = Matrix::rows_of(gradients, tokens, tokens, tokens);
        values.pack(key);
        product(&mut dqkv[start(0)..], 3 * hidden, ds, values, Finish::Replace);
        transposed_product(&mut dqkv[start(1)..], 3 * hidden, ds, query, Write::Replace);
    }
}
