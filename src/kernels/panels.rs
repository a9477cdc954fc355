//! Matrix products whose right side is packed beforehand: weights once, the keys and values of a head as they come.
//!
//! Made for a left side of few rows, the tokens of one image, where the `gemm` crate spends a quarter of its time on packing
//! and nothing can be done to values before they are stored.
//! Invariant: a value is one chain of fused multiply-adds over the inner dimension, from zero; its bits depend neither on
//! the width of the processor's vectors nor on the rows and columns beside it.

use super::matmul::Matrix;
use super::right_of_way::rest_while_taken;
use super::vectorized::{load, store};
use pulp::{Arch, Simd, WithSimd};

/// Columns of a panel: two of the widest vectors.
const WIDTH: usize = 32;

/// The right side of a product, (R, C), cut into panels of columns.
#[derive(Clone, Debug, Default)]
pub struct Panels {
    /// (panels, R, WIDTH); what lies beyond column C is not used.
    values: Vec<f32>,
    rows: usize,
    columns: usize,
}

/// What becomes of the values of a product; `bias` and `gate` have one value for each column.
#[derive(Clone, Copy)]
pub enum Finish<'a> {
    /// y = product
    Replace,
    /// y = product + bias
    Bias(&'a [f32]),
    /// y = y + product + bias
    Residual(&'a [f32]),
    /// y = y + gate (product + bias)
    GatedResidual { bias: &'a [f32], gate: &'a [f32] },
}

impl Panels {
    /// Packs `matrix`; memory is allocated only where it is larger than any before.
    pub fn pack(&mut self, matrix: Matrix) {
        matrix.assert_in_bounds();
        (self.rows, self.columns) = (matrix.rows, matrix.columns);
        self.values.resize(matrix.rows * matrix.columns.next_multiple_of(WIDTH), 0.0);
        for (panel, values) in self.values.chunks_exact_mut(matrix.rows * WIDTH).enumerate() {
            let start = panel * WIDTH;
            let columns = WIDTH.min(matrix.columns - start);
            for (row, values) in values.chunks_exact_mut(WIDTH).enumerate() {
                let from = &matrix.values[row * matrix.row_stride + start * matrix.column_stride..];
                match matrix.column_stride {
                    1 => values[..columns].copy_from_slice(&from[..columns]),
                    stride => values[..columns].iter_mut().zip(from.iter().step_by(stride)).for_each(|(value, from)| *value = *from),
                }
            }
        }
    }
}

/// `y` (row-major, `row_stride`) gets `left` x `right`, on the calling thread, as `finish` says.
///
/// # Panics
/// When shapes do not match or a view leaves its slice: a bug of the caller.
pub fn product(y: &mut [f32], row_stride: usize, left: Matrix, right: &Panels, finish: Finish) {
    assert_eq!(left.columns, right.rows, "inner dimensions of a product");
    assert_eq!(left.column_stride, 1, "rows of the left side lie together");
    left.assert_in_bounds();
    rest_while_taken();
    Arch::new().dispatch(Product { y, row_stride, left, right, finish });
}

struct Product<'a> {
    y: &'a mut [f32],
    row_stride: usize,
    left: Matrix<'a>,
    right: &'a Panels,
    finish: Finish<'a>,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (rows, right) = (self.left.rows, self.right);
        for (panel, values) in right.values.chunks_exact(right.rows * WIDTH).enumerate() {
            let columns = WIDTH.min(right.columns - panel * WIDTH);
            for first in (0..columns).step_by(2 * S::F32_LANES) {
                let (column, values) = (panel * WIDTH + first, &values[first..]);
                let mut row = 0;
                while row < rows {
                    // As many rows as have their sums in registers, of which there are 32 if vectors are wide, else 16.
                    row += match rows - row {
                        8.. if S::F32_LANES == 16 => self.tile::<S, 8>(simd, row, column, values),
                        6.. => self.tile::<S, 6>(simd, row, column, values),
                        4.. => self.tile::<S, 4>(simd, row, column, values),
                        _ => self.tile::<S, 1>(simd, row, column, values),
                    };
                }
            }
        }
    }
}

impl Product<'_> {
    /// Two vectors of each of `ROWS` rows, from (row, column) on; `panel` starts at the column. Gives the number of rows.
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize>(&mut self, simd: S, row: usize, column: usize, panel: &[f32]) -> usize {
        let depth = self.left.columns;
        let left: [&[f32]; ROWS] = std::array::from_fn(|i| &self.left.values[(row + i) * self.left.row_stride..][..depth]);
        let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
        for (k, right) in (0..depth).zip(panel.chunks(WIDTH)) {
            let (right, _) = S::as_simd_f32s(right);
            let right = [right[0], right[1]];
            for (sums, left) in sums.iter_mut().zip(left) {
                let left = simd.splat_f32s(left[k]);
                sums[0] = simd.mul_add_f32s(left, right[0], sums[0]);
                sums[1] = simd.mul_add_f32s(left, right[1], sums[1]);
            }
        }
        let of_columns = |row: &[f32]| load_pair(simd, &row[column..self.right.columns]);
        let (bias, gate) = match self.finish {
            Finish::Replace => ([simd.splat_f32s(0.0); 2], [simd.splat_f32s(1.0); 2]),
            Finish::Bias(bias) | Finish::Residual(bias) => (of_columns(bias), [simd.splat_f32s(1.0); 2]),
            Finish::GatedResidual { bias, gate } => (of_columns(bias), of_columns(gate)),
        };
        for (i, sums) in sums.into_iter().enumerate() {
            let y = &mut self.y[(row + i) * self.row_stride + column..][..self.right.columns - column];
            let value = |before: [S::f32s; 2], j: usize| match self.finish {
                Finish::Replace => sums[j],
                Finish::Bias(_) => simd.add_f32s(sums[j], bias[j]),
                Finish::Residual(_) => simd.add_f32s(before[j], simd.add_f32s(sums[j], bias[j])),
                Finish::GatedResidual { .. } => simd.mul_add_f32s(gate[j], simd.add_f32s(sums[j], bias[j]), before[j]),
            };
            let before = match self.finish {
                Finish::Replace | Finish::Bias(_) => sums,
                Finish::Residual(_) | Finish::GatedResidual { .. } => load_pair(simd, y),
            };
            store_pair(simd, y, [value(before, 0), value(before, 1)]);
        }
        ROWS
    }
}

/// The first two vectors of `values`, which may be shorter: zeros follow.
#[inline(always)]
pub fn load_pair<S: Simd>(simd: S, values: &[f32]) -> [S::f32s; 2] {
    let (first, second) = values.split_at(values.len().min(S::F32_LANES));
    [load(simd, first), load(simd, second)]
}

/// Writes the two vectors to the start of `values`, as far as it goes.
#[inline(always)]
pub fn store_pair<S: Simd>(simd: S, values: &mut [f32], pair: [S::f32s; 2]) {
    let (first, second) = values.split_at_mut(values.len().min(S::F32_LANES));
    store(simd, first, pair[0]);
    store(simd, second, pair[1]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small whole numbers, whose products and sums are exact.
    fn whole_numbers(count: usize, from: usize) -> Vec<f32> {
        (0..count).map(|i| f32::from(u8::try_from((i + from) * 7 % 11).expect("below 11"))).collect()
    }

    #[test]
    fn a_product_of_any_shape_is_the_sum_over_the_inner_dimension() {
        for (rows, depth, columns) in [(1, 1, 1), (3, 5, 33), (8, 4, 32), (19, 7, 70), (64, 3, 16)] {
            let (x, w) = (whole_numbers(rows * depth, 1), whole_numbers(depth * columns, 2));
            let (bias, gate, start) = (whole_numbers(columns, 3), whole_numbers(columns, 4), whole_numbers(rows * columns, 5));
            let mut panels = Panels::default();
            panels.pack(Matrix::rows_of(&w, depth, columns, columns));
            let sum = |i: usize| (0..depth).map(|k| x[i / columns * depth + k] * w[k * columns + i % columns]).sum::<f32>();
            let cases: [(Finish, &dyn Fn(usize) -> f32); 4] = [
                (Finish::Replace, &sum),
                (Finish::Bias(&bias), &|i| sum(i) + bias[i % columns]),
                (Finish::Residual(&bias), &|i| start[i] + sum(i) + bias[i % columns]),
                (Finish::GatedResidual { bias: &bias, gate: &gate }, &|i| start[i] + gate[i % columns] * (sum(i) + bias[i % columns])),
            ];
            for (finish, expected) in cases {
                let mut y = start.clone();
                product(&mut y, columns, Matrix::rows_of(&x, rows, depth, depth), &panels, finish);
                assert_eq!(y, (0..rows * columns).map(expected).collect::<Vec<_>>(), "{rows} x {depth} x {columns}");
            }
        }
    }

    #[test]
    fn a_transposed_matrix_packs_as_its_copy_does() {
        let w = whole_numbers(5 * 37, 1);
        let copy: Vec<f32> = (0..5 * 37).map(|i| w[i % 37 * 5 + i / 37]).collect();
        let (mut panels, mut expected) = (Panels::default(), Panels::default());
        panels.pack(Matrix::rows_of(&w, 37, 5, 5).transposed());
        expected.pack(Matrix::rows_of(&copy, 5, 37, 37));
        assert_eq!(panels.values, expected.values);
    }
}
