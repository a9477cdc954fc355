//! Matrix products whose left side is transposed and whose right side is not packed: sums over tokens, as gradients of weights are.

use super::matmul::{Matrix, Write};
use super::panels::{load_pair, store_pair};
use super::right_of_way::rest_while_taken;
use pulp::{Arch, Simd, WithSimd};

/// `y` (N, K; row-major, `row_stride`) = or += `left`' x `right` of `left` (M, N) and `right` (M, K), on the calling thread.
///
/// A value is one chain of fused multiply-adds over M, from zero or from what the destination held.
///
/// # Panics
/// When shapes do not match or a view leaves its slice: a bug of the caller.
pub fn transposed_product(y: &mut [f32], row_stride: usize, left: Matrix, right: Matrix, write: Write) {
    assert_eq!(left.rows, right.rows, "inner dimensions of a product");
    assert_eq!((left.column_stride, right.column_stride), (1, 1), "rows of both sides lie together");
    left.assert_in_bounds();
    right.assert_in_bounds();
    assert!(row_stride >= right.columns, "rows of the destination overlap");
    rest_while_taken();
    Arch::new().dispatch(TransposedProduct { y, row_stride, left, right, write });
}

struct TransposedProduct<'a> {
    y: &'a mut [f32],
    row_stride: usize,
    left: Matrix<'a>,
    right: Matrix<'a>,
    write: Write,
}

impl WithSimd for TransposedProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let rows = self.left.columns;
        for column in (0..self.right.columns).step_by(2 * S::F32_LANES) {
            let mut row = 0;
            while row < rows {
                // As many rows as have their sums in registers, of which there are 32 if vectors are wide, else 16.
                row += match rows - row {
                    8.. if S::F32_LANES == 16 => self.tile::<S, 8>(simd, row, column),
                    6.. => self.tile::<S, 6>(simd, row, column),
                    4.. => self.tile::<S, 4>(simd, row, column),
                    _ => self.tile::<S, 1>(simd, row, column),
                };
            }
        }
    }
}

impl TransposedProduct<'_> {
    /// Two vectors of each of `ROWS` rows, from (row, column) on. Gives the number of rows.
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize>(&mut self, simd: S, row: usize, column: usize) -> usize {
        let columns = self.right.columns - column;
        let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
        if self.write == Write::Add {
            for (i, sums) in sums.iter_mut().enumerate() {
                *sums = load_pair(simd, &self.y[(row + i) * self.row_stride + column..][..columns]);
            }
        }
        for m in 0..self.left.rows {
            let right = load_pair(simd, &self.right.values[m * self.right.row_stride + column..][..columns]);
            let left: &[f32; ROWS] = self.left.values[m * self.left.row_stride + row..].first_chunk().expect("rows of the tile");
            for (sums, &left) in sums.iter_mut().zip(left) {
                let left = simd.splat_f32s(left);
                sums[0] = simd.mul_add_f32s(left, right[0], sums[0]);
                sums[1] = simd.mul_add_f32s(left, right[1], sums[1]);
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            store_pair(simd, &mut self.y[(row + i) * self.row_stride + column..][..columns], sums);
        }
        ROWS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small whole numbers, whose products and sums are exact.
    fn whole_numbers(count: usize, from: usize) -> Vec<f32> {
        (0..count).map(|i| f32::from(u8::try_from((i + from) * 7 % 11).expect("below 11"))).collect()
    }

    #[test]
    fn a_product_of_any_shape_is_the_sum_over_the_rows_of_both() {
        for (m, n, k) in [(1, 1, 1), (5, 3, 33), (4, 8, 32), (7, 19, 70), (64, 96, 64), (3, 14, 17)] {
            // Rows that lie further apart than they are long.
            let (left, right) = (whole_numbers(m * (n + 2), 1), whole_numbers(m * (k + 1), 2));
            let (left, right) = (Matrix::rows_of(&left, m, n, n + 2), Matrix::rows_of(&right, m, k, k + 1));
            let sum = |i: usize, j: usize| (0..m).map(|t| left.values[t * (n + 2) + i] * right.values[t * (k + 1) + j]).sum::<f32>();
            for write in [Write::Replace, Write::Add] {
                let start = whole_numbers(n * (k + 3), 3);
                let mut y = start.clone();
                transposed_product(&mut y, k + 3, left, right, write);
                for (at, (&got, &before)) in y.iter().zip(&start).enumerate() {
                    let (i, j) = (at / (k + 3), at % (k + 3));
                    let expected = match (j < k, write) {
                        (false, _) => before,
                        (true, Write::Replace) => sum(i, j),
                        (true, Write::Add) => before + sum(i, j),
                    };
                    assert_eq!(got, expected, "{m} x {n} x {k} at ({i}, {j})");
                }
            }
        }
    }
}
