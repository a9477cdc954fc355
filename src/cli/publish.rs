//! `undrift publish`: plays labelled frames to the daemon, as a camera would.

use super::source::{LabelledPayload, SourceArguments};
use super::sysexits::{EX_CONFIG, EX_DATAERR, EX_UNAVAILABLE};
use crate::shell::nats::{Identity, NatsError};
use crate::wire::{self, PrefixError, Subjects};
use async_nats::{HeaderMap, ServerAddr};
use clap::Args;
use indicatif::ProgressBar;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

#[derive(Args)]
pub struct Publish {
    #[arg(long, default_value = "nats://127.0.0.1:4222")]
    url: ServerAddr,
    #[command(flatten)]
    identity: Identity,
    /// First tokens of the daemon's subjects
    #[arg(long, default_value = "undrift.v1")]
    prefix: String,
    /// Name of the camera: letters, digits, - and _; the stream day has its own
    #[arg(long, default_value = "camera")]
    camera: String,
    /// Frames a second
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    #[command(flatten)]
    source: SourceArguments,
    /// Wait for each frame to be stored by JetStream
    #[arg(long)]
    jetstream: bool,
}

/// Frames that could not be read, or not sent.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("{0}")]
    Source(Box<dyn std::error::Error>),
    #[error("--camera {0:?}: 1 to 64 letters, digits, - and _ are accepted")]
    Camera(String),
    #[error("--rate {0}: a number above 0, at most 10000, is accepted")]
    Rate(f64),
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    #[error(transparent)]
    Identity(#[from] NatsError),
    #[error("failed to publish: {0}")]
    Nats(#[source] async_nats::Error),
    #[error("failed to start: {0}")]
    Runtime(std::io::Error),
}

impl PublishError {
    fn nats(error: impl Into<async_nats::Error>) -> Self {
        Self::Nats(error.into())
    }
}

pub fn run(command: &Publish) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PublishError::Runtime);
    match runtime.and_then(|runtime| runtime.block_on(publish(command))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("undrift: {error}");
            ExitCode::from(match error {
                PublishError::Nats(_) => EX_UNAVAILABLE,
                PublishError::Identity(_) => EX_CONFIG,
                _ => EX_DATAERR,
            })
        }
    }
}

async fn publish(command: &Publish) -> Result<(), PublishError> {
    let interval = Duration::try_from_secs_f64(command.rate.recip()).ok().filter(|interval| *interval >= Duration::from_micros(100));
    let interval = interval.ok_or(PublishError::Rate(command.rate))?;
    if !wire::is_camera_id(&command.camera) {
        return Err(PublishError::Camera(command.camera.clone()));
    }
    let subjects = Subjects::new(&command.prefix)?;
    let urls = [command.url.clone()];
    let options = command.identity.apply(async_nats::ConnectOptions::new(), &urls).await?;
    let frames = command.source.load().map_err(PublishError::Source)?;
    let client = options.connect(&urls[..]).await.map_err(PublishError::nats)?;
    let jetstream = command.jetstream.then(|| async_nats::jetstream::new(client.clone()));
    let progress = ProgressBar::new(frames.len() as u64);
    let mut ticks = tokio::time::interval(interval);
    // A constant rate: what was late is made up for, as a camera's next frame does not wait for its last.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for frame in frames {
        ticks.tick().await;
        let subject = subjects.frames(frame.camera.unwrap_or(&command.camera));
        let (headers, payload) = (headers(&frame), frame.payload.into());
        match &jetstream {
            None => client.publish_with_headers(subject, headers, payload).await.map_err(PublishError::nats)?,
            Some(jetstream) => {
                let ack = jetstream.publish_with_headers(subject, headers, payload).await.map_err(PublishError::nats)?;
                ack.await.map_err(PublishError::nats)?;
            }
        }
        progress.inc(1);
    }
    progress.finish();
    client.flush().await.map_err(PublishError::nats)
}

fn headers(frame: &LabelledPayload) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Frame-Id", frame.frame_id.as_str());
    headers.insert("Label", frame.label.to_string());
    headers.insert("Domain", frame.domain.as_str());
    headers
}
