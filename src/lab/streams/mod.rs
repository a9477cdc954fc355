//! Seeded streams of labelled frames whose scene changes as they go.
//!
//! A stream is planned first, then rendered frame by frame: [`Plan`] says for each frame which image it shows and which [`Scene`] the
//! camera saw it in; [`Playback`] makes the pixels, in any order and on any thread. [`Stream`] lists the names.
//! Invariant: a frame depends on the stream's name, the images, the [`Request`], the table and its index alone.

mod calibration;
mod choice;
mod continually_changing;
mod day;
mod name;
mod order;
mod plan;
mod scene;

pub use calibration::{Calibration, CalibrationError};
pub use continually_changing::Walk;
pub use name::Stream;
pub use plan::{Plan, PlanError, PlannedFrame, Playback, Request, StreamFrame};
pub use scene::{Layer, Scene};
