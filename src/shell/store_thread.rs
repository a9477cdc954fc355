//! The store thread: writes checkpoints and reads them for operators, so that nobody else waits for the disk.
//!
//! Invariants: a newer checkpoint takes the place of one that still waits, and takes over who waits for it; at most one
//! waits. With a stream, a checkpoint is written only when every prediction of its frames is stored: frames that were
//! applied and not answered come again after a crash.

use super::decision_log::DecisionLog;
use super::engine::Lines;
use super::queue::{Answer, Asker, Order, Outbox, Outgoing};
use super::store::{self, Generation, Listed, Store, StoreError};
use super::telemetry;
use crate::checkpoint::Meta;
use crate::state::DurableState;
use crate::wire::{EventRecord, Subjects};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long a checkpoint waits for predictions before it looks whether a newer one has come.
const ANSWERS_PATIENCE: Duration = Duration::from_secs(5);
/// Reads that may wait.
const READS_MAX: usize = 16;

/// Why there is nothing to roll back to.
#[derive(Debug, thiserror::Error)]
enum RollBackError {
    #[error("there is no checkpoint with earlier weights")]
    Nothing,
    #[error("generation {generation} is of another bundle: its weights are another model's")]
    Bundle { generation: Generation },
    #[error(transparent)]
    Store(Box<StoreError>),
}

impl From<StoreError> for RollBackError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

/// A state to write.
pub struct Save {
    pub state: Box<DurableState>,
    /// Count of predictions that must be stored before; 0 where nothing is.
    pub ticket: u64,
    /// Who waits for it, and what each is told beside the generation.
    pub replies: Vec<Reply>,
}

/// Who waits for a state to be written.
pub struct Reply {
    pub to: oneshot::Sender<Answer>,
    pub body: serde_json::Value,
}

/// What the store thread is told.
pub enum StoreOrder {
    Save(Save),
    /// Read a generation for a roll-back; none is one with earlier weights.
    Read {
        generation: Option<u64>,
        asker: Asker,
    },
}

#[derive(Default)]
struct Waiting {
    save: Option<Save>,
    reads: VecDeque<(Option<u64>, Asker)>,
    is_closed: bool,
}

/// What waits for the store thread.
#[derive(Default)]
pub struct StoreQueue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

impl StoreQueue {
    pub fn push(&self, order: StoreOrder) {
        let mut waiting = self.waiting.lock();
        match order {
            StoreOrder::Save(save) => waiting.put(save),
            StoreOrder::Read { asker, .. } if waiting.reads.len() >= READS_MAX => refuse(asker.reply, "too many requests wait"),
            StoreOrder::Read { generation, asker } => waiting.reads.push_back((generation, asker)),
        }
        self.arrived.notify_one();
    }

    /// No more will be pushed.
    pub fn close(&self) {
        self.waiting.lock().is_closed = true;
        self.arrived.notify_one();
    }

    /// The next order; none when closed and empty. What was asked first to be saved is saved before anything is read.
    fn next(&self) -> Option<StoreOrder> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(save) = waiting.save.take() {
                return Some(StoreOrder::Save(save));
            }
            if let Some((generation, asker)) = waiting.reads.pop_front() {
                return Some(StoreOrder::Read { generation, asker });
            }
            if waiting.is_closed {
                return None;
            }
            self.arrived.wait(&mut waiting);
        }
    }

    /// Puts a save back that could not be done yet, behind a newer one that may have come.
    fn put_back(&self, mut older: Save) {
        let mut waiting = self.waiting.lock();
        match &mut waiting.save {
            Some(newer) => {
                newer.replies.append(&mut older.replies);
                telemetry::CHECKPOINT_WRITES.count_by("superseded");
            }
            None => waiting.save = Some(older),
        }
    }

    fn is_closed(&self) -> bool {
        self.waiting.lock().is_closed
    }
}

impl Waiting {
    fn put(&mut self, mut save: Save) {
        if let Some(older) = self.save.take() {
            telemetry::CHECKPOINT_WRITES.count_by("superseded");
            save.replies.splice(0..0, older.replies);
        }
        self.save = Some(save);
    }
}

fn refuse_all(replies: Vec<Reply>, error: &str) {
    replies.into_iter().for_each(|reply| refuse(reply.to, error));
}

fn refuse(to: oneshot::Sender<Answer>, error: &str) {
    // Who asked may have gone.
    let _ = to.send(Err(error.to_owned().into()));
}

/// Writes and reads until the queue is closed and empty.
pub fn run(store: &mut Store, dir: &Path, meta: &Meta, lines: &Lines, subjects: &Subjects) {
    while let Some(order) = lines.store.next() {
        match order {
            StoreOrder::Save(save) => {
                if lines.outbox.wait_for(save.ticket, ANSWERS_PATIENCE) {
                    write(store, meta, save, &lines.outbox, subjects);
                } else if lines.store.is_closed() {
                    tracing::warn!(
                        sequence = save.state.sequence.0,
                        "last checkpoint not written: NATS has not stored the predictions that it covers"
                    );
                    telemetry::CHECKPOINT_WRITES.count_by("failed");
                    refuse_all(save.replies, "predictions are not stored");
                } else {
                    lines.store.put_back(save);
                }
            }
            StoreOrder::Read { generation, asker } => match state_to_go_back_to(dir, generation, meta) {
                Ok((generation, state)) => drop(lines.inbox.push_order(Order::RollBack(generation, Box::new(state), asker))),
                Err(error) => refuse(asker.reply, &error.to_string()),
            },
        }
    }
}

/// A failure is counted and told to who waits, and the daemon goes on: it can still answer frames.
fn write(store: &mut Store, meta: &Meta, save: Save, outbox: &Outbox, subjects: &Subjects) {
    let started = Instant::now();
    let created_ns = (telemetry::seconds_since_1970() * 1e9) as i64;
    match store.write(&save.state, &Meta { created_ns, ..meta.clone() }) {
        Ok(written) => {
            telemetry::CHECKPOINT_WRITES.count_by("written");
            telemetry::CHECKPOINT_BYTES.set(written.bytes as f64);
            telemetry::CHECKPOINT_TIMESTAMP.set(telemetry::seconds_since_1970());
            telemetry::CHECKPOINT_DURATION.record(started.elapsed().as_secs_f64());
            let weights_version = save.state.serving.version;
            let event = EventRecord::Checkpoint { generation: written.generation.0, weights_version, bytes: written.bytes };
            outbox.push(Outgoing::event(subjects, &event, save.state.sequence));
            for Reply { to, mut body } in save.replies {
                body["generation"] = written.generation.0.into();
                // Who asked may have gone.
                let _ = to.send(Ok(body));
            }
        }
        Err(error) => {
            tracing::error!(%error, "checkpoint not written");
            telemetry::CHECKPOINT_WRITES.count_by("failed");
            refuse_all(save.replies, &format!("checkpoint not written: {error}"));
        }
    }
}

/// The state of a generation, or of the one before the present, if its weights are this bundle's.
fn state_to_go_back_to(dir: &Path, generation: Option<u64>, meta: &Meta) -> Result<(Generation, DurableState), RollBackError> {
    let generation = match generation {
        Some(generation) => Generation(generation),
        None => generation_before(dir, meta)?.ok_or(RollBackError::Nothing)?,
    };
    let (state, written) = store::load(dir, generation)?;
    if written.is_of_bundle(&meta.fingerprints) { Ok((generation, state)) } else { Err(RollBackError::Bundle { generation }) }
}

/// The newest generation with other weights than the present ones that no roll-back has left behind: the next is further back.
fn generation_before(dir: &Path, meta: &Meta) -> Result<Option<Generation>, StoreError> {
    let listed: Vec<Listed> = store::list(dir)?.into_iter().flatten().collect();
    let log = DecisionLog::open(dir)?;
    let roll_backs = || log.after(0).iter().filter_map(|decided| Some((decided.number, decided.action.target()?)));
    let decided = |listed: &Listed| listed.header.scalars.control.generation;
    // A checkpoint may hold less than was decided: that of a roll-back within a window comes with the window's end.
    let newest = listed.first().map(|newest| (decided(newest), newest.generation));
    let Some((_, present)) = roll_backs().chain(newest).max_by_key(|&(number, _)| number) else { return Ok(None) };
    let Some(present) = listed.iter().find(|listed| listed.generation == present) else { return Ok(None) };
    let is_left_behind = |listed: &Listed| roll_backs().any(|(number, target)| listed.generation > target && decided(listed) < number);
    let is_earlier = |other: &&Listed| {
        other.generation < present.generation
            && !other.header.has_learner_of(&present.header)
            && other.header.meta.is_of_bundle(&meta.fingerprints)
            && !is_left_behind(other)
    };
    Ok(listed.iter().find(is_earlier).map(|listed| listed.generation))
}
