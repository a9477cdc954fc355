//! What every part of the shell may know of the others: the phase, the connection, the last status of the pipeline.
//!
//! Written by the daemon, the NATS events and the device thread; read by HTTP and control.
//! Invariant: readers never wait for a computation; locks are held for a copy.

use super::telemetry;
use crate::config::NatsMode;
use crate::pipeline::Status;
use async_nats::Client;
use parking_lot::Mutex;
use std::sync::OnceLock;
use std::time::Instant;
use tokio::sync::watch;

/// How far the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Loading,
    WaitingForStream,
    Running,
    Stopping,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading the model",
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

    /// Whether the model is there, whatever the connection does.
    pub fn has_started(&self) -> bool {
        matches!(*self.phase.lock(), Phase::Running | Phase::Stopping)
    }

    /// Why frames cannot be answered now; none when they can.
    pub fn obstacle(&self) -> Option<&'static str> {
        match *self.phase.lock() {
            Phase::Running if !*self.connected.borrow() => Some("not connected to NATS"),
            Phase::Running => None,
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
