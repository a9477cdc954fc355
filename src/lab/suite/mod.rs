//! The comparison in full: every method on every stream, kept cell by cell.
//!
//! [`Block`]s say what is compared; a [`Cell`] is one method on one stream with one seed, and what came of it is a [`Record`], a file of
//! its own in the [`Archive`]. Figures are computed from records alone, so that they can be had again without a model.
//! Invariant: a record is used only for the cell, the models, the images and the settings that its fingerprint names.
//! Absent on purpose: the fingerprint knows the version of the program, not its every change; remove the files of a method whose code
//! has changed.

mod archive;
mod cell;
mod figures;
mod plan;
mod record;
mod run;
mod text;
mod trends;

pub use archive::{Archive, ArchiveError, Found};
pub use cell::{Cell, Materials, Scenario, Subject};
pub use figures::{Figures, Mean, Records, Row, Setup};
pub use plan::{Block, Extent, Section, Suite};
pub use record::{Record, RecordError, Runs};
pub use run::{RunError, in_parallel, run_cell};
pub use text::figures_text;
pub use trends::{Corruptions, Difference, Estimate};
