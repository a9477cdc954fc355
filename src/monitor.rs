//! How well it goes: accuracy where there are labels, drift and collapse without.
//!
//! Everything here is for people; nothing of it reaches the weights.

use crate::bundle::Statistics;
use crate::frame::ClassIndex;
use crate::observation::{DriftState, Observation};
use crate::state::MonitorState;
use std::collections::{HashMap, VecDeque};

/// Labelled frames that the prequential accuracies look back on.
const ACCURACY_FRAMES: usize = 1000;
/// Answered frames that a later label may still find.
const LABEL_FRAMES: usize = 4096;
/// Share of a new frame in the running averages: they look back on some 200 frames.
const AVERAGE_SHARE: f64 = 0.01;
/// Scores, in standard deviations of the average, above which the world has changed.
const DRIFT_WARNING: f64 = 4.0;
const DRIFT_ALARM: f64 = 8.0;
/// Entropy of the mean prediction over ln K, below which predictions have collapsed.
const COLLAPSE_DIVERSITY: f64 = 0.3;

/// What the monitor sees of an answer.
pub struct Answered<'a> {
    pub camera: &'a str,
    pub frame_id: &'a str,
    pub label: ClassIndex,
    pub source_label: ClassIndex,
    /// Of the source classifier, nats: the adapted classifier's own would move with it.
    pub source_entropy: f64,
    pub truth: Option<ClassIndex>,
}

/// Running figures over the stream.
pub struct Monitor {
    statistics: Statistics,
    classes: usize,
    state: MonitorState,
    /// (adapted label, source label) by camera and frame, for labels that come later.
    answered: HashMap<(String, String), (ClassIndex, ClassIndex)>,
    /// Keys that came into `answered`, oldest first; those of matched labels too.
    order: VecDeque<(String, String)>,
    drift: DriftState,
    is_collapsed: bool,
}

impl Monitor {
    pub fn new(statistics: Statistics, classes: usize, state: MonitorState) -> Self {
        let (answered, order) = (HashMap::new(), VecDeque::new());
        let mut monitor = Self { statistics, classes, state, answered, order, drift: DriftState::None, is_collapsed: false };
        monitor.drift = drift_state(monitor.drift_score());
        monitor.is_collapsed = monitor.diversity() < COLLAPSE_DIVERSITY;
        monitor
    }

    pub fn state(&self) -> &MonitorState {
        &self.state
    }

    /// Takes note of an answer; gives what changed.
    pub fn answered(&mut self, answered: &Answered) -> Vec<Observation> {
        let mut seen = Vec::new();
        match answered.truth {
            Some(truth) => self.hit(answered.label == truth, answered.source_label == truth),
            None => self.remember(answered),
        }
        seen.extend(self.watch_drift(answered.source_entropy));
        seen.extend(self.watch_collapse(answered.label));
        seen
    }

    /// Matches a label that came later.
    pub fn labelled(&mut self, camera: String, frame_id: String, truth: ClassIndex) -> Observation {
        let key = (camera, frame_id);
        match self.answered.remove(&key) {
            Some((label, source_label)) => {
                self.hit(label == truth, source_label == truth);
                Observation::Labelled
            }
            None => Observation::LabelUnmatched,
        }
    }

    /// (adapted, source) accuracy over the last labelled frames, 0..=1.
    pub fn accuracy(&self) -> Option<(f64, f64)> {
        let count = self.state.hits.len();
        let share = |hits: usize| hits as f64 / count as f64;
        let adapted = self.state.hits.iter().filter(|(adapted, _)| *adapted).count();
        let source = self.state.hits.iter().filter(|(_, source)| *source).count();
        (count > 0).then(|| (share(adapted), share(source)))
    }

    pub fn drift(&self) -> (DriftState, f64) {
        (self.drift, self.drift_score())
    }

    pub fn is_collapsed(&self) -> bool {
        self.is_collapsed
    }

    /// Entropy of the mean prediction over its maximum, 0..=1.
    pub fn diversity(&self) -> f64 {
        let even = 1.0 / self.classes as f64;
        let share = |class| self.state.averages.get(&format!("class {class}")).copied().unwrap_or(even);
        let shares: Vec<f64> = (0..self.classes).map(share).collect();
        crate::learner::objective::entropy(&shares) / (self.classes as f64).ln()
    }

    fn hit(&mut self, adapted: bool, source: bool) {
        self.state.hits.push_back((adapted, source));
        if self.state.hits.len() > ACCURACY_FRAMES {
            self.state.hits.pop_front();
        }
    }

    fn remember(&mut self, answered: &Answered) {
        let labels = (answered.label, answered.source_label);
        let key = (answered.camera.to_owned(), answered.frame_id.to_owned());
        if self.answered.insert(key.clone(), labels).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > LABEL_FRAMES
            && let Some(oldest) = self.order.pop_front()
        {
            self.answered.remove(&oldest);
        }
    }

    /// Moves the average `name`, which starts at `start`, towards `value`.
    fn average(&mut self, name: &str, start: f64, value: f64) -> f64 {
        let average = self.state.averages.entry(name.to_owned()).or_insert(start);
        *average += AVERAGE_SHARE * (value - *average);
        *average
    }

    /// Distance of the average entropy from its reference. The variance of an exponential average with share a of
    /// independent values is a / (2 - a) of theirs.
    fn drift_score(&self) -> f64 {
        let reference = self.statistics.entropy;
        let spread = reference.standard_deviation * (AVERAGE_SHARE / (2.0 - AVERAGE_SHARE)).sqrt();
        let average = self.state.averages.get("entropy").copied().unwrap_or(reference.mean);
        (average - reference.mean).abs() / spread.max(1e-9)
    }

    fn watch_drift(&mut self, source_entropy: f64) -> Option<Observation> {
        self.average("entropy", self.statistics.entropy.mean, source_entropy);
        let score = self.drift_score();
        let state = drift_state(score);
        (state != self.drift).then(|| {
            self.drift = state;
            Observation::Drift { state, score }
        })
    }

    fn watch_collapse(&mut self, label: ClassIndex) -> Option<Observation> {
        let share = 1.0 / self.classes as f64;
        for class in 0..self.classes {
            self.average(&format!("class {class}"), share, if class == label.index() { 1.0 } else { 0.0 });
        }
        let diversity = self.diversity();
        let is_collapsed = diversity < COLLAPSE_DIVERSITY;
        (is_collapsed != self.is_collapsed).then(|| {
            self.is_collapsed = is_collapsed;
            Observation::Collapse { is_collapsed, diversity }
        })
    }
}

fn drift_state(score: f64) -> DriftState {
    match score {
        score if score >= DRIFT_ALARM => DriftState::Drift,
        score if score >= DRIFT_WARNING => DriftState::Warning,
        _ => DriftState::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Moments;

    fn monitor() -> Monitor {
        let statistics = Statistics { entropy: Moments { mean: 0.4, standard_deviation: 0.3 }, ..Statistics::default() };
        Monitor::new(statistics, 10, MonitorState::default())
    }

    fn answer(frame_id: &str, label: u32, source_entropy: f64, truth: Option<u32>) -> Answered<'_> {
        let truth = truth.map(ClassIndex);
        Answered { camera: "cam", frame_id, label: ClassIndex(label), source_label: ClassIndex(0), source_entropy, truth }
    }

    #[test]
    fn a_label_that_comes_later_counts_once_and_an_unknown_one_is_said_so() {
        let mut monitor = monitor();
        monitor.answered(&answer("a", 3, 0.4, None));
        assert_eq!(monitor.labelled("other".to_owned(), "a".to_owned(), ClassIndex(3)), Observation::LabelUnmatched);
        assert_eq!(monitor.labelled("cam".to_owned(), "a".to_owned(), ClassIndex(3)), Observation::Labelled);
        assert_eq!(monitor.accuracy(), Some((1.0, 0.0)));
        assert_eq!(monitor.labelled("cam".to_owned(), "a".to_owned(), ClassIndex(3)), Observation::LabelUnmatched);
    }

    #[test]
    fn drift_is_seen_when_the_entropy_moves_and_gone_when_it_returns() {
        let mut monitor = monitor();
        let mut feed = |entropy: f64, frames: u32| {
            let frames = (0..frames).map(|i| (format!("{entropy} {i}"), i % 10));
            let seen: Vec<_> = frames.flat_map(|(id, label)| monitor.answered(&answer(&id, label, entropy, None))).collect();
            (seen, monitor.drift().0)
        };
        assert_eq!(feed(0.4, 300), (vec![], DriftState::None));
        assert_eq!(feed(1.2, 300).1, DriftState::Drift);
        assert_eq!(feed(0.4, 900).1, DriftState::None);
    }

    #[test]
    fn predictions_of_one_class_are_a_collapse() {
        let mut monitor = monitor();
        let seen: Vec<_> = (0..600).flat_map(|i| monitor.answered(&answer(&i.to_string(), 7, 0.4, None))).collect();
        assert!(matches!(seen[..], [Observation::Collapse { is_collapsed: true, .. }]), "{seen:?}");
    }
}
