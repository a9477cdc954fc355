//! `undrift` keeps one image classifier right while the world in front of the cameras changes.
//!
//! Cameras publish frames to NATS. Each is answered with a prediction, and from frames, without a label, the classifier
//! is improved: a frozen class-conditional diffusion model says how well each class explains the image (after Diffusion-TTA, arXiv
//! 2311.16102), and the gradient towards what both models make of it goes into the classifier's weights, beside that of the entropy
//! of answers that the classifier is sure of (EATA, arXiv 2204.02610).
//!
//! # The line that a frame takes
//!
//! ```text
//! NATS -> ingest -> decode -> predict and judge -> reply              the fast lane: a camera waits for this
//!                                         \-> window -> adapt -> new weights  the slow lane: nobody waits for this
//!                                                           \-> checkpoint
//!                  every stage -> observations -> telemetry -> /metrics
//! ```
//!
//! [`shell::engine`] is that line in code: a message is decoded ([`decode`]), applied to the [`pipeline`], and the effects
//! that come out are carried out. The pipeline answers with one [`learner::FrozenClassifier`] times what the [`learner::Judge`]
//! (the diffusion model) makes of the frame and what its camera has shown lately ([`recent`]), groups frames into windows and hands each
//! full window to the [`learner::Adapter`], which lets the [`policy`] rule whether the judge is to be believed, takes one step, and gives back
//! new weights. They answer the window after the next, whatever the clock says. The [`guard`] keeps frames out that teach too often,
//! and takes back what turns out to do harm.
//!
//! # After a crash
//!
//! With a stream, what happened after the checkpoint happens again: the frames come from the stream, the operators' decisions
//! from [`shell::decision_log`], each at its place. Predictions that are stored already are compared by their [`proof`] and not
//! stored twice ([`shell::replay`], [`shell::publisher`]). [`lab::verify`] does the same without a daemon.
//!
//! # Core and shell
//!
//! The core is pure: [`frame`], [`decode`], [`noise`], [`diffusion`], [`model`], [`kernels`], [`learner`], [`policy`],
//! [`recent`], [`guard`], [`monitor`], [`pipeline`], [`prediction`], [`proof`], [`observation`], [`wire`], [`by_camera`], [`bundle`], [`state`],
//! [`checkpoint`]. It has no sockets, files, clock or threads of its own (but for
//! rayon's, which change no bit), and nothing in it is random but by key. [`shell`] has NATS, HTTP, disk, threads and
//! signals. [`lab`] trains and evaluates on the same core; the daemon knows nothing of it. [`config`] is read once, at the start, and [`cli`] has a thin
//! file for each command.
//!
//! # Invariants
//!
//! - Which weights answer which frame is a function of the stream.
//! - [`state::DurableState`] is all that the next bit depends on.
//! - A label reaches metrics, never weights.
//! - Frozen weights get no gradient and cost none; a trainable parameter without a gradient is an error.
//!
//! Shape letters, everywhere: N images or draws, V views of a frame, K classes, C channels, H W, T tokens, D hidden, P values of a patch.

#![deny(unsafe_code)]

pub mod bundle;
pub mod by_camera;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod decode;
pub mod diffusion;
pub mod frame;
pub mod guard;
#[allow(unsafe_code, reason = "calls into gemm, the allocator, the scheduler and CUDA; each block says why it is sound")]
pub mod kernels;
pub mod lab;
pub mod learner;
pub mod model;
pub mod monitor;
pub mod noise;
pub mod observation;
pub mod pipeline;
pub mod policy;
pub mod prediction;
pub mod proof;
pub mod recent;
pub mod shell;
pub mod state;
pub mod wire;

// The tiny models of `tests/`, which know the crate by its name, serve unit tests too.
#[cfg(test)]
extern crate self as undrift;
#[cfg(test)]
#[path = "../tests/tiny/mod.rs"]
mod tiny;
