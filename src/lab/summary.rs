//! What a run leaves behind, and its figures.
//!
//! A demo or an evaluation writes down one [`FramePoint`] for each frame; [`RunRecord`] is the whole of it, and [`Summary`] is what
//! `summary.json`, the report and the terminal say of it. Accuracies and their differences are from 0 to 1 here; [`percent`] and
//! [`points`] turn them into text for people.
//! Invariant: a run of no frames has figures too (zeros), so that an interrupted run can still be reported.

use indicatif::HumanCount;
use serde::Serialize;

/// Frames of the window behind [`Summary::worst_window_delta`].
pub const WINDOW_FRAMES: usize = 500;

/// One run over a stream.
#[derive(Clone, Debug, Serialize)]
pub struct RunRecord {
    pub title: String,
    pub seed: u64,
    /// The command line that repeats the run.
    pub command: String,
    /// Version of the program.
    pub version: String,
    /// Hash of the bundle's weights.
    pub bundle_hash: String,
    pub frames_per_second: f64,
    /// Frames of the moving average in the pictures.
    pub average_frames: usize,
    /// In the order of the stream.
    pub points: Vec<FramePoint>,
}

/// What became of one frame.
#[derive(Clone, Debug, Serialize)]
pub struct FramePoint {
    pub index: u64,
    /// Name of the corruption.
    pub domain: String,
    pub source_hit: bool,
    pub adapted_hit: bool,
    /// How far the diffusion model was believed in the last window, 0..=1; none before the first.
    pub reliability: Option<f32>,
    /// Standard deviations between the recent frames and the reference statistics.
    pub drift: f32,
    /// Accuracy estimated without labels, 0..=1; none before the first window.
    pub estimated: Option<f32>,
    /// The weights that answered.
    pub weights_version: u64,
}

/// The figures of a run: `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub frames: usize,
    pub source_accuracy: f64,
    pub adapted_accuracy: f64,
    pub window_frames: usize,
    /// The least adapted minus source accuracy over any `window_frames` frames in a row (over all, if there are fewer).
    pub worst_window_delta: f64,
    pub frames_per_second: f64,
    pub seed: u64,
    /// In the order in which the stream first shows them.
    pub domains: Vec<DomainSummary>,
    pub bundle_hash: String,
    pub version: String,
    pub command: String,
}

/// The figures of one corruption.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DomainSummary {
    pub name: String,
    pub frames: usize,
    pub source_accuracy: f64,
    pub adapted_accuracy: f64,
}

impl Summary {
    pub fn new(run: &RunRecord) -> Self {
        let total = Tally::of(&run.points);
        let hits: Vec<_> = run.points.iter().map(|point| (point.source_hit, point.adapted_hit)).collect();
        Self {
            frames: total.frames,
            source_accuracy: total.source_accuracy(),
            adapted_accuracy: total.adapted_accuracy(),
            window_frames: WINDOW_FRAMES,
            worst_window_delta: worst_window_delta(&hits, WINDOW_FRAMES),
            frames_per_second: run.frames_per_second,
            seed: run.seed,
            domains: domains(&run.points),
            bundle_hash: run.bundle_hash.clone(),
            version: run.version.clone(),
            command: run.command.clone(),
        }
    }

    /// The text of `summary.json`.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("has string keys only and writes to memory")
    }

    pub fn gain(&self) -> f64 {
        self.total().gain()
    }

    /// The whole run as a row among those of the corruptions.
    pub fn total(&self) -> DomainSummary {
        let Self { frames, source_accuracy, adapted_accuracy, .. } = *self;
        DomainSummary { name: "all".to_owned(), frames, source_accuracy, adapted_accuracy }
    }
}

impl DomainSummary {
    pub fn gain(&self) -> f64 {
        self.adapted_accuracy - self.source_accuracy
    }
}

/// Hits among frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub frames: usize,
    source_hits: usize,
    adapted_hits: usize,
}

impl Tally {
    pub fn of(points: &[FramePoint]) -> Self {
        let mut tally = Self::default();
        points.iter().for_each(|point| tally.add(point.source_hit, point.adapted_hit));
        tally
    }

    pub fn add(&mut self, source_hit: bool, adapted_hit: bool) {
        self.frames += 1;
        self.source_hits += usize::from(source_hit);
        self.adapted_hits += usize::from(adapted_hit);
    }

    /// Takes back an earlier [`Tally::add`], as a window moves on.
    pub fn remove(&mut self, source_hit: bool, adapted_hit: bool) {
        self.frames -= 1;
        self.source_hits -= usize::from(source_hit);
        self.adapted_hits -= usize::from(adapted_hit);
    }

    pub fn source_accuracy(&self) -> f64 {
        ratio(self.source_hits, self.frames)
    }

    pub fn adapted_accuracy(&self) -> f64 {
        ratio(self.adapted_hits, self.frames)
    }

    pub fn gain(&self) -> f64 {
        self.adapted_accuracy() - self.source_accuracy()
    }
}

/// `part / whole`, and 0 of nothing. Counts of frames are far below 2^53.
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn domains(points: &[FramePoint]) -> Vec<DomainSummary> {
    let mut tallies: Vec<(&str, Tally)> = Vec::new();
    for point in points {
        let known = tallies.iter().position(|(name, _)| *name == point.domain);
        let at = known.unwrap_or_else(|| {
            tallies.push((&point.domain, Tally::default()));
            tallies.len() - 1
        });
        tallies[at].1.add(point.source_hit, point.adapted_hit);
    }
    let summary = |(name, tally): (&str, Tally)| DomainSummary {
        name: name.to_owned(),
        frames: tally.frames,
        source_accuracy: tally.source_accuracy(),
        adapted_accuracy: tally.adapted_accuracy(),
    };
    tallies.into_iter().map(summary).collect()
}

/// The least adapted minus source accuracy over any `window_frames` frames in a row (over all, if there are fewer); each pair is (source
/// hit, adapted hit).
pub fn worst_window_delta(hits: &[(bool, bool)], window_frames: usize) -> f64 {
    let (first, rest) = hits.split_at(window_frames.min(hits.len()));
    let mut window = Tally::default();
    first.iter().for_each(|&(source, adapted)| window.add(source, adapted));
    let mut worst = window.gain();
    for (old, new) in hits.iter().zip(rest) {
        window.remove(old.0, old.1);
        window.add(new.0, new.1);
        worst = worst.min(window.gain());
    }
    worst
}

/// `0.7345` as `73.5 %`, whose space does not break.
pub fn percent(accuracy: f64) -> String {
    format!("{:.1}\u{a0}%", 100.0 * accuracy)
}

/// `0.129` as `+12.9`, with a true minus sign for losses and none for zero.
pub fn points(difference: f64) -> String {
    let tenths = (1000.0 * difference).round() / 10.0;
    if tenths == 0.0 {
        return "0.0".to_owned();
    }
    format!("{}{:.1}", if tenths < 0.0 { '\u{2212}' } else { '+' }, tenths.abs())
}

/// `12000` as `12,000`.
pub fn count(frames: usize) -> String {
    HumanCount(u64::try_from(frames).expect("a usize has at most 64 bits")).to_string()
}

/// `gaussian_noise` as people write it. A name may come from a frame's header, so that control characters, which a terminal would obey,
/// become spaces too.
pub fn spoken(domain: &str) -> String {
    domain.replace(|letter: char| letter == '_' || letter.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of one domain; each pair is (source hit, adapted hit).
    fn frames(domain: &str, hits: impl IntoIterator<Item = (bool, bool)>) -> Vec<FramePoint> {
        let point = |(source_hit, adapted_hit)| FramePoint {
            index: 0,
            domain: domain.to_owned(),
            source_hit,
            adapted_hit,
            reliability: None,
            drift: 0.0,
            estimated: None,
            weights_version: 0,
        };
        hits.into_iter().map(point).collect()
    }

    const LOST: (bool, bool) = (true, false);
    const WON: (bool, bool) = (false, true);
    const BOTH: (bool, bool) = (true, true);
    const NEITHER: (bool, bool) = (false, false);

    #[test]
    fn worst_window_is_the_least_over_all_windows() {
        // Deltas by frame: +1 -1 -1 0 +1; windows of 3: -1, -2, 0.
        assert_eq!(worst_window_delta(&[WON, LOST, LOST, NEITHER, WON], 3), -2.0 / 3.0);
    }

    #[test]
    fn worst_window_of_a_short_run_is_the_whole_run() {
        assert_eq!(worst_window_delta(&[WON, LOST, WON, BOTH], 500), 0.25);
    }

    #[test]
    fn worst_window_may_be_a_gain() {
        assert_eq!(worst_window_delta(&[WON; 9], 3), 1.0);
    }

    #[test]
    fn domains_keep_the_order_of_the_stream_and_join_their_visits() {
        let points = [frames("snow", [BOTH, WON]), frames("fog", [LOST]), frames("snow", [NEITHER, WON])].concat();
        let expected = [("snow", 4, 0.25, 0.75), ("fog", 1, 1.0, 0.0)];
        let actual = domains(&points);
        let actual: Vec<_> = actual.iter().map(|d| (d.name.as_str(), d.frames, d.source_accuracy, d.adapted_accuracy)).collect();
        assert_eq!(actual, expected);
    }

    #[test]
    fn names_cannot_command_a_terminal() {
        assert_eq!(spoken("gaussian_noise\u{1b}[2J"), "gaussian noise [2J");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(percent(0.73456), "73.5\u{a0}%");
        assert_eq!(
            ["+12.9", "\u{2212}0.1", "0.0", "0.0"],
            [points(0.1287), points(-0.0014), points(-0.0004), points(0.0)].map(String::leak)
        );
    }
}
