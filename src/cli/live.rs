//! The terminal's view of a demo: a few living lines on stderr while it runs, a table for stdout when it is done.
//!
//! Where stderr is not a terminal, a plain line every few hundred frames takes their place, so that logs stay readable. `NO_COLOR` is
//! respected (by the console crate, which also knows terminals without colours).
//! Invariant: with [`Volume::Quiet`] nothing is written; the table is only made, and the command decides where it goes.

use crate::lab::summary::{DomainSummary, FramePoint, Summary, Tally, WINDOW_FRAMES, count, percent, points, spoken};
use console::{Style, style};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use std::collections::VecDeque;
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How much a command says on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volume {
    Normal,
    Quiet,
}

/// Shows a run while it goes on.
pub struct Live {
    screen: Screen,
    started: Instant,
    frames_total: u64,
    progress: Progress,
}

enum Screen {
    Bar(ProgressBar),
    Lines,
    Nothing,
}

/// Frames between two plain lines.
const LINE_EVERY: usize = 500;
/// Cells of a small bar.
const METER_CELLS: usize = 20;
/// Drift score at which its bar is full, in standard deviations.
const DRIFT_FULL: f32 = 10.0;

impl Live {
    pub fn new(frames_total: u64, volume: Volume) -> Self {
        let screen = match volume {
            Volume::Quiet => Screen::Nothing,
            Volume::Normal if std::io::stderr().is_terminal() => Screen::Bar(bar(frames_total)),
            Volume::Normal => Screen::Lines,
        };
        Self { screen, started: Instant::now(), frames_total, progress: Progress::default() }
    }

    /// Takes the next frame of the run.
    pub fn show(&mut self, point: &FramePoint) {
        self.progress.add(point);
        match &self.screen {
            Screen::Bar(bar) => {
                bar.set_message(self.progress.lines(point));
                bar.inc(1);
            }
            Screen::Lines if self.progress.all.frames.is_multiple_of(LINE_EVERY) => {
                let rate = per_second(self.progress.all.frames, self.started.elapsed());
                eprintln!("{}", self.progress.line(point, self.frames_total, rate));
            }
            Screen::Lines | Screen::Nothing => {}
        }
    }

    /// Clears the living lines; the table says it all again.
    pub fn finish(self) {
        if let Screen::Bar(bar) = self.screen {
            bar.finish_and_clear();
        }
    }
}

/// Counts of frames are far below 2^53.
fn per_second(frames: usize, elapsed: Duration) -> f64 {
    frames as f64 / elapsed.as_secs_f64()
}

fn bar(frames_total: u64) -> ProgressBar {
    let template = "{bar:40.cyan/dim} {human_pos} of {human_len} frames, {rate}/s, {eta} left\n{msg}";
    let style = ProgressStyle::with_template(template).expect("the template is a constant").progress_chars("━━─");
    let rate = |state: &ProgressState, text: &mut dyn Write| write!(text, "{:.0}", state.per_sec()).expect("the line takes all");
    ProgressBar::new(frames_total).with_style(style.with_key("rate", rate))
}

/// The figures so far.
#[derive(Default)]
struct Progress {
    all: Tally,
    recent: Tally,
    /// Source and adapted hit of the frames in `recent`, oldest first; at most [`WINDOW_FRAMES`].
    recent_hits: VecDeque<(bool, bool)>,
}

impl Progress {
    fn add(&mut self, point: &FramePoint) {
        self.all.add(point.source_hit, point.adapted_hit);
        self.recent.add(point.source_hit, point.adapted_hit);
        self.recent_hits.push_back((point.source_hit, point.adapted_hit));
        if self.recent_hits.len() > WINDOW_FRAMES
            && let Some((source_hit, adapted_hit)) = self.recent_hits.pop_front()
        {
            self.recent.remove(source_hit, adapted_hit);
        }
    }

    /// What stands below the progress bar.
    fn lines(&self, point: &FramePoint) -> String {
        let accuracies = |tally: &Tally| {
            let (source, adapted) = (percent(tally.source_accuracy()), style(percent(tally.adapted_accuracy())).for_stderr().bold());
            format!("source {source:>7}   adapted {adapted:>7}   {}", coloured(tally.gain(), points(tally.gain())).for_stderr())
        };
        let corruption = style(spoken(&point.domain)).for_stderr().bold();
        let lines = [
            format!("corruption  {corruption}"),
            format!("so far      {}", accuracies(&self.all)),
            format!("last {WINDOW_FRAMES:<6} {}", accuracies(&self.recent)),
            format!("gate        {} {}", style(meter(point.reliability.unwrap_or(0.0))).for_stderr().cyan(), gate(point)),
            format!("drift       {} {:.1}", style(meter(point.drift / DRIFT_FULL)).for_stderr().yellow(), point.drift),
        ];
        lines.join("\n")
    }

    /// The same in one line without colours, for logs.
    fn line(&self, point: &FramePoint, frames_total: u64, frames_per_second: f64) -> String {
        format!(
            "{}/{frames_total} frames, {frames_per_second:.0}/s, {}: source {}, adapted {} ({}); \
             last {WINDOW_FRAMES}: {}; gate {}, drift {:.1}",
            self.all.frames,
            spoken(&point.domain),
            percent(self.all.source_accuracy()),
            percent(self.all.adapted_accuracy()),
            points(self.all.gain()),
            points(self.recent.gain()),
            gate(point),
            point.drift,
        )
    }
}

fn gate(point: &FramePoint) -> String {
    point.reliability.map_or_else(|| "not yet known".to_owned(), |reliability| format!("{reliability:.2}"))
}

/// A bar of [`METER_CELLS`] cells; `share` is cut to 0..=1, so that the cast is exact; no number is an empty bar.
fn meter(share: f32) -> String {
    let full = (share.clamp(0.0, 1.0) * METER_CELLS as f32).round() as usize;
    "■".repeat(full) + &"·".repeat(METER_CELLS - full)
}

/// Cyan for gains, yellow for losses; the sign says it too.
fn coloured(gain: f64, text: String) -> console::StyledObject<String> {
    let style = if gain < 0.0 { Style::new().yellow() } else { Style::new().cyan() };
    style.bold().apply_to(text)
}

/// The run as a table for stdout.
pub fn table(summary: &Summary) -> String {
    let name_width = summary.domains.iter().map(|domain| spoken(&domain.name).chars().count()).fold("corruption".len(), usize::max);
    let head = format!("{:<name_width$}{:>10}{:>10}{:>10}{:>10}", "corruption", "frames", "source", "adapted", "gain");
    let rule = "─".repeat(name_width + 40);
    let rows: String = summary.domains.iter().map(|domain| row(domain, name_width)).collect();
    let total = row(&summary.total(), name_width);
    let worst = points(summary.worst_window_delta);
    let (frames_per_second, seed) = (summary.frames_per_second, summary.seed);
    let note = format!("worst {WINDOW_FRAMES} frames in a row: {worst} points; {frames_per_second:.0} frames a second; seed {seed}");
    format!("{head}\n{rule}\n{rows}{rule}\n{total}{note}\n")
}

fn row(domain: &DomainSummary, name_width: usize) -> String {
    let (name, frames) = (spoken(&domain.name), count(domain.frames));
    let (source, adapted) = (percent(domain.source_accuracy), percent(domain.adapted_accuracy));
    let gain = coloured(domain.gain(), format!("{:>10}", points(domain.gain())));
    format!("{name:<name_width$}{frames:>10}{source:>10}{adapted:>10}{gain}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use console::strip_ansi_codes;

    fn point(domain: &str, source_hit: bool, adapted_hit: bool) -> FramePoint {
        let (reliability, domain) = (Some(0.5), domain.to_owned());
        FramePoint { index: 0, domain, source_hit, adapted_hit, reliability, drift: 2.5, estimated: None, weights_version: 0 }
    }

    #[test]
    fn recent_figures_forget_what_left_the_window() {
        let mut progress = Progress::default();
        (0..WINDOW_FRAMES).for_each(|_| progress.add(&point("fog", true, false)));
        (0..WINDOW_FRAMES).for_each(|_| progress.add(&point("fog", false, true)));
        assert_eq!((progress.all.gain(), progress.recent.gain()), (0.0, 1.0));
        assert_eq!((progress.recent.frames, progress.recent_hits.len()), (WINDOW_FRAMES, WINDOW_FRAMES));
    }

    #[test]
    fn lines_and_line_say_the_same_figures() {
        let mut progress = Progress::default();
        let last = point("motion_blur", false, true);
        progress.add(&point("clean", true, true));
        progress.add(&last);
        let lines = progress.lines(&last);
        let lines = strip_ansi_codes(&lines);
        for text in
            ["motion blur", "source  50.0\u{a0}%", "adapted 100.0\u{a0}%", "+50.0", "■■■■■■■■■■·········· 0.50", "■■■■■··············· 2.5"]
        {
            assert!(lines.contains(text), "no {text} in\n{lines}");
        }
        let line =
            "2/10 frames, 80/s, motion blur: source 50.0\u{a0}%, adapted 100.0\u{a0}% (+50.0); last 500: +50.0; gate 0.50, drift 2.5";
        assert_eq!(progress.line(&last, 10, 80.0), line);
    }

    #[test]
    fn meter_keeps_its_width_for_any_score() {
        for share in [-1.0, 0.0, 0.31, 1.0, 7.0, f32::NAN, f32::INFINITY] {
            assert_eq!(meter(share).chars().count(), METER_CELLS, "at {share}");
        }
    }

    #[test]
    fn table_lines_up_its_columns() {
        let domain = |name: &str, source_accuracy, adapted_accuracy| DomainSummary {
            name: name.to_owned(),
            frames: 6_000,
            source_accuracy,
            adapted_accuracy,
        };
        let summary = Summary {
            frames: 12_000,
            source_accuracy: 0.6,
            adapted_accuracy: 0.7,
            window_frames: WINDOW_FRAMES,
            worst_window_delta: -0.018,
            frames_per_second: 412.3,
            seed: 7,
            domains: vec![domain("elastic_transform", 0.5, 0.75), domain("fog", 0.7, 0.65)],
            bundle_hash: String::new(),
            version: String::new(),
            command: String::new(),
        };
        let expected = "\
corruption           frames    source   adapted      gain
─────────────────────────────────────────────────────────
elastic transform     6,000    50.0 %    75.0 %     +25.0
fog                   6,000    70.0 %    65.0 %      −5.0
─────────────────────────────────────────────────────────
all                  12,000    60.0 %    70.0 %     +10.0
worst 500 frames in a row: −1.8 points; 412 frames a second; seed 7
";
        assert_eq!(strip_ansi_codes(&table(&summary)).replace('\u{a0}', " "), expected);
    }
}
