//! Matrix products by the `gemm` crate, behind views that check their bounds.

use super::right_of_way::rest_while_taken;
use gemm::Parallelism;

/// A matrix in a slice: element (r, c) is at `r * row_stride + c * column_stride`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub values: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major with `row_stride` values from one row to the next.
    pub const fn rows_of(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    pub fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    pub fn assert_in_bounds(&self) {
        assert!(self.rows > 0 && self.columns > 0, "an empty matrix");
        let last = (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride;
        assert!(last < self.values.len(), "matrix reaches {last}, slice has {}", self.values.len());
    }
}

/// What a product does with what the destination held.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Replace,
    Add,
}

/// `into` (row-major, `row_stride`) = or += `left` x `right`, on the calling thread.
///
/// # Panics
/// When shapes do not match or a view leaves its slice: a bug of the caller.
pub fn matmul(into: &mut [f32], row_stride: usize, left: Matrix, right: Matrix, write: Write) {
    assert_eq!(left.columns, right.rows, "inner dimensions of a product");
    left.assert_in_bounds();
    right.assert_in_bounds();
    assert!(row_stride >= right.columns, "rows of the destination overlap");
    assert!((left.rows - 1) * row_stride + right.columns <= into.len(), "destination is too short");
    rest_while_taken();
    let beta = 1.0f32;
    let alpha = if write == Write::Add { 1.0f32 } else { 0.0 };
    // SAFETY: the assertions above show that every element which gemm reads or writes lies in its slice; `into` is borrowed
    // mutably, so it overlaps neither operand. Strides are far below isize::MAX, as slices are.
    unsafe {
        gemm::gemm(
            left.rows,
            right.columns,
            left.columns,
            into.as_mut_ptr(),
            1,
            row_stride as isize,
            write == Write::Add,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            alpha,
            beta,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
