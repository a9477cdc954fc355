//! A linear layer in both directions.

use crate::kernels::{self, Finish, Matrix, Panels, Write};
use crate::model::parameters::{Gradients, ParameterError, Parameters};

/// y = x W' + b, with `weight` (N, K) and `bias` (N) packed for both directions.
#[derive(Clone, Debug)]
pub struct Linear {
    outputs: usize,
    inputs: usize,
    weight: String,
    bias: String,
    /// W', (K, N).
    forward: Panels,
    /// W, (N, K).
    backward: Panels,
    bias_values: Vec<f32>,
}

impl Linear {
    /// # Errors
    /// `Missing` and `Shape` where the parameters are others.
    pub fn load(parameters: &Parameters, name: &str, outputs: usize, inputs: usize) -> Result<Self, ParameterError> {
        let mut linear = Self {
            outputs,
            inputs,
            weight: format!("{name}.weight"),
            bias: format!("{name}.bias"),
            forward: Panels::default(),
            backward: Panels::default(),
            bias_values: vec![0f32; outputs],
        };
        linear.pack(parameters)?;
        Ok(linear)
    }

    /// Takes the values that the parameters have now.
    pub fn pack(&mut self, parameters: &Parameters) -> Result<(), ParameterError> {
        let Self { outputs, inputs, forward, backward, .. } = self;
        parameters.read(&self.weight, &[*outputs, *inputs], |weight| {
            let weight = Matrix::rows_of(weight, *outputs, *inputs, *inputs);
            forward.pack(weight.transposed());
            backward.pack(weight);
        })?;
        parameters.read(&self.bias, &[*outputs], |bias| self.bias_values.copy_from_slice(bias))
    }

    /// Whether gradients are asked for.
    pub fn learns(&self, gradients: &Gradients) -> bool {
        gradients.contains_key(&self.weight) || gradients.contains_key(&self.bias)
    }

    /// y (M, N) of x (M, K).
    pub fn forward(&self, y: &mut [f32], x: &[f32]) {
        self.apply(y, x, Finish::Bias(&self.bias_values));
    }

    /// y (M, N) + what [`Self::forward`] gives.
    pub fn forward_onto(&self, y: &mut [f32], x: &[f32]) {
        self.apply(y, x, Finish::Residual(&self.bias_values));
    }

    fn apply(&self, y: &mut [f32], x: &[f32], finish: Finish) {
        kernels::product(y, self.outputs, self.rows(x, self.inputs), &self.forward, finish);
    }

    /// Writes dx (M, K) = g W for the gradient `g` (M, N) of [`Self::forward`].
    pub fn backward(&self, dx: &mut [f32], g: &[f32]) {
        kernels::product(dx, self.inputs, self.rows(g, self.outputs), &self.backward, Finish::Replace);
    }

    /// Adds dW = g' x and db = the sum of g's rows, where they are asked for.
    pub fn add_gradients(&self, gradients: &mut Gradients, x: &[f32], g: &[f32]) {
        if let Some(dw) = gradients.get_mut(&self.weight) {
            kernels::transposed_product(dw, self.inputs, self.rows(g, self.outputs), self.rows(x, self.inputs), Write::Add);
        }
        if let Some(db) = gradients.get_mut(&self.bias) {
            g.chunks_exact(self.outputs).for_each(|row| db.iter_mut().zip(row).for_each(|(sum, &g)| *sum += g));
        }
    }

    fn rows<'a>(&self, values: &'a [f32], columns: usize) -> Matrix<'a> {
        Matrix::rows_of(values, values.len() / columns, columns, columns)
    }
}
