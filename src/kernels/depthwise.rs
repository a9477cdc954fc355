//! Depthwise convolution over the grid of tokens: each token hears its eight neighbours, channel by channel.

use super::elementwise::{fold_rows, gelu_value};
use super::slices::{tensor, values, with_values};
use super::vectorized;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Positions of the window.
pub const NEIGHBOURS: usize = 9;

/// Channels that are computed side by side: two of the widest vectors.
const CHANNELS: usize = 32;

/// y (N, T, C) = x + sum over the 3 x 3 neighbours j of weight_j x_j; `weight` (9, C), the tokens a grid (rows, columns)
/// that is continued with zeros (the feed-forward part of CeiT, arXiv 2103.11816).
pub fn neighbour_mix(x: &Tensor, weight: &Tensor, grid: (usize, usize)) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&weight.contiguous()?, NeighbourMix { grid })
}

/// y (T, C) = gelu of the [`neighbour_mix`] of one image's x (T, C).
pub fn mixed_gelu(y: &mut [f32], x: &[f32], weight: &[f32], grid: (usize, usize)) {
    let y_of = |sums: &mut [f32]| sums.iter_mut().for_each(|sum| *sum = gelu_value(*sum));
    sweep::<false>(y, x, weight, grid, y_of);
}

/// y (T, C), the [`neighbour_mix`] of one image's x (T, C).
pub fn mix(y: &mut [f32], x: &[f32], weight: &[f32], grid: (usize, usize)) {
    sweep::<false>(y, x, weight, grid, |_| ());
}

/// Writes dx (T, C) of one image's [`mix`] for the gradient `g` (T, C), and adds to `dweight` (9, C), if that is asked for.
pub fn mix_backward(dx: &mut [f32], dweight: Option<&mut [f32]>, x: &[f32], g: &[f32], weight: &[f32], grid: (usize, usize)) {
    // A token is heard by those that it hears, each in the place opposite.
    sweep::<true>(dx, g, weight, grid, |_| ());
    let Some(dweight) = dweight else { return };
    let c = weight.len() / NEIGHBOURS;
    assert_eq!((dweight.len(), x.len()), (weight.len(), g.len()), "values on a grid");
    vectorized(
        #[inline(always)]
        || {
            for (token, g) in g.chunks_exact(c).enumerate() {
                for (dweight, neighbour) in dweight.chunks_exact_mut(c).zip(neighbours(token, grid)) {
                    let Some(neighbour) = neighbour else { continue };
                    for ((dweight, &g), &x) in dweight.iter_mut().zip(g).zip(&x[neighbour * c..]) {
                        *dweight = g.mul_add(x, *dweight);
                    }
                }
            }
        },
    );
}

/// y (T, C) = `finish` of the mix of x (T, C); the window is turned about its centre where it `IS_TURNED`.
fn sweep<const IS_TURNED: bool>(y: &mut [f32], x: &[f32], weight: &[f32], grid: (usize, usize), finish: impl Fn(&mut [f32])) {
    let c = weight.len() / NEIGHBOURS;
    assert_eq!((y.len(), x.len()), (grid.0 * grid.1 * c, y.len()), "values on a grid");
    vectorized(
        #[inline(always)]
        || {
            for (token, y) in y.chunks_exact_mut(c).enumerate() {
                let near = neighbours(token, grid);
                let (chunks, rest) = y.as_chunks_mut::<CHANNELS>();
                let last = chunks.len() * CHANNELS;
                for (i, chunk) in chunks.iter_mut().enumerate() {
                    *chunk = mix_of::<_, IS_TURNED>(x, weight, (token, i * CHANNELS, c), &near);
                    finish(chunk);
                }
                for (i, value) in rest.iter_mut().enumerate() {
                    [*value] = mix_of::<_, IS_TURNED>(x, weight, (token, last + i, c), &near);
                }
                finish(rest);
            }
        },
    );
}

/// `N` channels of a token, from `channel` of `c` on.
#[inline(always)]
fn mix_of<const N: usize, const IS_TURNED: bool>(
    x: &[f32],
    weight: &[f32],
    (token, channel, c): (usize, usize, usize),
    near: &[Option<usize>; NEIGHBOURS],
) -> [f32; N] {
    let mut sums: [f32; N] = *x[token * c + channel..].first_chunk().expect("channels of a token");
    for (position, neighbour) in near.iter().enumerate() {
        let position = if IS_TURNED { NEIGHBOURS - 1 - position } else { position };
        if let Some(neighbour) = *neighbour {
            let (x, weight) = (&x[neighbour * c + channel..][..N], &weight[position * c + channel..][..N]);
            for i in 0..N {
                sums[i] = weight[i].mul_add(x[i], sums[i]);
            }
        }
    }
    sums
}

/// The token at each position of the window around `token` that lies on the grid.
fn neighbours(token: usize, (rows, columns): (usize, usize)) -> [Option<usize>; NEIGHBOURS] {
    std::array::from_fn(|position| {
        let (y, x) = (token / columns + position / 3, token % columns + position % 3);
        ((1..=rows).contains(&y) && (1..=columns).contains(&x)).then(|| (y - 1) * columns + x - 1)
    })
}

struct NeighbourMix {
    /// rows, columns
    grid: (usize, usize),
}

impl CustomOp2 for NeighbourMix {
    fn name(&self) -> &'static str {
        "neighbour-mix"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, weight: &CpuStorage, weight_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, t, c) = x_layout.shape().dims3()?;
        let (x, weight) = (values(x, x_layout)?, values(weight, weight_layout)?);
        if t != self.grid.0 * self.grid.1 || weight.len() != NEIGHBOURS * c {
            bail!("{} weights on a grid {:?} for {t} tokens of {c}", weight.len(), self.grid);
        }
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(t * c).zip(x.par_chunks(t * c)).for_each(|(y, x)| mix(y, x, weight, self.grid));
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n, t, c) = x.dims3()?;
        let is_trainable = weight.track_op();
        let mut dx = vec![0f32; n * t * c];
        let mut dweight = vec![0f32; n * NEIGHBOURS * c];
        with_values(x, |x| {
            with_values(weight, |weight| {
                with_values(gradient, |g| {
                    let outputs = dx.par_chunks_mut(t * c).zip(dweight.par_chunks_mut(NEIGHBOURS * c));
                    outputs.zip(x.par_chunks(t * c).zip(g.par_chunks(t * c))).for_each(|((dx, dweight), (x, g))| {
                        mix_backward(dx, is_trainable.then_some(dweight), x, g, weight, self.grid);
                    });
                    Ok(())
                })
            })
        })?;
        let dweight = is_trainable.then(|| tensor(fold_rows(dweight, NEIGHBOURS * c), weight.shape()));
        Ok((Some(tensor(dx, x.shape())), dweight))
    }
}
