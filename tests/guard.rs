//! The guard's promises: what does harm is taken back bit for bit and learned no more, and a restart changes none of that.
//!
//! Method: the real pipeline and adapter on tiny random models. The canary's labels are the source's own answers, so that whatever
//! changes an answer is harm.

mod tiny;

use candle_core::Tensor;
use undrift::bundle::Bundle;
use undrift::frame::{Frame, FrameSeq};
use undrift::lab::evaluate::Session;
use undrift::learner::objective::{argmax, mean_logits};
use undrift::learner::{AdaptConfig, FrozenClassifier, GuardConfig, OptimizerConfig};
use undrift::model::ClassConditioning;
use undrift::noise::NoiseSecret;
use undrift::pipeline::{Decision, Start};
use undrift::prediction::Prediction;
use undrift::state::DurableState;

/// Frames of a window of `tiny::config()`.
const WINDOW: u64 = 4;

fn bundle() -> Bundle {
    let mut bundle = tiny::bundle(1, ClassConditioning::Readout);
    let source = FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier).expect("a classifier");
    let label = |image: &[f32]| argmax(mean_logits(&source.logits(image).expect("a pass")));
    bundle.canary.labels = bundle.canary.images.chunks_exact(64).map(label).collect();
    bundle
}

/// Steps so large that what is learned does harm, and a test that sees it soon.
fn harmful() -> AdaptConfig {
    let guard = GuardConfig {
        repeats_max: 2,
        camera_share_max: 2.0,
        canary_every_windows: 2,
        canary_images: 16,
        canary_tolerance: 0.05,
        canary_evidence_max: 20.0,
    };
    AdaptConfig {
        learning_rate: 0.01,
        anchor_pull: 0.0,
        distance_max: f64::MAX,
        stretched_view: false,
        optimizer: OptimizerConfig::ADAM_W,
        guard,
        ..tiny::config()
    }
}

fn session(config: &AdaptConfig, start: Start) -> Session {
    Session::start(&bundle(), config, 1, NoiseSecret::from_seed(1), start).expect("a bundle that fits")
}

fn fresh(config: &AdaptConfig) -> Session {
    session(config, Start::Source { incarnation: "test".to_owned(), birth: 0 })
}

/// Feeds the frames, and gives the state after each window with what was answered until then.
fn feed(session: &mut Session, frames: std::ops::Range<u64>) -> (Vec<DurableState>, Vec<Prediction>) {
    let (mut states, mut predictions) = (Vec::new(), Vec::new());
    for index in frames {
        predictions.extend(session.frame(tiny::frame(1, index, "door")).expect("no fatal error").predictions);
        if (index + 1).is_multiple_of(WINDOW) {
            states.push(session.state());
        }
    }
    (states, predictions)
}

fn values(state: &DurableState) -> Vec<Vec<f32>> {
    let values = |tensor: &Tensor| tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("values");
    let moments = [&state.learner.optimizer.first_moments, &state.learner.optimizer.second_moments];
    let weights = state.learner.weights.values().map(values);
    weights.chain(moments.into_iter().flat_map(|moments| moments.values().cloned())).collect()
}

#[test]
fn harm_is_taken_back_bit_for_bit_and_nothing_is_learned_until_an_operator_says_so() {
    let mut session = fresh(&harmful());
    let (states, _) = feed(&mut session, 0..400);
    let frozen = states.iter().position(|state| state.learner.guard.is_frozen).expect("harm is found");
    assert!(frozen > 0, "something was learned before");
    let taken_back = values(&states[frozen]);
    let good = states[..frozen].iter().rposition(|state| values(state) == taken_back);
    let is_source = states[frozen].learner.good.is_none();
    assert!(good.is_some() || is_source, "after window {frozen}, the weights are those of no window before, and not the source's");
    assert!(good.is_none_or(|good| good < frozen - 1), "something is taken back");
    assert!(states[frozen].learner.version > states[frozen - 1].learner.version, "versions never go back");
    assert!(states[frozen..].iter().all(|state| values(state) == taken_back), "nothing is learned after window {frozen}");
    assert!(session.status().frozen && session.status().adapt == "on");
    let estimate = |state: &DurableState| state.learner.policy.averages.get("estimated_accuracy").copied();
    assert!(estimate(&states[frozen]) != estimate(states.last().expect("states")), "what is known without labels goes on");
    session.decide(Decision::Adapt { enabled: true }).expect("no fatal error");
    assert!(!session.status().frozen);
    let (states, _) = feed(&mut session, 400..404);
    assert!(values(&states[0]) != taken_back, "it learns again");
}

#[test]
fn without_the_guard_the_same_frames_do_go_on_to_do_harm() {
    let config = AdaptConfig { guard: GuardConfig::OPEN, ..harmful() };
    let (states, _) = feed(&mut fresh(&config), 0..400);
    let bundle = bundle();
    let adapted = FrozenClassifier::new(&bundle.classifier_config, &states[99].learner.weights).expect("a classifier");
    let logits = adapted.logits(&bundle.canary.images).expect("a pass");
    let hits = logits.iter().zip(&bundle.canary.labels).filter(|&(logits, &label)| argmax(logits) == label).count();
    assert!(hits < 14, "{hits} of 16 are still right");
}

#[test]
fn a_restart_at_any_window_finds_the_same_harm_at_the_same_window() {
    let config = harmful();
    let (states, predictions) = feed(&mut fresh(&config), 0..240);
    assert!(states.last().expect("states").learner.guard.is_frozen);
    for (window, state) in states.iter().enumerate() {
        let next = (window as u64 + 1) * WINDOW;
        let (scalars, tensors) = state.to_parts().expect("parts");
        let state = DurableState::from_parts(scalars, &tensors).expect("the same state");
        let mut resumed = session(&config, Start::Resume { state: Box::new(state), decisions: Vec::new() });
        let (resumed_states, resumed_predictions) = feed(&mut resumed, next..240);
        assert_eq!(resumed_predictions, predictions[next as usize..], "from window {window}");
        let last = |states: &[DurableState]| states.last().map(|state| (values(state), state.learner.guard.clone()));
        assert_eq!(last(&resumed_states), last(&states[window + 1..]), "from window {window}");
    }
}

#[test]
fn a_camera_that_stands_still_is_answered_and_learned_from_a_few_times_and_loses_nothing_of_it() {
    let guard = GuardConfig { canary_evidence_max: f64::MAX, ..harmful().guard };
    let mut session = fresh(&AdaptConfig { guard, anchor_pull: 0.1, ..harmful() });
    let (mut versions, mut weights) = (Vec::new(), Vec::new());
    for index in 0..40 {
        let still = Frame { sequence: FrameSeq(index + 1), ..tiny::frame(1, 0, "door") };
        let answered = session.frame(still).expect("no fatal error").predictions;
        assert_eq!(answered.len(), 1, "frame {index}");
        versions.push(answered[0].weights_version.0);
        weights.push(values(&session.state()));
    }
    assert!(weights[10] != weights[0] && weights[10..].iter().all(|later| *later == weights[10]), "the weights stand where they are");
    assert_eq!(versions.last(), Some(&1), "of the first window two frames were learned from, of the others none: {versions:?}");
}
