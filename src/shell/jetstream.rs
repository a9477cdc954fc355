//! Frames out of a JetStream stream, from where the checkpoint ends.
//!
//! The consumer is ephemeral, acknowledges nothing and starts at a sequence number that we name: the broker's memory of
//! what we have seen is not asked (it may be lost, or lie ahead). After any error it is made again from the next frame
//! that we lack, so nothing is lost and nothing is fed twice.
//! Invariants: what leaves here has strictly increasing sequence numbers of one incarnation of the stream. A stream that
//! was deleted and made again, or that lost its end, is a new incarnation: following ends, and the daemon starts over
//! from its checkpoint.
//! Absent on purpose: the client's ordered consumer, which may start over at the first frame of the stream.

use super::engine::Lines;
use super::nats::{NatsError, jittered};
use super::queue::{Arrival, Inbox};
use super::status::{Phase, Shared};
use super::telemetry;
use crate::wire::Subjects;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::{Config, Stream};
use async_nats::jetstream::{Context, Message};
use futures_util::StreamExt;
use std::time::{Duration, Instant};

const FRAMES_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
const PREDICTIONS_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Of each stream that is made here; an operator's own stream of the same name keeps its own limits.
const STREAM_BYTES_MAX: i64 = 1 << 30;
/// A replay after a crash repeats predictions; within this time the stream drops the repetitions.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(10 * 60);
const PULL_FRAMES_MAX: usize = 32;
/// Above the largest message that a broker can be told to take (64 MiB): a pull that is smaller than the next frame waits
/// for ever.
const PULL_BYTES_MAX: usize = 65 << 20;
const PULL_EXPIRES: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(2);
/// The broker forgets a consumer that nobody pulls from.
const INACTIVE_THRESHOLD: Duration = Duration::from_secs(60);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(4);

/// What the broker says of the frames' stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamFacts {
    /// Name and time of creation.
    pub incarnation: String,
    pub last_sequence: u64,
}

/// Makes the two streams where they are missing.
///
/// # Errors
/// `JetStream` where the broker refuses or does not answer.
pub async fn ensure_streams(context: &Context, subjects: &Subjects) -> Result<Stream, NatsError> {
    let config = |name: String, subject: String, max_age| Config {
        name,
        subjects: vec![subject],
        max_bytes: STREAM_BYTES_MAX,
        max_age,
        duplicate_window: DUPLICATE_WINDOW,
        ..Config::default()
    };
    let predictions = config(stream_name(subjects, "PREDICTIONS"), subjects.all_predictions(), PREDICTIONS_AGE_MAX);
    context.get_or_create_stream(predictions).await.map_err(boxed)?;
    let frames = config(stream_name(subjects, "FRAMES"), subjects.all_frames(), FRAMES_AGE_MAX);
    context.get_or_create_stream(frames).await.map_err(boxed)
}

/// `undrift.v1` and `FRAMES` make `UNDRIFT_V1_FRAMES`: dots are not allowed in names of streams.
fn stream_name(subjects: &Subjects, role: &str) -> String {
    let subject = subjects.all_frames();
    let prefix = subject.trim_end_matches(".frames.*");
    format!("{}_{role}", prefix.replace('.', "_").to_ascii_uppercase())
}

fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> NatsError {
    NatsError::JetStream(error.into())
}

pub fn facts(stream: &Stream) -> StreamFacts {
    let info = stream.cached_info();
    let incarnation = format!("{}@{}", info.config.name, info.created.unix_timestamp_nanos());
    StreamFacts { incarnation, last_sequence: info.state.last_sequence }
}

/// Waits for the broker and its streams.
pub async fn wait_for_stream(context: &Context, subjects: &Subjects, shared: &Shared) -> StreamFacts {
    let mut failures = 0;
    loop {
        shared.wait_until_connected().await;
        match ensure_streams(context, subjects).await {
            Ok(stream) => return facts(&stream),
            Err(error) => tracing::warn!(%error, "the streams are not there yet"),
        }
        failures += 1;
        tokio::time::sleep(jittered(failures, RETRY_DELAY_MAX)).await;
    }
}

/// Pushes the frames after `last` into the inbox; returns when the stream is not the one any more that the numbers belong to.
pub async fn follow(context: &Context, subjects: &Subjects, lines: &Lines, incarnation: &str, mut last: u64) {
    let mut failures = 0;
    loop {
        let before = last;
        lines.shared.wait_until_connected().await;
        let outcome = match ensure_streams(context, subjects).await {
            Ok(stream) => {
                let facts = facts(&stream);
                if facts.incarnation != incarnation || facts.last_sequence < last {
                    return;
                }
                pull_frames(&stream, subjects, lines, &mut last).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, last, "consumer ended, making it again");
        }
        telemetry::NATS_CONSUMER_RESTARTS.count(1);
        failures = if last > before { 0 } else { failures + 1 };
        tokio::time::sleep(jittered(failures, RETRY_DELAY_MAX)).await;
    }
}

/// Pulls from a consumer of our own until it errs; `last` moves with each frame.
async fn pull_frames(stream: &Stream, subjects: &Subjects, lines: &Lines, last: &mut u64) -> Result<(), NatsError> {
    let config = pull::Config {
        description: Some("undrift".to_owned()),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: *last + 1 },
        ack_policy: AckPolicy::None,
        filter_subject: subjects.all_frames(),
        inactive_threshold: INACTIVE_THRESHOLD,
        memory_storage: true,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(boxed)?;
    let pull = consumer.stream().max_messages_per_batch(PULL_FRAMES_MAX).max_bytes_per_batch(PULL_BYTES_MAX);
    let mut messages = pull.expires(PULL_EXPIRES).heartbeat(HEARTBEAT).messages().await.map_err(boxed)?;
    lines.shared.set_phase(Phase::Running);
    while let Some(message) = messages.next().await {
        take(message.map_err(boxed)?, &lines.inbox, last).await?;
    }
    Ok(())
}

async fn take(message: Message, inbox: &Inbox, last: &mut u64) -> Result<(), NatsError> {
    let info = message.info().map_err(NatsError::JetStream)?;
    let (sequence, pending) = (info.stream_sequence, info.pending);
    let broker_time_ns = i64::try_from(info.published.unix_timestamp_nanos()).ok();
    telemetry::NATS_CONSUMER_PENDING.set(pending as f64);
    if sequence <= *last {
        telemetry::FRAMES_STALE.count(1);
        return Ok(());
    }
    telemetry::FRAMES_MISSED.count(sequence - *last - 1);
    *last = sequence;
    let (message, _) = message.split();
    inbox.push_frame(Arrival { message, sequence, broker_time_ns, received: Instant::now() }).await;
    Ok(())
}
