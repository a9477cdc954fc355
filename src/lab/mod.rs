//! The offline lab: data, corruptions, training, evaluation. The daemon knows nothing of it.

pub mod augmentation;
pub mod baselines;
pub mod contact_sheet;
pub mod corruptions;
pub mod dataset;
mod dice;
pub mod evaluate;
pub mod folder;
pub mod methods;
pub mod poison;
pub mod report;
pub mod statistics;
pub mod streams;
pub mod suite;
pub mod summary;
pub mod train;
pub mod verify;
mod warp;
