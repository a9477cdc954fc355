//! The imperative shell: NATS, HTTP, disk, threads and signals.

pub mod bundle_reader;
mod changed_stream;
pub mod daemon;
pub mod decision_log;
pub mod engine;
pub mod http;
mod in_hand;
pub mod jetstream;
pub mod nats;
pub mod publisher;
pub mod queue;
pub mod replay;
mod stall;
pub mod status;
pub mod store;
pub mod store_thread;
pub mod telemetry;
mod threads;
