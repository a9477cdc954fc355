//! Depthwise convolution over the grid of tokens: each token hears its eight neighbours, channel by channel.

use super::elementwise::{fold_rows, gelu_value};
use super::slices::{tensor, values, with_values};
use super::vectorized::{load, store, vectorized};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Positions of the window.
pub const NEIGHBOURS: usize = 9;

/// y (N, T, C) = x + sum over the 3 x 3 neighbours j of weight_j x_j; `weight` (9, C), the tokens a grid (rows, columns)
/// that is continued with zeros (the feed-forward part of CeiT, arXiv 2103.11816).
pub fn neighbour_mix(x: &Tensor, weight: &Tensor, grid: (usize, usize)) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&weight.contiguous()?, NeighbourMix { grid })
}

/// y (T, C) = gelu of the [`neighbour_mix`] of one image's x (T, C).
pub fn mixed_gelu(y: &mut [f32], x: &[f32], weight: &[f32], grid: (usize, usize)) {
    Arch::new().dispatch(Sweep::<false, true> { y, x, weight, grid });
}

/// y (T, C), the [`neighbour_mix`] of one image's x (T, C).
pub fn mix(y: &mut [f32], x: &[f32], weight: &[f32], grid: (usize, usize)) {
    Arch::new().dispatch(Sweep::<false, false> { y, x, weight, grid });
}

/// Writes dx (T, C) of one image's [`mix`] for the gradient `g` (T, C), and adds to `dweight` (9, C), if that is asked for.
pub fn mix_backward(dx: &mut [f32], dweight: Option<&mut [f32]>, x: &[f32], g: &[f32], weight: &[f32], grid: (usize, usize)) {
    // A token is heard by those that it hears, each in the place opposite.
    Arch::new().dispatch(Sweep::<true, false> { y: dx, x: g, weight, grid });
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

/// y (T, C), the mix of x (T, C), or its gelu; the window is turned about its centre where it `IS_TURNED`.
struct Sweep<'a, const IS_TURNED: bool, const HAS_GELU: bool> {
    y: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
    grid: (usize, usize),
}

impl<const IS_TURNED: bool, const HAS_GELU: bool> WithSimd for Sweep<'_, IS_TURNED, HAS_GELU> {
    type Output = ();

    /// A row of the grid at a time, so that it and its neighbours stay in the first cache, and of it a vector of channels at a time,
    /// so that their weights stay in registers. A row that is not there weighs nothing; the first and last column are done apart.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { y, x, weight, grid: (rows, columns) } = self;
        let c = weight.len() / NEIGHBOURS;
        assert_eq!((y.len(), x.len()), (rows * columns * c, y.len()), "values on a grid");
        let line = |row: usize| &x[row * columns * c..][..columns * c];
        for (row, y) in y.chunks_exact_mut(columns * c).enumerate() {
            let lines = [line(row.saturating_sub(1)), line(row), line((row + 1).min(rows - 1))];
            let is_there = [row > 0, true, row + 1 < rows];
            for channel in (0..c).step_by(S::F32_LANES) {
                let w = |position: usize| match is_there[position / 3] {
                    true if IS_TURNED => load(simd, &weight[(NEIGHBOURS - 1 - position) * c..][channel..c]),
                    true => load(simd, &weight[position * c..][channel..c]),
                    false => simd.splat_f32s(0.0),
                };
                let weights = [w(0), w(1), w(2), w(3), w(4), w(5), w(6), w(7), w(8)];
                let part = Part { simd, lines, weights, channels: c, channel };
                if columns == 1 {
                    part.mix::<1, 2>(y, 0);
                    continue;
                }
                part.mix::<1, 3>(y, 0);
                for column in 1..columns - 1 {
                    part.mix::<0, 3>(y, column);
                }
                part.mix::<0, 2>(y, columns - 1);
            }
            if HAS_GELU {
                for y in y {
                    *y = gelu_value(*y);
                }
            }
        }
    }
}

/// A vector of channels of a row and its neighbours.
struct Part<'a, S: Simd> {
    simd: S,
    /// (columns, C) above, at, and below the row.
    lines: [&'a [f32]; 3],
    weights: [S::f32s; NEIGHBOURS],
    channels: usize,
    channel: usize,
}

impl<S: Simd> Part<'_, S> {
    /// Writes the mix at `column` to the row `y`; of the window, columns `FROM`..`TO` lie on the grid.
    #[inline(always)]
    fn mix<const FROM: usize, const TO: usize>(&self, y: &mut [f32], column: usize) {
        let token = |column: usize| column * self.channels + self.channel..(column + 1) * self.channels;
        let mut sum = load(self.simd, &self.lines[1][token(column)]);
        for line in 0..3 {
            for position in FROM..TO {
                let x = load(self.simd, &self.lines[line][token(column + position - 1)]);
                sum = self.simd.mul_add_f32s(self.weights[3 * line + position], x, sum);
            }
        }
        store(self.simd, &mut y[token(column)], sum);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_any_grid_hears_itself_and_its_neighbours() {
        // Goal: the same sums at all borders and for channels that fill no vector. Method: whole numbers, whose sums are exact.
        for (grid, c) in [((1, 1), 1), ((1, 4), 3), ((5, 1), 16), ((2, 2), 37), ((3, 5), 40)] {
            let whole = |count: usize, from: usize| (0..count).map(|i| ((i + from) * 7 % 11) as f32 - 5.0).collect::<Vec<_>>();
            let (x, weight) = (whole(grid.0 * grid.1 * c, 1), whole(NEIGHBOURS * c, 4));
            let sums = |is_turned: bool| -> Vec<f32> {
                let heard = |channel: usize, position: usize, neighbour: Option<usize>| {
                    let position = if is_turned { NEIGHBOURS - 1 - position } else { position };
                    neighbour.map_or(0.0, |neighbour: usize| weight[position * c + channel] * x[neighbour * c + channel])
                };
                let sum = |i: usize| {
                    let near = neighbours(i / c, grid).into_iter().enumerate();
                    x[i] + near.map(|(position, neighbour)| heard(i % c, position, neighbour)).sum::<f32>()
                };
                (0..x.len()).map(sum).collect()
            };
            let (mut y, mut dx) = (vec![0f32; x.len()], vec![0f32; x.len()]);
            mix(&mut y, &x, &weight, grid);
            mix_backward(&mut dx, None, &x, &x, &weight, grid);
            assert_eq!(y, sums(false), "{grid:?} of {c}");
            assert_eq!(dx, sums(true), "{grid:?} of {c}, backward");
            mixed_gelu(&mut y, &x, &weight, grid);
            assert_eq!(y, sums(false).into_iter().map(gelu_value).collect::<Vec<_>>(), "{grid:?} of {c}, GELU");
        }
    }
}
