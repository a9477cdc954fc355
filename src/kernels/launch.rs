//! What a kernel of a GPU is started with: grid, sizes and lengths of buffers, checked before anything reaches a device.
//!
//! Three kernels (`*.cu` beside this file) do on a GPU what [`NoiseKey::fill_normal`] with
//! [`Schedule::q_sample`](crate::diffusion::Schedule::q_sample), [`gram_terms`](super::gram_terms) and
//! [`modulated_norm`](super::modulated_norm) do on the CPU. Those are the definition; a kernel gives their bits.
//! Pure: no device, no driver. `cuda.rs` carries a launch out on a GPU, `tests/kernels.rs` by a C++ compiler.

use crate::noise::NoiseKey;

/// Threads of a block, as in `block.cuh`.
pub const THREADS: u32 = 128;
/// Sums of a block, pairs or tokens, as in `lanes.cuh`.
const BLOCK_SUMS: u32 = THREADS / 16;
/// Values of a patch that the shared memory of `gram_terms.cu` has room for.
const TILE_VALUES: usize = 4096;
/// Blocks in the second dimension of a grid (CUDA Programming Guide, technical specifications by compute capability).
const GRID_ROWS_MAX: usize = 65_535;
/// Values of one image, tensor row or modulation: indices inside it are 32 bits wide.
const ROW_VALUES_MAX: usize = 1 << 28;

/// A checked launch. The kernel's arguments are the inputs, the outputs and the sizes, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name of the entry in the kernel's PTX.
    pub kernel: &'static str,
    /// Blocks in each dimension.
    pub grid: (u32, u32),
    pub sizes: Vec<u32>,
    /// Values of each input; those of draws count their words.
    pub inputs: Vec<usize>,
    /// Values of each output.
    pub outputs: Vec<usize>,
}

/// A launch that cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    #[error("{kernel}: {field} must be from 1 to {limit}, got {got}")]
    Size { kernel: &'static str, field: &'static str, got: usize, limit: usize },
    #[error("{kernel}: patch {patch} does not divide an image of {height} x {width}")]
    Patch { kernel: &'static str, patch: usize, height: usize, width: usize },
    #[error("{kernel}: stride {stride} between modulations is below hidden {hidden} and not 0")]
    Stride { kernel: &'static str, stride: usize, hidden: usize },
    #[error("{kernel}: {kind} {position} must have {expected} values, got {got}")]
    Length { kernel: &'static str, kind: &'static str, position: usize, expected: usize, got: usize },
    #[error("a draw takes image {image} of {images}")]
    Image { image: u32, images: usize },
}

/// One draw of a pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    pub key: NoiseKey,
    /// Of the draw among those of its image.
    pub number: u32,
    /// Position of its image in x_start.
    pub image: u32,
    /// See [`Schedule::signal_and_spread`](crate::diffusion::Schedule::signal_and_spread).
    pub signal: f32,
    pub spread: f32,
}

impl Draw {
    /// Length of [`Draw::words`].
    pub const WORDS: usize = 8;

    /// The fields of `Draw` in `noise.cuh`.
    pub fn words(&self) -> [u32; Self::WORDS] {
        let [key0, key1, counter2, counter3] = self.key.philox_words();
        [key0, key1, counter2, counter3, self.number, self.image, self.signal.to_bits(), self.spread.to_bits()]
    }

    /// # Errors
    /// `Image` where a draw takes an image that is not there.
    pub fn check_images(draws: &[Self], images: usize) -> Result<(), LaunchError> {
        match draws.iter().find(|draw| draw.image as usize >= images) {
            Some(draw) => Err(LaunchError::Image { image: draw.image, images }),
            None => Ok(()),
        }
    }
}

/// Sizes of `q_sample`.
#[derive(Clone, Copy, Debug)]
pub struct SampleSizes {
    pub images: usize,
    pub draws: usize,
    /// Values of an image.
    pub elements: usize,
}

/// Sizes of `gram_terms`; a draw's predicted noise is (T, K, P) of an image (C, H, W) cut into patches.
#[derive(Clone, Copy, Debug)]
pub struct GramSizes {
    pub draws: usize,
    pub classes: usize,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    /// Side of a patch.
    pub patch: usize,
}

/// Sizes of `modulated_norm`.
#[derive(Clone, Copy, Debug)]
pub struct NormSizes {
    pub images: usize,
    pub tokens: usize,
    pub hidden: usize,
    /// Values from one image's modulation to the next's, or 0 where one serves all.
    pub stride: usize,
}

impl Launch {
    /// x_t (N, E) of x_start (images, E) and draws (N).
    ///
    /// # Errors
    /// `Size` where a size is 0 or beyond what indices and grids hold.
    pub fn q_sample(sizes: SampleSizes) -> Result<Self, LaunchError> {
        let SampleSizes { images, draws, elements } = sizes;
        let size = |field, got, limit| size("q_sample", field, got, limit);
        size("images", images, ROW_VALUES_MAX)?;
        let (draws_u32, elements_u32) = (size("draws", draws, GRID_ROWS_MAX)?, size("elements", elements, ROW_VALUES_MAX)?);
        Ok(Self {
            kernel: "q_sample",
            grid: (elements_u32.div_ceil(4).div_ceil(THREADS), draws_u32),
            sizes: vec![elements_u32],
            inputs: vec![images * elements, draws * Draw::WORDS],
            outputs: vec![draws * elements],
        })
    }

    /// gram (N, K, K) and cross (N, K) in f64 of pred_noise (N, T, K, P) and draws (N).
    ///
    /// # Errors
    /// `Size` where a size is 0 or beyond its limit, `Patch` where patches do not tile the image.
    pub fn gram_terms(sizes: GramSizes) -> Result<Self, LaunchError> {
        let GramSizes { draws, classes, channels, height, width, patch } = sizes;
        let size = |field, got, limit| size("gram_terms", field, got, limit);
        let draws_u32 = size("draws", draws, GRID_ROWS_MAX)?;
        let classes_u32 = size("classes", classes, 4096)?;
        let sizes = [
            classes_u32,
            size("channels", channels, 64)?,
            size("height", height, 4096)?,
            size("width", width, 4096)?,
            size("patch", patch, 64)?,
        ];
        size("values of a patch", channels * patch * patch, TILE_VALUES)?;
        size("values of an image", channels * height * width, ROW_VALUES_MAX)?;
        if height % patch != 0 || width % patch != 0 {
            return Err(LaunchError::Patch { kernel: "gram_terms", patch, height, width });
        }
        // Each class with the noise, and each pair of classes once.
        let pairs = classes_u32 + classes_u32 * (classes_u32 + 1) / 2;
        Ok(Self {
            kernel: "gram_terms",
            grid: (pairs.div_ceil(BLOCK_SUMS), draws_u32),
            sizes: sizes.to_vec(),
            inputs: vec![draws * classes * channels * height * width, draws * Draw::WORDS],
            outputs: vec![draws * classes * classes, draws * classes],
        })
    }

    /// y (N, T, D) of x (N, T, D) and the first D values of each row of shift and scale.
    ///
    /// # Errors
    /// `Size` where a size is 0 or beyond its limit, `Stride` where rows of modulations overlap.
    pub fn modulated_norm(sizes: NormSizes) -> Result<Self, LaunchError> {
        let NormSizes { images, tokens, hidden, stride } = sizes;
        let size = |field, got, limit| size("modulated_norm", field, got, limit);
        size("images", images, ROW_VALUES_MAX)?;
        let (tokens_u32, hidden_u32) = (size("tokens", tokens, ROW_VALUES_MAX)?, size("hidden", hidden, ROW_VALUES_MAX)?);
        let rows = size("tokens of all images", images * tokens, ROW_VALUES_MAX)?;
        if stride != 0 && stride < hidden {
            return Err(LaunchError::Stride { kernel: "modulated_norm", stride, hidden });
        }
        let stride_u32 = if stride == 0 { 0 } else { size("stride", stride, ROW_VALUES_MAX)? };
        let modulations = (images - 1) * stride + hidden;
        Ok(Self {
            kernel: "modulated_norm",
            grid: (rows.div_ceil(BLOCK_SUMS), 1),
            sizes: vec![rows, tokens_u32, hidden_u32, stride_u32],
            inputs: vec![images * tokens * hidden, modulations, modulations],
            outputs: vec![images * tokens * hidden],
        })
    }

    /// # Errors
    /// `Length` for the first buffer that has not as many values as the kernel reads or writes.
    pub fn check(&self, inputs: &[usize], outputs: &[usize]) -> Result<(), LaunchError> {
        for (kind, expected, got) in [("input", &self.inputs, inputs), ("output", &self.outputs, outputs)] {
            assert_eq!(expected.len(), got.len(), "{}: number of {kind}s", self.kernel);
            for (position, (&expected, &got)) in expected.iter().zip(got).enumerate() {
                if expected != got {
                    return Err(LaunchError::Length { kernel: self.kernel, kind, position, expected, got });
                }
            }
        }
        Ok(())
    }
}

/// `got` in 32 bits, if it is from 1 to `limit`.
fn size(kernel: &'static str, field: &'static str, got: usize, limit: usize) -> Result<u32, LaunchError> {
    match u32::try_from(got) {
        Ok(size) if (1..=limit).contains(&got) => Ok(size),
        _ => Err(LaunchError::Size { kernel, field, got, limit }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAM: GramSizes = GramSizes { draws: 32, classes: 10, channels: 1, height: 28, width: 28, patch: 4 };
    const NORM: NormSizes = NormSizes { images: 3, tokens: 49, hidden: 96, stride: 576 };

    #[test]
    fn a_size_that_does_not_fit_is_refused_with_its_value_and_limit() {
        let refused = |launch: Result<Launch, LaunchError>| launch.expect_err("a launch that cannot be").to_string();
        let cases = [
            (
                refused(Launch::q_sample(SampleSizes { images: 1, draws: 65_536, elements: 1 })),
                "q_sample: draws must be from 1 to 65535, got 65536",
            ),
            (
                refused(Launch::q_sample(SampleSizes { images: 1, draws: 1, elements: 0 })),
                "q_sample: elements must be from 1 to 268435456, got 0",
            ),
            (refused(Launch::gram_terms(GramSizes { patch: 5, ..GRAM })), "gram_terms: patch 5 does not divide an image of 28 x 28"),
            (
                refused(Launch::gram_terms(GramSizes { channels: 6, patch: 28, ..GRAM })),
                "gram_terms: values of a patch must be from 1 to 4096, got 4704",
            ),
            (
                refused(Launch::modulated_norm(NormSizes { stride: 95, ..NORM })),
                "modulated_norm: stride 95 between modulations is below hidden 96 and not 0",
            ),
        ];
        for (message, expected) in cases {
            assert_eq!(message, expected);
        }
    }

    #[test]
    fn a_buffer_of_another_length_is_refused_with_both_lengths() {
        let launch = Launch::modulated_norm(NORM).expect("a launch");
        let (x, modulations) = (3 * 49 * 96, 2 * 576 + 96);
        assert_eq!(launch.check(&[x, modulations, modulations], &[x]), Ok(()));
        let error = launch.check(&[x, modulations, modulations - 1], &[x]).expect_err("a short scale");
        assert_eq!(error.to_string(), "modulated_norm: input 2 must have 1248 values, got 1247");
    }

    #[test]
    fn a_draw_of_an_image_that_is_not_there_is_refused() {
        let draw = |image| Draw { key: NoiseKey::from_seed(1, "launch", 0), number: 0, image, signal: 1.0, spread: 0.0 };
        assert_eq!(Draw::check_images(&[draw(0), draw(1)], 2), Ok(()));
        assert_eq!(Draw::check_images(&[draw(0), draw(2)], 2), Err(LaunchError::Image { image: 2, images: 2 }));
    }
}
