//! What learns: the classifier, judged by the diffusion model, moved by the optimizer, held by the anchor.

mod adapter;
mod classifier;
pub mod condition;
mod config;
mod frozen;
mod judge;
mod lookout;
pub mod objective;
mod optimizer;

pub use adapter::{AdaptError, Adapter, source_state};
pub use classifier::{Classifier, Description, Forward};
pub use config::{
    AdaptConfig, AdaptRangeError, AnswerBy, AnswerTime, ConditionConfig, EntropyConfig, GateConfig, GuardConfig, ObjectiveKind,
    TrainablePart,
};
pub use frozen::FrozenClassifier;
pub use judge::{Judge, Judgement, Verdict};
pub use optimizer::{Anchor, Optimizer, OptimizerConfig, OptimizerState, StepError, StepReport, accumulate, collect};
