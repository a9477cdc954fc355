//! SGD with momentum, AdamW and Muon, whose state is kept by name and can be saved: candle's cannot.
//!
//! Invariants: a trainable parameter without a gradient is an error, never a step that silently does nothing; a step
//! whose gradient is not finite changes nothing; parameters are visited in the order of their names.

use crate::kernels::Variable;
use crate::model::Gradients;
use candle_core::{Device, Tensor, Var, backprop::GradStore};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Rule of the update. Constants have the names of their papers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// v = momentum v + g; theta -= lr v (PyTorch's form, no dampening).
    Sgd { momentum: f32 },
    /// arXiv 1711.05101; decoupled weight decay.
    AdamW { beta1: f32, beta2: f32, adam_eps: f32, weight_decay: f32 },
    /// Momentum whose direction is orthogonalised, for the matrices of the blocks; AdamW for all else
    /// (K. Jordan, "Muon", 2024; scale of arXiv 2502.16982).
    Muon { momentum: f32, beta1: f32, beta2: f32, adam_eps: f32, weight_decay: f32 },
}

impl OptimizerConfig {
    /// AdamW with the constants of its paper and no decay.
    pub const ADAM_W: Self = Self::AdamW { beta1: 0.9, beta2: 0.999, adam_eps: 1e-8, weight_decay: 0.0 };

    /// Whether the parameter `name` has second moments.
    pub fn has_second_moments(&self, name: &str, variable: &Var) -> bool {
        match self {
            Self::Sgd { .. } => false,
            Self::AdamW { .. } => true,
            Self::Muon { .. } => !is_hidden_matrix(name, variable),
        }
    }
}

/// All that the next step depends on, next to the parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OptimizerState {
    /// Steps taken.
    pub steps: u64,
    /// Momentum, or first moments of AdamW, by parameter.
    pub first_moments: BTreeMap<String, Vec<f32>>,
    /// Second moments, by parameter, where [`OptimizerConfig::has_second_moments`].
    pub second_moments: BTreeMap<String, Vec<f32>>,
}

impl OptimizerState {
    /// Becomes equal to `other`; takes no memory if it was a state of the same parameters before.
    pub fn copy_from(&mut self, other: &Self) {
        self.steps = other.steps;
        for (to, from) in [(&mut self.first_moments, &other.first_moments), (&mut self.second_moments, &other.second_moments)] {
            to.retain(|name, _| from.contains_key(name));
            from.iter().for_each(|(name, values)| copy_by_name(to, name, values));
        }
    }
}

/// Puts a copy of `values` in the place of `name`.
pub fn copy_by_name(into: &mut BTreeMap<String, Vec<f32>>, name: &str, values: &[f32]) {
    match into.get_mut(name) {
        Some(place) => {
            place.clear();
            place.extend_from_slice(values);
        }
        None => drop(into.insert(name.to_owned(), values.to_vec())),
    }
}

/// The gradient of each variable.
///
/// # Errors
/// `NoGradient` where the graph between a variable and the loss is cut.
pub fn collect(variables: &BTreeMap<String, Variable>, store: &GradStore) -> Result<Gradients, StepError> {
    let mut gradients = Gradients::new();
    for (name, variable) in variables {
        let gradient = store.get(variable).ok_or_else(|| StepError::NoGradient { name: name.clone() })?;
        gradients.insert(name.clone(), gradient.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(gradients)
}

/// Adds `term` to `total`, which may still be empty.
pub fn accumulate(total: &mut Gradients, term: &Gradients) {
    for (name, term) in term {
        match total.get_mut(name) {
            Some(sum) => sum.iter_mut().zip(term).for_each(|(sum, &term)| *sum += term),
            None => drop(total.insert(name.clone(), term.clone())),
        }
    }
}

/// What weights are pulled back to, and how far.
#[derive(Clone, Copy, Debug)]
pub struct Anchor<'a> {
    /// Values by parameter.
    pub values: &'a BTreeMap<String, Vec<f32>>,
    /// Share of the way, 0..=1.
    pub share: f32,
}

impl Anchor<'_> {
    /// Moves the parameter `name`; says whether any value changed.
    pub fn pull(&self, name: &str, theta: &mut [f32]) -> bool {
        let mut is_moved = false;
        for (theta, anchor) in theta.iter_mut().zip(&self.values[name]) {
            let next = *theta + self.share * (anchor - *theta);
            is_moved |= next != *theta;
            *theta = next;
        }
        is_moved
    }
}

fn hold(anchor: Option<Anchor>, name: &str, theta: &mut [f32]) {
    if let Some(anchor) = anchor {
        anchor.pull(name, theta);
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Euclidean norm of all gradients, before clipping.
    pub gradient_norm: f64,
}

/// A step that could not be taken; no parameter has changed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error("parameter {name:?} got no gradient: the graph between it and the loss is cut")]
    NoGradient { name: String },
    #[error("gradient norm is {norm}, not finite")]
    NotFinite { norm: f64 },
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// An optimizer over named variables.
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    state: OptimizerState,
}

impl Optimizer {
    pub fn new(config: OptimizerConfig) -> Self {
        Self { config, state: OptimizerState::default() }
    }

    pub fn state(&self) -> &OptimizerState {
        &self.state
    }

    pub fn restore(&mut self, state: OptimizerState) {
        self.state = state;
    }

    /// One step along `gradients` of the same variables, which are scaled down to `norm_max` together if their norm is larger; then,
    /// parameter by parameter, the pull of `anchor`.
    ///
    /// # Errors
    /// `NoGradient` and `NotFinite`, with nothing changed.
    pub fn step(
        &mut self,
        variables: &BTreeMap<String, Variable>,
        gradients: &Gradients,
        learning_rate: f32,
        norm_max: f32,
        anchor: Option<Anchor>,
    ) -> Result<StepReport, StepError> {
        let gradient_norm = gradients.values().flatten().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
        if !gradient_norm.is_finite() {
            return Err(StepError::NotFinite { norm: gradient_norm });
        }
        let clip = (f64::from(norm_max) / gradient_norm.max(f64::MIN_POSITIVE)).min(1.0) as f32;
        if let Some(name) = variables.keys().find(|name| !gradients.contains_key(*name)) {
            return Err(StepError::NoGradient { name: name.clone() });
        }
        self.state.steps += 1;
        for (name, variable) in variables {
            let gradient = &gradients[name];
            match self.config {
                OptimizerConfig::Muon { momentum, weight_decay, .. } if is_hidden_matrix(name, variable) => {
                    let shape = variable.dims2()?;
                    let first = moments(&mut self.state.first_moments, name, gradient.len());
                    let direction = muon_direction(first, gradient, shape, momentum)?;
                    let scale = MUON_ROOT_MEAN_SQUARE * (shape.0.max(shape.1) as f32).sqrt();
                    variable.change(|theta| {
                        for (theta, step) in theta.iter_mut().zip(direction) {
                            *theta -= learning_rate * weight_decay.mul_add(*theta, scale * step);
                        }
                        hold(anchor, name, theta);
                    })?;
                }
                _ => variable.change(|theta| {
                    self.update(name, theta, gradient, learning_rate, clip);
                    hold(anchor, name, theta);
                })?,
            }
        }
        Ok(StepReport { gradient_norm })
    }

    fn update(&mut self, name: &str, theta: &mut [f32], gradient: &[f32], learning_rate: f32, clip: f32) {
        let first = moments(&mut self.state.first_moments, name, theta.len());
        match self.config {
            OptimizerConfig::Sgd { momentum } => {
                for ((theta, m), &g) in theta.iter_mut().zip(first).zip(gradient) {
                    *m = momentum.mul_add(*m, g * clip);
                    *theta -= learning_rate * *m;
                }
            }
            OptimizerConfig::AdamW { beta1, beta2, adam_eps, weight_decay }
            | OptimizerConfig::Muon { beta1, beta2, adam_eps, weight_decay, .. } => {
                let second = moments(&mut self.state.second_moments, name, theta.len());
                let steps = self.state.steps as f64;
                let correction1 = (1.0 - f64::from(beta1).powf(steps)) as f32;
                let correction2 = (1.0 - f64::from(beta2).powf(steps)) as f32;
                for (((theta, m), v), &g) in theta.iter_mut().zip(first).zip(second).zip(gradient) {
                    let g = g * clip;
                    *m = beta1.mul_add(*m, (1.0 - beta1) * g);
                    *v = beta2.mul_add(*v, (1.0 - beta2) * g * g);
                    let step = (*m / correction1) / ((*v / correction2).sqrt() + adam_eps);
                    *theta -= learning_rate * weight_decay.mul_add(*theta, step);
                }
            }
        }
    }
}

/// Moments of the parameter `name`, zeros at first.
fn moments<'a>(all: &'a mut BTreeMap<String, Vec<f32>>, name: &str, count: usize) -> &'a mut Vec<f32> {
    if !all.contains_key(name) {
        all.insert(name.to_owned(), vec![0f32; count]);
    }
    all.get_mut(name).expect("it was put there, if it was not")
}

/// Weights between hidden layers, but not those that modulate.
fn is_hidden_matrix(name: &str, variable: &Var) -> bool {
    name.starts_with("blocks.") && name.ends_with(".weight") && !name.contains("modulation") && variable.rank() == 2
}

/// Root mean square of a step of Muon in learning rates: that of AdamW in practice (arXiv 2502.16982, section 2.2).
const MUON_ROOT_MEAN_SQUARE: f32 = 0.2;

/// Moves the momentum of a matrix `shape` (rows, columns), and gives Nesterov's direction, orthogonalised. The scale of
/// the gradient cancels, so clipping has no effect on it.
fn muon_direction(first: &mut [f32], gradient: &[f32], shape: (usize, usize), momentum: f32) -> candle_core::Result<Vec<f32>> {
    let direction = first.iter_mut().zip(gradient).map(|(m, &g)| {
        *m = momentum.mul_add(*m, (1.0 - momentum) * g);
        momentum.mul_add(*m, (1.0 - momentum) * g)
    });
    let direction = Tensor::from_vec(direction.collect::<Vec<_>>(), shape, &Device::Cpu)?;
    orthogonalize(&direction)?.flatten_all()?.to_vec1::<f32>()
}

/// The matrix with the same singular vectors and singular values near 1 (0.7 to 1.2), by five steps of Muon's quintic
/// Newton-Schulz iteration.
fn orthogonalize(matrix: &Tensor) -> candle_core::Result<Tensor> {
    const A: f64 = 3.4445;
    const B: f64 = -4.7750;
    const C: f64 = 2.0315;
    let (rows, columns) = matrix.dims2()?;
    let mut x = if rows > columns { matrix.t()?.contiguous()? } else { matrix.clone() };
    let norm = f64::from(x.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt();
    x = (x / (norm + 1e-7))?;
    for _ in 0..5 {
        let gram = x.matmul(&x.t()?)?;
        let polynomial = ((&gram * B)? + (gram.matmul(&gram)? * C)?)?;
        x = ((&x * A)? + polynomial.matmul(&x)?)?;
    }
    if rows > columns { x.t()?.contiguous() } else { Ok(x) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn quadratic(start: f32) -> BTreeMap<String, Variable> {
        let start = Tensor::from_vec(vec![start], 1, &Device::Cpu).expect("a vector fits its shape");
        BTreeMap::from([("x".to_owned(), Variable::copied(&start).expect("a value"))])
    }

    fn value(variables: &BTreeMap<String, Variable>) -> f32 {
        variables["x"].to_vec1::<f32>().expect("a vector")[0]
    }

    fn take_steps(config: OptimizerConfig, count: usize, learning_rate: f32) -> (f32, OptimizerState) {
        let variables = quadratic(1.0);
        let mut optimizer = Optimizer::new(config);
        for _ in 0..count {
            let gradients = variables["x"].sqr().and_then(|y| y.sum_all()).and_then(|loss| loss.backward()).expect("a loss");
            let gradients = collect(&variables, &gradients).expect("a gradient");
            optimizer.step(&variables, &gradients, learning_rate, f32::INFINITY, None).expect("a finite gradient");
        }
        (value(&variables), optimizer.state().clone())
    }

    #[test]
    fn sgd_with_momentum_takes_the_steps_of_its_definition() {
        // g = 2x: x1 = 1 - 0.1 * 2 = 0.8; v = 0.9 * 2 + 1.6 = 3.4; x2 = 0.8 - 0.34 = 0.46.
        let (x, state) = take_steps(OptimizerConfig::Sgd { momentum: 0.9 }, 2, 0.1);
        assert!((x - 0.46).abs() < 1e-6, "{x}");
        assert_eq!(state.steps, 2);
    }

    #[test]
    fn adamw_takes_the_steps_of_its_definition() {
        // The first step of Adam is the learning rate, whatever the gradient; decay is decoupled.
        let config = OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.999, adam_eps: 1e-8, weight_decay: 0.5 };
        let (x, _) = take_steps(config, 1, 0.01);
        assert!((x - (1.0 - 0.01 * (1.0 + 0.5))).abs() < 1e-6, "{x}");
    }

    #[test]
    fn muon_takes_orthogonal_steps_of_the_size_of_adamws() {
        for shape in [(6, 20), (20, 6)] {
            let gradient: Vec<f32> = (0..120u8).map(|i| (f32::from(i) * 0.7).sin() * f32::from(1 + i % 7)).collect();
            let mut momentum = vec![0f32; 120];
            let direction = muon_direction(&mut momentum, &gradient, shape, 0.95).expect("a matrix");
            let direction = Tensor::from_vec(direction, shape, &Device::Cpu).expect("a matrix");
            let short = if shape.0 < shape.1 { direction.clone() } else { direction.t().expect("a matrix") };
            let gram = short.matmul(&short.t().expect("a matrix")).and_then(|gram| gram.to_vec2::<f32>()).expect("a matrix");
            for (i, row) in gram.iter().enumerate() {
                for (j, &value) in row.iter().enumerate() {
                    let bounds = if i == j { 0.4..1.5 } else { -0.35..0.35 };
                    assert!(bounds.contains(&value), "{shape:?}: gram[{i}, {j}] = {value}");
                }
            }
        }
    }

    #[test]
    fn muon_keeps_second_moments_of_what_is_no_hidden_matrix_alone() {
        let matrix = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).expect("a matrix");
        let matrix = Variable::copied(&matrix).expect("values");
        let muon = OptimizerConfig::Muon { momentum: 0.95, beta1: 0.9, beta2: 0.99, adam_eps: 1e-8, weight_decay: 0.0 };
        for (name, expected) in [("blocks.00.qkv.weight", false), ("blocks.00.modulation.weight", true), ("readout.weight", true)] {
            assert_eq!(muon.has_second_moments(name, &matrix), expected, "{name}");
            let variables = BTreeMap::from([(name.to_owned(), matrix.clone())]);
            let gradients = BTreeMap::from([(name.to_owned(), vec![1.0, -2.0, 3.0, 0.5, 0.0, 1.0])]);
            let mut optimizer = Optimizer::new(muon);
            optimizer.step(&variables, &gradients, 0.1, 1.0, None).expect("a finite gradient");
            assert_eq!(optimizer.state().second_moments.contains_key(name), expected, "{name}");
        }
    }

    #[test]
    fn a_cut_graph_is_an_error_and_not_a_step_that_does_nothing() {
        let variables = quadratic(1.0);
        let other = quadratic(2.0);
        let gradients = other["x"].sqr().and_then(|y| y.sum_all()).and_then(|loss| loss.backward()).expect("a loss");
        let refused = collect(&variables, &gradients);
        assert!(matches!(refused, Err(StepError::NoGradient { name }) if name == "x"));
        assert_eq!(value(&variables), 1.0);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let variables = quadratic(f32::MAX);
        let gradients = variables["x"].sqr().and_then(|y| y.sqr()).and_then(|loss| loss.backward()).expect("a loss");
        let mut optimizer = Optimizer::new(OptimizerConfig::ADAM_W);
        let gradients = collect(&variables, &gradients).expect("a gradient");
        let refused = optimizer.step(&variables, &gradients, 0.1, 1.0, None);
        assert!(matches!(refused, Err(StepError::NotFinite { .. })));
        assert_eq!((value(&variables), optimizer.state().steps), (f32::MAX, 0));
    }
}
