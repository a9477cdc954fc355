//! What every part of the shell may know of the others: the phase, the connection, the last status of the pipeline.
//!
//! Written by the daemon, the NATS events, ingest, the device thread and the watch for stalls; read by HTTP and control.
//! Invariant: readers never wait for a computation; locks are held for a copy.

use super::stall::{self, Sight};
use super::telemetry;
use crate::config::NatsMode;
use crate::pipeline::Status;
use crate::wire::Lane;
use async_nats::Client;
use parking_lot::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;
use tokio::sync::watch;

/// How far the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Loading,
    WaitingForNats,
    WaitingForStream,
    Running,
    Stopping,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading the model",
            Self::WaitingForNats => "waiting for NATS",
            Self::WaitingForStream => "waiting for the stream",
            Self::Running => "running",
            Self::Stopping => "stopping",
        }
    }
}

/// The shared facts.
pub struct Shared {
    started: Instant,
    mode: NatsMode,
    phase: Mutex<Phase>,
    pipeline: Mutex<Option<Status>>,
    connected: watch::Sender<bool>,
    client: OnceLock<Client>,
    /// Frames that the device thread has taken, and those that it is through with, since the start.
    taken: AtomicU64,
    finished: AtomicU64,
    /// Frames that the stream has and has not delivered, as it said last.
    pending: AtomicU64,
    /// What the next frame waits for while the device thread does not take it.
    held_by: Mutex<Lane>,
    stalled: Mutex<Option<Lane>>,
}

impl Shared {
    pub fn new(mode: NatsMode) -> Self {
        Self {
            started: Instant::now(),
            mode,
            phase: Mutex::new(Phase::Loading),
            pipeline: Mutex::new(None),
            connected: watch::Sender::new(false),
            client: OnceLock::new(),
            taken: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            held_by: Mutex::new(Lane::Device),
            stalled: Mutex::new(None),
        }
    }

    pub fn set_phase(&self, phase: Phase) {
        *self.phase.lock() = phase;
        self.show_ready();
    }

    pub fn set_pipeline(&self, status: Status) {
        *self.pipeline.lock() = Some(status);
    }

    pub fn set_client(&self, client: Client) {
        // Set once, at the start; a second client does not exist.
        let _ = self.client.set(client);
    }

    pub fn set_connected(&self, is_connected: bool) {
        telemetry::NATS_CONNECTED.set(f64::from(u8::from(is_connected)));
        self.connected.send_replace(is_connected);
        self.show_ready();
    }

    /// Changes when the connection is lost or made, also where it was both since one looked.
    pub fn connection(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    pub async fn wait_until_connected(&self) {
        let mut connected = self.connected.subscribe();
        // The sender is in `self`, so it cannot be gone.
        let _ = connected.wait_for(|&is_connected| is_connected).await;
    }

    /// The device thread begins with a frame.
    pub fn take_frame(&self) {
        self.taken.fetch_add(1, Relaxed);
    }

    /// The device thread is through with it, whatever came of it.
    pub fn finish_frame(&self) {
        self.finished.fetch_add(1, Relaxed);
    }

    pub fn set_held_by(&self, lane: Lane) {
        *self.held_by.lock() = lane;
    }

    pub fn set_pending(&self, frames: u64) {
        telemetry::NATS_CONSUMER_PENDING.set(frames as f64);
        self.pending.store(frames, Relaxed);
    }

    pub fn pending(&self) -> u64 {
        self.pending.load(Relaxed)
    }

    /// Last frame that was applied; 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.pipeline.lock().as_ref().map_or(0, |status| status.sequence)
    }

    /// What is seen of the frames now, where `has_frames` wait in the inbox. Without a connection, or before it runs, that it stands
    /// still is known, and no stall.
    pub fn sight(&self, has_frames: bool) -> Sight {
        let finished = self.finished.load(Relaxed);
        let is_running = *self.phase.lock() == Phase::Running && *self.connected.borrow();
        let waits_in = match () {
            () if !is_running => None,
            () if self.taken.load(Relaxed) > finished => Some(Lane::Device),
            () if has_frames => Some(*self.held_by.lock()),
            () => (self.pending() > 0).then_some(Lane::Stream),
        };
        Sight { finished, waits_in }
    }

    /// Whether that is news.
    pub fn set_stalled(&self, lane: Option<Lane>) -> bool {
        let before = std::mem::replace(&mut *self.stalled.lock(), lane);
        self.show_ready();
        before != lane
    }

    /// Whether the model is there, whatever the connection does.
    pub fn has_started(&self) -> bool {
        *self.phase.lock() != Phase::Loading
    }

    /// Why frames cannot be answered now; none when they can.
    pub fn obstacle(&self) -> Option<&'static str> {
        match *self.phase.lock() {
            Phase::WaitingForNats | Phase::WaitingForStream | Phase::Running if !*self.connected.borrow() => Some("not connected to NATS"),
            Phase::Running => self.stalled.lock().map(stall::obstacle),
            phase => Some(phase.name()),
        }
    }

    /// The record behind `status`, `/status` and the service's statistics.
    pub fn report(&self) -> serde_json::Value {
        let status = self.pipeline.lock().clone();
        let mut report = status.map_or_else(|| serde_json::json!({}), |status| serde_json::json!(status));
        report["phase"] = self.phase.lock().name().into();
        report["version"] = env!("CARGO_PKG_VERSION").into();
        report["uptime_seconds"] = self.started.elapsed().as_secs().into();
        report["nats"] = serde_json::json!({
            "connected": *self.connected.borrow(),
            "mode": match self.mode { NatsMode::Core => "core", NatsMode::Jetstream => "jetstream" },
            "server_version": self.client.get().map(|client| client.server_info().version),
        });
        report
    }

    fn show_ready(&self) {
        telemetry::READY.set(f64::from(u8::from(self.obstacle().is_none())));
    }
}
