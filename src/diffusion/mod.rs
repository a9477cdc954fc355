//! The diffusion process: what the model sees of an image, the noise schedule, and the step to a noised image.

mod intensity;
mod schedule;

pub use intensity::{stretch, stretch_into};
pub use schedule::{Schedule, Timestep};
