//! Loops that the compiler makes vectors of, as wide as the processor has them, and vectors at the ends of slices.

use pulp::{Arch, Simd, WithSimd};

/// Runs `work`, a closure marked `#[inline(always)]`, compiled for what the processor can do.
///
/// pulp takes closures too, as `FnOnce`: but of a closure that consumes nothing, `call_once` is a function of its own, compiled for the
/// least processor, and not inlined where it is large. `call_mut` is the closure itself. For the same reason `work` has loops, and no
/// `for_each` or `array::from_fn` of large bodies: those are functions of their own.
#[inline]
pub fn vectorized<R>(work: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Vectorized(work))
}

/// The first vector of `values`, which may be shorter: zeros follow.
#[inline(always)]
pub fn load<S: Simd>(simd: S, values: &[f32]) -> S::f32s {
    match values.get(..S::F32_LANES) {
        Some(whole) => S::as_simd_f32s(whole).0[0],
        None => simd.partial_load_f32s(values),
    }
}

/// Writes `vector` to the start of `values`, as far as it goes.
#[inline(always)]
pub fn store<S: Simd>(simd: S, values: &mut [f32], vector: S::f32s) {
    match values.get_mut(..S::F32_LANES) {
        Some(whole) => S::as_mut_simd_f32s(whole).0[0] = vector,
        None => simd.partial_store_f32s(values, vector),
    }
}

struct Vectorized<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Vectorized<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}
