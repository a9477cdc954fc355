//! The broker forgets, or remembers something else: the daemon notices before it learns from a frame in a wrong place.
//!
//! Method: the stream's files are replaced by those of an earlier moment, as a restored backup or a power cut would, and other
//! frames take the lost ones' numbers; messages are deleted, purged, pushed out by limits; consumers are deleted; streams are made anew.
//! 75 cases: 46 lost ends and one lost twice, 3 streams made anew, 4 frames that vanished, 4 older stores under a running daemon, 9 losses
//! by rule or by hand, 3 of answers, 5 deletions under a running daemon. nats-server 2.9 has one less: its streams all begin at 1.

mod harness;

use async_nats::jetstream::stream::{Config, State};
use async_nats::jetstream::{self, consumer};
use futures_util::StreamExt;
use harness::{Broker, Daemon, Home, Server, control, copy_folder, png, servers, until};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use undrift::frame::FrameSeq;
use undrift::proof::{HistoryId, PROOF_HEADER, Proof};
use undrift::shell::decision_log::{Action, Decided, DecisionLog};
use undrift::shell::jetstream::ensure_streams;
use undrift::shell::nats::{connect, jetstream_context};
use undrift::shell::replay::{Answered, PredictionId, Replayed, Tail};
use undrift::shell::status::Shared;
use undrift::shell::store;
use undrift::wire::Subjects;

const FRAMES: &str = "UNDRIFT_V1_FRAMES";
const PREDICTIONS: &str = "UNDRIFT_V1_PREDICTIONS";
const SETS: [&str; 1] = ["nats.mode=jetstream"];
/// Frames that were answered before the broker forgets.
const ANSWERED: u64 = 30;
const KINDS: [&str; 3] = ["new_stream", "stream_truncated", "stream_rewritten"];

/// A daemon's state and a broker's files after `ANSWERED` frames.
struct Before {
    dir: TempDir,
    /// Last frame of the checkpoint.
    applied: u64,
}

impl Before {
    /// Keeps the files of the frames' stream after each frame.
    async fn new(server: &Server) -> Self {
        let dir = TempDir::new().expect("temporary folders can be made");
        let (home, mut broker) = (Home::new(), Broker::start(server).await);
        // It makes the streams.
        Daemon::start(&home, &broker, &SETS).await.kill();
        for frames in 0..=ANSWERED {
            publish(&broker, frames.checked_sub(1)).await;
            broker.kill();
            copy_folder(&broker.folder_of(FRAMES), &dir.path().join(format!("frames-{frames}")));
            broker.resume().await;
        }
        let mut daemon = Daemon::start(&home, &broker, &SETS).await;
        until("the answers are stored", || async { (predictions(&broker).await.len() as u64 == ANSWERED).then_some(()) }).await;
        let state = home.path().join("state");
        let newest = || store::list(&state).ok().and_then(|listed| Some(listed.into_iter().next()?.ok()?.header.scalars.sequence.0));
        until("a checkpoint is written", || async { newest().filter(|&applied| applied >= ANSWERED / 2) }).await;
        daemon.kill();
        broker.kill();
        copy_folder(&broker.folder_of(PREDICTIONS), &dir.path().join("predictions"));
        copy_folder(&state, &dir.path().join("state"));
        let newest = store::list(&state).expect("a folder").remove(0).expect("a checkpoint");
        Self { dir, applied: newest.header.scalars.sequence.0 }
    }

    /// A broker that remembers `frames` frames and, where `has_predictions`, their predictions, and a daemon's folder that
    /// remembers all.
    async fn restored(&self, server: &Server, frames: u64, has_predictions: bool) -> (Home, Broker) {
        let (home, mut broker) = (Home::new(), Broker::start(server).await);
        broker.kill();
        copy_folder(&self.dir.path().join(format!("frames-{frames}")), &broker.folder_of(FRAMES));
        if has_predictions {
            copy_folder(&self.dir.path().join("predictions"), &broker.folder_of(PREDICTIONS));
        }
        copy_folder(&self.dir.path().join("state"), &home.path().join("state"));
        broker.resume().await;
        (home, broker)
    }
}

async fn publish(broker: &Broker, indices: impl IntoIterator<Item = u64>) {
    let context = jetstream::new(broker.client().await);
    for index in indices {
        let sent = context.publish("undrift.v1.frames.cam1", png(index as usize).into()).await.expect("the connection is open");
        sent.await.expect("the frame is stored");
    }
}

/// Sequence numbers of the frames whose predictions are stored, by identity of the stream.
async fn stored(broker: &Broker) -> BTreeMap<String, Vec<u64>> {
    let mut stored: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for id in predictions(broker).await {
        let (prefix, sequence) = id.split_once(':').expect("an id has two parts");
        stored.entry(prefix.to_owned()).or_default().push(sequence.parse().expect("a number"));
    }
    stored
}

/// Ids of the stored predictions, in their order.
async fn predictions(broker: &Broker) -> Vec<String> {
    let context = jetstream::new(broker.client().await);
    let stream = context.get_stream(PREDICTIONS).await.expect("the daemon made the stream");
    let count = usize::try_from(stream.cached_info().state.messages).expect("few");
    let config = consumer::pull::Config { ack_policy: consumer::AckPolicy::None, ..Default::default() };
    let consumer = stream.create_consumer(config).await.expect("the broker makes consumers");
    let messages = consumer.fetch().max_messages(count.max(1)).messages().await.expect("the broker answers").take(count);
    let id = |message: jetstream::Message| {
        message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id")).expect("a prediction has an id").to_string()
    };
    messages.map(|message| id(message.expect("a message"))).collect().await
}

fn breaks(daemon: &Daemon) -> Vec<&'static str> {
    let is_counted = |kind: &&&str| daemon.metric(&format!("undrift_stream_breaks_total{{kind=\"{kind}\"}}")) > 0.0;
    KINDS.iter().filter(is_counted).copied().collect()
}

/// Starts the daemon on a broker that has `last` frames; gives the kinds of breaks and what is stored in the end.
async fn go_on(home: &Home, broker: &Broker, last: u64) -> (Vec<&'static str>, BTreeMap<String, Vec<u64>>) {
    let mut daemon = Daemon::start(home, broker, &SETS).await;
    until("all frames are applied", || async { (daemon.status()["sequence"] == last).then_some(()) }).await;
    assert_eq!(daemon.metric("undrift_replay_mismatches_total"), 0.0);
    let kinds = breaks(&daemon);
    assert_eq!(daemon.stop().await, 0);
    (kinds, stored(broker).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_took_the_numbers_of_others_are_a_break_and_never_learned_from_as_those() {
    // Goal: whatever end of the stream was lost and grown again, no other frame is applied in the place of one that was answered.
    // Method: each `kept` number of frames that the broker remembers; `new` other frames after them; with the stream of
    // predictions as it was, or lost too.
    for server in servers() {
        let before = Before::new(&server).await;
        let mut cases = 0;
        for kept in (0..ANSWERED).step_by(5).chain([before.applied, before.applied - 1, ANSWERED - 1]) {
            for (new, has_predictions) in [(1, true), (4, true), (40, true), (1, false), (40, false)] {
                let (home, broker) = before.restored(&server, kept, has_predictions).await;
                publish(&broker, (0..new).map(|i| 100 + i)).await;
                let (kinds, stored) = go_on(&home, &broker, kept + new).await;
                let case =
                    format!("{kept} frames kept, {new} new, applied {}, answers known: {has_predictions}: {stored:?}", before.applied);
                let expected: &[&str] = match () {
                    () if kept + new < before.applied => &["stream_truncated"],
                    () if kept < before.applied => &["stream_rewritten"],
                    // What was lost was answered, but is in no state, and no answer is left to tell.
                    () if !has_predictions => &[],
                    () => &["stream_rewritten"],
                };
                assert_eq!(kinds, expected, "{case}");
                let old: Vec<u64> = (1..=ANSWERED).collect();
                let ends = |sequences: &&Vec<u64>| sequences.last() == Some(&(kept + new)) && !(has_predictions && **sequences == old);
                let new_ones = stored.values().find(ends);
                let new_ones = new_ones.unwrap_or_else(|| panic!("every new frame is answered: {case}"));
                let contiguous: Vec<u64> = (new_ones[0]..=kept + new).collect();
                assert!(*new_ones == contiguous && new_ones[0] <= kept + 1, "every new frame is answered once: {case}");
                assert!(!has_predictions || stored.values().any(|sequences| *sequences == old), "old answers stand: {case}");
                cases += 1;
            }
        }
        println!("{cases} cases");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_while_the_daemon_was_away_is_a_break() {
    for server in servers() {
        let before = Before::new(&server).await;
        for new in [1, ANSWERED, ANSWERED + 10] {
            let (home, broker) = before.restored(&server, ANSWERED, true).await;
            let context = jetstream::new(broker.client().await);
            let config = context.get_stream(FRAMES).await.expect("the stream is there").cached_info().config.clone();
            context.delete_stream(FRAMES).await.expect("the stream can be deleted");
            context.create_stream(config).await.expect("the stream can be made");
            publish(&broker, 100..100 + new).await;
            let (kinds, stored) = go_on(&home, &broker, new).await;
            assert_eq!(kinds, ["new_stream"]);
            assert!(stored.values().any(|sequences| *sequences == (1..=new).collect::<Vec<_>>()), "{stored:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_vanished_after_it_was_answered_is_a_break_and_one_that_was_not_is_a_gap() {
    for server in servers() {
        let before = Before::new(&server).await;
        for vanished in [before.applied, before.applied + 1, ANSWERED - 1] {
            let (home, broker) = before.restored(&server, ANSWERED, true).await;
            let context = jetstream::new(broker.client().await);
            let stream = context.get_stream(FRAMES).await.expect("the stream is there");
            stream.delete_message(vanished).await.expect("messages can be deleted");
            let (kinds, _) = go_on(&home, &broker, ANSWERED).await;
            // Gone from the checkpoint's own end, it is one that retention may forget.
            let expected: &[&str] = if vanished == before.applied { &[] } else { &["stream_rewritten"] };
            assert_eq!(kinds, expected, "frame {vanished} of {ANSWERED}, applied {}", before.applied);
        }
        let (home, broker) = before.restored(&server, ANSWERED, true).await;
        publish(&broker, 100..104).await;
        let context = jetstream::new(broker.client().await);
        let stream = context.get_stream(FRAMES).await.expect("the stream is there");
        stream.delete_message(ANSWERED + 2).await.expect("messages can be deleted");
        let daemon = Daemon::start(&home, &broker, &SETS).await;
        until("all frames are applied", || async { (daemon.status()["sequence"] == ANSWERED + 4).then_some(()) }).await;
        assert_eq!(breaks(&daemon), [""; 0]);
        assert_eq!(daemon.metric("undrift_frames_missed_total"), 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_back_with_an_older_store_under_a_running_daemon_is_a_break() {
    for server in servers() {
        let before = Before::new(&server).await;
        for (kept, new) in [(3, 1), (before.applied - 1, 40), (ANSWERED - 1, 1), (ANSWERED - 1, 5)] {
            let (home, mut broker) = before.restored(&server, ANSWERED, true).await;
            let daemon = Daemon::start(&home, &broker, &SETS).await;
            until("all frames are applied", || async { (daemon.status()["sequence"] == ANSWERED).then_some(()) }).await;
            broker.kill();
            copy_folder(&before.dir.path().join(format!("frames-{kept}")), &broker.folder_of(FRAMES));
            broker.resume().await;
            publish(&broker, (0..new).map(|i| 100 + i)).await;
            until("a break is seen", || async { (!breaks(&daemon).is_empty()).then_some(()) }).await;
            until("all frames are applied", || async { (daemon.status()["sequence"] == kept + new).then_some(()) }).await;
            assert_eq!(daemon.metric("undrift_replay_mismatches_total"), 0.0);
        }
    }
}

/// What a broker may do to the frames' stream by its own rules, or by an administrator's hand.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// All that it held is purged; numbers go on.
    Purged,
    /// What is before the last two is purged.
    PurgedToTheLastTwo,
    /// What the checkpoint has applied is purged, and nothing else.
    PurgedToTheCheckpoint,
    /// A limit of messages pushes the oldest out, some of them answered and in no checkpoint.
    Crowded,
    /// All are too old.
    Aged,
    /// The stream is made anew, and holds the same pictures under the same numbers.
    MadeAnewWithTheSamePictures,
    /// The stream is made anew, and its numbers go on where the old one's ended.
    MadeAnewWithNumbersThatGoOn,
    /// The broker comes back without its folder.
    Wiped,
}

impl Way {
    const ALL: [Self; 8] = [
        Self::Purged,
        Self::PurgedToTheLastTwo,
        Self::PurgedToTheCheckpoint,
        Self::Crowded,
        Self::Aged,
        Self::MadeAnewWithTheSamePictures,
        Self::MadeAnewWithNumbersThatGoOn,
        Self::Wiped,
    ];

    /// Does it, publishes other frames, and gives the number of the last.
    async fn happen(self, broker: &mut Broker, applied: u64) -> u64 {
        let context = jetstream::new(broker.client().await);
        let stream = context.get_stream(FRAMES).await.expect("the stream is there");
        let config = stream.cached_info().config.clone();
        let purge_before = |sequence| stream.purge().sequence(sequence);
        match self {
            Self::Purged => drop(stream.purge().await.expect("streams can be purged")),
            Self::PurgedToTheLastTwo => drop(purge_before(ANSWERED - 1).await.expect("streams can be purged")),
            Self::PurgedToTheCheckpoint => drop(purge_before(applied + 1).await.expect("streams can be purged")),
            Self::Crowded => drop(context.update_stream(Config { max_messages: 5, ..config }).await.expect("streams can be changed")),
            Self::Aged => {
                let short = Config { max_age: Duration::from_millis(100), duplicate_window: Duration::from_millis(100), ..config.clone() };
                context.update_stream(short).await.expect("streams can be changed");
                until("all frames are too old", || async { (messages(&context).await == 0).then_some(()) }).await;
                context.update_stream(config).await.expect("streams can be changed");
            }
            Self::MadeAnewWithTheSamePictures => {
                make_anew(&context, config).await;
                publish(broker, 0..ANSWERED).await;
                return ANSWERED;
            }
            Self::MadeAnewWithNumbersThatGoOn => make_anew(&context, Config { first_sequence: Some(ANSWERED + 1), ..config }).await,
            Self::Wiped => {
                broker.wipe().await;
                jetstream::new(broker.client().await).create_stream(config).await.expect("the stream can be made");
            }
        }
        publish(broker, 100..104).await;
        last(&jetstream::new(broker.client().await)).await
    }

    /// How it shows: the kinds of breaks, and whether frames are missed.
    fn shows(self) -> (&'static [&'static str], bool) {
        match self {
            // What was lost was answered, but is in no state, and no frame is left to tell by more than its number.
            Self::Purged | Self::Aged => (&[], true),
            Self::PurgedToTheCheckpoint => (&[], false),
            // The first that is left was answered as the successor of others.
            Self::PurgedToTheLastTwo | Self::Crowded => (&["stream_rewritten"], true),
            Self::MadeAnewWithTheSamePictures | Self::Wiped => (&["new_stream"], false),
            Self::MadeAnewWithNumbersThatGoOn => (&["new_stream"], true),
        }
    }

    /// First of the frames that must be answered anew, under the stream's present name.
    fn first_answered(self) -> u64 {
        match self {
            Self::PurgedToTheLastTwo => ANSWERED - 1,
            // It holds five, and four are new.
            Self::Crowded => ANSWERED,
            Self::Purged | Self::Aged | Self::MadeAnewWithNumbersThatGoOn => ANSWERED + 1,
            Self::PurgedToTheCheckpoint | Self::MadeAnewWithTheSamePictures | Self::Wiped => 1,
        }
    }
}

async fn make_anew(context: &jetstream::Context, config: Config) {
    context.delete_stream(FRAMES).await.expect("the stream can be deleted");
    context.create_stream(config).await.expect("the stream can be made");
}

async fn state(context: &jetstream::Context) -> State {
    context.get_stream(FRAMES).await.expect("the stream is there").cached_info().state.clone()
}

async fn messages(context: &jetstream::Context) -> u64 {
    state(context).await.messages
}

async fn last(context: &jetstream::Context) -> u64 {
    state(context).await.last_sequence
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_stream_loses_by_rule_or_by_hand_shows_before_a_frame_is_learned_from_in_a_wrong_place() {
    for server in servers() {
        let before = Before::new(&server).await;
        let mut cases = 0;
        for way in Way::ALL.into_iter().filter(|&way| way != Way::MadeAnewWithNumbersThatGoOn || !server.is_2_9()) {
            let (home, mut broker) = before.restored(&server, ANSWERED, true).await;
            let last = way.happen(&mut broker, before.applied).await;
            let mut daemon = Daemon::start(&home, &broker, &SETS).await;
            until("all frames are applied", || async { (daemon.status()["sequence"] == last).then_some(()) }).await;
            let has_missed = daemon.metric("undrift_frames_missed_total") > 0.0;
            let case = format!("{way:?}, applied {}", before.applied);
            assert_eq!((breaks(&daemon).as_slice(), has_missed), way.shows(), "{case}");
            assert_eq!(daemon.metric("undrift_replay_mismatches_total"), 0.0, "{case}");
            assert_eq!(daemon.stop().await, 0, "{case}");
            let mut stored = stored(&broker).await;
            let (old, new): (Vec<u64>, Vec<u64>) = ((1..=ANSWERED).collect(), (way.first_answered()..=last).collect());
            let is_old_kept = stored.values().any(|sequences| sequences.starts_with(&old));
            assert!(way == Way::Wiped || is_old_kept, "old answers stand, once: {case}: {stored:?}");
            stored.retain(|_, sequences| sequences.ends_with(&new));
            // Pictures that are the same under other frames' numbers are other frames.
            assert_eq!(stored.len(), 1 + usize::from(new == old), "every new frame is answered once: {case}");
            cases += 1;
        }
        println!("{cases} cases");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_loses_its_end_twice_before_a_new_frame_is_gone_on_with_behind_what_it_kept() {
    // Goal: frames that were learned from are not learned from again, and those that took the lost ones' places are answered once.
    // Method: an earlier store, a start and an orderly stop; a still earlier store with a new frame, and another start.
    for server in servers() {
        let before = Before::new(&server).await;
        let (first, second) = (before.applied - 2, before.applied - 6);
        let (home, mut broker) = before.restored(&server, first, true).await;
        assert_eq!(go_on(&home, &broker, first).await.0, ["stream_truncated"]);
        broker.kill();
        copy_folder(&before.dir.path().join(format!("frames-{second}")), &broker.folder_of(FRAMES));
        broker.resume().await;
        publish(&broker, Some(100)).await;
        let (kinds, stored) = go_on(&home, &broker, second + 1).await;
        assert_eq!(kinds, ["stream_truncated"]);
        assert_eq!(stored.len(), 2, "{stored:?}");
        assert!(stored.values().any(|sequences| *sequences == [second + 1]), "{stored:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_is_heard_where_all_that_was_answered_is_gone_from_the_stream() {
    // Goal: a command waits for the frames of a replay, and not for frames that will never come.
    // Method: frames were answered, and a switch decided upon, behind the checkpoint; then all frames age out. No other comes.
    for server in servers() {
        let before = Before::new(&server).await;
        let (home, broker) = before.restored(&server, ANSWERED, true).await;
        let state = home.path().join("state");
        let newest = store::list(&state).expect("a folder").remove(0).expect("a checkpoint");
        let incarnation = store::load(&state, newest.generation).expect("a checkpoint").0.incarnation;
        let off = Decided { number: 1, incarnation, after: FrameSeq(ANSWERED), action: Action::Adapt { enabled: false } };
        DecisionLog::open(&state).expect("no decisions").append(off).expect("a disk");
        let context = jetstream::new(broker.client().await);
        let frames = context.get_stream(FRAMES).await.expect("the stream is there");
        frames.purge().await.expect("streams can be purged");
        let daemon = Daemon::start(&home, &broker, &SETS).await;
        assert_eq!((&daemon.status()["adapt"], &daemon.status()["decision"]), (&"off".into(), &1.into()));
        let reply = control(&broker.client().await, "adapt", "on").await;
        assert_eq!((&reply["adapt"], &reply["decision"]), (&"on".into(), &2.into()), "{reply}");
    }
}

/// What a broker may forget of the answers.
#[derive(Clone, Copy, Debug)]
enum ForgottenAnswers {
    All,
    /// The newest three.
    Newest,
    /// One that a restart would prove itself on.
    One,
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_the_broker_forgot_are_given_again_or_counted_and_none_is_stored_twice() {
    for server in servers() {
        let before = Before::new(&server).await;
        for forgotten in [ForgottenAnswers::All, ForgottenAnswers::Newest, ForgottenAnswers::One] {
            let (home, mut broker) = before.restored(&server, ANSWERED, true).await;
            let stream = jetstream::new(broker.client().await).get_stream(PREDICTIONS).await.expect("the stream is there");
            let (gone, expected, unknown): (Vec<u64>, Vec<u64>, f64) = match forgotten {
                // Those that the checkpoint covers are not given again: the frames may be gone.
                ForgottenAnswers::All => ((1..=ANSWERED).collect(), (before.applied + 1..=ANSWERED + 4).collect(), 0.0),
                ForgottenAnswers::Newest => ((ANSWERED - 2..=ANSWERED).collect(), (1..=ANSWERED + 4).collect(), 0.0),
                ForgottenAnswers::One => (vec![ANSWERED - 1], (1..=ANSWERED + 4).filter(|&n| n != ANSWERED - 1).collect(), 1.0),
            };
            for sequence in gone {
                stream.delete_message(sequence).await.expect("messages can be deleted");
            }
            // It forgets the ids of what it does not hold.
            broker.kill();
            broker.resume().await;
            publish(&broker, 100..104).await;
            let mut daemon = Daemon::start(&home, &broker, &SETS).await;
            until("all frames are applied", || async { (daemon.status()["sequence"] == ANSWERED + 4).then_some(()) }).await;
            assert_eq!(breaks(&daemon), [""; 0], "{forgotten:?}");
            assert_eq!(daemon.metric("undrift_replay_mismatches_total"), 0.0, "{forgotten:?}");
            assert_eq!(daemon.metric("undrift_replayed_predictions_total{outcome=\"unknown\"}"), unknown, "{forgotten:?}");
            assert_eq!(daemon.stop().await, 0);
            assert_eq!(stored(&broker).await.into_values().collect::<Vec<_>>(), [expected], "{forgotten:?}");
        }
    }
}

/// What may happen under a daemon that has answered all frames.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    ConsumersDeleted,
    FramesPurged,
    FramesMadeAnew,
    AnswersPurged,
    AnswersMadeAnew,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_under_a_running_daemon_is_a_break_or_costs_no_frame() {
    use Meanwhile::{AnswersMadeAnew, AnswersPurged, ConsumersDeleted, FramesMadeAnew, FramesPurged};
    for server in servers() {
        let before = Before::new(&server).await;
        for meanwhile in [ConsumersDeleted, FramesPurged, FramesMadeAnew, AnswersPurged, AnswersMadeAnew] {
            let (home, broker) = before.restored(&server, ANSWERED, true).await;
            let mut daemon = Daemon::start(&home, &broker, &SETS).await;
            until("all frames are applied", || async { (daemon.status()["sequence"] == ANSWERED).then_some(()) }).await;
            let context = jetstream::new(broker.client().await);
            let frames = context.get_stream(FRAMES).await.expect("the stream is there");
            let answers = context.get_stream(PREDICTIONS).await.expect("the stream is there");
            match meanwhile {
                ConsumersDeleted => {
                    let names: Vec<_> = frames.consumer_names().collect().await;
                    for name in names {
                        frames.delete_consumer(&name.expect("a name")).await.expect("consumers can be deleted");
                    }
                }
                FramesPurged => drop(frames.purge().await.expect("streams can be purged")),
                FramesMadeAnew => make_anew(&context, frames.cached_info().config.clone()).await,
                AnswersPurged => drop(answers.purge().await.expect("streams can be purged")),
                AnswersMadeAnew => {
                    context.delete_stream(PREDICTIONS).await.expect("the stream can be deleted");
                    context.create_stream(answers.cached_info().config.clone()).await.expect("the stream can be made");
                }
            }
            publish(&broker, 100..104).await;
            let last = last(&context).await;
            until("all frames are applied", || async { (daemon.status()["sequence"] == last).then_some(()) }).await;
            let expected: &[&str] = if matches!(meanwhile, FramesMadeAnew) { &["new_stream"] } else { &[] };
            assert_eq!(breaks(&daemon), expected, "{meanwhile:?}");
            assert_eq!(daemon.metric("undrift_frames_missed_total"), 0.0, "{meanwhile:?}");
            assert_eq!(daemon.metric("undrift_replay_mismatches_total"), 0.0, "{meanwhile:?}");
            assert_eq!(daemon.stop().await, 0);
            let mut stored: Vec<Vec<u64>> = stored(&broker).await.into_values().collect();
            stored.sort_by_key(Vec::len);
            let (old, new): (Vec<u64>, Vec<u64>) = ((1..=ANSWERED).collect(), (last - 3..=last).collect());
            let expected = match meanwhile {
                ConsumersDeleted | FramesPurged => vec![[old, new].concat()],
                FramesMadeAnew => vec![new, old],
                AnswersPurged | AnswersMadeAnew => vec![new],
            };
            assert_eq!(stored, expected, "{meanwhile:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_daemons_on_one_stream_one_is_refused_and_every_frame_is_answered_once() {
    // Goal: two daemons with folders of their own never both store answers.
    // Method: the second starts when the first is through with all frames; then frames come until one of them ends.
    for server in servers() {
        let (home, second_home, broker) = (Home::new(), Home::new(), Broker::start(&server).await);
        let mut first = Daemon::start(&home, &broker, &SETS).await;
        publish(&broker, 0..10).await;
        until("frames are answered", || async { (predictions(&broker).await.len() == 10).then_some(()) }).await;
        let mut second = Daemon::start(&second_home, &broker, &SETS).await;
        let mut frames = 10;
        while !first.has_ended() && !second.has_ended() {
            assert!(frames < 200, "both go on");
            publish(&broker, Some(frames)).await;
            frames += 1;
            until("the frame is answered", || async { (predictions(&broker).await.len() as u64 >= frames).then_some(()) }).await;
        }
        println!("one ended after {} frames", frames - 10);
        let stored = stored(&broker).await;
        assert_eq!(stored.into_values().collect::<Vec<_>>(), [(1..=frames).collect::<Vec<_>>()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_slept_while_another_answered_stores_nothing() {
    // Goal: two answers of one frame are never stored, also where the broker has forgotten the id of the first.
    // Method: one daemon is stopped, another answers the frames that come; when their ids are forgotten, the first goes on.
    const WINDOW: Duration = Duration::from_millis(100);
    for server in servers() {
        let (home, second_home, broker) = (Home::new(), Home::new(), Broker::start(&server).await);
        let context = jetstream::new(broker.client().await);
        let subjects = vec!["undrift.v1.predictions.*".to_owned()];
        let config = jetstream::stream::Config { name: PREDICTIONS.to_owned(), subjects, duplicate_window: WINDOW, ..Default::default() };
        context.create_stream(config).await.expect("the stream can be made");
        let mut first = Daemon::start(&home, &broker, &SETS).await;
        publish(&broker, 0..10).await;
        until("frames are answered", || async { (predictions(&broker).await.len() == 10).then_some(()) }).await;
        first.pause();
        let _second = Daemon::start(&second_home, &broker, &SETS).await;
        publish(&broker, 10..20).await;
        until("frames are answered", || async { (predictions(&broker).await.len() == 20).then_some(()) }).await;
        let answered = Instant::now();
        until("their ids are forgotten", || async { (answered.elapsed() > 3 * WINDOW).then_some(()) }).await;
        first.resume();
        assert_eq!(first.exit_code().await, 73);
        assert_eq!(stored(&broker).await.into_values().collect::<Vec<_>>(), [(1..=20).collect::<Vec<_>>()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_written_to_is_never_read_as_shorter_than_its_newest_message() {
    // Goal: a daemon whose own predictions are being stored while it looks does not take them for another's.
    // Method: a writer that never stops, and many looks.
    for server in servers() {
        let broker = Broker::start(&server).await;
        let (client, subjects) = (broker.client().await, Subjects::new("undrift.v1").expect("a prefix"));
        let context = jetstream::new(broker.client().await);
        ensure_streams(&context, &subjects).await.expect("streams can be made");
        let writer = tokio::spawn(async move {
            loop {
                client.publish("undrift.v1.predictions.cam1", "a prediction".into()).await.expect("the connection is open");
            }
        });
        let mut last = 0;
        for look in 0..300 {
            let tail = Tail::read(&context, &subjects).await.expect("the broker answers");
            assert!(tail.newest <= tail.last, "look {look}: {} of {}", tail.newest, tail.last);
            last = tail.last;
        }
        println!("{last} messages");
        assert!(last > 1000, "{last}");
        writer.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_with_an_old_number_and_the_same_picture_is_another_frame() {
    // Goal: before a still scene too, frames that take lost ones' numbers are a break.
    // Method: the stream loses its end, and the same pictures are published again.
    for server in servers() {
        let before = Before::new(&server).await;
        // In the checkpoint, where the answers may be lost too, and answered after it.
        for (kept, has_predictions) in [(before.applied - 1, true), (before.applied - 1, false), (before.applied + 1, true)] {
            let (home, broker) = before.restored(&server, kept, has_predictions).await;
            publish(&broker, kept..ANSWERED).await;
            let breaks = go_on(&home, &broker, ANSWERED).await.0;
            assert_eq!(breaks, ["stream_rewritten"], "{kept} frames kept, answers kept: {has_predictions}");
        }
    }
}

#[tokio::test]
async fn more_answers_than_a_subscription_buffers_are_read_to_the_last() {
    // Goal: after a crash, each prediction since the checkpoint is compared, also where 512 frames lie between two checkpoints.
    // Method: 2000 stored proofs, read by the daemon's own connection on one thread.
    const STORED: u64 = 2000;
    for server in servers() {
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let subjects = Subjects::new("undrift.v1").expect("a prefix");
        let config = undrift::config::Config::load(home.config(), &[format!("nats.urls={}", broker.url())], std::iter::empty())
            .expect("a configuration");
        let shared = Arc::new(Shared::new(config.nats.mode));
        let context = jetstream_context(&connect(&config.nats, &shared).await.expect("an address"));
        shared.wait_until_connected().await;
        ensure_streams(&context, &subjects).await.expect("streams can be made");
        let proof = Proof { history: HistoryId::new(&BTreeMap::new(), 0), input_chain: [1; 32], content: [2; 32] };
        for sequence in 1..=STORED {
            let id = PredictionId { prefix: "here".to_owned(), sequence }.header();
            let headers = harness::headers(&[("Nats-Msg-Id", &id), (PROOF_HEADER, &proof.to_string())]);
            let subject = "undrift.v1.predictions.cam1";
            context.publish_with_headers(subject, headers, "".into()).await.expect("the connection is open").await.expect("it is stored");
        }
        let mut answered = Answered::read(&context, &subjects, "here", 0).await.expect("the broker answers");
        let replayed = (1..=STORED).filter(|&sequence| answered.replayed(sequence, &proof) == Replayed::Proven).count();
        assert_eq!(replayed as u64, STORED);
    }
}
