//! The two bounded queues between the sockets and the device thread.
//!
//! [`Inbox`]: all that the device thread is told, in one queue with three lanes; orders (control, finished adaptation) overtake
//! labels and frames, and a few labels come between two frames. [`Outbox`]: all that it wants published.
//! Invariants: frames are limited in messages and in bytes, orders, labels and publications in messages; what is dropped at a
//! limit is counted with its reason. Frames come out in the order they went in.
//! Locks are held for the length of a push or a pop and never across an await.

use super::replay::PredictionId;
use super::store::Generation;
use super::telemetry;
use crate::frame::FrameSeq;
use crate::pipeline::Adapted;
use crate::state::DurableState;
use crate::wire::{self, Command, ControlError, EventRecord, LabelMessage, Subjects, Terms};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// Control messages that may wait, and labels.
const CONTROL_MAX: usize = 4096;
const LABELS_MAX: usize = 4096;
/// Labels that a frame which could be taken waits for.
const LABELS_PER_FRAME: usize = 64;

/// A frame as it arrived.
pub struct Arrival {
    pub message: Message,
    pub sequence: u64,
    /// Nanoseconds since 1970; JetStream only.
    pub broker_time_ns: Option<i64>,
    pub received: Instant,
}

/// What an operator gets to hear.
pub type Answer = Result<serde_json::Value, Refusal>;

/// Why a command was not carried out.
#[derive(Debug)]
pub struct Refusal {
    /// Value of the metric label `outcome`.
    pub outcome: &'static str,
    pub text: String,
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self { outcome: "failed", text }
    }
}

impl From<&ControlError> for Refusal {
    fn from(error: &ControlError) -> Self {
        Self { outcome: error.reason(), text: error.to_string() }
    }
}

/// Who waits for what comes of a command, and on which terms it counts.
pub struct Asker {
    pub terms: Terms,
    pub reply: oneshot::Sender<Answer>,
}

impl Asker {
    /// Who asked may have gone.
    pub fn answer(self, answer: Answer) {
        let _ = self.reply.send(answer);
    }
}

/// A label that came after its frame.
pub struct Label {
    pub camera: String,
    pub label: LabelMessage,
}

/// What overtakes frames.
pub enum Order {
    Adapted(Box<Adapted>),
    Control(Command, Asker),
    /// A checkpoint that the store has read for an operator.
    RollBack(Generation, Box<DurableState>, Asker),
    Stop,
}

/// What the device thread does next.
pub enum Input {
    Order(Order),
    Label(Label),
    Frame { arrival: Arrival, is_overloaded: bool },
}

/// What happens to a frame that finds the queue full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtLimit {
    /// The oldest frame is dropped: nobody can hold a core NATS publisher back. Adaptation is shed from half of the limit on.
    ShedOldest,
    /// The frame waits outside, and the stream keeps what it has.
    HoldBack,
}

/// Limits of the frames that wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub frames: usize,
    pub bytes: usize,
    pub at_limit: AtLimit,
}

#[derive(Default)]
struct Lanes {
    orders: VecDeque<Order>,
    labels: VecDeque<Label>,
    /// Since the last frame was taken.
    labels_taken: usize,
    frames: VecDeque<Arrival>,
    /// Of the payloads and headers in `frames`.
    bytes: usize,
}

/// What the device thread is told.
pub struct Inbox {
    lanes: Mutex<Lanes>,
    limits: Limits,
    /// The device thread waits here.
    arrived: Condvar,
    /// Ingest waits here, with `HoldBack`.
    room: Notify,
}

impl Inbox {
    pub fn new(limits: Limits) -> Self {
        Self { lanes: Mutex::default(), limits, arrived: Condvar::new(), room: Notify::new() }
    }

    /// Takes a frame in; at the limit it drops the oldest or waits, as `at_limit` says.
    pub async fn push_frame(&self, arrival: Arrival) {
        let mut arrival = Some(arrival);
        loop {
            // Registered before the look, so that no wake-up is lost between the two.
            let room = self.room.notified();
            self.try_push(&mut arrival);
            if arrival.is_none() {
                return;
            }
            room.await;
        }
    }

    fn try_push(&self, slot: &mut Option<Arrival>) {
        let mut lanes = self.lanes.lock();
        let Some(arrival) = slot.take() else { return };
        let bytes = arrival.message.length;
        match self.limits.at_limit {
            // A frame above the limit of bytes is let in alone: the payload's own limit rejects it with a reason.
            AtLimit::HoldBack if !lanes.frames.is_empty() && lanes.is_above(&self.limits, bytes) => {
                *slot = Some(arrival);
                return;
            }
            AtLimit::HoldBack => {}
            // It would push all others out, and is too large for the decoder.
            AtLimit::ShedOldest if bytes > self.limits.bytes => {
                telemetry::FRAMES_SHED.count_by("queue_bytes");
                return;
            }
            AtLimit::ShedOldest => lanes.shed(&self.limits, bytes),
        }
        lanes.bytes += bytes;
        lanes.frames.push_back(arrival);
        lanes.show();
        self.arrived.notify_one();
    }

    /// Takes a label in; `false` where too many wait.
    pub fn push_label(&self, label: Label) -> bool {
        let mut lanes = self.lanes.lock();
        let has_room = lanes.labels.len() < LABELS_MAX;
        if has_room {
            lanes.labels.push_back(label);
            self.arrived.notify_one();
        }
        has_room
    }

    /// Takes an order in; `false` where too many wait.
    pub fn push_order(&self, order: Order) -> bool {
        let mut lanes = self.lanes.lock();
        // What comes from within has limits of its own: one `Stop`, and a few windows at the adapter.
        if matches!(order, Order::Control(..)) && lanes.orders.len() >= CONTROL_MAX {
            return false;
        }
        lanes.orders.push_back(order);
        self.arrived.notify_one();
        true
    }

    /// Makes the device thread look again whether it may take a frame.
    pub fn nudge(&self) {
        let _lanes = self.lanes.lock();
        self.arrived.notify_one();
    }

    /// Whether frames wait.
    pub fn has_frames(&self) -> bool {
        !self.lanes.lock().frames.is_empty()
    }

    /// Waits for an order, a label, or a frame whose number is accepted.
    pub fn next(&self, accepts: impl Fn(FrameSeq) -> bool) -> Input {
        let mut lanes = self.lanes.lock();
        loop {
            if let Some(order) = lanes.orders.pop_front() {
                return Input::Order(order);
            }
            let is_frame_due = lanes.frames.front().is_some_and(|arrival| accepts(FrameSeq(arrival.sequence)));
            if (!is_frame_due || lanes.labels_taken < LABELS_PER_FRAME)
                && let Some(label) = lanes.labels.pop_front()
            {
                lanes.labels_taken += 1;
                return Input::Label(label);
            }
            lanes.labels_taken = 0;
            if is_frame_due {
                let is_overloaded = self.limits.at_limit == AtLimit::ShedOldest && lanes.is_above_half(&self.limits);
                if let Some(arrival) = lanes.pop() {
                    lanes.show();
                    self.room.notify_one();
                    return Input::Frame { arrival, is_overloaded };
                }
            }
            self.arrived.wait(&mut lanes);
        }
    }

    /// Waits for an order until `deadline`.
    pub fn next_order(&self, deadline: Instant) -> Option<Order> {
        let mut lanes = self.lanes.lock();
        while lanes.orders.is_empty() {
            if self.arrived.wait_until(&mut lanes, deadline).timed_out() {
                break;
            }
        }
        lanes.orders.pop_front()
    }

    /// Drops what a session that has ended was still told: windows of its adapter, and to stop.
    pub fn forget_session(&self) {
        self.lanes.lock().orders.retain(|order| !matches!(order, Order::Adapted(_) | Order::Stop));
    }

    /// Drops what waits. What the stream holds comes again; what came by core NATS does not, and is counted.
    pub fn shed_all(&self) {
        let mut lanes = self.lanes.lock();
        while lanes.pop().is_some() {
            if self.limits.at_limit == AtLimit::ShedOldest {
                telemetry::FRAMES_SHED.count_by("shutdown");
            }
        }
        lanes.show();
    }
}

impl Lanes {
    fn is_above(&self, limits: &Limits, more_bytes: usize) -> bool {
        self.frames.len() >= limits.frames || self.bytes + more_bytes > limits.bytes
    }

    fn is_above_half(&self, limits: &Limits) -> bool {
        self.frames.len() > limits.frames / 2 || self.bytes > limits.bytes / 2
    }

    fn shed(&mut self, limits: &Limits, more_bytes: usize) {
        while self.is_above(limits, more_bytes) {
            let reason = if self.frames.len() >= limits.frames { "queue_frames" } else { "queue_bytes" };
            if self.pop().is_none() {
                return;
            }
            telemetry::FRAMES_SHED.count_by(reason);
        }
    }

    fn pop(&mut self) -> Option<Arrival> {
        let arrival = self.frames.pop_front()?;
        self.bytes -= arrival.message.length;
        Some(arrival)
    }

    fn show(&self) {
        telemetry::QUEUE_FRAMES.set(self.frames.len() as f64);
        telemetry::QUEUE_BYTES.set(self.bytes as f64);
    }
}

/// One message to publish.
#[derive(Clone)]
pub struct Outgoing {
    pub subject: String,
    pub headers: HeaderMap,
    pub payload: Bytes,
    /// Where it is a prediction: with a stream it must be stored before a checkpoint may cover its frame.
    pub prediction: Option<PredictionId>,
    pub made: Instant,
}

impl Outgoing {
    /// An event, as of frame `sequence`.
    pub fn event(subjects: &Subjects, event: &EventRecord, sequence: FrameSeq) -> Self {
        Self::notice(subjects.events(event), wire::encode_event(event, sequence))
    }

    /// What no checkpoint waits for.
    pub fn notice(subject: String, payload: Vec<u8>) -> Self {
        Self { subject, headers: HeaderMap::new(), payload: payload.into(), prediction: None, made: Instant::now() }
    }
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Outgoing>,
    /// Predictions taken in, and predictions done with, since the start.
    pushed: u64,
    done: u64,
    is_closed: bool,
}

/// What the device thread wants published.
pub struct Outbox {
    waiting: Mutex<Waiting>,
    messages_max: usize,
    /// The publisher waits here.
    arrived: Notify,
    /// The store waits here for predictions to be stored.
    advanced: Condvar,
}

impl Outbox {
    pub fn new(messages_max: usize) -> Self {
        Self { waiting: Mutex::default(), messages_max, arrived: Notify::new(), advanced: Condvar::new() }
    }

    /// Whether a frame may be taken: half of the room is for the answers of a whole window, which may come at once.
    pub fn has_room(&self) -> bool {
        self.waiting.lock().messages.len() < self.messages_max / 2
    }

    /// Takes a message in; at the limit it drops the oldest.
    pub fn push(&self, message: Outgoing) {
        let mut waiting = self.waiting.lock();
        if waiting.messages.len() >= self.messages_max
            && let Some(dropped) = waiting.messages.pop_front()
        {
            telemetry::PREDICTIONS_DROPPED.count(1);
            waiting.done += u64::from(dropped.prediction.is_some());
        }
        waiting.pushed += u64::from(message.prediction.is_some());
        waiting.messages.push_back(message);
        self.arrived.notify_one();
    }

    /// The next message; none when closed and empty. Cancelling it loses nothing.
    pub async fn next(&self) -> Option<Outgoing> {
        loop {
            {
                let mut waiting = self.waiting.lock();
                if let Some(message) = waiting.messages.pop_front() {
                    return Some(message);
                }
                if waiting.is_closed {
                    return None;
                }
            }
            // A permit is kept when nobody waits, so a push between the look and here is not lost.
            self.arrived.notified().await;
        }
    }

    /// No more will be pushed.
    pub fn close(&self) {
        self.waiting.lock().is_closed = true;
        self.arrived.notify_one();
    }

    /// A prediction is done with: stored, or handed to a connection that acknowledges nothing.
    pub fn advance(&self) {
        self.waiting.lock().done += 1;
        self.advanced.notify_all();
    }

    /// Count of the predictions so far: what a checkpoint waits for.
    pub fn ticket(&self) -> u64 {
        self.waiting.lock().pushed
    }

    /// Waits until as many predictions as `ticket` are done with; `false` after `patience`.
    pub fn wait_for(&self, ticket: u64, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut waiting = self.waiting.lock();
        while waiting.done < ticket {
            if self.advanced.wait_until(&mut waiting, deadline).timed_out() {
                return waiting.done >= ticket;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::ClassIndex;
    use metrics_exporter_prometheus::PrometheusBuilder;

    fn inbox(at_limit: AtLimit) -> Inbox {
        Inbox::new(Limits { frames: 16, bytes: 1024, at_limit })
    }

    fn label() -> Label {
        Label { camera: "cam".to_owned(), label: LabelMessage { frame_id: "a".to_owned(), label: ClassIndex(0) } }
    }

    async fn push_frame(inbox: &Inbox, sequence: u64) {
        let (subject, payload) = ("undrift.v1.frames.cam".into(), Bytes::from_static(b"frame"));
        let message = Message { subject, reply: None, payload, headers: None, status: None, description: None, length: 5 };
        inbox.push_frame(Arrival { message, sequence, broker_time_ns: None, received: Instant::now() }).await;
    }

    #[test]
    fn a_session_is_not_ended_by_the_stop_of_the_one_before() {
        let inbox = inbox(AtLimit::HoldBack);
        let (reply, _answer) = oneshot::channel();
        inbox.push_order(Order::Stop);
        inbox.push_order(Order::Control(Command::Reset, Asker { terms: Terms::default(), reply }));
        inbox.forget_session();
        assert!(matches!(inbox.next_order(Instant::now()), Some(Order::Control(..))));
        assert!(inbox.next_order(Instant::now()).is_none());
    }

    #[tokio::test]
    async fn a_flood_of_labels_keeps_neither_commands_nor_frames_out() {
        let inbox = inbox(AtLimit::HoldBack);
        while inbox.push_label(label()) {}
        for sequence in 1..=4 {
            push_frame(&inbox, sequence).await;
        }
        let (reply, _answer) = oneshot::channel();
        let asker = Asker { terms: Terms::default(), reply };
        assert!(inbox.push_order(Order::Control(Command::Adapt { enabled: false }, asker)), "a command has room of its own");
        assert!(matches!(inbox.next(|_| true), Input::Order(Order::Control(..))), "it overtakes labels");
        for sequence in 1..=4 {
            for _ in 0..LABELS_PER_FRAME {
                assert!(matches!(inbox.next(|_| true), Input::Label(_)), "labels before frame {sequence}");
            }
            let Input::Frame { arrival, .. } = inbox.next(|_| true) else { panic!("frame {sequence} is due") };
            assert_eq!(arrival.sequence, sequence);
        }
        for _ in 4 * LABELS_PER_FRAME..LABELS_MAX {
            assert!(matches!(inbox.next(|_| true), Input::Label(_)), "no label is lost");
        }
    }

    #[tokio::test]
    async fn only_what_no_stream_delivers_again_counts_as_shed_at_the_end() {
        for (at_limit, is_lost) in [(AtLimit::ShedOldest, true), (AtLimit::HoldBack, false)] {
            let recorder = PrometheusBuilder::new().build_recorder();
            let inbox = inbox(at_limit);
            for sequence in 1..=3 {
                push_frame(&inbox, sequence).await;
            }
            metrics::with_local_recorder(&recorder, || inbox.shed_all());
            let text = recorder.handle().render();
            let is_counted = text.contains("undrift_frames_shed_total{reason=\"shutdown\"} 3");
            assert_eq!((is_counted, text.contains("undrift_frames_shed_total")), (is_lost, is_lost), "{at_limit:?}: {text}");
            assert!(text.contains("undrift_queue_frames 0"), "{text}");
        }
    }
}
