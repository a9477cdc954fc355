//! Parameters by name: how weights are made, read, checked, shared and copied.
//!
//! Invariant: names are sorted (`BTreeMap`), so sums over parameters and files have one order in every process.

use crate::kernels::{self, Variable};
use crate::noise::NoiseKey;
use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, HashMap};

/// Values by name: a snapshot that shares no memory with the parameters that it was taken of.
pub type Tensors = BTreeMap<String, Tensor>;

/// Gradients by parameter, in the parameters' own layout.
pub type Gradients = BTreeMap<String, Vec<f32>>;

/// Weights that a model cannot be built of.
#[derive(Debug, thiserror::Error)]
pub enum ParameterError {
    #[error("weights lack the tensor {name:?}, which the model's configuration asks for")]
    Missing { name: String },
    #[error("tensor {name:?} has shape {got:?}, the model's configuration asks for {expected:?}")]
    Shape { name: String, expected: Vec<usize>, got: Vec<usize> },
    #[error("weights have the tensor {name:?}, which the model does not know: are they of another model?")]
    Unknown { name: String },
    #[error("tensor {name:?} is not a copy of {of:?}: this model has one for all blocks")]
    Copy { name: String, of: String },
    #[error("{values} values are no images of {elements} each")]
    Images { values: usize, elements: usize },
    #[error("tensor {name:?} has a value that is not finite")]
    NotFinite { name: String },
    #[error("tensor {name:?} is of type {got}, expected F32")]
    Type { name: String, got: String },
    #[error("not a safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The parameters of one model; some may be trainable.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    variables: BTreeMap<String, Variable>,
    constants: Tensors,
}

impl Parameters {
    /// Frozen parameters: no gradient, and none of its cost.
    pub fn frozen(tensors: Tensors) -> Self {
        Self { variables: BTreeMap::new(), constants: tensors }
    }

    /// Parameters of which those that `is_trainable` names get gradients; values are copied.
    pub fn trainable(tensors: &Tensors, is_trainable: impl Fn(&str) -> bool) -> Result<Self, ParameterError> {
        let mut parameters = Self::default();
        for (name, tensor) in tensors {
            if is_trainable(name) {
                parameters.variables.insert(name.clone(), Variable::copied(tensor)?);
            } else {
                parameters.constants.insert(name.clone(), tensor.copy()?);
            }
        }
        Ok(parameters)
    }

    /// Calls `read` with the values of the tensor `name` with `shape`, where they lie.
    pub fn read<R>(&self, name: &str, shape: &[usize], read: impl FnOnce(&[f32]) -> R) -> Result<R, ParameterError> {
        Ok(kernels::with_values(&self.get(name, shape)?, |values| Ok(read(values)))?)
    }

    /// The tensor `name` with `shape`.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        let tensor = match (self.variables.get(name), self.constants.get(name)) {
            (Some(variable), _) => variable.as_tensor().clone(),
            (None, Some(constant)) => constant.clone(),
            (None, None) => return Err(ParameterError::Missing { name: name.to_owned() }),
        };
        if tensor.dims() != shape {
            return Err(ParameterError::Shape { name: name.to_owned(), expected: shape.to_vec(), got: tensor.dims().to_vec() });
        }
        Ok(tensor)
    }

    /// Takes other values for parameters that are not trainable.
    pub fn replace(&mut self, constants: Tensors) {
        self.constants.extend(constants);
    }

    /// Trainable parameters, sorted by name.
    pub fn variables(&self) -> &BTreeMap<String, Variable> {
        &self.variables
    }

    /// A deep copy of all values.
    pub fn snapshot(&self) -> Result<Tensors, ParameterError> {
        let mut tensors = Tensors::new();
        for (name, tensor) in &self.constants {
            tensors.insert(name.clone(), tensor.copy()?);
        }
        for (name, variable) in &self.variables {
            tensors.insert(name.clone(), variable.as_detached_tensor().copy()?);
        }
        Ok(tensors)
    }

    /// Copies the values of `tensors` into the trainable parameters.
    pub fn restore(&self, tensors: &Tensors) -> Result<(), ParameterError> {
        for (name, variable) in &self.variables {
            let tensor = tensors.get(name).ok_or_else(|| ParameterError::Missing { name: name.clone() })?;
            if tensor.dims() != variable.dims() {
                let (expected, got) = (variable.dims().to_vec(), tensor.dims().to_vec());
                return Err(ParameterError::Shape { name: name.clone(), expected, got });
            }
            variable.set(tensor)?;
        }
        Ok(())
    }
}

/// Reads tensors from the bytes of a safetensors file, and checks that all are finite f32.
///
/// # Errors
/// `Format` for truncated or foreign bytes, `Type` and `NotFinite` by tensor.
pub fn read(bytes: &[u8]) -> Result<Tensors, ParameterError> {
    let mut tensors = Tensors::new();
    for (name, view) in safetensors::SafeTensors::deserialize(bytes)?.tensors() {
        if view.dtype() != safetensors::Dtype::F32 {
            return Err(ParameterError::Type { name, got: format!("{:?}", view.dtype()) });
        }
        let values: Vec<f32> = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if values.iter().any(|value| !value.is_finite()) {
            return Err(ParameterError::NotFinite { name });
        }
        tensors.insert(name, Tensor::from_vec(values, view.shape(), &Device::Cpu)?);
    }
    Ok(tensors)
}

/// The bytes of a safetensors file of `tensors`, with `metadata` in its header.
pub fn write(tensors: &Tensors, metadata: HashMap<String, String>) -> Result<Vec<u8>, ParameterError> {
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        data.push((name, tensor.dims().to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()));
    }
    let mut views = Vec::new();
    for (name, shape, bytes) in &data {
        views.push((name.as_str(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes)?));
    }
    Ok(safetensors::serialize(views, Some(metadata))?)
}

/// Checks that `tensors` are just those that `expected` has, with its shapes.
pub fn check(tensors: &Tensors, expected: &Tensors) -> Result<(), ParameterError> {
    for (name, model) in expected {
        let tensor = tensors.get(name).ok_or_else(|| ParameterError::Missing { name: name.clone() })?;
        if tensor.dims() != model.dims() {
            return Err(ParameterError::Shape { name: name.clone(), expected: model.dims().to_vec(), got: tensor.dims().to_vec() });
        }
    }
    match tensors.keys().find(|name| !expected.contains_key(*name)) {
        Some(name) => Err(ParameterError::Unknown { name: name.clone() }),
        None => Ok(()),
    }
}

/// Whether both hold the same values under the same names, bit for bit.
pub fn are_equal(left: &Tensors, right: &Tensors) -> candle_core::Result<bool> {
    let bits = |tensor: &Tensor| {
        Ok::<_, candle_core::Error>(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect::<Vec<_>>())
    };
    for (name, tensor) in left {
        match right.get(name) {
            Some(other) if bits(tensor)? == bits(other)? => {}
            _ => return Ok(false),
        }
    }
    Ok(left.len() == right.len())
}

/// Makes the first values of a model's parameters.
pub struct Initializer {
    seed: u64,
    tensors: Tensors,
}

impl Initializer {
    pub fn new(seed: u64) -> Self {
        Self { seed, tensors: Tensors::new() }
    }

    /// Normal with `standard_deviation`, keyed by seed and name.
    pub fn normal(&mut self, name: &str, shape: &[usize], standard_deviation: f64) -> Result<(), ParameterError> {
        let mut values = vec![0f32; shape.iter().product()];
        NoiseKey::from_seed(self.seed, name, 0).fill_normal(0, &mut values);
        values.iter_mut().for_each(|value| *value *= standard_deviation as f32);
        self.put(name, shape, values)
    }

    pub fn constant(&mut self, name: &str, shape: &[usize], value: f32) -> Result<(), ParameterError> {
        self.put(name, shape, vec![value; shape.iter().product()])
    }

    pub fn put(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> Result<(), ParameterError> {
        self.tensors.insert(name.to_owned(), Tensor::from_vec(values, shape, &Device::Cpu)?);
        Ok(())
    }

    /// Weight (outputs, inputs) with Glorot's variance 2 / (inputs + outputs), bias 0.
    pub fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<(), ParameterError> {
        self.normal(&format!("{name}.weight"), &[outputs, inputs], (2.0 / (inputs + outputs) as f64).sqrt())?;
        self.constant(&format!("{name}.bias"), &[outputs], 0.0)
    }

    /// Weight and bias 0: the layer says nothing until it has learned.
    pub fn zero_linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<(), ParameterError> {
        self.constant(&format!("{name}.weight"), &[outputs, inputs], 0.0)?;
        self.constant(&format!("{name}.bias"), &[outputs], 0.0)
    }

    pub fn finish(self) -> Tensors {
        self.tensors
    }
}
