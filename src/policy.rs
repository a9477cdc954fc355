//! What is learned from a window, and how much: judged without labels, from what both models say of it.
//!
//! The diffusion model may be worse than the classifier that it teaches, so it is listened to only where it knows better
//! than the source classifier. Two label-free estimates decide that. Were the errors of two judges independent, and never
//! the same, then P(they agree) would be the product of their accuracies. So the accuracy of a draw is estimated by
//! the root of the agreement among draws, and that of the source classifier by its agreement with the draws over that
//! root. Errors of draws are not independent: the judge's estimate is scaled to the accuracy that it has on clean images.
//!
//! An answer, and what is learned, is the posterior of classifier and judge, which is better than either unless one is much worse:
//! so the judge is heard down to a margin below the source.
//!
//! Draws may also agree on nonsense. Then they agree with each other and with neither view; and their answers gather on few classes,
//! as those of any model do that fails on all frames alike. A stream may truly show few classes, but then it shows them to both
//! models: so the judge must name about as many classes as the source does.
//!
//! The classifier's own answers teach too where they are sure and new, whether the judge is heard or not: their entropy falls
//! (EATA, arXiv 2204.02610). That helps where the judge is no help.
//!
//! Where the source is as sure of its answers as on clean images it is at home: it answers itself, and nothing is learned, as the judge knows
//! no better there.
//!
//! Weather, light and dirt are a camera's own: so each has a [`Gate`], and the judge is heard at a camera where both its frames and those of all
//! together speak for it. The former keep a judge that fails at one camera from teaching there while it is heard at others; the
//! latter see a change first that comes to all.
//!
//! Pure: evidence and memory in, ruling and new memory out.
//! Invariant: the ruling depends on the evidence, the configuration and [`PolicyState`] alone, so a replay takes the same
//! one.

use crate::bundle::Statistics;
use crate::learner::objective::{argmax, cosine, entropy, mean_logits, posterior, probabilities, weighted};
use crate::learner::{AdaptConfig, AnswerBy, Verdict};
use crate::state::{Gate, Hearing, PolicyState};
use arrayvec::ArrayString;
use std::collections::BTreeMap;
use std::fmt::{Display, Write};

/// What is known of a window.
#[derive(Clone, Copy)]
pub struct Evidence<'a> {
    /// One for each frame.
    pub cameras: &'a [String],
    /// Of the classifier that learns: a row of K for each view, those of a frame one after the other.
    pub logits: &'a [Vec<f64>],
    /// Of the source classifier.
    pub source_logits: &'a [Vec<f64>],
    /// One for each frame.
    pub verdicts: &'a [Verdict],
    /// [`crate::pipeline::WindowFrame::prior`] of each frame.
    pub priors: &'a [Vec<f64>],
    /// Turns an error per element into minus a log-likelihood.
    pub likelihood_scale: f64,
}

impl Evidence<'_> {
    /// V
    pub fn views(&self) -> usize {
        self.logits.len() / self.verdicts.len()
    }

    /// Mean of the logits of frame `n` over its views, (K).
    pub fn mean_logits(&self, n: usize) -> impl Iterator<Item = f64> + Clone {
        mean_logits(self.of_frame(self.logits, n))
    }

    /// The same of the source classifier.
    fn mean_source_logits(&self, n: usize) -> impl Iterator<Item = f64> + Clone {
        mean_logits(self.of_frame(self.source_logits, n))
    }

    fn of_frame<'a>(&self, rows: &'a [Vec<f64>], n: usize) -> &'a [Vec<f64>] {
        &rows[n * self.views()..][..self.views()]
    }
}

/// What a frame teaches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lesson {
    /// The posterior over classes (K).
    pub target: Vec<f64>,
    /// How far the objective counts.
    pub weight: f64,
    /// Of the classifier that learns (K).
    pub probabilities: Vec<f64>,
    /// How far their entropy counts.
    pub entropy_weight: f64,
}

/// What to do with the frames of one camera.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// What each frame teaches is said by [`teach`].
    Learn,
    /// The judge does not know better than the source, or names fewer classes: it teaches nothing.
    Abstain,
    /// The source agrees better with the judge than the classifier that has learned: it teaches nothing, as what was learned does not fit.
    Retreat,
}

/// Shares of a window by what was decided of the cameras that they come from, and what that rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ruling {
    pub learn: f64,
    pub abstain: f64,
    pub retreat: f64,
    /// How far the weights go back towards the source's: as each frame's decision says, in the mean.
    pub pull: f64,
    /// Share of frames whose draws name different classes, in this window.
    pub draw_disagreement: f64,
    /// How far the judge is believed: its estimated accuracy, as a running average of each camera, 0..=1; mean of the frames.
    pub reliability: f64,
    /// Estimated accuracy of the answers, as a running average, 0..=1 ([`Calibration::accuracy`]).
    pub estimated_accuracy: f64,
}

/// Rules on a window, and moves the averages in `state`.
pub fn rule(evidence: &Evidence, config: &AdaptConfig, statistics: &Statistics, state: &mut PolicyState) -> Ruling {
    let cameras = evidence.cameras;
    state.gates.see(cameras.iter().map(String::as_str));
    let accuracy = mean(0..cameras.len(), |n| statistics.calibration.accuracy(answer(evidence, config, state, n).1));
    let (of_all, _) = Part { evidence, camera: None }.rule(config, statistics, &mut state.common);
    let mut ruling = Ruling::default();
    for first in (0..cameras.len()).filter(|&n| !cameras[..n].contains(&cameras[n])) {
        let of_camera = Part { evidence, camera: Some(&cameras[first]) };
        let gate = state.gates.get_mut(&cameras[first]).expect("the camera was seen");
        if gate.averages.is_empty() {
            gate.clone_from(&state.common);
        }
        let (decision, reliability) = of_camera.rule(config, statistics, gate);
        let decision = decision.max(of_all);
        gate.is_teaching = decision == Decision::Learn;
        let share = of_camera.frames().count() as f64 / cameras.len() as f64;
        let (of_decision, pull) = match decision {
            Decision::Learn => (&mut ruling.learn, config.anchor_pull),
            Decision::Abstain => (&mut ruling.abstain, config.anchor_pull_shut),
            Decision::Retreat => (&mut ruling.retreat, config.anchor_pull_retreat),
        };
        *of_decision += share;
        ruling.pull += share * pull;
        ruling.reliability += share * reliability;
    }
    ruling.estimated_accuracy = update(&mut state.averages, "estimated_accuracy", accuracy, pace(cameras.len(), config));
    ruling.draw_disagreement = mean(0..cameras.len(), |n| if evidence.verdicts[n].is_unanimous() { 0.0 } else { 1.0 });
    ruling
}

/// The frames of one camera in a window.
struct Part<'a> {
    evidence: &'a Evidence<'a>,
    /// None stands for all of them.
    camera: Option<&'a str>,
}

impl Part<'_> {
    fn frames(&self) -> impl Iterator<Item = usize> + Clone {
        (0..self.evidence.cameras.len()).filter(|&n| self.camera.is_none_or(|camera| self.evidence.cameras[n] == camera))
    }

    /// The decision on them, and how far the judge is believed.
    fn rule(&self, config: &AdaptConfig, statistics: &Statistics, gate: &mut Gate) -> (Decision, f64) {
        let evidence = self.evidence;
        let pace = pace(self.frames().count(), config);
        let averages = &mut gate.averages;
        let agreement = |answer: &dyn Fn(usize) -> usize| mean(self.frames(), |n| evidence.verdicts[n].share_naming(answer(n)));
        let draws = update(averages, "draw_agreement", mean(self.frames(), |n| evidence.verdicts[n].draw_agreement()), pace);
        let mut best_view = |name: &str, rows: &[Vec<f64>]| {
            let answer = |n: usize, view: usize| argmax(&evidence.of_frame(rows, n)[view]);
            let of_view = |view| update(averages, format_args!("{name} view {view}"), agreement(&|n| answer(n, view)), pace);
            (0..evidence.views()).map(of_view).fold(0.0, f64::max)
        };
        let source_best = best_view("source_agreement", evidence.source_logits);
        let adapted_best = best_view("adapted_agreement", evidence.logits);
        let source = update(averages, "source_agreement", agreement(&|n| argmax(evidence.mean_source_logits(n))), pace);
        let adapted = update(averages, "adapted_agreement", agreement(&|n| argmax(evidence.mean_logits(n))), pace);
        let classes = evidence.source_logits.first().map_or(1, Vec::len);
        let mut diversity = |name: &str, share: &dyn Fn(usize, usize) -> f64| {
            let of_class = |k| mean(self.frames(), |n| share(n, k));
            let shares = (0..classes).map(|k| update(averages, format_args!("{name} class {k}"), of_class(k), pace));
            entropy(shares) / (classes as f64).ln()
        };
        let judge_diversity = diversity("judge", &|n, k| evidence.verdicts[n].share_naming(k));
        let names = |n: usize, k: usize| argmax(&evidence.of_frame(evidence.source_logits, n)[0]) == k;
        let source_diversity = diversity("source", &|n, k| if names(n, k) { 1.0 } else { 0.0 });
        let judge_accuracy = statistics.judge_accuracy * (draws / statistics.draw_agreement).sqrt();
        let source_accuracy = (source_best / draws.max(f64::MIN_POSITIVE).sqrt()).min(1.0);
        let is_diverse = judge_diversity >= source_diversity - config.gate.diversity_slack;
        let is_consistent = source_best.max(adapted_best) >= config.gate.consistency * draws;
        let is_better = judge_accuracy >= source_accuracy + config.gate.margin;
        let source_entropy = mean(self.frames(), |n| entropy(probabilities(evidence.mean_source_logits(n))));
        let is_at_home = update(averages, "source_entropy", source_entropy, pace) <= config.gate.home_entropy_max * statistics.entropy.mean;
        gate.hearing = if is_at_home {
            Hearing::Home
        } else if is_diverse && is_consistent && is_better {
            Hearing::Full
        } else {
            Hearing::Little
        };
        let decision = if adapted < source - config.gate.tolerance {
            Decision::Retreat
        } else if gate.hearing != Hearing::Full {
            Decision::Abstain
        } else {
            Decision::Learn
        };
        (decision, judge_accuracy.min(1.0))
    }
}

/// By which share of the way `frames` move an average.
fn pace(frames: usize, config: &AdaptConfig) -> f64 {
    (frames as f64 / config.gate.memory_frames).min(1.0)
}

fn mean(frames: impl Iterator<Item = usize> + Clone, of_frame: impl Fn(usize) -> f64) -> f64 {
    let count = frames.clone().count() as f64;
    frames.map(of_frame).sum::<f64>() / count
}

/// Puts what each frame teaches into `lessons`, in the memory that they have; the objective nothing where the judge is not heard.
pub fn teach(lessons: &mut Vec<Lesson>, evidence: &Evidence, config: &AdaptConfig, state: &mut PolicyState) {
    let scale = config.judge_weight * evidence.likelihood_scale;
    lessons.resize_with(evidence.verdicts.len(), Lesson::default);
    for (n, Lesson { target, weight, probabilities: own, .. }) in lessons.iter_mut().enumerate() {
        own.clear();
        own.extend(probabilities(evidence.mean_logits(n)));
        target.clear();
        target.extend(posterior(evidence.mean_logits(n), &evidence.verdicts[n].errors, config.prior_weight, scale));
        let is_confident = target[argmax(&*target)] >= config.gate.confidence_min;
        let is_teaching = state.gates.get(&evidence.cameras[n]).is_some_and(|gate| gate.is_teaching);
        *weight = if is_teaching && is_confident { config.objective_weight } else { 0.0 };
    }
    weigh_entropies(lessons, evidence.cameras, config, state);
}

/// What each frame teaches by the entropy of the classifier's own answer: the more, the surer it is; nothing where it is unsure, or says
/// what frames that taught have said, and nothing at home, where the source answers. The weights of those that teach are for their mean
/// (EATA, arXiv 2204.02610; mr-eggplant/EATA, `eata.py`).
fn weigh_entropies(lessons: &mut [Lesson], cameras: &[String], config: &AdaptConfig, state: &mut PolicyState) {
    let classes = lessons.first().map_or(1, |lesson| lesson.probabilities.len());
    let margin = config.entropy.margin * (classes as f64).ln();
    let is_new = |p: &[f64]| {
        let taught = |k| state.averages.get(key(format_args!("taught class {k}")).as_str()).copied();
        let pairs = p.iter().enumerate().map(|(k, &p)| (taught(k).unwrap_or(0.0), p));
        taught(0).is_none() || cosine(pairs) <= config.entropy.cosine_max
    };
    for (lesson, camera) in lessons.iter_mut().zip(cameras) {
        let entropy = entropy(&lesson.probabilities);
        let is_teaching = entropy < margin && state.hearing_at(camera) != Hearing::Home && is_new(&lesson.probabilities);
        lesson.entropy_weight = if is_teaching { config.entropy.weight * (margin - entropy).exp() } else { 0.0 };
    }
    let teaching = lessons.iter().filter(|lesson| lesson.entropy_weight > 0.0);
    let count = teaching.clone().count() as f64;
    if count == 0.0 {
        return;
    }
    for k in 0..classes {
        let mean = teaching.clone().map(|lesson| lesson.probabilities[k]).sum::<f64>() / count;
        update(&mut state.averages, format_args!("taught class {k}"), mean, TAUGHT_PACE);
    }
    let of_all = lessons.len() as f64 / count;
    lessons.iter_mut().for_each(|lesson| lesson.entropy_weight *= of_all);
}

/// Of the running mean of what taught; `eata.py`, `update_model_probs`.
const TAUGHT_PACE: f64 = 0.1;

/// The answer to frame `n`, by what `state` says before the window is ruled on, and how likely it is to the judge and to what the camera has
/// shown, 0..=1. The classifier does not vouch for it: where it is lost, as by night, the answers are the judge's, and better than it knows.
pub fn answer(evidence: &Evidence, config: &AdaptConfig, state: &PolicyState, n: usize) -> (usize, f64) {
    // The fit gives the share its scale: this keeps most of them apart from 1.
    const TEMPERATURE: f64 = 8.0;
    let (errors, prior, scale) = (&evidence.verdicts[n].errors, &evidence.priors[n], evidence.likelihood_scale);
    let hearing = state.hearing_at(&evidence.cameras[n]);
    let judge_weight = if config.answer_by == AnswerBy::Posterior { config.answer_weight(hearing) } else { 0.0 };
    let rows = if hearing.is_of_source(state.hearings()) { evidence.source_logits } else { evidence.logits };
    let logits = mean_logits(evidence.of_frame(rows, n));
    let answer = argmax(weighted(posterior(logits, errors, 1.0, judge_weight * scale), prior, config.recent_weight));
    let mut shares = posterior(prior.iter().map(|share| share.ln()), errors, 1.0 / TEMPERATURE, scale / TEMPERATURE);
    (answer, shares.nth(answer).expect("both models have the same classes"))
}

/// Moves the average `name` towards `value`, by the share `pace` of the way; the first value starts it.
fn update(averages: &mut BTreeMap<String, f64>, name: impl Display, value: f64, pace: f64) -> f64 {
    let key = key(name);
    if !averages.contains_key(key.as_str()) {
        averages.insert(key.to_string(), value);
    }
    let average = averages.get_mut(key.as_str()).expect("it was put there, if it was not");
    *average += (value - *average) * pace;
    *average
}

fn key(name: impl Display) -> ArrayString<NAME_LENGTH_MAX> {
    let mut key = ArrayString::new();
    write!(key, "{name}").expect("names are short");
    key
}

/// Bytes of an average's name: the longest words with the largest number.
const NAME_LENGTH_MAX: usize = "adapted_agreement view ".len() + "18446744073709551615".len();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{Calibration, Moments};
    use crate::kernels::GramTerms;
    use crate::recent::Recent;
    use crate::tiny;
    use std::sync::LazyLock;

    const CLASSES: usize = 3;

    /// Of frames whose cameras have shown nothing.
    fn evidence<'a>(cameras: &'a [String], logits: &'a [Vec<f64>], source_logits: &'a [Vec<f64>], verdicts: &'a [Verdict]) -> Evidence<'a> {
        static EVEN: LazyLock<Vec<Vec<f64>>> = LazyLock::new(|| vec![Recent::default().prior(CLASSES); 64]);
        Evidence { cameras, logits, source_logits, verdicts, priors: &EVEN[..verdicts.len()], likelihood_scale: 1.0 }
    }

    fn logits(label: usize) -> Vec<f64> {
        (0..CLASSES).map(|k| if k == label { 3.0 } else { 0.0 }).collect()
    }

    /// A verdict whose draws all name `label`.
    fn verdict(label: usize) -> Verdict {
        let cross = (0..CLASSES).map(|k| if k == label { 0.5 } else { 0.0 }).collect();
        let terms = GramTerms { gram: vec![0.0; CLASSES * CLASSES], cross };
        Verdict { errors: terms.errors().collect(), terms, draw_labels: vec![label; 2] }
    }

    /// The ruling on one window, by what source, judge and the classifier that learns name on its frames, and the state
    /// after it.
    fn ruled(source: &[usize], judge: &[usize], adapted: &[usize]) -> (Ruling, PolicyState) {
        ruled_on_views(&[source], judge, &[adapted])
    }

    /// The same, by what source and classifier name on each view.
    fn ruled_on_views(source: &[&[usize]], judge: &[usize], adapted: &[&[usize]]) -> (Ruling, PolicyState) {
        let rows =
            |views: &[&[usize]]| (0..judge.len()).flat_map(|n| views.iter().map(move |labels| logits(labels[n]))).collect::<Vec<_>>();
        let (source_logits, logits) = (rows(source), rows(adapted));
        let verdicts: Vec<Verdict> = judge.iter().map(|&label| verdict(label)).collect();
        let cameras = vec!["door".to_owned(); judge.len()];
        let evidence = evidence(&cameras, &logits, &source_logits, &verdicts);
        let mut state = PolicyState::default();
        (rule(&evidence, &config(), &statistics(), &mut state), state)
    }

    fn config() -> AdaptConfig {
        let config = tiny::config();
        let gate = crate::learner::GateConfig { margin: 0.05, diversity_slack: 0.05, tolerance: 0.02, consistency: 0.3, ..config.gate };
        AdaptConfig { gate, ..config }
    }

    fn statistics() -> Statistics {
        let calibration = Calibration { intercept: 0.1, slope: 0.4 };
        let entropy = Moments { mean: 0.1, ..Moments::default() };
        Statistics { judge_accuracy: 0.9, draw_agreement: 1.0, entropy, calibration, ..Statistics::default() }
    }

    fn ruling(source: &[usize], judge: &[usize], adapted: &[usize]) -> Decision {
        decision(ruled(source, judge, adapted).0)
    }

    /// On a window of one camera.
    fn decision(ruling: Ruling) -> Decision {
        match (ruling.learn, ruling.abstain, ruling.retreat) {
            (1.0, 0.0, 0.0) => Decision::Learn,
            (0.0, 1.0, 0.0) => Decision::Abstain,
            (0.0, 0.0, 1.0) => Decision::Retreat,
            _ => panic!("{ruling:?}: a camera has one decision"),
        }
    }

    fn is_judge_heard(state: &PolicyState) -> bool {
        state.hearing_at("door") == Hearing::Full
    }

    #[test]
    fn averages_have_the_names_that_checkpoints_know_them_by() {
        let state = ruled_on_views(&[&[0, 1], &[1, 2]], &[0, 1], &[&[0, 1], &[1, 2]]).1;
        let of_views = ["adapted_agreement", "adapted_agreement view 0", "adapted_agreement view 1"];
        let of_source = ["source class 0", "source class 1", "source class 2"];
        let of_entropy = ["source_entropy"];
        let of_source_views = ["source_agreement", "source_agreement view 0", "source_agreement view 1"];
        let of_judge = ["draw_agreement", "judge class 0", "judge class 1", "judge class 2"];
        let expected = of_views.into_iter().chain(of_judge).chain(of_source).chain(of_source_views).chain(of_entropy);
        let names = |averages: &BTreeMap<String, f64>| averages.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&state.gates.get("door").expect("it was seen").averages), expected.collect::<Vec<_>>());
        assert_eq!(names(&state.averages), ["estimated_accuracy"]);
    }

    #[test]
    fn the_judge_is_heard_where_it_is_found_better_or_nearly_as_good() {
        assert!(is_judge_heard(&ruled(&[0; 6], &[0, 1, 2, 0, 1, 2], &[0; 6]).1));
        assert!(!is_judge_heard(&ruled(&[0, 1, 2, 0, 1, 2], &[0, 1, 2, 0, 1, 2], &[0, 1, 2, 0, 1, 2]).1));
    }

    #[test]
    fn the_estimated_accuracy_is_the_calibrated_share_that_the_judge_gives_the_answers() {
        // Errors -1 for the class that the judge names and 0 for two others.
        let of = |own: f64, others: f64| statistics().calibration.accuracy(own.exp() / (own.exp() + others.exp() + 1.0));
        let agreed = ruled(&[0, 1], &[0, 1], &[0, 1]).0.estimated_accuracy;
        assert!((agreed - of(0.125, 0.0)).abs() < 1e-12, "{agreed}");
        // The classifier that learns answers, against the judge, which counts less.
        let contested = ruled(&[0, 0], &[1, 1], &[0, 0]).0.estimated_accuracy;
        assert!((contested - of(0.0, 0.125)).abs() < 1e-12, "{contested}");
        assert!(contested < agreed, "{contested} against {agreed}");
    }

    #[test]
    fn the_estimate_is_of_the_answer_that_what_the_camera_has_shown_gives() {
        let (rows, cameras, verdicts) = ([logits(0)], ["door".to_owned()], [verdict(0)]);
        let answer = |prior: [f64; CLASSES]| {
            let priors = [prior.to_vec()];
            let evidence = Evidence { priors: &priors, ..evidence(&cameras, &rows, &rows, &verdicts) };
            answer(&evidence, &AdaptConfig { recent_weight: 2.0, ..config() }, &PolicyState::default(), 0)
        };
        let (undecided, borne_out, turned) = (answer([1.0 / 3.0; 3]), answer([0.8, 0.1, 0.1]), answer([0.01, 0.01, 0.98]));
        assert_eq!((undecided.0, borne_out.0, turned.0), (0, 0, 2));
        assert!(borne_out.1 > undecided.1 && turned.1 > undecided.1, "{undecided:?}, {borne_out:?} and {turned:?}");
    }

    #[test]
    fn where_the_source_is_as_sure_as_on_clean_images_it_is_at_home_and_nothing_is_learned() {
        let gate = crate::learner::GateConfig { home_entropy_max: 1.1, ..config().gate };
        let config = AdaptConfig { gate, ..config() };
        let ruled = |sureness: f64| {
            let names = |label: usize| (0..3).map(|k| if k == label { sureness } else { 0.0 }).collect::<Vec<_>>();
            let (rows, verdicts) = (vec![names(0); 6], [0, 1, 2, 0, 1, 2].map(verdict));
            let cameras = vec!["door".to_owned(); 6];
            let evidence = evidence(&cameras, &rows, &rows, &verdicts);
            let mut state = PolicyState::default();
            (decision(rule(&evidence, &config, &statistics(), &mut state)), state.hearing_at("door"))
        };
        // Entropies of 0.5 and 0.04 nats; 0.1 on clean images.
        assert_eq!(ruled(2.5), (Decision::Learn, Hearing::Full));
        assert_eq!(ruled(6.0), (Decision::Abstain, Hearing::Home));
    }

    #[test]
    fn it_learns_where_the_judge_agrees_with_itself_and_not_with_a_source_that_is_no_more_diverse() {
        assert!(matches!(ruling(&[0, 0, 0, 0, 0, 0], &[0, 1, 2, 0, 1, 2], &[0, 0, 0, 0, 0, 0]), Decision::Learn));
    }

    /// What frames with these logits teach, one after the other, by a window for each; the source's are `source`, and nobody hears the judge.
    fn entropy_weights(frames: &[[f64; 3]], source: [f64; 3], home_entropy_max: f64) -> Vec<f64> {
        let entropy = crate::learner::EntropyConfig { weight: 2.0, margin: 0.5, cosine_max: 0.9 };
        let gate = crate::learner::GateConfig { home_entropy_max, margin: 1.0, ..config().gate };
        let config = AdaptConfig { entropy, gate, ..config() };
        let (mut state, mut lessons, cameras) = (PolicyState::default(), Vec::new(), ["door".to_owned()]);
        let weight = |logits: &[f64; 3]| {
            let (logits, source_logits, verdicts) = ([logits.to_vec()], [source.to_vec()], [verdict(0)]);
            let evidence = evidence(&cameras, &logits, &source_logits, &verdicts);
            rule(&evidence, &config, &statistics(), &mut state);
            teach(&mut lessons, &evidence, &config, &mut state);
            assert_eq!(lessons[0].weight, 0.0, "the judge is not heard");
            lessons[0].entropy_weight
        };
        frames.iter().map(weight).collect()
    }

    #[test]
    fn an_answer_teaches_by_its_entropy_where_it_is_sure_and_new_whether_or_not_the_judge_is_heard() {
        let (first, second, doubt) = ([4.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.1, 0.2, 0.0]);
        let weights = entropy_weights(&[first, first, second, doubt], doubt, 1.0);
        let of_entropy = |logits: [f64; 3]| 2.0 * (0.5 * 3f64.ln() - entropy(probabilities(logits.into_iter()))).exp();
        let expected = [of_entropy(first), 0.0, of_entropy(second), 0.0];
        assert!(weights.iter().zip(expected).all(|(weight, expected)| (weight - expected).abs() < 1e-12), "{weights:?}, not {expected:?}");
        assert!(weights[0] > weights[2], "surer answers teach more");
        // The source is as sure as on clean images: it answers itself.
        assert_eq!(entropy_weights(&[first, second], [6.0, 0.0, 0.0], 1.0), [0.0; 2]);
    }

    #[test]
    fn it_abstains_where_the_source_agrees_with_the_judge() {
        assert_eq!(ruling(&[0, 1, 2, 0, 1, 2], &[0, 1, 2, 0, 1, 2], &[0, 1, 2, 0, 1, 2]), Decision::Abstain);
    }

    #[test]
    fn it_abstains_where_the_judge_names_one_class_and_the_source_several() {
        assert_eq!(ruling(&[0, 1, 2, 0, 1, 2], &[1, 1, 1, 1, 1, 1], &[0, 1, 2, 0, 1, 2]), Decision::Abstain);
    }

    #[test]
    fn a_view_that_the_judge_agrees_with_vouches_for_it_where_the_other_shows_nothing() {
        // Nobody sees anything in the frames as they were taken, and the source what the stretched ones show, as the judge does.
        let (named, nothing) = ([0, 1, 2, 0, 1, 2], [0; 6]);
        let is_believed = |source: &[&[usize]]| decision(ruled_on_views(source, &named, source).0) != Decision::Abstain;
        assert!(is_believed(&[&nothing]), "the judge knows better");
        assert!(!is_believed(&[&nothing, &named]), "there is a view that shows as much");
    }

    /// What source and judge name on the frames of the door, and then of the yard.
    fn ruled_on_cameras(
        state: &mut PolicyState,
        door: (&[usize], &[usize]),
        yard: (&[usize], &[usize]),
    ) -> (Ruling, [Option<bool>; 2], Vec<f64>) {
        let (source, judge) = ([door.0, yard.0].concat(), [door.1, yard.1].concat());
        let cameras: Vec<String> = (0..judge.len()).map(|n| if n < door.0.len() { "door" } else { "yard" }.to_owned()).collect();
        let logits: Vec<Vec<f64>> = source.iter().map(|&label| logits(label)).collect();
        let verdicts: Vec<Verdict> = judge.iter().map(|&label| verdict(label)).collect();
        let evidence = evidence(&cameras, &logits, &logits, &verdicts);
        let mut lessons = Vec::new();
        let ruling = rule(&evidence, &config(), &statistics(), state);
        teach(&mut lessons, &evidence, &config(), state);
        let is_heard = ["door", "yard"].map(|camera| state.hearing().get(camera).map(|&hearing| hearing == Hearing::Full));
        (ruling, is_heard, lessons.iter().map(|lesson| lesson.weight).collect())
    }

    // The judge knows better at the door; in the fog before the yard it names one class, and the source several.
    const DOOR: (&[usize], &[usize]) = (&[0, 0, 0, 0, 0, 0], &[0, 1, 2, 0, 1, 2]);
    const YARD: (&[usize], &[usize]) = (&[0, 1, 2, 0, 1, 2], &[1, 1, 1, 1, 1, 1]);

    #[test]
    fn a_camera_at_which_the_judge_fails_keeps_it_from_no_other() {
        let (ruling, is_heard, weights) = ruled_on_cameras(&mut PolicyState::default(), DOOR, YARD);
        assert_eq!((ruling.learn, ruling.abstain, ruling.retreat), (0.5, 0.5, 0.0));
        assert_eq!(ruling.pull, (config().anchor_pull + config().anchor_pull_shut) / 2.0);
        assert_eq!(is_heard, [Some(true), Some(false)]);
        assert_eq!(weights, [[1.0; 6], [0.0; 6]].concat());
    }

    #[test]
    fn the_estimate_is_of_the_sources_answer_where_the_judge_is_heard_at_another_camera_alone() {
        let mut state = PolicyState::default();
        assert_eq!(ruled_on_cameras(&mut state, DOOR, YARD).1, [Some(true), Some(false)]);
        let (adapted, source, verdicts) = ([logits(0)], [logits(2)], [verdict(1)]);
        let answer = |state: &PolicyState, camera: &str| {
            let cameras = [camera.to_owned()];
            answer(&evidence(&cameras, &adapted, &source, &verdicts), &config(), state, 0).0
        };
        assert_eq!((answer(&state, "door"), answer(&state, "yard"), answer(&PolicyState::default(), "yard")), (0, 2, 0));
    }

    #[test]
    fn a_judge_that_fails_on_all_frames_together_is_heard_at_no_camera() {
        let mut state = PolicyState::default();
        let (ruling, is_heard, _) = ruled_on_cameras(&mut state, DOOR, (&[], &[]));
        assert_eq!((ruling.learn, is_heard), (1.0, [Some(true), None]), "while the door is alone");
        let (ruling, is_heard, weights) = ruled_on_cameras(&mut state, DOOR, (&[YARD.0; 4].concat(), &[YARD.1; 4].concat()));
        assert!(state.gates.get("door").expect("it was seen").hearing == Hearing::Full, "its own frames still speak for the judge");
        assert!(ruling.learn == 0.0 && (ruling.abstain - 1.0).abs() < 1e-12 && ruling.retreat == 0.0, "{ruling:?}");
        assert_eq!((is_heard, weights), ([Some(false); 2], vec![0.0; 30]));
    }

    #[test]
    fn a_judge_that_agrees_with_itself_and_with_no_view_of_the_source_is_not_heard() {
        let (source, judge) = ([0, 1, 2, 0, 1, 2], [1, 2, 0, 1, 2, 0]);
        assert_eq!(ruling(&source, &judge, &source), Decision::Abstain);
    }

    #[test]
    fn it_retreats_where_the_source_agrees_better_with_the_judge_than_what_was_learned() {
        assert_eq!(ruling(&[0, 1, 2, 0, 1, 2], &[0, 1, 2, 0, 1, 2], &[1, 1, 1, 1, 1, 1]), Decision::Retreat);
    }
}
