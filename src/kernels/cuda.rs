//! The kernels on a GPU: libcuda is loaded when a device is opened, so the binary starts where there is none.
//!
//! PTX is checked in (`make ptx` makes it) and the driver compiles it for its GPU. Everything goes in order on one stream.
//! Invariants: a [`Launch`] has checked every size and length before a kernel starts, and a kernel writes every value of
//! its outputs. The bits are those of the CPU, and the same at each run: sums have a fixed order, and nothing is atomic.
//! Absent on purpose: matrix products and the models, which run on the CPU.

use super::launch::{Draw, GramSizes, Launch, LaunchError, NormSizes, SampleSizes, THREADS};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, CudaView, CudaViewMut, DeviceRepr, DriverError, LaunchArgs, LaunchConfig,
    PushKernelArg, ValidAsZeroBits, sys,
};
use cudarc::nvrtc::Ptx;
use std::sync::Arc;

/// One GPU with the kernels loaded.
#[derive(Debug)]
pub struct Device {
    stream: Arc<CudaStream>,
    q_sample: CudaFunction,
    gram_terms: CudaFunction,
    modulated_norm: CudaFunction,
}

/// Why a GPU cannot be used, or did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("libcuda cannot be loaded: this machine has no NVIDIA driver")]
    NoDriver,
    #[error("CUDA driver: {0}")]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// Draws of a pass on a device.
#[derive(Debug)]
pub struct DeviceDraws {
    draws: Vec<Draw>,
    words: CudaSlice<u32>,
}

impl Device {
    /// The GPU at `ordinal`, counted from 0.
    ///
    /// # Errors
    /// `NoDriver` without libcuda; `Driver` without such a GPU, or with a driver before CUDA 13.0, which refuses the PTX.
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        // SAFETY: loads libcuda, if it is there, and nothing of it is called; that its initialisers are sound is NVIDIA's care.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoDriver);
        }
        let context = CudaContext::new(ordinal)?;
        let load = |ptx: &str, name| context.load_module(Ptx::from_src(ptx))?.load_function(name);
        Ok(Self {
            q_sample: load(include_str!("q_sample.ptx"), "q_sample")?,
            gram_terms: load(include_str!("gram_terms.ptx"), "gram_terms")?,
            modulated_norm: load(include_str!("modulated_norm.ptx"), "modulated_norm")?,
            stream: context.default_stream(),
        })
    }

    /// As the driver calls it.
    ///
    /// # Errors
    /// `Driver` where it does not say.
    pub fn name(&self) -> Result<String, DeviceError> {
        Ok(self.stream.context().name()?)
    }

    /// # Errors
    /// `Driver` where memory or the GPU fails; so do all of the following.
    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<CudaSlice<T>, DeviceError> {
        Ok(self.stream.clone_htod(values)?)
    }

    pub fn upload_draws(&self, draws: &[Draw]) -> Result<DeviceDraws, DeviceError> {
        let words: Vec<u32> = draws.iter().flat_map(Draw::words).collect();
        Ok(DeviceDraws { draws: draws.to_vec(), words: self.upload(&words)? })
    }

    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, count: usize) -> Result<CudaSlice<T>, DeviceError> {
        Ok(self.stream.alloc_zeros(count)?)
    }

    /// Waits for what was started; an error of a kernel shows here.
    pub fn download<T: DeviceRepr>(&self, values: &CudaView<T>) -> Result<Vec<T>, DeviceError> {
        let values = self.stream.clone_dtoh(values)?;
        self.stream.synchronize()?;
        Ok(values)
    }

    /// x_t (N, E) of x_start (images, E), noise by the draws (N).
    ///
    /// # Errors
    /// `Launch` where sizes or lengths do not fit.
    pub fn q_sample(
        &self,
        sizes: SampleSizes,
        x_start: &CudaView<f32>,
        draws: &DeviceDraws,
        x_t: &mut CudaViewMut<f32>,
    ) -> Result<(), DeviceError> {
        let launch = Launch::q_sample(sizes)?;
        launch.check(&[x_start.len(), draws.words.len()], &[x_t.len()])?;
        Draw::check_images(&draws.draws, sizes.images)?;
        let mut arguments = self.stream.launch_builder(&self.q_sample);
        arguments.arg(x_start).arg(&draws.words).arg(x_t);
        // SAFETY: pointers as `q_sample.cu` declares them, of the lengths checked above, and each draw's image is there.
        unsafe { start(arguments, &launch) }
    }

    /// gram (N, K, K) and cross (N, K), per element, of pred_noise (N, T, K, P); the draws (N) are those that made x_t.
    ///
    /// # Errors
    /// `Launch` where sizes or lengths do not fit.
    pub fn gram_terms(
        &self,
        sizes: GramSizes,
        pred_noise: &CudaView<f32>,
        draws: &DeviceDraws,
        (gram, cross): (&mut CudaViewMut<f64>, &mut CudaViewMut<f64>),
    ) -> Result<(), DeviceError> {
        let launch = Launch::gram_terms(sizes)?;
        launch.check(&[pred_noise.len(), draws.words.len()], &[gram.len(), cross.len()])?;
        let mut arguments = self.stream.launch_builder(&self.gram_terms);
        arguments.arg(pred_noise).arg(&draws.words).arg(gram).arg(cross);
        // SAFETY: pointers as `gram_terms.cu` declares them, of the lengths checked above.
        unsafe { start(arguments, &launch) }
    }

    /// y (N, T, D) = norm(x) (1 + scale) + shift.
    ///
    /// # Errors
    /// `Launch` where sizes or lengths do not fit.
    pub fn modulated_norm(
        &self,
        sizes: NormSizes,
        x: &CudaView<f32>,
        (shift, scale): (&CudaView<f32>, &CudaView<f32>),
        y: &mut CudaViewMut<f32>,
    ) -> Result<(), DeviceError> {
        let launch = Launch::modulated_norm(sizes)?;
        launch.check(&[x.len(), shift.len(), scale.len()], &[y.len()])?;
        let mut arguments = self.stream.launch_builder(&self.modulated_norm);
        arguments.arg(x).arg(shift).arg(scale).arg(y);
        // SAFETY: pointers as `modulated_norm.cu` declares them, of the lengths checked above.
        unsafe { start(arguments, &launch) }
    }
}

/// Adds the sizes to the pointers in `arguments`, and starts.
///
/// # Safety
/// The pointers are those that the kernel of `launch` declares, in its order, with the lengths that `launch` states.
unsafe fn start<'a>(mut arguments: LaunchArgs<'a>, launch: &'a Launch) -> Result<(), DeviceError> {
    for size in &launch.sizes {
        arguments.arg(size);
    }
    let config = LaunchConfig { grid_dim: (launch.grid.0, launch.grid.1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: by this function's contract, and `Launch` has made grid and sizes so that no index leaves those lengths.
    unsafe { arguments.launch(config) }?;
    Ok(())
}
