//! One file for each command; each is thin.

pub mod check_config;
pub mod checkpoint;
pub mod ctl;
pub mod demo;
pub mod eval;
pub mod live;
pub mod publish;
pub mod run;
pub mod source;
pub mod sysexits;
pub mod train;
pub mod verify;
