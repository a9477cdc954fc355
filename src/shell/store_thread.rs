//! The store thread: writes checkpoints and reads them for operators, so that nobody else waits for the disk.
//!
//! Invariants: a newer checkpoint takes the place of one that still waits, and takes over who waits for it; at most one
//! waits. With a stream, a checkpoint is written only when every prediction of its frames is stored: frames that were
//! applied and not answered come again after a crash.

use super::engine::Lines;
use super::queue::{Answer, Asker, Order, Outbox, Outgoing};
use super::store::{self, Generation, Store, StoreError};
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
    /// Read a generation for a roll-back; none is the one before the newest.
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
            StoreOrder::Read { generation, asker } => read(dir, generation, asker, lines),
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

fn read(dir: &Path, generation: Option<u64>, asker: Asker, lines: &Lines) {
    let generation = match generation {
        Some(generation) => Ok(Some(Generation(generation))),
        None => generation_before(dir),
    };
    match generation.and_then(|generation| generation.map(|of| store::load(dir, of).map(|(state, _)| (of, state))).transpose()) {
        Ok(Some((generation, state))) => drop(lines.inbox.push_order(Order::RollBack(generation, Box::new(state), asker))),
        Ok(None) => refuse(asker.reply, "there is no checkpoint with earlier weights"),
        Err(error) => refuse(asker.reply, &error.to_string()),
    }
}

/// The newest generation whose learner is another than the newest checkpoint's.
fn generation_before(dir: &Path) -> Result<Option<Generation>, StoreError> {
    let mut readable = store::list(dir)?.into_iter().flatten();
    let Some(newest) = readable.next() else { return Ok(None) };
    let version = newest.header.scalars.learner_version;
    Ok(readable.find(|listed| listed.header.scalars.learner_version != version).map(|listed| listed.generation))
}
