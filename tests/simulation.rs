//! Deterministic simulation: the core and its adapter with a broker, a disk, a camera and an operator, all on one thread, and
//! everything that goes wrong drawn from one seed.
//!
//! Frames that cannot be used; deliveries that are lost, come twice, in another order or from the beginning again; an adapter and a
//! publisher that are slow or stand still; decisions at any moment; crashes at any event, after which only what the broker and
//! the disk have is left, sometimes with the newest checkpoint damaged.
//! Oracle: a run of the same frames and decisions in which nothing goes wrong. Every usable frame must have its one answer, each
//! answer must be that run's byte for byte, and every checkpoint and the last state must be a state of that run.
//!
//! UNDRIFT_SEEDS runs that many seeds, UNDRIFT_SEED repeats one.

mod tiny;

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::AddAssign;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};
use undrift::bundle::Bundle;
use undrift::checkpoint::{self, Meta, state_hash};
use undrift::decode::{Limits, Message, decode};
use undrift::frame::{ClassIndex, Frame, FrameSeq};
use undrift::learner::{AdaptConfig, Adapter, AnswerBy, AnswerTime};
use undrift::model::{ClassConditioning, ImageShape};
use undrift::noise::NoiseSecret;
use undrift::pipeline::{Adapted, Decision, Effect, Event, Job, OutputShape, Pipeline, Scheduled, Start, first_state};
use undrift::prediction::Prediction;
use undrift::shell::jetstream::{Cursor, Delivery};
use undrift::state::{DurableState, MonitorState};
use undrift::wire::{self, Format};

const SEEDS: u64 = 150;
/// Events of a run before it is left to come to its end.
const EVENTS: u64 = 2000;
const FRAMES_MAX: u64 = 120;
const INBOX_MAX: usize = 8;
const OUTBOX_MAX: usize = 16;
const CHECKPOINTS_KEPT: usize = 4;
const INCARNATION: &str = "FRAMES@1";
const LIMITS: Limits = Limits { payload_bytes_max: 1 << 16, pixels_max: 1 << 12, dimension_max: 64 };
const SHAPE: ImageShape = ImageShape { channels: 1, height: 8, width: 8 };

static BUNDLE: LazyLock<Bundle> = LazyLock::new(|| tiny::bundle(1, ClassConditioning::Readout));

thread_local! {
    /// Number of the event that the run of this thread is at.
    static EVENT: Cell<u64> = const { Cell::new(0) };
}

/// Last frame and number of the last decision: what a state is known by.
type Place = (u64, u64);

fn place(state: &DurableState) -> Place {
    (state.sequence.0, state.control.generation)
}

/// What a seed is a run of.
#[derive(Debug)]
struct Setup {
    config: AdaptConfig,
    checkpoint_windows: u64,
    /// Core NATS: frames are shed and windows skipped where time is short, and nothing comes again.
    is_core: bool,
    /// Labels come later, which no replay repeats.
    has_labels: bool,
}

impl Setup {
    fn draw(random: &mut ChaCha8Rng) -> Self {
        let is_core = random.random_bool(0.2);
        let config = AdaptConfig {
            lag: random.random_range(1..=3),
            answer: if random.random_bool(0.25) { AnswerTime::After } else { AnswerTime::Before },
            // What was answered without the judge tells which frames were in a hurry.
            answer_by: if !is_core && random.random_bool(0.25) { AnswerBy::Classifier } else { AnswerBy::Posterior },
            ..tiny::config()
        };
        Self { config, checkpoint_windows: random.random_range(1..=3), is_core, has_labels: random.random_bool(0.25) }
    }

    fn pipeline(&self, start: Start) -> Pipeline {
        let shape = OutputShape { top_k: 2, checkpoint_windows: self.checkpoint_windows };
        Pipeline::new(&BUNDLE, &self.config, shape, NoiseSecret::from_seed(1), start).expect("a bundle that fits")
    }

    fn adapter(&self, pipeline: &Pipeline) -> Adapter {
        Adapter::new(&BUNDLE, &self.config, pipeline.learner()).expect("a bundle that fits")
    }

    /// Of all that is a function of the stream.
    fn hash(&self, state: &DurableState) -> [u8; 32] {
        let monitor = if self.has_labels { MonitorState::default() } else { state.monitor.clone() };
        state_hash(&DurableState { monitor, ..state.clone() }).expect("tensors of f32")
    }
}

/// A message in the stream.
struct Stored {
    sequence: u64,
    payload: Vec<u8>,
}

impl Stored {
    fn draw(sequence: u64, random: &mut ChaCha8Rng) -> Self {
        let mut payload = Vec::new();
        // A picture may come again.
        let image = tiny::image(1, random.random_range(0..40));
        PngEncoder::new(&mut payload).write_image(image.pixels(), 8, 8, ExtendedColorType::L8).expect("a PNG");
        if random.random_bool(0.1) {
            payload.truncate(random.random_range(0..payload.len()));
        }
        Self { sequence, payload }
    }

    /// None where it cannot be used.
    fn frame(&self) -> Option<Frame> {
        let headers = [("Label".to_owned(), (self.sequence % 3).to_string())];
        let sequence = FrameSeq(self.sequence);
        let message = Message { subject_camera: "cam", headers: &headers, payload: &self.payload, sequence, broker_time_ns: Some(1) };
        decode(&message, &LIMITS, SHAPE, tiny::CLASSES).ok()
    }
}

/// What an operator has decided, as it is on the disk.
#[derive(Clone)]
struct Decided {
    number: u64,
    after: FrameSeq,
    action: Action,
}

#[derive(Clone)]
enum Action {
    Adapt {
        enabled: bool,
    },
    Reset,
    /// To the checkpoint of these bytes.
    RollBack(Vec<u8>),
}

impl Action {
    fn decision(&self) -> Decision {
        match self {
            Self::Adapt { enabled } => Decision::Adapt { enabled: *enabled },
            Self::Reset => Decision::Reset,
            Self::RollBack(checkpoint) => Decision::RollBack(restored(checkpoint).learner),
        }
    }
}

fn restored(checkpoint: &[u8]) -> DurableState {
    checkpoint::decode(checkpoint).expect("an undamaged checkpoint").0
}

/// What broker and disk keep, whatever happens to the process.
#[derive(Default)]
struct Kept {
    stream: Vec<Stored>,
    checkpoints: VecDeque<Vec<u8>>,
    log: Vec<Decided>,
    /// Predictions as they were published, by frame.
    answers: BTreeMap<u64, Vec<u8>>,
    /// Hash of each state that was ever written.
    written: BTreeMap<Place, [u8; 32]>,
}

/// What happened, for the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    frames: u64,
    crashes: u64,
    damaged: u64,
    replayed: u64,
    decisions: u64,
    stale: u64,
    broken: u64,
    shed: u64,
    overloaded: u64,
    checkpoints: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        let Self { frames, crashes, damaged, replayed, decisions, stale, broken, shed, overloaded, checkpoints } = other;
        for (sum, more) in [
            (&mut self.frames, frames),
            (&mut self.crashes, crashes),
            (&mut self.damaged, damaged),
            (&mut self.replayed, replayed),
            (&mut self.decisions, decisions),
            (&mut self.stale, stale),
            (&mut self.broken, broken),
            (&mut self.shed, shed),
            (&mut self.overloaded, overloaded),
            (&mut self.checkpoints, checkpoints),
        ] {
            *sum += more;
        }
    }
}

/// A checkpoint that waits until the predictions of its frames are stored.
struct Save {
    state: Box<DurableState>,
    ticket: u64,
}

/// What a crash takes with it.
struct Process {
    pipeline: Pipeline,
    adapter: Adapter,
    /// Deliveries on their way: number of the delivery, index in the stream.
    wire: VecDeque<(u64, usize)>,
    /// Of the consumer: how many deliveries it made, and what it delivers next.
    delivered: u64,
    next: usize,
    cursor: Cursor,
    /// Indices in the stream.
    inbox: VecDeque<usize>,
    jobs: VecDeque<Job>,
    finished: VecDeque<Adapted>,
    deciding: VecDeque<Action>,
    outbox: VecDeque<Prediction>,
    /// Predictions that were put into the outbox, and that left it.
    pushed: u64,
    published: u64,
    save: Option<Save>,
    /// Frames that are applied and not answered yet.
    unanswered: BTreeSet<u64>,
    /// Last frame that was answered before the start.
    replayed_until: u64,
}

impl Process {
    fn start(setup: &Setup, kept: &Kept) -> Self {
        let state = match kept.checkpoints.back() {
            Some(checkpoint) => restored(checkpoint),
            None => first_state(&BUNDLE, &setup.config, INCARNATION.to_owned(), 0),
        };
        let is_later = |decided: &&Decided| decided.number > state.control.generation;
        let scheduled = |decided: &Decided| Scheduled { after: decided.after, decision: decided.action.decision() };
        let decisions = kept.log.iter().filter(is_later).map(scheduled).collect();
        let pipeline = setup.pipeline(Start::Resume { state: Box::new(state), decisions });
        let mut process = Self {
            adapter: setup.adapter(&pipeline),
            wire: VecDeque::new(),
            delivered: 0,
            next: 0,
            cursor: Cursor::after(pipeline.sequence().0),
            inbox: VecDeque::new(),
            jobs: VecDeque::new(),
            finished: VecDeque::new(),
            deciding: VecDeque::new(),
            outbox: VecDeque::new(),
            pushed: 0,
            published: 0,
            save: None,
            unanswered: BTreeSet::new(),
            replayed_until: kept.answers.last_key_value().map_or(0, |(&sequence, _)| sequence),
            pipeline,
        };
        process.consume_anew(kept);
        process
    }

    /// A new consumer, behind the last frame that was taken.
    fn consume_anew(&mut self, kept: &Kept) {
        self.wire.clear();
        self.delivered = 0;
        self.cursor = Cursor::after(self.cursor.sequence());
        self.next = kept.stream.partition_point(|stored| stored.sequence <= self.cursor.sequence());
    }

    fn is_replaying(&self) -> bool {
        let unanswered = self.unanswered.first().copied().unwrap_or(self.pipeline.sequence().0 + 1);
        self.pipeline.has_scheduled() || unanswered <= self.replayed_until
    }

    fn accepts(&self, next: FrameSeq) -> bool {
        (self.deciding.is_empty() || self.is_replaying()) && self.outbox.len() < OUTBOX_MAX / 2 && self.pipeline.is_ready(next)
    }
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Publish,
    Deliver,
    Arrive,
    Take,
    Adapt,
    Hear,
    Store,
    Write,
    Decide,
    Label,
    Crash,
}

const ACTS: [Act; 11] = [
    Act::Publish,
    Act::Deliver,
    Act::Arrive,
    Act::Take,
    Act::Adapt,
    Act::Hear,
    Act::Store,
    Act::Write,
    Act::Decide,
    Act::Label,
    Act::Crash,
];

struct World {
    setup: Setup,
    kept: Kept,
    process: Process,
    random: ChaCha8Rng,
    counts: Counts,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let setup = Setup::draw(&mut random);
        let mut kept = Kept::default();
        let process = Process::start(&setup, &kept);
        // The daemon has its first state written before it takes a frame.
        write(&setup, &mut kept, &process.pipeline.state());
        if variable("UNDRIFT_SEED").is_some() {
            println!("seed {seed}: {setup:?}");
        }
        Self { setup, kept, process, random, counts: Counts::default() }
    }

    fn run(mut self) -> Counts {
        let mut weights = [0; ACTS.len()];
        for event in 0..EVENTS {
            EVENT.set(event);
            if event % 50 == 0 {
                // For a while some are fast, some slow, and some stand still.
                weights = ACTS.map(|act| self.weight(act));
            }
            let mut at = self.random.random_range(0..weights.iter().sum::<u32>().max(1));
            let drawn = ACTS.iter().zip(weights).find(|&(_, weight)| {
                let is_here = at < weight;
                at = at.saturating_sub(weight);
                is_here
            });
            if let Some((&act, _)) = drawn {
                self.act(act);
            }
        }
        self.come_to_an_end();
        self.compare();
        self.counts
    }

    fn weight(&mut self, act: Act) -> u32 {
        match act {
            Act::Decide | Act::Label => 1,
            Act::Crash => u32::from(!self.setup.is_core && self.random.random_bool(0.25)),
            Act::Publish => [0, 2, 6, 20][self.random.random_range(0..4)],
            _ => [0, 1, 4, 12, 12, 30][self.random.random_range(0..6)],
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Publish => self.publish(),
            Act::Deliver => self.deliver(),
            Act::Arrive => self.arrive(),
            Act::Take => self.take(),
            Act::Adapt => self.adapt(),
            Act::Hear => {
                if let Some(adapted) = self.process.finished.pop_front() {
                    self.apply(Event::Adapted(Box::new(adapted)));
                }
            }
            Act::Store => self.store(),
            Act::Write => self.write_if_due(),
            Act::Decide => self.operate(),
            Act::Label => self.label(),
            Act::Crash => self.crash(),
        }
        self.decide();
    }

    fn publish(&mut self) {
        let last = self.kept.stream.last().map_or(0, |stored| stored.sequence);
        if last < FRAMES_MAX {
            // Numbers that the stream has lost, or that were given to other messages.
            let missing = if self.random.random_bool(0.05) { self.random.random_range(1..4) } else { 0 };
            self.kept.stream.push(Stored::draw(last + 1 + missing, &mut self.random));
        }
    }

    /// The broker sends a frame; what arrives of it is another question.
    fn deliver(&mut self) {
        let process = &mut self.process;
        if process.next >= self.kept.stream.len() {
            return;
        }
        process.delivered += 1;
        let delivery = (process.delivered, process.next);
        process.next += 1;
        match self.random.random_range(0..if self.setup.is_core { 1 } else { 40 }) {
            1 => return,
            2 => process.wire.push_back(delivery),
            3 => {
                process.wire.push_front(delivery);
                return;
            }
            4 => {
                // From an earlier frame on.
                process.next = self.random.random_range(0..process.next);
                return;
            }
            5 => process.wire.clear(),
            _ => {}
        }
        process.wire.push_back(delivery);
    }

    fn arrive(&mut self) {
        let process = &mut self.process;
        if !self.setup.is_core && process.inbox.len() >= INBOX_MAX {
            return;
        }
        let Some((delivery, index)) = process.wire.pop_front() else { return };
        match process.cursor.take(delivery, self.kept.stream[index].sequence) {
            Delivery::Next { .. } => process.inbox.push_back(index),
            Delivery::Stale => self.counts.stale += 1,
            Delivery::Broken => {
                self.counts.broken += 1;
                process.consume_anew(&self.kept);
            }
        }
        if process.inbox.len() > INBOX_MAX {
            process.inbox.pop_front();
            self.counts.shed += 1;
        }
    }

    fn take(&mut self) {
        let process = &mut self.process;
        let Some(stored) = process.inbox.front().map(|&index| &self.kept.stream[index]) else { return };
        if !process.accepts(FrameSeq(stored.sequence)) {
            return;
        }
        let is_overloaded = self.setup.is_core && process.inbox.len() > INBOX_MAX / 2;
        process.inbox.pop_front();
        if let Some(frame) = stored.frame() {
            self.counts.overloaded += u64::from(is_overloaded);
            process.unanswered.insert(stored.sequence);
            self.apply(Event::Frame { frame: Box::new(frame), is_overloaded });
        }
    }

    fn adapt(&mut self) {
        let process = &mut self.process;
        if let Some(job) = process.jobs.pop_front() {
            process.finished.extend(process.adapter.run(job).expect("no fatal error"));
        }
    }

    fn apply(&mut self, event: Event) {
        for effect in self.process.pipeline.apply(event).expect("no fatal error") {
            match effect {
                Effect::Answer(prediction) => self.answer(*prediction),
                Effect::Adapt(job) => self.process.jobs.push_back(job),
                Effect::Persist(state) => self.persist(state),
                Effect::Observe(_) => {}
            }
        }
    }

    /// Published, or compared where it was before.
    fn answer(&mut self, prediction: Prediction) {
        self.process.unanswered.remove(&prediction.sequence.0);
        match self.kept.answers.get(&prediction.sequence.0) {
            Some(published) => {
                assert_eq!(*published, bytes(&prediction), "answered before as {:?}", wire::decode_prediction(published));
                self.counts.replayed += 1;
            }
            None => {
                self.process.pushed += 1;
                self.process.outbox.push_back(prediction);
            }
        }
    }

    fn persist(&mut self, state: Box<DurableState>) {
        self.process.save = Some(Save { state, ticket: self.process.pushed });
    }

    fn store(&mut self) {
        if let Some(prediction) = self.process.outbox.pop_front() {
            self.process.published += 1;
            let before = self.kept.answers.insert(prediction.sequence.0, bytes(&prediction));
            assert_eq!(before, None, "frame {} is answered twice", prediction.sequence.0);
        }
    }

    fn write_if_due(&mut self) {
        if let Some(save) = self.process.save.take_if(|save| save.ticket <= self.process.published) {
            write(&self.setup, &mut self.kept, &save.state);
            self.counts.checkpoints += 1;
        }
    }

    fn operate(&mut self) {
        let checkpoints = &self.kept.checkpoints;
        let action = match self.random.random_range(0..5) {
            0 => Action::Reset,
            1 => Action::RollBack(checkpoints[self.random.random_range(0..checkpoints.len())].clone()),
            drawn => Action::Adapt { enabled: drawn > 2 },
        };
        self.process.deciding.push_back(action);
    }

    /// What waits to be decided, once nothing else is under way; on the disk before it takes effect.
    fn decide(&mut self) {
        while !self.process.is_replaying()
            && self.process.pipeline.is_settled()
            && let Some(action) = self.process.deciding.pop_front()
        {
            let pipeline = &self.process.pipeline;
            if matches!(action, Action::Adapt { enabled } if enabled == pipeline.is_adapt_enabled()) {
                continue;
            }
            let decision = action.decision();
            self.kept.log.push(Decided { number: pipeline.next_decision(), after: pipeline.sequence(), action });
            self.counts.decisions += 1;
            if !self.setup.is_core && self.random.random_bool(0.1) {
                return self.crash();
            }
            self.apply(Event::Decided(decision));
            let state = Box::new(self.process.pipeline.state());
            self.persist(state);
        }
    }

    fn label(&mut self) {
        let last = self.process.pipeline.sequence().0;
        if self.setup.has_labels && last > 0 {
            let (frame, label) = (self.random.random_range(1..=last), ClassIndex(self.random.random_range(0..3)));
            self.apply(Event::Label { camera: "cam".to_owned(), frame_id: format!("cam:{frame}"), label });
        }
    }

    fn crash(&mut self) {
        self.counts.crashes += 1;
        let checkpoints = &mut self.kept.checkpoints;
        if checkpoints.len() > 1
            && self.random.random_bool(0.25)
            && let Some(mut newest) = checkpoints.pop_back()
        {
            let bit = self.random.random_range(0..8 * newest.len());
            newest[bit / 8] ^= 1 << (bit % 8);
            assert!(checkpoint::decode(&newest).is_err(), "bit {bit} of a checkpoint is flipped");
            self.counts.damaged += 1;
        }
        self.process = Process::start(&self.setup, &self.kept);
    }

    /// Nothing goes wrong any more, and everything is done that there is to do.
    fn come_to_an_end(&mut self) {
        EVENT.set(EVENTS);
        loop {
            let process = &mut self.process;
            // What was lost after the last frame that arrived shows to nobody; a connection that is made again does.
            if process.wire.is_empty() && process.inbox.is_empty() && process.next >= self.kept.stream.len() && !self.setup.is_core {
                process.consume_anew(&self.kept);
            }
            let has_more = process.next < self.kept.stream.len() || !(process.wire.is_empty() && process.inbox.is_empty());
            let is_busy = !process.outbox.is_empty() || !process.jobs.is_empty() || !process.finished.is_empty();
            if !has_more && !is_busy && process.deciding.is_empty() {
                break;
            }
            if process.next < self.kept.stream.len() {
                process.delivered += 1;
                process.wire.push_back((process.delivered, process.next));
                process.next += 1;
            }
            for act in [Act::Arrive, Act::Store, Act::Adapt, Act::Hear, Act::Take] {
                self.act(act);
            }
        }
    }

    fn compare(&mut self) {
        let usable = self.kept.stream.iter().filter_map(Stored::frame);
        let frames: Vec<(Frame, bool)> = if self.setup.is_core {
            // Those that were shed have no answer; those that were in a hurry were not judged.
            let is_hurried = |frame: &Frame| self.kept.answers.get(&frame.sequence.0).map(|answer| !decoded(answer).judged);
            let waits = |frame: &Frame| self.process.unanswered.contains(&frame.sequence.0).then_some(false);
            usable.filter_map(|frame| is_hurried(&frame).or_else(|| waits(&frame)).map(|is_hurried| (frame, is_hurried))).collect()
        } else {
            usable.map(|frame| (frame, false)).collect()
        };
        self.counts.frames = frames.len() as u64;
        let undisturbed = undisturbed(&self.setup, frames, &self.kept.log);
        for (sequence, answer) in &undisturbed.answers {
            let got = self.kept.answers.get(sequence).map(|answer| decoded(answer));
            assert_eq!(got, Some(decoded(answer)), "answer to frame {sequence}");
            assert_eq!(self.kept.answers[sequence], *answer, "bytes of the answer to frame {sequence}");
        }
        assert_eq!(self.kept.answers.len(), undisturbed.answers.len(), "answers to frames that should have none");
        let last = self.process.pipeline.state();
        self.kept.written.insert(place(&last), self.setup.hash(&last));
        for (place, hash) in &self.kept.written {
            let expected = undisturbed.states.get(place).map(|state| self.setup.hash(state));
            assert_eq!(Some(*hash), expected, "state after frame and decision {place:?}");
        }
        assert_eq!(undisturbed.states.last_key_value().map(|(&place, _)| place), Some(place(&last)), "the last state");
    }
}

fn bytes(prediction: &Prediction) -> Vec<u8> {
    wire::encode_prediction(prediction, Format::Msgpack)
}

fn decoded(answer: &[u8]) -> Prediction {
    wire::decode_prediction(answer).expect("bytes of our own")
}

fn write(setup: &Setup, kept: &mut Kept, state: &DurableState) {
    let hash = setup.hash(state);
    let known = *kept.written.entry(place(state)).or_insert(hash);
    assert_eq!(known, hash, "two states after frame and decision {:?}", place(state));
    kept.checkpoints.push_back(checkpoint::encode(state, &Meta::default()).expect("finite values"));
    if kept.checkpoints.len() > CHECKPOINTS_KEPT {
        kept.checkpoints.pop_front();
    }
}

/// What comes of frames and decisions where nothing goes wrong.
struct Undisturbed {
    answers: BTreeMap<u64, Vec<u8>>,
    states: BTreeMap<Place, DurableState>,
}

fn undisturbed(setup: &Setup, frames: Vec<(Frame, bool)>, log: &[Decided]) -> Undisturbed {
    let mut pipeline = setup.pipeline(Start::Source { incarnation: INCARNATION.to_owned(), birth: 0 });
    let mut adapter = setup.adapter(&pipeline);
    let mut log = VecDeque::from(log.to_vec());
    let mut run = Undisturbed { answers: BTreeMap::new(), states: [((0, 0), pipeline.state())].into() };
    let mut apply = |event: Event, run: &mut Undisturbed| {
        let mut effects = VecDeque::from(pipeline.apply(event).expect("no fatal error"));
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Answer(prediction) => drop(run.answers.insert(prediction.sequence.0, bytes(&prediction))),
                Effect::Adapt(job) => {
                    let adapted = adapter.run(job).expect("no fatal error").map(|adapted| Event::Adapted(Box::new(adapted)));
                    effects.extend(adapted.into_iter().flat_map(|event| pipeline.apply(event).expect("no fatal error")));
                }
                Effect::Persist(_) | Effect::Observe(_) => {}
            }
        }
        let state = pipeline.state();
        run.states.entry(place(&state)).or_insert(state);
    };
    let last = FrameSeq(u64::MAX);
    for (frame, is_overloaded) in frames.into_iter().map(|(frame, is_overloaded)| (Some(frame), is_overloaded)).chain([(None, false)]) {
        let next = frame.as_ref().map_or(last, |frame| frame.sequence);
        while let Some(decided) = log.pop_front_if(|decided| decided.after < next) {
            let decision = match &decided.action {
                // To its own state of then.
                Action::RollBack(checkpoint) => Decision::RollBack(Arc::clone(&run.states[&place(&restored(checkpoint))].learner)),
                action => action.decision(),
            };
            apply(Event::Decided(decision), &mut run);
        }
        if let Some(frame) = frame {
            apply(Event::Frame { frame: Box::new(frame), is_overloaded }, &mut run);
        }
    }
    run
}

/// What is said of a panic.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn whatever_goes_wrong_answers_and_states_are_those_of_a_run_in_which_nothing_does() {
    let seeds = variable("UNDRIFT_SEED").map_or(0..variable("UNDRIFT_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    println!("seeds {seeds:?}");
    let outcome = |seed| {
        catch_unwind(AssertUnwindSafe(|| World::new(seed).run()))
            .map_err(|panic| format!("UNDRIFT_SEED={seed}, event {}: {}", EVENT.get(), message(&*panic)))
    };
    let outcomes: Vec<Result<Counts, String>> = seeds.into_par_iter().map(outcome).collect();
    let (mut counts, mut failures) = (Counts::default(), Vec::new());
    for outcome in outcomes {
        match outcome {
            Ok(more) => counts += more,
            Err(failure) => failures.push(failure),
        }
    }
    println!("{counts:?}");
    assert!(failures.is_empty(), "{} seeds fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_seed_is_one_run() {
    for seed in 0..2 {
        assert_eq!(World::new(seed).run(), World::new(seed).run(), "seed {seed}");
    }
}
