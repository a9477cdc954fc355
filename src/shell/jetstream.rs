//! Frames out of a JetStream stream, from where the checkpoint ends.
//!
//! The consumer is ephemeral, acknowledges nothing and starts at a sequence number that we name: the broker's memory of
//! what we have seen is not asked (it may be lost, or lie ahead). After any error it is made again from the next frame
//! that we lack, so nothing is lost and nothing is fed twice.
//! Invariants: what leaves here has strictly increasing sequence numbers of one incarnation of the stream, without a frame that
//! the stream has in between: the consumer numbers its deliveries, so that one that was lost on the way shows. A stream that
//! was deleted and made again, or that lost its end, is a new incarnation: following ends, and the daemon starts over
//! from its checkpoint.
//! Absent on purpose: the client's ordered consumer, which may start over at the first frame of the stream.

use super::engine::Lines;
use super::nats::{NatsError, SUBSCRIPTION_MESSAGES_MAX, jittered};
use super::queue::{Arrival, Outgoing};
use super::status::Phase;
use super::telemetry;
use crate::frame::{FrameMark, FrameSeq};
use crate::wire::{EventRecord, Subjects};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{Context, ErrorCode, Message};
use futures_util::StreamExt;
use std::time::{Duration, Instant};

const FRAMES_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
const PREDICTIONS_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Of each stream that is made here; an operator's own stream of the same name keeps its own limits.
const STREAM_BYTES_MAX: i64 = 1 << 30;
/// A replay after a crash repeats predictions; within this time the stream drops the repetitions.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(10 * 60);
pub const PULL_FRAMES_MAX: usize = 32;
/// Above the largest message that a broker can be told to take (64 MiB): a pull that is smaller than the next frame waits
/// for ever.
pub const PULL_BYTES_MAX: usize = 65 << 20;
const PULL_EXPIRES: Duration = Duration::from_secs(10);
/// Messages that are asked for at once where all that a stream has is read: more than a subscription buffers would be dropped.
pub const FETCH_MESSAGES: usize = SUBSCRIPTION_MESSAGES_MAX / 2;
/// A message that the stream has comes at once, or the broker is asked again.
pub const FETCH_PATIENCE: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A consumer that has frames and delivers none for so long is made again, which also tells whether they are there still.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(10);
/// The broker forgets a consumer that nobody pulls from.
const INACTIVE_THRESHOLD: Duration = Duration::from_secs(60);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(4);
/// Before a missing stream is made. The broker may be deleting it: a stream that is made meanwhile loses its files to that, and
/// stores nothing from then on ("error opening msg block file" in nats-server 2.9, no answer in 2.14). On a busy machine 235 ms
/// were too short.
const DELETION_TIME: Duration = Duration::from_secs(1);

/// How far the stream is read.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    pub sequence: u64,
    /// Of the frame with that number.
    pub mark: Option<FrameMark>,
}

impl Position {
    /// Whether the stream has another message under the number that was read last.
    ///
    /// # Errors
    /// `JetStream` where the broker does not answer.
    pub async fn is_rewritten(&self, stream: &Stream) -> Result<bool, NatsError> {
        match &self.mark {
            Some(mark) => is_rewritten(stream, self.sequence, mark).await,
            None => Ok(false),
        }
    }
}

/// How far a consumer is followed.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    /// Of the last frame that was taken.
    sequence: u64,
    /// Of the last delivery in the consumer's count, which begins at 1.
    delivery: u64,
}

/// What a delivery is to a [`Cursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The next frame; the stream lacks `missing` numbers before it.
    Next { missing: u64 },
    /// A frame that was taken before.
    Stale,
    /// A delivery before it has not arrived: only a new consumer brings the frames in between.
    Broken,
}

impl Cursor {
    /// Of a new consumer that begins behind frame `sequence`.
    pub fn after(sequence: u64) -> Self {
        Self { sequence, delivery: 0 }
    }

    /// Last frame that was taken.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Takes the frame `sequence`, where it is the next.
    pub fn take(&mut self, delivery: u64, sequence: u64) -> Delivery {
        let is_next = delivery == self.delivery + 1;
        if is_next {
            self.delivery = delivery;
        }
        if sequence <= self.sequence {
            return Delivery::Stale;
        }
        if !is_next {
            return Delivery::Broken;
        }
        let missing = sequence - self.sequence - 1;
        self.sequence = sequence;
        Delivery::Next { missing }
    }
}

/// What the broker says of the frames' stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamFacts {
    /// Name and time of creation.
    pub incarnation: String,
    /// Of the first message that it has; behind the last where it has none.
    pub first_sequence: u64,
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
    let predictions = config(predictions_stream(subjects), subjects.all_predictions(), PREDICTIONS_AGE_MAX);
    let frames = config(frames_stream(subjects), subjects.all_frames(), FRAMES_AGE_MAX);
    let is_there = find(context, &predictions.name).await?.is_some();
    if let (true, Some(stream)) = (is_there, find(context, &frames.name).await?) {
        return Ok(stream);
    }
    tokio::time::sleep(DELETION_TIME).await;
    context.get_or_create_stream(predictions).await.map_err(boxed)?;
    context.get_or_create_stream(frames).await.map_err(boxed)
}

/// The stream with this name, where there is one.
async fn find(context: &Context, name: &str) -> Result<Option<Stream>, NatsError> {
    match context.get_stream(name).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(boxed(error)),
    }
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(answer) if answer.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Name of the stream that answers are stored in.
pub fn predictions_stream(subjects: &Subjects) -> String {
    stream_name(subjects, "PREDICTIONS")
}

/// Name of the stream that frames come from.
pub fn frames_stream(subjects: &Subjects) -> String {
    stream_name(subjects, "FRAMES")
}

/// `undrift.v1` and `FRAMES` make `UNDRIFT_V1_FRAMES`: dots are not allowed in names of streams.
fn stream_name(subjects: &Subjects, role: &str) -> String {
    let subject = subjects.all_frames();
    let prefix = subject.trim_end_matches(".frames.*");
    format!("{}_{role}", prefix.replace('.', "_").to_ascii_uppercase())
}

pub(crate) fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> NatsError {
    NatsError::JetStream(error.into())
}

pub fn facts(stream: &Stream) -> StreamFacts {
    let info = stream.cached_info();
    let incarnation = format!("{}@{}", info.config.name, info.created.unix_timestamp_nanos());
    StreamFacts { incarnation, first_sequence: info.state.first_sequence, last_sequence: info.state.last_sequence }
}

/// Whether the message with this number is another than the frame that was applied under it; false where it is gone.
///
/// # Errors
/// `JetStream` where the broker does not answer.
pub async fn is_rewritten(stream: &Stream, sequence: u64, mark: &FrameMark) -> Result<bool, NatsError> {
    Ok(mark_of(stream, sequence).await?.is_some_and(|found| found != *mark))
}

/// Of the message with this number; none where it is gone.
///
/// # Errors
/// `JetStream` where the broker does not answer.
pub async fn mark_of(stream: &Stream, sequence: u64) -> Result<Option<FrameMark>, NatsError> {
    if sequence == 0 {
        return Ok(None);
    }
    match stream.get_raw_message(sequence).await {
        Ok(message) => {
            let broker_time_ns = i64::try_from(message.time.unix_timestamp_nanos()).ok();
            Ok(Some(FrameMark { payload_hash: blake3::hash(&message.payload).into(), broker_time_ns }))
        }
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(boxed(error)),
    }
}

/// Number of the first message that was stored after `time_ns` (nanoseconds since 1970), where there is one.
///
/// # Errors
/// `JetStream` where the broker does not answer.
pub async fn first_after(stream: &Stream, time_ns: i64) -> Result<Option<u64>, NatsError> {
    let created = stream.cached_info().created;
    let nanoseconds = i128::from(time_ns) + 1 - created.unix_timestamp_nanos();
    let start_time = created + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartTime { start_time },
        ack_policy: AckPolicy::None,
        headers_only: true,
        memory_storage: true,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(boxed)?;
    if consumer.cached_info().num_pending == 0 {
        return Ok(None);
    }
    let mut batch = consumer.fetch().max_messages(1).expires(FETCH_PATIENCE).messages().await.map_err(boxed)?;
    let first = batch.next().await.unwrap_or_else(|| Err("the stream does not deliver what it has".into()));
    Ok(Some(first.map_err(NatsError::JetStream)?.info().map_err(NatsError::JetStream)?.stream_sequence))
}

/// Pushes the frames after `last` into the inbox; returns when the stream is not the one any more that the numbers belong to.
pub async fn follow(context: &Context, subjects: &Subjects, lines: &Lines, incarnation: &str, mut last: Position) {
    let mut failures = 0;
    loop {
        let before = last.sequence;
        lines.shared.wait_until_connected().await;
        let outcome = match ensure_streams(context, subjects).await {
            Ok(stream) => {
                let facts = facts(&stream);
                if facts.incarnation != incarnation || facts.last_sequence < last.sequence {
                    return;
                }
                match last.is_rewritten(&stream).await {
                    Ok(true) => return,
                    Ok(false) => pull_frames(&stream, subjects, lines, &mut last).await,
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, last = last.sequence, "consumer ended, making it again");
        }
        telemetry::NATS_CONSUMER_RESTARTS.count(1);
        failures = if last.sequence > before { 0 } else { failures + 1 };
        tokio::time::sleep(jittered(failures, RETRY_DELAY_MAX)).await;
    }
}

/// Pulls from a consumer of our own until it errs; `last` moves with each frame.
async fn pull_frames(stream: &Stream, subjects: &Subjects, lines: &Lines, last: &mut Position) -> Result<(), NatsError> {
    let config = pull::Config {
        description: Some("undrift".to_owned()),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: last.sequence + 1 },
        ack_policy: AckPolicy::None,
        filter_subject: subjects.all_frames(),
        inactive_threshold: INACTIVE_THRESHOLD,
        memory_storage: true,
        ..pull::Config::default()
    };
    let mut connection = lines.shared.connection();
    let consumer = stream.create_consumer(config).await.map_err(boxed)?;
    lines.shared.set_pending(consumer.cached_info().num_pending);
    let pull = consumer.stream().max_messages_per_batch(PULL_FRAMES_MAX).max_bytes_per_batch(PULL_BYTES_MAX);
    let mut messages = pull.expires(PULL_EXPIRES).heartbeat(HEARTBEAT).messages().await.map_err(boxed)?;
    lines.shared.set_phase(Phase::Running);
    let mut cursor = Cursor::after(last.sequence);
    loop {
        tokio::select! {
            // Cancelled, a message that has come is there still.
            message = messages.next() => match message {
                Some(message) => take(message.map_err(boxed)?, lines, subjects, &mut cursor, last).await?,
                None => return Ok(()),
            },
            // Cancelled, it begins anew: so long after the last frame.
            () = tokio::time::sleep(DELIVERY_PATIENCE), if lines.shared.pending() > 0 => {
                return Err(NatsError::JetStream("the stream has frames and delivers none".into()));
            }
            // What was on its way never comes, and without a frame behind it nothing would tell.
            _ = connection.changed() => return Err(NatsError::JetStream("the connection was lost".into())),
        }
    }
}

async fn take(message: Message, lines: &Lines, subjects: &Subjects, cursor: &mut Cursor, last: &mut Position) -> Result<(), NatsError> {
    let info = message.info().map_err(NatsError::JetStream)?;
    let (sequence, pending) = (info.stream_sequence, info.pending);
    let broker_time_ns = i64::try_from(info.published.unix_timestamp_nanos()).ok();
    lines.shared.set_pending(pending);
    match cursor.take(info.consumer_sequence, sequence) {
        Delivery::Next { missing: 0 } => {}
        Delivery::Next { missing } => {
            tracing::warn!(after = last.sequence, missing, "the stream lacks frames");
            telemetry::FRAMES_MISSED.count(missing);
            lines.outbox.push(Outgoing::event(subjects, &EventRecord::Gap { missing }, FrameSeq(last.sequence)));
        }
        Delivery::Stale => {
            telemetry::FRAMES_STALE.count(1);
            return Ok(());
        }
        Delivery::Broken => return Err(NatsError::JetStream("deliveries were lost on the way".into())),
    }
    let (message, _) = message.split();
    *last = Position { sequence, mark: Some(FrameMark { payload_hash: blake3::hash(&message.payload).into(), broker_time_ns }) };
    lines.inbox.push_frame(Arrival { message, sequence, broker_time_ns, received: Instant::now() }).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_that_was_lost_on_the_way_is_told_from_a_frame_that_the_stream_lacks() {
        let mut cursor = Cursor::after(10);
        assert_eq!(cursor.take(1, 11), Delivery::Next { missing: 0 });
        assert_eq!(cursor.take(2, 14), Delivery::Next { missing: 2 });
        assert_eq!(cursor.take(4, 16), Delivery::Broken);
        assert_eq!(cursor.sequence(), 14);
        assert_eq!(cursor.take(3, 15), Delivery::Next { missing: 0 }, "late");
        assert_eq!(cursor.take(4, 16), Delivery::Next { missing: 0 });
    }

    #[test]
    fn frames_that_come_again_are_stale_whatever_their_delivery_is_called() {
        let mut cursor = Cursor::after(10);
        for (delivery, sequence) in [(1, 9), (2, 10), (2, 10), (7, 3)] {
            assert_eq!(cursor.take(delivery, sequence), Delivery::Stale, "delivery {delivery} of {sequence}");
        }
        assert_eq!(cursor.take(3, 11), Delivery::Next { missing: 0 });
    }
}
