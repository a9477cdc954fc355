//! Scaled dot-product attention over a packed query, key and value; the backward pass recomputes the probabilities.

use super::elementwise::exp;
use super::matmul::{Matrix, Write, matmul};
use super::panels::{Finish, Panels, product};
use super::slices::{dot, maximum, sum, tensor, values, with_values};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use pulp::Arch;
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
        Arch::new().dispatch(
            #[inline(always)]
            || into.chunks_exact_mut(self.tokens).for_each(|row| softmax(row, scale)),
        );
    }
}

/// Puts softmax(scale row) in the place of `row`.
#[inline(always)]
fn softmax(row: &mut [f32], scale: f32) {
    let maximum = maximum(row);
    for value in row.iter_mut() {
        *value = exp((*value - maximum) * scale);
    }
    let reciprocal = 1.0 / sum(row, |value| value);
    for value in row.iter_mut() {
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
        let sizes = self.sizes(qkv.dims3()?)?;
        let (t, d) = (sizes.tokens, sizes.hidden);
        let mut dqkv = vec![0f32; qkv.elem_count()];
        with_values(qkv, |qkv| {
            with_values(y, |y| {
                with_values(gradient, |g| {
                    let inputs = qkv.par_chunks(3 * t * d).zip(y.par_chunks(t * d)).zip(g.par_chunks(t * d));
                    dqkv.par_chunks_mut(3 * t * d).zip(inputs).for_each_init(
                        || (Panels::default(), vec![0f32; t * t], vec![0f32; t * t]),
                        |(keys, p, ds), (dqkv, ((qkv, y), g))| {
                            for head in 0..self.heads {
                                sizes.probabilities(qkv, head, keys, p);
                                backward_head(sizes, head, (qkv, y, g), (p, ds), dqkv);
                            }
                        },
                    );
                    Ok(())
                })
            })
        })?;
        Ok(Some(tensor(dqkv, qkv.shape())))
    }
}

/// One head of one image. With P the probabilities and s the scale: dV = P' g; dP = g V'; dS = P (dP - rowsum(g y)) s;
/// dQ = dS K; dK = dS' Q.
fn backward_head(sizes: Sizes, head: usize, (qkv, y, g): (&[f32], &[f32], &[f32]), (p, ds): (&[f32], &mut [f32]), dqkv: &mut [f32]) {
    let Sizes { tokens: t, hidden: d, head: width } = sizes;
    let scale = sizes.scale();
    let start = |part: usize| part * d + head * width;
    let gradient = Matrix::rows_of(&g[head * width..], t, width, d);
    matmul(&mut dqkv[start(2)..], 3 * d, Matrix::rows_of(p, t, t, t).transposed(), gradient, Write::Replace);
    matmul(ds, t, gradient, sizes.part(qkv, 2, head).transposed(), Write::Replace);
    for (token, (ds, p)) in ds.chunks_exact_mut(t).zip(p.chunks_exact(t)).enumerate() {
        let own = token * d + head * width..token * d + (head + 1) * width;
        let mean = dot(&g[own.clone()], &y[own]);
        for (ds, &p) in ds.iter_mut().zip(p) {
            *ds = (*ds - mean) * p * scale;
        }
    }
    let ds = Matrix::rows_of(ds, t, t, t);
    matmul(&mut dqkv[start(0)..], 3 * d, ds, sizes.part(qkv, 1, head), Write::Replace);
    matmul(&mut dqkv[start(1)..], 3 * d, ds.transposed(), sizes.part(qkv, 0, head), Write::Replace);
}
