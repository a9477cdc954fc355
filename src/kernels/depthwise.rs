//! Depthwise convolution over the grid of tokens: each token hears its eight neighbours, channel by channel.

use super::elementwise::fold_rows;
use super::slices::{tensor, values, with_values};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Positions of the window.
pub const NEIGHBOURS: usize = 9;

/// y (N, T, C) = x + sum over the 3 x 3 neighbours j of weight_j x_j; `weight` (9, C), the tokens a grid (rows, columns)
/// that is continued with zeros (the feed-forward part of CeiT, arXiv 2103.11816).
pub fn neighbour_mix(x: &Tensor, weight: &Tensor, grid: (usize, usize)) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&weight.contiguous()?, NeighbourMix { grid })
}

struct NeighbourMix {
    /// rows, columns
    grid: (usize, usize),
}

impl NeighbourMix {
    /// Calls `visit(token, neighbour, position)` for each pair within the grid, `position` of 0..9.
    #[inline]
    fn pairs(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let (rows, columns) = self.grid;
        for row in 0..rows {
            for column in 0..columns {
                for position in 0..NEIGHBOURS {
                    let (y, x) = (row + position / 3, column + position % 3);
                    if (1..=rows).contains(&y) && (1..=columns).contains(&x) {
                        visit(row * columns + column, (y - 1) * columns + x - 1, position);
                    }
                }
            }
        }
    }
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
        let mut y = x.to_vec();
        y.par_chunks_mut(t * c).zip(x.par_chunks(t * c)).for_each(|(y, x)| {
            self.pairs(|token, neighbour, position| {
                let (x, weight) = (&x[neighbour * c..][..c], &weight[position * c..][..c]);
                for ((y, &x), &weight) in y[token * c..][..c].iter_mut().zip(x).zip(weight) {
                    *y = weight.mul_add(x, *y);
                }
            });
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n, t, c) = x.dims3()?;
        let is_trainable = weight.track_op();
        let mut dx = with_values(gradient, |g| Ok(g.to_vec()))?;
        let mut dweight = vec![0f32; n * NEIGHBOURS * c];
        with_values(x, |x| {
            with_values(weight, |weight| {
                with_values(gradient, |g| {
                    let outputs = dx.par_chunks_mut(t * c).zip(dweight.par_chunks_mut(NEIGHBOURS * c));
                    outputs.zip(x.par_chunks(t * c).zip(g.par_chunks(t * c))).for_each(|((dx, dweight), (x, g))| {
                        self.pairs(|token, neighbour, position| {
                            let g = &g[token * c..][..c];
                            let (x, dx) = (&x[neighbour * c..][..c], &mut dx[neighbour * c..][..c]);
                            let weight = &weight[position * c..][..c];
                            for ((dx, &g), &weight) in dx.iter_mut().zip(g).zip(weight) {
                                *dx = g.mul_add(weight, *dx);
                            }
                            if is_trainable {
                                for ((dweight, &g), &x) in dweight[position * c..][..c].iter_mut().zip(g).zip(x) {
                                    *dweight = g.mul_add(x, *dweight);
                                }
                            }
                        });
                    });
                    Ok(())
                })
            })
        })?;
        let dweight = is_trainable.then(|| tensor(fold_rows(dweight, NEIGHBOURS * c), weight.shape()));
        Ok((Some(tensor(dx, x.shape())), dweight))
    }
}
