//! The pipeline's promises: which weights answer which frame, what switches do, and that a restart changes no bit.
//!
//! Method: the real pipeline and adapter on tiny random models, driven by hand; no threads, no clock.

mod tiny;

use AdapterSpeed::{AtLast, AtOnce, Midway};
use std::collections::VecDeque;
use std::sync::Arc;
use undrift::by_camera::ByCamera;
use undrift::frame::{ClassIndex, Frame, FrameSeq};
use undrift::learner::{AdaptConfig, Adapter, AnswerBy, AnswerTime, Judgement};
use undrift::model::ClassConditioning;
use undrift::noise::NoiseSecret;
use undrift::observation::{Observation, SkipReason};
use undrift::pipeline::{Adapted, Decision, Effect, Event, Job, OutputShape, Pipeline, Scheduled, Start, WindowFrame};
use undrift::prediction::Prediction;
use undrift::state::{DurableState, Hearing};

/// Frame `index`, labelled.
fn frame(channels: usize, index: u64) -> Frame {
    Frame { label: Some(ClassIndex((index % 3) as u32)), ..tiny::frame(channels, index, "cam") }
}

/// When the pipeline hears of a finished window.
#[derive(Clone, Copy, Debug, PartialEq)]
enum AdapterSpeed {
    AtOnce,
    /// While the next window is open.
    Midway,
    /// When the pipeline cannot go on without.
    AtLast,
}

struct Run {
    channels: usize,
    pipeline: Pipeline,
    adapter: Adapter,
    predictions: Vec<Prediction>,
    persisted: Vec<DurableState>,
    skips: Vec<SkipReason>,
    /// Windows that the adapter has finished and the pipeline has not heard of.
    finished: VecDeque<Adapted>,
}

impl Run {
    fn start(channels: usize, config: &AdaptConfig, start: Option<DurableState>) -> Self {
        Self::resume(channels, config, start, Vec::new())
    }

    fn resume(channels: usize, config: &AdaptConfig, start: Option<DurableState>, decisions: Vec<Scheduled>) -> Self {
        let bundle = tiny::bundle(channels, ClassConditioning::Readout);
        let shape = OutputShape { top_k: 2, checkpoint_windows: 1 };
        let start = match start {
            Some(state) => Start::Resume { state: Box::new(state), decisions },
            None => Start::Source { incarnation: "test".to_owned(), birth: 0 },
        };
        let pipeline = Pipeline::new(&bundle, config, shape, NoiseSecret::from_seed(1), start).expect("a bundle that fits");
        Self {
            channels,
            adapter: Adapter::new(&bundle, config, pipeline.learner()).expect("a bundle that fits"),
            pipeline,
            predictions: Vec::new(),
            persisted: Vec::new(),
            skips: Vec::new(),
            finished: VecDeque::new(),
        }
    }

    fn apply(&mut self, event: Event) {
        for effect in self.pipeline.apply(event).expect("no fatal error") {
            match effect {
                Effect::Answer(prediction) => self.predictions.push(*prediction),
                Effect::Persist(state) => self.persisted.push(*state),
                Effect::Adapt(job) => self.finished.extend(self.adapter.run(job).expect("no fatal error")),
                Effect::Observe(Observation::WindowSkipped { reason, .. }) => self.skips.push(reason),
                Effect::Observe(_) => {}
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(adapted) = self.finished.pop_front() {
            self.apply(Event::Adapted(Box::new(adapted)));
        }
    }

    fn feed(&mut self, indices: std::ops::Range<u64>, is_overloaded: bool, speed: AdapterSpeed) {
        for index in indices {
            let next = FrameSeq(index + 1);
            if speed == AtOnce || (speed == Midway && index % 4 == 2) || !self.pipeline.is_ready(next) {
                self.deliver();
            }
            assert!(self.pipeline.is_ready(next));
            self.apply(Event::Frame { frame: Box::new(frame(self.channels, index)), is_overloaded });
        }
    }

    /// Decides as the daemon does: when nothing is under way.
    fn decide(&mut self, decision: Decision) -> Scheduled {
        self.deliver();
        let after = FrameSeq(self.pipeline.status().sequence);
        self.apply(Event::Decided(decision.clone()));
        Scheduled { after, decision }
    }

    fn versions(&self) -> Vec<u64> {
        self.predictions.iter().map(|prediction| prediction.weights_version.0).collect()
    }
}

/// Bytes of a state: all scalars and tensors.
fn bytes(state: &DurableState) -> Vec<u8> {
    let (scalars, tensors) = state.to_parts().expect("parts");
    let mut bytes = rmp_serde::to_vec_named(&scalars).expect("scalars");
    for (name, tensor) in tensors {
        bytes.extend(name.as_bytes());
        let values = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("values");
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    bytes
}

#[test]
fn a_window_is_answered_by_the_weights_of_lag_windows_before() {
    for lag in 1..=3u64 {
        let config = AdaptConfig { lag: lag as usize, ..tiny::config() };
        let mut run = Run::start(1, &config, None);
        run.feed(0..24, false, AtOnce);
        let expected: Vec<u64> = (0..24).map(|frame: u64| (frame / 4 + 1).saturating_sub(lag)).collect();
        assert_eq!(run.versions(), expected, "lag {lag}");
    }
}

#[test]
fn answers_do_not_depend_on_when_the_adapter_finishes() {
    for lag in 1..=3 {
        let config = AdaptConfig { lag, ..tiny::config() };
        let (mut fast, mut slow) = (Run::start(1, &config, None), Run::start(1, &config, None));
        fast.feed(0..32, false, AtOnce);
        slow.feed(0..32, false, AtLast);
        assert_eq!(fast.predictions, slow.predictions, "lag {lag}");
    }
}

#[test]
fn colour_frames_are_answered_and_learned_from() {
    let mut run = Run::start(3, &tiny::config(), None);
    run.feed(0..16, false, AtOnce);
    assert_eq!(run.predictions.len(), 16);
    assert_eq!(run.versions().last(), Some(&2));
}

#[test]
fn answering_after_adaptation_gives_each_window_its_own_weights() {
    let config = AdaptConfig { answer: AnswerTime::After, window: 2, ..tiny::config() };
    let mut run = Run::start(1, &config, None);
    run.feed(0..6, false, AtOnce);
    run.deliver();
    assert_eq!(run.versions(), [1, 1, 2, 2, 3, 3]);
}

#[test]
fn off_holds_the_weights_at_once_and_on_lets_them_move_again() {
    let mut run = Run::start(1, &tiny::config(), None);
    run.feed(0..14, false, AtOnce);
    let held = run.predictions[13].weights_version;
    run.decide(Decision::Adapt { enabled: false });
    run.feed(14..32, false, AtOnce);
    assert!(run.predictions[14..].iter().all(|prediction| prediction.weights_version == held));
    assert_eq!(run.pipeline.status().adapt, "off");
    assert!(run.skips.iter().all(|&reason| reason == SkipReason::Disabled) && !run.skips.is_empty());
    run.decide(Decision::Adapt { enabled: true });
    run.feed(32..48, false, AtOnce);
    assert!(run.predictions[47].weights_version > held);
}

#[test]
fn an_overloaded_window_is_answered_and_not_learned_from() {
    let mut run = Run::start(1, &tiny::config(), None);
    run.feed(0..16, true, AtOnce);
    assert_eq!(run.predictions.len(), 16);
    assert_eq!(run.skips, [SkipReason::Overload; 4]);
    assert_eq!(run.versions().last(), Some(&0));
}

/// What the first three frames are answered with.
fn first_confidences(config: &AdaptConfig, is_overloaded: bool) -> Vec<f32> {
    let mut run = Run::start(1, config, None);
    run.feed(0..3, is_overloaded, AtOnce);
    assert!(run.predictions.iter().all(|prediction| prediction.judged == (config.answer_by == AnswerBy::Posterior && !is_overloaded)));
    run.predictions.iter().map(|prediction| prediction.confidence).collect()
}

#[test]
fn the_posterior_answers_where_it_is_asked_for_and_the_classifier_alone_where_time_is_short() {
    let alone = first_confidences(&AdaptConfig { answer_by: AnswerBy::Classifier, ..tiny::config() }, false);
    assert_ne!(first_confidences(&tiny::config(), false), alone);
    assert_eq!(first_confidences(&tiny::config(), true), alone);
    assert_eq!(first_confidences(&AdaptConfig { judge_weight_shut: 0.0, ..tiny::config() }, false), alone, "a judge that counts nothing");
}

#[test]
fn the_judge_counts_in_full_once_the_weights_serve_that_it_was_found_better_with() {
    let config = AdaptConfig { judge_weight: 0.0, recent_weight: 0.0, learning_rate: 1e-12, anchor_pull: 0.0, ..tiny::config() };
    let mut run = Run::start(1, &config, None);
    run.feed(0..12, false, AtOnce);
    let mut alone = Run::start(1, &AdaptConfig { answer_by: AnswerBy::Classifier, ..config }, None);
    alone.feed(0..12, false, AtOnce);
    let is_equal = |frame: usize| (run.predictions[frame].confidence - alone.predictions[frame].confidence).abs() < 1e-6;
    let equal: Vec<bool> = (0..12).map(is_equal).collect();
    assert_eq!(equal, [[false; 8].as_slice(), &[true; 4]].concat(), "lag 2 and windows of four");
}

#[test]
fn a_camera_at_which_the_judge_is_not_heard_is_answered_by_the_source_while_others_teach() {
    let mut run = Run::start(1, &tiny::config(), None);
    run.feed(0..16, false, AtOnce);
    let learned = DurableState { pending: Vec::new(), ..run.pipeline.state() };
    let answer = |start: Option<DurableState>, camera| {
        let mut run = Run::start(1, &tiny::config(), start);
        run.apply(Event::Frame { frame: Box::new(tiny::frame(1, 16, camera)), is_overloaded: false });
        (run.predictions[0].adapted, run.predictions[0].confidence)
    };
    let hearing_at = |door: &[&str], hearing: Hearing| {
        let mut state = learned.clone();
        state.serving.hearing = ByCamera::default();
        state.serving.hearing.see(door.iter().copied());
        state.serving.hearing.values_mut().for_each(|at_door| *at_door = hearing);
        Some(state)
    };
    let source = answer(None, "yard");
    assert_eq!(answer(hearing_at(&["door"], Hearing::Full), "yard"), source);
    assert!(answer(hearing_at(&["door"], Hearing::Full), "door").0, "where it is heard, by what was learned");
    assert!(answer(hearing_at(&[], Hearing::Full), "yard").0, "where nobody teaches, by what was learned and goes back");
    // At home the source answers, and the judge counts as much as is configured for that.
    let at_home = answer(hearing_at(&["door"], Hearing::Home), "door");
    assert!(!at_home.0 && at_home.1 != answer(None, "door").1, "at home, by the source: {at_home:?}");
    assert!(answer(hearing_at(&["door"], Hearing::Home), "yard").0, "a camera at home says nothing of another");
}

#[test]
fn what_a_camera_shows_for_long_is_foretold_to_it_alone_until_a_reset() {
    const SHOWN: u64 = 80;
    let answers = |recent_weight, reset| {
        // Without the noise that the judge adds, the same image gets the same answer.
        let config = AdaptConfig { answer_by: AnswerBy::Classifier, recent_weight, ..tiny::config() };
        let mut run = Run::start(1, &config, None);
        let show = |run: &mut Run, index, image, camera| {
            let frame = Frame { sequence: FrameSeq(index + 1), ..tiny::frame(1, image, camera) };
            run.deliver();
            run.apply(Event::Frame { frame: Box::new(frame), is_overloaded: false });
        };
        (0..SHOWN).for_each(|index| show(&mut run, index, 7, "door"));
        if reset {
            run.decide(Decision::Reset);
        }
        [(7, "door"), (7, "yard")].into_iter().zip(SHOWN..).for_each(|((image, camera), index)| show(&mut run, index, image, camera));
        run.predictions.iter().map(|prediction| (prediction.label, prediction.confidence)).collect::<Vec<_>>()
    };
    let (with, without) = (answers(1.0, false), answers(0.0, false));
    let is_like = |n: usize| with[n].0 == without[n].0 && (with[n].1 - without[n].1).abs() < 1e-3;
    assert!((0..8).all(is_like), "the first windows foretell little");
    let [at_door, at_yard] = [SHOWN as usize, SHOWN as usize + 1];
    assert!(
        with[at_door].0 == without[at_door].0 && with[at_door].1 > without[at_door].1 + 0.05,
        "{:?}, {:?}",
        with[at_door],
        without[at_door]
    );
    assert_eq!(with[at_yard], without[at_yard]);
    assert_eq!(answers(1.0, true)[at_door], answers(0.0, true)[at_door]);
}

#[test]
fn off_holds_how_far_the_judge_is_heard() {
    let mut run = Run::start(1, &tiny::config(), None);
    run.feed(0..24, false, AtOnce);
    let is_judge_heard = |run: &Run| run.pipeline.state().serving.hearing.values().all(|&hearing| hearing == Hearing::Full);
    assert!(is_judge_heard(&run));
    run.decide(Decision::Adapt { enabled: false });
    run.feed(24..48, false, AtOnce);
    assert!(is_judge_heard(&run) && run.predictions[47].judged);
}

#[test]
fn reset_answers_like_a_fresh_start() {
    let mut run = Run::start(1, &tiny::config(), None);
    run.feed(0..13, false, AtLast);
    run.decide(Decision::Reset);
    run.feed(13..14, false, AtLast);
    let answer = &run.predictions[13];
    assert!(answer.weights_version > run.predictions[12].weights_version, "versions never go back");
    let mut fresh = Run::start(1, &tiny::config(), None);
    fresh.feed(13..14, false, AtOnce);
    assert_eq!((answer.label, answer.confidence), (fresh.predictions[0].label, fresh.predictions[0].confidence));
}

#[test]
fn rolling_back_brings_the_earlier_weights_under_a_new_version() {
    let mut run = Run::start(1, &tiny::config(), None);
    run.feed(0..16, false, AtOnce);
    let earlier = run.persisted[1].clone();
    run.decide(Decision::RollBack(Arc::clone(&earlier.learner)));
    let state = run.pipeline.state();
    assert!(state.learner.version > earlier.learner.version);
    for (name, tensor) in &earlier.learner.weights {
        let values = |tensor: &candle_core::Tensor| tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("values");
        assert_eq!(values(tensor), values(&state.serving.weights[name]), "{name}");
    }
}

#[test]
fn a_restart_from_any_checkpoint_equals_the_run_that_was_not_interrupted() {
    for (lag, speed) in [(1, AtOnce), (2, AtOnce), (2, Midway), (2, AtLast), (3, Midway), (3, AtLast)] {
        let config = AdaptConfig { lag, ..tiny::config() };
        let mut whole = Run::start(1, &config, None);
        whole.feed(0..40, false, speed);
        whole.deliver();
        let last = bytes(&whole.pipeline.state());
        assert_eq!(whole.persisted.len(), 10, "a checkpoint for each window, lag {lag}, adapter {speed:?}");
        for state in &whole.persisted {
            let next = state.sequence.0;
            let mut resumed = Run::start(1, &config, Some(state.clone()));
            resumed.feed(next..40, false, AtLast);
            resumed.deliver();
            assert_eq!(resumed.predictions, whole.predictions[next as usize..], "from {next}, lag {lag}, adapter {speed:?}");
            assert_eq!(bytes(&resumed.pipeline.state()), last, "from {next}, lag {lag}, adapter {speed:?}");
        }
    }
}

#[test]
fn a_restart_from_a_stop_within_a_window_applies_no_frame_again() {
    for (lag, answer) in [(1, AnswerTime::Before), (2, AnswerTime::Before), (1, AnswerTime::After)] {
        let config = AdaptConfig { lag, answer, ..tiny::config() };
        let mut whole = Run::start(1, &config, None);
        whole.feed(0..40, false, AtOnce);
        whole.deliver();
        let last = bytes(&whole.pipeline.state());
        for stop in 1..40u64 {
            let mut stopped = Run::start(1, &config, None);
            stopped.feed(0..stop, false, AtLast);
            stopped.deliver();
            let state = stopped.pipeline.state_at_stop();
            assert_eq!((state.sequence.0, state.open.len() as u64), (stop, stop % 4), "lag {lag}, {answer:?}");
            let mut resumed = Run::start(1, &config, Some(state));
            resumed.feed(stop..40, false, AtOnce);
            resumed.deliver();
            let answered = [stopped.predictions, resumed.predictions].concat();
            assert_eq!(answered, whole.predictions, "stopped after {stop}, lag {lag}, {answer:?}");
            assert_eq!(bytes(&resumed.pipeline.state()), last, "stopped after {stop}, lag {lag}, {answer:?}");
        }
    }
}

#[test]
fn an_open_window_of_another_length_or_image_is_closed_without_learning() {
    let mut run = Run::start(1, &tiny::config(), None);
    run.feed(0..11, false, AtOnce);
    let state = run.pipeline.state_at_stop();
    let mut narrow = Run::start(1, &AdaptConfig { window: 2, ..tiny::config() }, Some(state));
    narrow.feed(11..15, false, AtOnce);
    assert_eq!(narrow.predictions.len(), 4);
}

/// What an operator decides before frame `index`.
fn decisions(run: &Run, index: u64) -> Vec<Decision> {
    match index {
        9 => vec![Decision::Adapt { enabled: false }],
        14 | 31 => vec![Decision::Adapt { enabled: true }],
        19 => vec![Decision::RollBack(Arc::clone(&run.persisted[1].learner))],
        24 => vec![Decision::Reset, Decision::Adapt { enabled: false }],
        _ => Vec::new(),
    }
}

#[test]
fn a_restart_makes_the_decisions_after_its_checkpoint_again_at_their_places() {
    for (lag, speed) in [(1, AtOnce), (2, Midway), (3, AtLast)] {
        let config = AdaptConfig { lag, ..tiny::config() };
        let (mut whole, mut decided) = (Run::start(1, &config, None), Vec::new());
        for index in 0..40 {
            for decision in decisions(&whole, index) {
                decided.push(whole.decide(decision));
            }
            whole.feed(index..index + 1, false, speed);
        }
        whole.deliver();
        let last = bytes(&whole.pipeline.state());
        for state in whole.persisted.clone() {
            let (next, made) = (state.sequence.0, state.control.generation as usize);
            let mut resumed = Run::resume(1, &config, Some(state), decided[made..].to_vec());
            assert!(resumed.pipeline.is_adapt_enabled(), "the last word counts");
            resumed.feed(next..40, false, AtLast);
            resumed.deliver();
            assert_eq!(resumed.predictions, whole.predictions[next as usize..], "from {next}, lag {lag}, adapter {speed:?}");
            assert_eq!(bytes(&resumed.pipeline.state()), last, "from {next}, lag {lag}, adapter {speed:?}");
        }
    }
}

#[test]
fn a_restart_makes_a_decision_after_the_last_frame_again_without_another_frame() {
    // Within a window, and at its border, where the adapter has it in hand.
    for last in [11, 12] {
        let mut run = Run::start(1, &tiny::config(), None);
        run.feed(0..8, false, AtOnce);
        run.deliver();
        let state = run.pipeline.state();
        run.feed(8..last, false, AtOnce);
        let decided = run.decide(Decision::Adapt { enabled: false });
        let mut resumed = Run::resume(1, &tiny::config(), Some(state), vec![decided]);
        resumed.feed(8..last, false, AtLast);
        resumed.deliver();
        assert!(!resumed.pipeline.has_scheduled(), "after frame {last}");
        assert_eq!(resumed.pipeline.status().decision, 1, "after frame {last}");
        assert_eq!(bytes(&resumed.pipeline.state()), bytes(&run.pipeline.state()), "after frame {last}");
    }
}

#[test]
fn a_decision_between_two_windows_is_in_the_state_at_once() {
    let mut run = Run::start(1, &tiny::config(), None);
    run.feed(0..8, false, AtOnce);
    run.decide(Decision::Adapt { enabled: false });
    let resumed = Run::start(1, &tiny::config(), Some(run.pipeline.state()));
    assert_eq!(resumed.pipeline.status().adapt, "off");
}

/// The first window, as the adapter gets it.
fn first_window(run: &mut Run) -> Vec<WindowFrame> {
    let event = |index| Event::Frame { frame: Box::new(frame(1, index)), is_overloaded: false };
    let effects = (0..tiny::config().window as u64).flat_map(|index| run.pipeline.apply(event(index)).expect("no fatal error"));
    let job = effects.filter_map(|effect| if let Effect::Adapt(job) = effect { Some(job) } else { None }).last();
    let Some(Job::Window { frames, .. }) = job else { panic!("a window is full") };
    frames
}

#[test]
fn the_estimated_accuracy_rests_on_what_the_camera_has_shown_too() {
    let estimated = |foretold: f64| {
        let mut run = Run::start(1, &tiny::config(), None);
        let frames = first_window(&mut run).into_iter().map(|frame| {
            let verdict = frame.verdict.as_ref().expect("the answer needed it");
            let prior = |k| if k == verdict.label() { foretold } else { (1.0 - foretold) / 2.0 };
            WindowFrame { prior: (0..tiny::CLASSES).map(prior).collect(), ..frame }
        });
        let frames = frames.collect();
        let adapted = run.adapter.run(Job::Window { index: 0, frames }).expect("no fatal error").expect("an answer");
        adapted.outcome.report().expect("it was judged").estimated_accuracy
    };
    let (even, sure) = (estimated(1.0 / 3.0), estimated(0.998));
    assert!(sure > even + 0.05, "{sure} against {even}");
}

#[test]
fn both_lanes_judge_a_frame_alike() {
    let mut run = Run::start(1, &tiny::config(), None);
    let judged = first_window(&mut run);
    let unjudged: Vec<WindowFrame> = judged.iter().cloned().map(|frame| WindowFrame { verdict: None, ..frame }).collect();
    let mut judgement = Judgement::default();
    run.adapter.judge_into(&mut judgement, &unjudged);
    let of_answers: Vec<_> = judged.into_iter().filter_map(|frame| frame.verdict).collect();
    assert_eq!(judgement.verdicts, of_answers);
}

#[test]
fn what_was_decided_shows_before_the_restart_has_come_to_it() {
    let mut run = Run::start(1, &tiny::config(), None);
    run.feed(0..9, false, AtOnce);
    let decided = run.decide(Decision::Adapt { enabled: false });
    let resumed = Run::resume(1, &tiny::config(), Some(run.pipeline.state()), vec![decided]);
    assert_eq!(resumed.pipeline.status().adapt, "off");
}

#[test]
fn a_changed_window_does_not_strand_weights_that_wait() {
    let mut run = Run::start(1, &tiny::config(), None);
    run.feed(0..32, false, Midway);
    let state = run.persisted.last().expect("a checkpoint").clone();
    assert!(!state.pending.is_empty());
    let (next, before) = (state.sequence.0, state.pending[0].version);
    let mut wider = Run::start(1, &AdaptConfig { window: 8, ..tiny::config() }, Some(state));
    wider.feed(next..next + 24, false, AtOnce);
    assert!(wider.versions().last() > Some(&before.0), "{:?}", wider.versions());
}

#[test]
fn a_state_of_another_model_is_refused() {
    let run = Run::start(3, &tiny::config(), None);
    let bundle = tiny::bundle(1, ClassConditioning::Readout);
    let shape = OutputShape { top_k: 2, checkpoint_windows: 1 };
    let start = Start::Resume { state: Box::new(run.pipeline.state()), decisions: Vec::new() };
    assert!(Pipeline::new(&bundle, &tiny::config(), shape, NoiseSecret::from_seed(1), start).is_err());
}
