//! The two models, built of the same blocks: the classifier ([`Vit`]) and the diffusion model ([`Dit`]). Next to them a
//! classifier of another kind, [`ResNet`], so that methods are not judged on one architecture.
//!
//! Both cut an image into tokens, add positions and run blocks of attention and MLP whose norms are modulated: by the
//! timestep (and class) in the DiT, by learned constants in the ViT.

mod blocks;
mod classifier;
mod dit;
mod inference;
mod learning;
pub mod parameters;
pub mod published;
mod resnet;
mod vit;

pub use blocks::{ImageShape, ShapeError, TrunkConfig};
pub use classifier::{ClassifierConfig, ClassifierModel};
pub use dit::{ClassConditioning, Dit, DitConfig};
pub use inference::{DitWorkspace, InferenceDit, InferenceVit, VitWorkspace};
pub use learning::{BackwardWorkspace, LearningVit, Tape};
pub use parameters::{Gradients, ParameterError, Parameters, Tensors};
pub use resnet::{NormStatistics, ResNet, ResNetConfig};
pub use vit::{Vit, VitConfig};
