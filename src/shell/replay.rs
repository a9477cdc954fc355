//! What the stream of predictions already holds, so that a restart answers no frame twice and proves itself on those that
//! were answered before.
//!
//! Read once at the start of a session: the newest stored prediction says how far frames are answered, and the proofs of those
//! after the checkpoint are kept until the replay has come by.
//! Invariant: what the broker remembers of consumers or ids is not asked; only what is stored counts.

use super::jetstream::{self, FETCH_MESSAGES, FETCH_PATIENCE, boxed};
use super::nats::NatsError;
use crate::proof::{HistoryId, PROOF_HEADER, Proof};
use crate::wire::Subjects;
use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use futures_util::StreamExt;
use std::collections::BTreeMap;

/// Proofs that are kept, from the newest back: some MiB. What is replayed before them is not compared.
const PROOFS_MAX: u64 = 1 << 16;

/// Whose prediction it is: the identity of the stream's incarnation, and the frame's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PredictionId {
    pub prefix: String,
    pub sequence: u64,
}

impl PredictionId {
    /// Value of the header `Nats-Msg-Id`.
    pub fn header(&self) -> String {
        format!("{}:{}", self.prefix, self.sequence)
    }

    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let (prefix, sequence) = headers.get(NATS_MESSAGE_ID)?.as_str().split_once(':')?;
        Some(Self { prefix: prefix.to_owned(), sequence: sequence.parse().ok()? })
    }
}

/// The end of the stream of predictions.
#[derive(Clone, Debug)]
pub struct Tail {
    /// The stream's last number, also where its message is gone.
    pub last: u64,
    /// Of the newest message that is there; 0 where there is none. What came behind it was deleted.
    pub newest: u64,
    pub headers: HeaderMap,
}

impl Tail {
    /// # Errors
    /// `JetStream` where the broker does not answer.
    pub async fn read(context: &Context, subjects: &Subjects) -> Result<Self, NatsError> {
        let stream = context.get_stream(jetstream::predictions_stream(subjects)).await.map_err(boxed)?;
        let last = stream.cached_info().state.last_sequence;
        let (newest, headers) = match stream.get_last_raw_message_by_subject(&subjects.all_predictions()).await {
            Ok(message) => (message.sequence, message.headers),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => (0, HeaderMap::new()),
            Err(error) => return Err(boxed(error)),
        };
        // The stream may have grown between the two questions.
        Ok(Self { last: last.max(newest), newest, headers })
    }
}

/// What a replayed prediction turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// Not stored yet: to be published.
    New,
    /// Stored before, and equal.
    Proven,
    /// Stored before by another history, or too long ago to be compared.
    Unknown,
    /// Stored before with another content.
    Mismatch,
}

/// Frames that are answered in the stream.
#[derive(Debug, Default)]
pub struct Answered {
    /// The last of them; 0 before the first.
    pub last: u64,
    /// By frame, oldest first.
    proofs: BTreeMap<u64, Proof>,
}

impl Answered {
    /// Reads what is stored of frames of the incarnation `prefix`, with the proofs of those after frame `applied`.
    ///
    /// # Errors
    /// `JetStream` where the broker does not answer, or delivers less than it has.
    pub async fn read(context: &Context, subjects: &Subjects, prefix: &str, applied: u64) -> Result<Self, NatsError> {
        let tail = Tail::read(context, subjects).await?;
        let newest = PredictionId::of(&tail.headers).filter(|id| id.prefix == prefix);
        let Some(newest) = newest else { return Ok(Self::default()) };
        let mut answered = Self { last: newest.sequence, proofs: BTreeMap::new() };
        // One prediction for each frame at most: those asked for cannot lie further back than this.
        let count = newest.sequence.saturating_sub(applied).min(PROOFS_MAX);
        if count > 0 {
            let stream = context.get_stream(jetstream::predictions_stream(subjects)).await.map_err(boxed)?;
            answered.read_proofs(&stream, prefix, (tail.newest + 1).saturating_sub(count).max(1), tail.newest).await?;
            answered.proofs.retain(|&sequence, _| sequence > applied);
        }
        Ok(answered)
    }

    async fn read_proofs(&mut self, stream: &Stream, prefix: &str, first: u64, last: u64) -> Result<(), NatsError> {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: first },
            ack_policy: AckPolicy::None,
            headers_only: true,
            memory_storage: true,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(boxed)?;
        let mut reached = first.saturating_sub(1);
        while reached < last {
            let before = reached;
            let mut batch = consumer.fetch().max_messages(FETCH_MESSAGES).expires(FETCH_PATIENCE).messages().await.map_err(boxed)?;
            while let Some(message) = batch.next().await {
                let message = message.map_err(NatsError::JetStream)?;
                reached = message.info().map_err(NatsError::JetStream)?.stream_sequence;
                let Some(headers) = &message.headers else { continue };
                let proof = headers.get(PROOF_HEADER).and_then(|value| Proof::parse(value.as_str()));
                let id = PredictionId::of(headers).filter(|id| id.prefix == prefix);
                self.proofs.extend(id.zip(proof).map(|(id, proof)| (id.sequence, proof)));
            }
            if reached == before {
                return Err(NatsError::JetStream("the stream of predictions does not deliver what it has".into()));
            }
        }
        Ok(())
    }

    /// Whether frame `sequence` was answered after other frames than those that were applied now: the stream was changed.
    pub fn contradicts(&self, sequence: u64, history: HistoryId, input_chain: &[u8; 32]) -> bool {
        let stored = self.proofs.get(&sequence).filter(|stored| stored.history == history);
        stored.is_some_and(|stored| stored.input_chain != *input_chain)
    }

    /// Compares the prediction of frame `sequence` with the stored one, which is then forgotten.
    pub fn replayed(&mut self, sequence: u64, proof: &Proof) -> Replayed {
        if sequence > self.last {
            return Replayed::New;
        }
        match self.proofs.remove(&sequence).filter(|stored| stored.history == proof.history) {
            Some(stored) if stored == *proof => Replayed::Proven,
            Some(_) => Replayed::Mismatch,
            None => Replayed::Unknown,
        }
    }
}
