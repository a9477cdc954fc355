//! Linear layer y = x W' + b, with no gradient computed for frozen weights.

use super::matmul::{Matrix, Write, matmul};
use super::slices::{add_into, tensor, values, with_values};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Rows that one task takes: fixed, so that bits do not depend on the number of threads.
const TASK_ROWS: usize = 256;

/// y (.., N) = x (.., K) W' + b with `weight` (N, K) and `bias` (N).
///
/// Trainable weights get their gradients; frozen ones (no variable behind them) cost nothing in the backward pass.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    match weight.track_op() || bias.track_op() {
        true => x.apply_op3(weight, bias, TrainableLinear),
        false => x.apply_op1(FrozenLinear { weight: weight.clone(), bias: bias.clone() }),
    }
}

struct TrainableLinear;

struct FrozenLinear {
    weight: Tensor,
    bias: Tensor,
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let (outputs, inputs) = self.weight.dims2()?;
        let y = with_values(&self.weight, |weight| with_values(&self.bias, |bias| forward(x, weight, bias, inputs)))?;
        Ok((CpuStorage::F32(y), output_shape(layout, outputs, inputs)?))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (outputs, inputs) = self.weight.dims2()?;
        let dx = with_values(gradient, |g| with_values(&self.weight, |weight| Ok(input_gradient(g, weight, outputs, inputs))))?;
        Ok(Some(tensor(dx, x.shape())))
    }
}

impl CustomOp3 for TrainableLinear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (outputs, inputs) = weight_layout.shape().dims2()?;
        let y = forward(values(x, x_layout)?, values(weight, weight_layout)?, values(bias, bias_layout)?, inputs)?;
        Ok((CpuStorage::F32(y), output_shape(x_layout, outputs, inputs)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (outputs, inputs) = weight.dims2()?;
        with_values(gradient, |g| {
            let dw = with_values(x, |x| Ok(weight_gradient(g, x, outputs, inputs)))?;
            let dx = match x.track_op() {
                true => Some(tensor(with_values(weight, |weight| Ok(input_gradient(g, weight, outputs, inputs)))?, x.shape())),
                false => None,
            };
            Ok((dx, Some(tensor(dw, weight.shape())), Some(tensor(column_sums(g, outputs), bias.shape()))))
        })
    }
}

fn output_shape(x: &Layout, outputs: usize, inputs: usize) -> Result<Shape> {
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == inputs => *last = outputs,
        _ => bail!("linear layer of {inputs} inputs got {:?}", x.dims()),
    }
    Ok(Shape::from(dims))
}

/// y (M, N) = x (M, K) W' + b.
fn forward(x: &[f32], weight: &[f32], bias: &[f32], inputs: usize) -> Result<Vec<f32>> {
    let outputs = bias.len();
    if weight.len() != outputs * inputs || !x.len().is_multiple_of(inputs) {
        bail!("linear layer: weight of {} values, {outputs} outputs, {inputs} inputs, {} values in", weight.len(), x.len());
    }
    let mut y = vec![0f32; x.len() / inputs * outputs];
    let weight = Matrix::rows_of(weight, outputs, inputs, inputs).transposed();
    y.par_chunks_mut(TASK_ROWS * outputs).zip(x.par_chunks(TASK_ROWS * inputs)).for_each(|(y, x)| {
        for row in y.chunks_exact_mut(outputs) {
            row.copy_from_slice(bias);
        }
        matmul(y, outputs, Matrix::rows_of(x, x.len() / inputs, inputs, inputs), weight, Write::Add);
    });
    Ok(y)
}

/// dx (M, K) = g (M, N) W.
fn input_gradient(gradient: &[f32], weight: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
    let mut dx = vec![0f32; gradient.len() / outputs * inputs];
    let weight = Matrix::rows_of(weight, outputs, inputs, inputs);
    dx.par_chunks_mut(TASK_ROWS * inputs).zip(gradient.par_chunks(TASK_ROWS * outputs)).for_each(|(dx, g)| {
        matmul(dx, inputs, Matrix::rows_of(g, g.len() / outputs, outputs, outputs), weight, Write::Replace);
    });
    dx
}

/// dW (N, K) = g' (N, M) x (M, K), cut by rows of W.
fn weight_gradient(gradient: &[f32], x: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
    const TASK_OUTPUTS: usize = 128;
    let rows = gradient.len() / outputs;
    let mut dw = vec![0f32; outputs * inputs];
    let x = Matrix::rows_of(x, rows, inputs, inputs);
    dw.par_chunks_mut(TASK_OUTPUTS * inputs).enumerate().for_each(|(task, dw)| {
        let g = Matrix::rows_of(&gradient[task * TASK_OUTPUTS..], rows, dw.len() / inputs, outputs).transposed();
        matmul(dw, inputs, g, x, Write::Replace);
    });
    dw
}

/// db (N) = sum of g (M, N) over its rows.
fn column_sums(gradient: &[f32], outputs: usize) -> Vec<f32> {
    let partial: Vec<Vec<f32>> = gradient
        .par_chunks(TASK_ROWS * outputs)
        .map(|chunk| {
            let mut sums = vec![0f32; outputs];
            chunk.chunks_exact(outputs).for_each(|row| add_into(&mut sums, row));
            sums
        })
        .collect();
    let mut sums = vec![0f32; outputs];
    partial.iter().for_each(|part| add_into(&mut sums, part));
    sums
}
