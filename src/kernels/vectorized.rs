//! Loops that the compiler makes vectors of, as wide as the processor has them.

use pulp::{Arch, Simd, WithSimd};

/// Runs `work`, a closure marked `#[inline(always)]`, compiled for what the processor can do.
///
/// pulp takes closures too, as `FnOnce`: but of a closure that consumes nothing, `call_once` is a function of its own, compiled for the
/// least processor, and not inlined where it is large. `call_mut` is the closure itself.
#[inline]
pub fn vectorized<R>(work: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Vectorized(work))
}

struct Vectorized<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Vectorized<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}
