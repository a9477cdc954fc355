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
//! Pure: evidence and memory in, ruling and new memory out.
//! Invariant: the ruling depends on the evidence, the configuration and [`PolicyState`] alone, so a replay takes the same
//! one.

use crate::bundle::Statistics;
use crate::learner::objective::{argmax, entropy, mean_logits, posterior};
use crate::learner::{AdaptConfig, AnswerBy, Verdict};
use crate::state::PolicyState;

/// What is known of a window; rows are frames.
pub struct Evidence<'a> {
    /// Of the classifier that learns, by view (V, K).
    pub logits: &'a [Vec<Vec<f64>>],
    /// Of the source classifier.
    pub source_logits: &'a [Vec<Vec<f64>>],
    pub verdicts: &'a [Verdict],
    /// Turns an error per element into minus a log-likelihood.
    pub likelihood_scale: f64,
}

/// What a frame teaches.
#[derive(Clone, Debug, PartialEq)]
pub struct Lesson {
    /// The posterior over classes (K).
    pub target: Vec<f64>,
    /// 0..=1
    pub weight: f64,
}

/// What to do with a window.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    Learn(Vec<Lesson>),
    /// The judge does not know better than the source, or names fewer classes: back towards the source.
    Abstain,
    /// The source agrees better with the judge than the classifier that has learned: what was learned does not fit here.
    Retreat,
}

/// The decision, and what it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Ruling {
    pub decision: Decision,
    /// Share of frames whose draws name different classes, in this window.
    pub draw_disagreement: f64,
    /// How far the judge is believed: its estimated accuracy, as a running average, 0..=1.
    pub reliability: f64,
    /// Estimated accuracy of the answers, as a running average, 0..=1: their mean probability by the calibrated posterior.
    pub estimated_accuracy: f64,
}

/// Rules on a window, and moves the averages in `state`.
pub fn rule(evidence: &Evidence, config: &AdaptConfig, statistics: &Statistics, state: &mut PolicyState) -> Ruling {
    let frames = evidence.verdicts.len();
    let pace = (frames as f64 / config.gate.memory_frames).min(1.0);
    let mean = |of_frame: &dyn Fn(usize) -> f64| (0..frames).map(of_frame).sum::<f64>() / frames as f64;
    let agreement = |answer: &dyn Fn(usize) -> usize| mean(&|n| evidence.verdicts[n].share_naming(answer(n)));
    let draws = update(state, "draw_agreement", mean(&|n| evidence.verdicts[n].draw_agreement()), pace);
    let views = evidence.source_logits.first().map_or(0, Vec::len);
    let mut of_views = |name: &str, logits: &[Vec<Vec<f64>>]| -> Vec<f64> {
        (0..views).map(|v| update(state, &format!("{name} view {v}"), agreement(&|n| argmax(&logits[n][v])), pace)).collect()
    };
    let source_views = of_views("source_agreement", evidence.source_logits);
    let adapted_views = of_views("adapted_agreement", evidence.logits);
    let mut of_mean = |name: &str, logits: &[Vec<Vec<f64>>]| update(state, name, agreement(&|n| argmax(&mean_logits(&logits[n]))), pace);
    let source = of_mean("source_agreement", evidence.source_logits);
    let adapted = of_mean("adapted_agreement", evidence.logits);
    let classes = evidence.source_logits.first().map_or(1, |views| views[0].len());
    let mut diversity = |name: &str, share: &dyn Fn(usize, usize) -> f64| {
        let shares: Vec<f64> = (0..classes).map(|k| update(state, &format!("{name} class {k}"), mean(&|n| share(n, k)), pace)).collect();
        entropy(&shares) / (classes as f64).ln()
    };
    let judge_diversity = diversity("judge", &|n, k| evidence.verdicts[n].share_naming(k));
    let source_diversity = diversity("source", &|n, k| f64::from(u8::from(argmax(&evidence.source_logits[n][0]) == k)));
    let judge_accuracy = statistics.judge_accuracy * (draws / statistics.draw_agreement).sqrt();
    let best = |views: &[f64]| views.iter().copied().fold(0.0, f64::max);
    let source_accuracy = (best(&source_views) / draws.max(f64::MIN_POSITIVE).sqrt()).min(1.0);
    let confidence = mean(&|n| confidence(evidence, config, statistics, state.is_judge_heard, n));
    let estimated_accuracy = update(state, "estimated_accuracy", confidence, pace);
    let is_diverse = judge_diversity >= source_diversity - config.gate.diversity_slack;
    let is_consistent = best(&source_views).max(best(&adapted_views)) >= config.gate.consistency * draws;
    state.is_judge_heard = is_diverse && is_consistent && judge_accuracy >= source_accuracy + config.gate.margin;
    let decision = if adapted < source - config.gate.tolerance {
        Decision::Retreat
    } else if !state.is_judge_heard {
        Decision::Abstain
    } else {
        Decision::Learn((0..frames).map(|n| lesson(evidence, config, n)).collect())
    };
    Ruling {
        decision,
        draw_disagreement: mean(&|n| if evidence.verdicts[n].is_unanimous() { 0.0 } else { 1.0 }),
        reliability: judge_accuracy.min(1.0),
        estimated_accuracy,
    }
}

fn lesson(evidence: &Evidence, config: &AdaptConfig, n: usize) -> Lesson {
    let verdict = &evidence.verdicts[n];
    let scale = config.judge_weight * evidence.likelihood_scale;
    let target = posterior(&mean_logits(&evidence.logits[n]), &verdict.terms.errors(), config.prior_weight, scale);
    let is_confident = target[argmax(&target)] >= config.gate.confidence_min;
    Lesson { target, weight: if is_confident { 1.0 } else { 0.0 } }
}

/// The probability that frame `n` is answered rightly. The source's logits speak here: those of the classifier that has
/// learned from the diffusion model would count its word twice.
fn confidence(evidence: &Evidence, config: &AdaptConfig, statistics: &Statistics, is_judge_heard: bool, n: usize) -> f64 {
    let errors = evidence.verdicts[n].terms.errors();
    let posterior = |logits: &[f64], prior, weight: f64| posterior(logits, &errors, prior, weight * evidence.likelihood_scale);
    let logits = mean_logits(&evidence.logits[n]);
    let answer = match config.answer_by {
        AnswerBy::Classifier => argmax(&logits),
        AnswerBy::Posterior => argmax(&posterior(&logits, 1.0, config.answer_weight(is_judge_heard))),
    };
    let calibration = statistics.calibration;
    posterior(&mean_logits(&evidence.source_logits[n]), calibration.prior_weight, calibration.judge_weight)[answer]
}

/// Moves the average `name` towards `value`, by the share `pace` of the way; the first value starts it.
fn update(state: &mut PolicyState, name: &str, value: f64, pace: f64) -> f64 {
    let average = state.averages.entry(name.to_owned()).or_insert(value);
    *average += (value - *average) * pace;
    *average
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::GramTerms;
    use crate::tiny;

    const CLASSES: usize = 3;

    fn logits(label: usize) -> Vec<f64> {
        (0..CLASSES).map(|k| if k == label { 3.0 } else { 0.0 }).collect()
    }

    /// A verdict whose draws all name `label`.
    fn verdict(label: usize) -> Verdict {
        let cross = (0..CLASSES).map(|k| if k == label { 0.5 } else { 0.0 }).collect();
        Verdict { terms: GramTerms { gram: vec![0.0; CLASSES * CLASSES], cross }, draw_labels: vec![label; 2] }
    }

    /// The ruling on one window, by what source, judge and the classifier that learns name on its frames, and the state
    /// after it.
    fn ruled(source: &[usize], judge: &[usize], adapted: &[usize]) -> (Ruling, PolicyState) {
        ruled_on_views(&[source], judge, &[adapted])
    }

    /// The same, by what source and classifier name on each view.
    fn ruled_on_views(source: &[&[usize]], judge: &[usize], adapted: &[&[usize]]) -> (Ruling, PolicyState) {
        let rows = |views: &[&[usize]]| {
            let row = |n: usize| views.iter().map(|labels| logits(labels[n])).collect::<Vec<_>>();
            (0..judge.len()).map(row).collect::<Vec<_>>()
        };
        let (source_logits, logits) = (rows(source), rows(adapted));
        let verdicts: Vec<Verdict> = judge.iter().map(|&label| verdict(label)).collect();
        let evidence = Evidence { logits: &logits, source_logits: &source_logits, verdicts: &verdicts, likelihood_scale: 1.0 };
        let mut config = tiny::config();
        config.gate = crate::learner::GateConfig { margin: 0.05, diversity_slack: 0.05, tolerance: 0.02, consistency: 0.3, ..config.gate };
        let calibration = crate::bundle::Calibration { prior_weight: 1.0, judge_weight: 2.0 };
        let statistics = Statistics { judge_accuracy: 0.9, draw_agreement: 1.0, calibration, ..Statistics::default() };
        let mut state = PolicyState::default();
        (rule(&evidence, &config, &statistics, &mut state), state)
    }

    fn ruling(source: &[usize], judge: &[usize], adapted: &[usize]) -> Decision {
        ruled(source, judge, adapted).0.decision
    }

    #[test]
    fn the_judge_is_heard_where_it_is_found_better_or_nearly_as_good() {
        assert!(ruled(&[0; 6], &[0, 1, 2, 0, 1, 2], &[0; 6]).1.is_judge_heard);
        assert!(!ruled(&[0, 1, 2, 0, 1, 2], &[0, 1, 2, 0, 1, 2], &[0, 1, 2, 0, 1, 2]).1.is_judge_heard);
    }

    #[test]
    fn the_estimated_accuracy_is_the_calibrated_probability_of_the_answers() {
        // Logits 3 for the named class and 0 for two others; errors -1 for the named class and 0 for two others.
        let agreed = (3f64 + 2.0).exp() / ((3f64 + 2.0).exp() + 2.0);
        let estimate = ruled(&[0, 1], &[0, 1], &[0, 1]).0.estimated_accuracy;
        assert!((estimate - agreed).abs() < 1e-12, "{estimate} against {agreed}");
        // The classifier that learns has followed the judge, the source has not: sure of itself, and yet in doubt.
        let followed = ruled(&[0, 0], &[1, 1], &[1, 1]).0.estimated_accuracy;
        let doubted = 2f64.exp() / (2f64.exp() + 3f64.exp() + 1.0);
        assert!((followed - doubted).abs() < 1e-12, "{followed} against {doubted}");
    }

    #[test]
    fn it_learns_where_the_judge_agrees_with_itself_and_not_with_a_source_that_is_no_more_diverse() {
        assert!(matches!(ruling(&[0, 0, 0, 0, 0, 0], &[0, 1, 2, 0, 1, 2], &[0, 0, 0, 0, 0, 0]), Decision::Learn(_)));
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
        let is_believed = |source: &[&[usize]]| ruled_on_views(source, &named, source).0.decision != Decision::Abstain;
        assert!(is_believed(&[&nothing]), "the judge knows better");
        assert!(!is_believed(&[&nothing, &named]), "there is a view that shows as much");
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
