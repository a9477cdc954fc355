//! Reading tensors as slices, and making tensors of vectors: the border between candle and the loops of this module.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Shape, Storage, Tensor, Var, bail, op::BackpropOp};
use std::cell::Cell;
use std::ops::Deref;

/// The f32 values of a contiguous storage.
pub fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let all = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => bail!("a fused operation needs contiguous arguments, got strides {:?}", layout.stride()),
    }
}

/// Calls `read` with the f32 values of `tensor`, which is copied only if it is not contiguous.
pub fn with_values<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => read(values(storage, layout)?),
        _ => bail!("a fused operation of the CPU got a tensor of another device"),
    }
}

/// A variable whose values can be changed where they lie.
#[derive(Clone, Debug)]
pub struct Variable {
    variable: Var,
    /// A view of its first value alone: candle makes a list of a view's axes before it changes it in place, and this has none.
    first: Tensor,
}

impl Variable {
    /// A variable with a copy of the values of `tensor`, f32.
    ///
    /// # Errors
    /// For a tensor without values.
    pub fn copied(tensor: &Tensor) -> Result<Self> {
        let variable = Var::from_tensor(&tensor.copy()?)?;
        let first = variable.as_detached_tensor().flatten_all()?.narrow(0, 0, 1)?;
        Ok(Self { variable, first })
    }

    /// Calls `change` with its values; what is computed from it later sees the new ones.
    pub fn change<R>(&self, change: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
        let change = Change { change: Cell::new(Some(change)), result: Cell::new(None) };
        self.first.inplace_op1(&change)?;
        Ok(change.result.take().expect("candle calls an operation that gave no error"))
    }
}

impl Deref for Variable {
    type Target = Var;

    fn deref(&self) -> &Var {
        &self.variable
    }
}

/// A closure as an operation in place on a whole storage, which candle calls once.
struct Change<F, R> {
    change: Cell<Option<F>>,
    result: Cell<Option<R>>,
}

impl<R, F: FnOnce(&mut [f32]) -> R> InplaceOp1 for Change<F, R> {
    fn name(&self) -> &'static str {
        "change-values"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _first: &Layout) -> Result<()> {
        let CpuStorage::F32(values) = storage else { bail!("values that are changed in place are f32") };
        self.result.set(self.change.take().map(|change| change(values)));
        Ok(())
    }
}

/// An untracked CPU tensor of `values`.
pub fn tensor(values: Vec<f32>, shape: &Shape) -> Tensor {
    Tensor::from_storage(Storage::Cpu(CpuStorage::F32(values)), shape.clone(), BackpropOp::none(), false)
}

/// Lanes of a reduction, so that the compiler vectorises it with a fixed order.
pub const LANES: usize = 16;

/// One value of all lanes, by halves: the order of a vector's reduction, whatever its width.
///
/// A function of its own: where the loop before it sees the halves, the compiler makes its vectors as short as they are.
#[inline(never)]
pub fn fold_lanes(lanes: [f32; LANES], of: impl Fn(f32, f32) -> f32 + Copy) -> f32 {
    #[inline(always)]
    fn halved<const N: usize, const HALF: usize>(lanes: [f32; N], of: impl Fn(f32, f32) -> f32) -> [f32; HALF] {
        let mut half = [0f32; HALF];
        for i in 0..HALF {
            half[i] = of(lanes[i], lanes[i + HALF]);
        }
        half
    }
    let eight: [f32; 8] = halved(lanes, of);
    let [a, b, c, d] = halved(eight, of);
    of(of(a, c), of(b, d))
}

/// The sum of all lanes.
#[inline(always)]
pub fn sum_of_lanes(lanes: [f32; LANES]) -> f32 {
    fold_lanes(lanes, |a, b| a + b)
}

/// Sum over lanes, in a fixed order.
#[inline(always)]
pub fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += term(chunk[i]);
        }
    }
    sum_of_lanes(lanes) + rest.iter().map(|&value| term(value)).sum::<f32>()
}

/// The largest of values that are numbers.
#[inline(always)]
pub fn maximum(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    rest.iter().copied().fold(fold_lanes(lanes, larger), larger)
}

/// Sum of products over lanes, in a fixed order.
#[inline(always)]
pub fn dot(left: &[f32], right: &[f32]) -> f32 {
    let ((l, l_rest), (r, r_rest)) = (left.as_chunks::<LANES>(), right.as_chunks::<LANES>());
    let mut lanes = [0f32; LANES];
    for (l, r) in l.iter().zip(r) {
        for i in 0..LANES {
            lanes[i] = l[i].mul_add(r[i], lanes[i]);
        }
    }
    sum_of_lanes(lanes) + l_rest.iter().zip(r_rest).map(|(&l, &r)| l * r).sum::<f32>()
}

/// Adds `term` into `total`, element by element.
#[inline]
pub fn add_into(total: &mut [f32], term: &[f32]) {
    for (total, &term) in total.iter_mut().zip(term) {
        *total += term;
    }
}
