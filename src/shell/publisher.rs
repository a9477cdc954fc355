//! Publishes what the outbox holds: the last station of a frame's path.
//!
//! With a stream, predictions are stored in their order and once: each names the number that the stream must have reached,
//! so the broker refuses it after a gap, and refuses a second daemon. When an acknowledgement fails to come, the end of the
//! stream tells which of the predictions on the way are stored, and the rest is published again.
//! Invariants: nothing is acknowledged to the outbox before it is stored; an outage ends nothing; predictions of another writer
//! behind ours end the daemon.

use super::nats;
use super::queue::{Inbox, Outbox, Outgoing};
use super::replay::{PredictionId, Tail};
use super::telemetry;
use crate::wire::Subjects;
use async_nats::Client;
use async_nats::connection::State;
use async_nats::header::NATS_EXPECTED_LAST_SEQUENCE;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::publish::PublishAck;
use futures_util::future::BoxFuture;
use std::collections::VecDeque;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

/// Header that names the process that stored a prediction.
const WRITER_HEADER: &str = "Undrift-Writer";
/// Predictions on the way to the stream whose acknowledgement has not come.
const IN_FLIGHT_MAX: usize = 64;
const RETRY_DELAY_MAX: Duration = Duration::from_secs(4);
const RECONNECT_POLL: Duration = Duration::from_millis(50);

/// Another daemon answers the same frames into the same stream.
#[derive(Debug, thiserror::Error)]
#[error(
    "another daemon (writer {other}) stores predictions in the stream {stream}: two must not answer the same frames; stop one, or give each its own nats.prefix"
)]
pub struct Fenced {
    stream: String,
    other: String,
}

/// Publishes until the outbox is closed and empty.
///
/// # Errors
/// `Fenced`, only with a stream.
pub async fn publish(
    client: Client,
    stream: Option<Context>,
    subjects: Subjects,
    outbox: Arc<Outbox>,
    inbox: Arc<Inbox>,
) -> Result<(), Fenced> {
    let mut writer = stream.map(|context| Writer::new(context, subjects));
    let mut is_open = true;
    loop {
        let on_the_way = writer.as_ref().map_or(0, |writer| writer.in_flight.len());
        if !is_open && on_the_way == 0 {
            return Ok(());
        }
        tokio::select! {
            // Cancelled, the acknowledgement is waited for again.
            outcome = outcome(&mut writer), if on_the_way > 0 => if let Some(writer) = &mut writer {
                let stored = match outcome {
                    Sent::Stored => writer.front_is_stored(),
                    doubt => writer.recover(doubt).await?,
                };
                (0..stored).for_each(|_| outbox.advance());
            },
            // Cancelled, the message stays in the outbox.
            next = outbox.next(), if is_open && on_the_way < IN_FLIGHT_MAX => match (next, &mut writer) {
                (None, _) => is_open = false,
                (Some(message), Some(writer)) if message.prediction.is_some() => {
                    inbox.nudge();
                    writer.send(message).await;
                }
                (Some(message), _) => {
                    inbox.nudge();
                    send_plainly(&client, message, &outbox).await;
                }
            },
        }
    }
}

async fn send_plainly(client: &Client, message: Outgoing, outbox: &Outbox) {
    telemetry::STAGE_DURATION.record_by("publish", message.made.elapsed().as_secs_f64());
    // Fails only for a connection that was closed, or a payload above the server's limit.
    if let Err(error) = client.publish_with_headers(message.subject, message.headers, message.payload).await {
        telemetry::PREDICTIONS_DROPPED.count(1);
        tracing::warn!(%error, "message not published");
    }
    if message.prediction.is_some() {
        outbox.advance();
    }
}

/// What came of the oldest prediction on the way.
enum Sent {
    /// At the place where it belongs.
    Stored,
    /// The broker has seen its id before.
    Repeated,
    /// The broker has refused it, or said nothing.
    Unacknowledged(PublishError),
    /// It was not sent, or is at another place.
    Unknown,
}

async fn outcome(writer: &mut Option<Writer>) -> Sent {
    match writer {
        Some(writer) => writer.outcome_of_front().await,
        None => std::future::pending().await,
    }
}

type Acknowledgement = BoxFuture<'static, Result<PublishAck, PublishError>>;

/// A prediction on the way; without an acknowledgement it could not be sent.
struct InFlight {
    message: Outgoing,
    acknowledgement: Option<Acknowledgement>,
}

/// The stream of predictions, as the one who writes to it knows it.
struct Writer {
    context: Context,
    subjects: Subjects,
    /// Names this process.
    id: String,
    /// Number of the last prediction that is known to be stored; none before the stream was looked at.
    last: Option<u64>,
    in_flight: VecDeque<InFlight>,
    /// Looks at the end of the stream, one after the other, that have found nothing stored.
    failures: usize,
}

impl Writer {
    fn new(context: Context, subjects: Subjects) -> Self {
        Self { context, subjects, id: nats::chance_id(), last: None, in_flight: VecDeque::new(), failures: 0 }
    }

    /// Sends behind what is on the way.
    async fn send(&mut self, message: Outgoing) {
        let acknowledgement = match self.last {
            Some(last) => self.try_send(&message, last + self.in_flight.len() as u64).await,
            None => None,
        };
        self.in_flight.push_back(InFlight { message, acknowledgement });
    }

    /// Sends what the stream takes only behind number `previous`.
    async fn try_send(&mut self, message: &Outgoing, previous: u64) -> Option<Acknowledgement> {
        let mut headers = message.headers.clone();
        headers.insert(NATS_EXPECTED_LAST_SEQUENCE, previous.to_string());
        headers.insert(WRITER_HEADER, self.id.as_str());
        let sent = self.context.publish_with_headers(message.subject.clone(), headers, message.payload.clone()).await;
        sent.inspect_err(|error| tracing::debug!(%error, "prediction not sent")).ok().map(IntoFuture::into_future)
    }

    /// What the broker says of the oldest on the way.
    async fn outcome_of_front(&mut self) -> Sent {
        let (Some(front), Some(last)) = (self.in_flight.front_mut(), self.last) else { return Sent::Unknown };
        let Some(acknowledgement) = &mut front.acknowledgement else { return Sent::Unknown };
        match acknowledgement.await {
            Ok(ack) if ack.duplicate => Sent::Repeated,
            Ok(ack) if ack.sequence == last + 1 => Sent::Stored,
            Ok(_) => Sent::Unknown,
            Err(error) => Sent::Unacknowledged(error),
        }
    }

    fn front_is_stored(&mut self) -> usize {
        let Some(stored) = self.in_flight.pop_front() else { return 0 };
        telemetry::STAGE_DURATION.record_by("publish", stored.message.made.elapsed().as_secs_f64());
        self.last = self.last.map(|last| last + 1);
        self.failures = 0;
        1
    }

    /// Looks at the end of the stream, forgets what is stored and sends the rest again; after a pause where nothing was stored
    /// the last time either. Gives the count of those stored.
    async fn recover(&mut self, sent: Sent) -> Result<usize, Fenced> {
        self.in_flight.iter_mut().for_each(|in_flight| in_flight.acknowledgement = None);
        let tail = self.read_tail().await;
        // What was stored once and is there no more was deleted: to send it again would change nothing.
        let stored = self.stored(&tail)?.max(usize::from(matches!(sent, Sent::Repeated)));
        // Before the first look nothing was sent.
        let was_sent = self.last.replace(tail.last).is_some();
        self.in_flight.drain(..stored);
        self.failures = if stored == 0 { self.failures + 1 } else { 0 };
        if self.failures > 1 {
            self.pause(&sent).await;
        }
        let messages = std::mem::take(&mut self.in_flight);
        for InFlight { message, .. } in messages {
            telemetry::PUBLISH_RETRIES.count(u64::from(was_sent));
            self.send(message).await;
        }
        Ok(stored)
    }

    /// Lets a broker that stores nothing be. Its reason is told once, until it stores something.
    async fn pause(&mut self, sent: &Sent) {
        match sent {
            Sent::Unacknowledged(error) if self.failures == 2 => {
                tracing::warn!(%error, "NATS does not store predictions: they are sent again")
            }
            Sent::Unacknowledged(error) => tracing::debug!(%error, "prediction not stored"),
            _ => {}
        }
        tokio::time::sleep(nats::jittered(self.failures - 1, RETRY_DELAY_MAX)).await;
    }

    async fn read_tail(&mut self) -> Tail {
        for attempt in 1.. {
            // While disconnected, requests would only pile up.
            while self.context.client().connection_state() != State::Connected {
                tokio::time::sleep(RECONNECT_POLL).await;
            }
            match Tail::read(&self.context, &self.subjects).await {
                Ok(tail) => return tail,
                Err(error) => tracing::warn!(%error, "the stream of predictions cannot be read"),
            }
            // It may have been deleted; while frames are held back nobody else would make it again.
            if let Err(error) = super::jetstream::ensure_streams(&self.context, &self.subjects).await {
                tracing::debug!(%error, "the streams cannot be made");
            }
            tokio::time::sleep(nats::jittered(attempt, RETRY_DELAY_MAX)).await;
        }
        unreachable!("attempts do not end")
    }

    /// How many of those on the way are in the stream.
    fn stored(&self, tail: &Tail) -> Result<usize, Fenced> {
        let newest = PredictionId::of(&tail.headers);
        let writer = tail.headers.get(WRITER_HEADER).map_or("unknown", |writer| writer.as_str());
        let fenced = || Fenced { stream: super::jetstream::predictions_stream(&self.subjects), other: writer.to_owned() };
        let position = self.in_flight.iter().position(|in_flight| in_flight.message.prediction == newest && newest.is_some());
        match (self.last, position) {
            // Nothing was stored since.
            (Some(last), _) if tail.last == last => Ok(0),
            (Some(last), _) if tail.last < last => {
                tracing::error!(last, now = tail.last, "the stream of predictions has lost its end");
                Ok(0)
            }
            (Some(last), Some(position)) if writer == self.id && tail.last == last + position as u64 + 1 => Ok(position + 1),
            (Some(_), _) => Err(fenced()),
            // Before the first look: what is on the way was not stored when the session began.
            (None, _) => {
                let first = self.in_flight.front().and_then(|in_flight| in_flight.message.prediction.as_ref());
                let is_ahead = first
                    .zip(newest.as_ref())
                    .is_some_and(|(first, newest)| first.prefix == newest.prefix && newest.sequence >= first.sequence);
                if is_ahead { Err(fenced()) } else { Ok(0) }
            }
        }
    }
}
