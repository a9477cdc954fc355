//! Whether the stream is still the one that a state has seen, and how a state goes on where it is not.

use super::jetstream::{self, Position, StreamFacts};
use super::nats::NatsError;
use super::replay::Tail;
use crate::frame::FrameSeq;
use crate::state::DurableState;
use crate::wire::{EventRecord, Subjects};
use async_nats::jetstream::{Context, stream::Stream};
use std::ops::RangeInclusive;

/// What the broker says of the streams, beside what a state remembers of them.
pub struct Facts {
    pub incarnation: String,
    pub change: Option<Change>,
    /// Last number in the stream of predictions.
    pub birth: u64,
    /// First and last number in the stream of frames.
    pub held: RangeInclusive<u64>,
}

impl Facts {
    /// # Errors
    /// `JetStream` where the broker does not answer.
    pub async fn read(context: &Context, subjects: &Subjects, state: Option<&DurableState>, is_rewritten: bool) -> Result<Self, NatsError> {
        let stream = jetstream::ensure_streams(context, subjects).await?;
        let StreamFacts { incarnation, first_sequence, last_sequence } = jetstream::facts(&stream);
        let change = match state {
            Some(state) => Change::of(state, &stream, &incarnation, last_sequence, is_rewritten).await?,
            None => None,
        };
        Ok(Self { incarnation, change, birth: Tail::read(context, subjects).await?.last, held: first_sequence..=last_sequence })
    }
}

/// How a stream differs from the one that a state has seen.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// Made anew: begun at its beginning.
    New,
    /// It lost its end: its next numbers stand for other frames than before. `last` is the last of those that are the same.
    Truncated { last: Position },
    /// It has other frames under numbers that were applied or answered.
    Rewritten { last: Position },
}

impl Change {
    async fn of(
        state: &DurableState,
        stream: &Stream,
        incarnation: &str,
        last_sequence: u64,
        is_rewritten: bool,
    ) -> Result<Option<Self>, NatsError> {
        let sequence = state.sequence.0;
        if state.incarnation.split('+').next() != Some(incarnation) {
            return Ok(Some(Self::New));
        }
        let is_truncated = last_sequence < sequence;
        if is_truncated || (Position { sequence, mark: state.mark }).is_rewritten(stream).await? {
            // What was stored after our last frame is what took its place.
            let first = match state.mark.and_then(|mark| mark.broker_time_ns) {
                Some(time) => jetstream::first_after(stream, time).await?,
                None => None,
            };
            let last = first.unwrap_or(last_sequence + 1).saturating_sub(1).min(sequence);
            let last = Position { sequence: last, mark: jetstream::mark_of(stream, last).await? };
            return Ok(Some(if is_truncated { Self::Truncated { last } } else { Self::Rewritten { last } }));
        }
        Ok(is_rewritten.then_some(Self::Rewritten { last: Position { sequence, mark: state.mark } }))
    }

    /// Makes the state fit: a changed stream has another name, so that ids and noise of its frames are others.
    pub fn apply(self, state: &mut DurableState, incarnation: &str) -> EventRecord {
        let (name, last) = match self {
            // The stream's own name is for histories that began in it at the source weights.
            Self::New => (format!("{incarnation}+0"), Position { sequence: 0, mark: None }),
            Self::Truncated { last } | Self::Rewritten { last } => (format!("{}+{}", state.incarnation, last.sequence), last),
        };
        // Under another name their noise would be another.
        state.open.clear();
        (state.incarnation, state.sequence, state.mark) = (name, FrameSeq(last.sequence), last.mark);
        let incarnation = state.incarnation.clone();
        match self {
            Self::New => EventRecord::NewStream { incarnation },
            Self::Truncated { .. } => EventRecord::StreamTruncated { incarnation },
            Self::Rewritten { .. } => EventRecord::StreamRewritten { incarnation },
        }
    }
}
