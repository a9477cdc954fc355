//! Windows of a grid of tokens: with a linear layer behind it, a convolution.

use super::depthwise::NEIGHBOURS;
use super::slices::{add_into, tensor, values, with_values};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// (N, T, C) -> (N, T', 9 C): the 3 x 3 windows of a grid (rows, columns) around every `stride`-th token, row by row,
/// continued with zeros. T' is that of the grid [`strided`].
pub fn unfold(x: &Tensor, grid: (usize, usize), stride: usize) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Unfold { grid, stride })
}

/// The grid of every `stride`-th row and column.
pub fn strided((rows, columns): (usize, usize), stride: usize) -> (usize, usize) {
    (rows.div_ceil(stride), columns.div_ceil(stride))
}

struct Unfold {
    /// rows, columns
    grid: (usize, usize),
    stride: usize,
}

impl Unfold {
    fn windows(&self) -> usize {
        let (rows, columns) = strided(self.grid, self.stride);
        rows * columns
    }

    /// Calls `visit(slot, token)` for each place of a window that lies on the grid: place `slot` of 9 T' shows `token`.
    fn pairs(&self, mut visit: impl FnMut(usize, usize)) {
        let (rows, columns) = self.grid;
        let (out_rows, out_columns) = strided(self.grid, self.stride);
        for window in 0..out_rows * out_columns {
            for place in 0..NEIGHBOURS {
                let y = window / out_columns * self.stride + place / 3;
                let x = window % out_columns * self.stride + place % 3;
                if (1..=rows).contains(&y) && (1..=columns).contains(&x) {
                    visit(window * NEIGHBOURS + place, (y - 1) * columns + x - 1);
                }
            }
        }
    }
}

impl CustomOp1 for Unfold {
    fn name(&self) -> &'static str {
        "unfold"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, t, c) = layout.shape().dims3()?;
        if t != self.grid.0 * self.grid.1 {
            bail!("a grid {:?} for {t} tokens", self.grid);
        }
        let x = values(x, layout)?;
        let mut y = vec![0f32; n * self.windows() * NEIGHBOURS * c];
        y.par_chunks_mut(self.windows() * NEIGHBOURS * c).zip(x.par_chunks(t * c)).for_each(|(y, x)| {
            self.pairs(|slot, token| y[slot * c..][..c].copy_from_slice(&x[token * c..][..c]));
        });
        Ok((CpuStorage::F32(y), Shape::from((n, self.windows(), NEIGHBOURS * c))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (n, t, c) = x.dims3()?;
        let mut dx = vec![0f32; n * t * c];
        with_values(gradient, |g| {
            dx.par_chunks_mut(t * c).zip(g.par_chunks(self.windows() * NEIGHBOURS * c)).for_each(|(dx, g)| {
                self.pairs(|slot, token| add_into(&mut dx[token * c..][..c], &g[slot * c..][..c]));
            });
            Ok(())
        })?;
        Ok(Some(tensor(dx, x.shape())))
    }
}
