//! `undrift eval --poison`: a hostile camera among nine, with the guard as configured and without.

use super::{Eval, say};
use crate::config::{self, Config};
use crate::frame::Frame;
use crate::guard::canary::Canary;
use crate::lab::corruptions::Severity;
use crate::lab::dataset::{Labelled, Split, load};
use crate::lab::poison::{Attack, Course, Exam, Phase, WINDOWS, craft, play};
use crate::lab::streams::{Plan, Playback, Request, Stream};
use crate::lab::suite::in_parallel;
use crate::lab::summary::points;
use crate::learner::{AdaptConfig, GuardConfig};
use crate::shell::bundle_reader::read_bundle;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::error::Error;
use std::sync::Mutex;

/// Shares of the frames that are hostile while the attack lasts.
const HOSTILE: [f64; 2] = [0.1, 0.5];
/// Frames that the attacker chooses from, and images of the exam.
const POOL: usize = 1600;
const EXAM: usize = 512;

#[derive(Clone, Serialize)]
struct Row {
    /// None: benign cameras alone.
    attack: Option<Attack>,
    hostile: f64,
    is_guarded: bool,
    #[serde(flatten)]
    course: Course,
}

pub fn run(eval: &Eval) -> Result<(), Box<dyn Error>> {
    let config = Config::load(&eval.config, &eval.sets, config::environment())?;
    let bundle = read_bundle(&config)?;
    let (mut images, seed) = (eval.source.test_images()?, eval.source.seed());
    // The attacker's images are not those of the stream, nor these those of the exam.
    let (training, rest) = (load(&eval.source_images, Split::Train)?, images.split_off(images.len() / 2));
    let frames = |stream, images: &[Labelled], count, seed| frames(eval, stream, images, count, seed);
    let (benign, pool) =
        (frames(Stream::Continual, &images, eval.source.length(), seed)?, frames(Stream::Mixed, &training, POOL, seed + 1)?);
    let exam_images = canary(&frames(Stream::Continual, &rest, EXAM, seed + 2)?);
    let exam = Exam::new(&bundle, &config.adapt, &exam_images)?;
    let crafting = bar(WINDOWS as u64, "attacker")?;
    let mut poisons = Vec::new();
    for attack in [Attack::Repeated, Attack::Accumulated] {
        poisons.push((attack, craft(attack, &pool, &exam, &config.adapt, seed + 3, || crafting.inc(1))?));
    }
    crafting.finish();
    let open = AdaptConfig { guard: GuardConfig::OPEN, ..config.adapt.clone() };
    let attacks = poisons.iter().flat_map(|(attack, poison)| HOSTILE.map(|hostile| (Some(*attack), poison.as_slice(), hostile)));
    let guards = [(false, &open), (true, &config.adapt)];
    let cells: Vec<_> =
        [(None, [].as_slice(), 0.0)].into_iter().chain(attacks).flat_map(|attack| guards.map(|guard| (attack, guard))).collect();
    let bar = bar((benign.len() * cells.len()) as u64, "streams")?;
    let rows = Mutex::new(vec![None; cells.len()]);
    let indices: Vec<usize> = (0..cells.len()).collect();
    let work = |&index: &usize| -> Result<(), Box<dyn Error + Send + Sync>> {
        let ((attack, poison, hostile), (is_guarded, adapt)) = cells[index];
        let course = play(&benign, poison, hostile, &exam, adapt, seed, || bar.inc(1))?;
        rows.lock().expect("no work panics")[index] = Some(Row { attack, hostile, is_guarded, course });
        Ok(())
    };
    in_parallel(std::thread::available_parallelism()?, &indices, work).map_err(|error| -> Box<dyn Error> { error })?;
    bar.finish();
    let rows: Vec<Row> = rows.into_inner().expect("no work panics").into_iter().flatten().collect();
    say(eval, &serde_json::json!({ "attacks": rows }), &table(&rows))
}

fn bar(length: u64, message: &'static str) -> Result<ProgressBar, Box<dyn Error>> {
    let bar = ProgressBar::new(length).with_message(message);
    bar.set_style(ProgressStyle::with_template(super::BAR)?);
    Ok(bar)
}

fn frames(eval: &Eval, stream: Stream, images: &[Labelled], count: usize, seed: u64) -> Result<Vec<Frame>, Box<dyn Error>> {
    let request = Request { frames: count, severity: Severity::ALL[4], seed, visits: 1, walk: None };
    let plan = Plan::new(stream, &request, images)?;
    let playback = Playback { plan: &plan, images, table: eval.source.table(), side: super::super::source::STREAM_SIDE };
    Ok(playback.frames().zip(0..).map(|(frame, index)| frame.into_frame(index)).collect())
}

fn canary(frames: &[Frame]) -> Canary {
    let mut canary = Canary::default();
    for frame in frames {
        canary.images.extend(frame.image.planes());
        canary.labels.extend(frame.label.map(|label| label.index()));
    }
    canary
}

fn table(rows: &[Row]) -> String {
    let mut text = "gain over the source on an exam of clean and corrupted images, points (worst of the phase); in brackets that of the answers to benign frames\n\n".to_owned();
    text += &format!(
        "{:12} {:>8} {:>8} {:>18} {:>18} {:>18} {:>9} {:>13}\n",
        "attack", "hostile", "guard", "before", "under", "after", "withheld", "taken back"
    );
    for row in rows {
        let name = match row.attack {
            None => "none",
            Some(Attack::Repeated) => "repeated",
            Some(Attack::Accumulated) => "accumulated",
        };
        let of_phase = |phase: Phase| {
            let stretch = row.course.stretches.iter().find(|stretch| stretch.phase == phase);
            stretch.map_or_else(String::new, |stretch| format!("{} ({})", points(stretch.worst_gain), points(stretch.answers_gain)))
        };
        let [before, under, after] = [Phase::Before, Phase::Under, Phase::After].map(of_phase);
        let taken_back = row.course.frozen_after.map_or_else(|| "no".to_owned(), |frame| format!("frame {frame}"));
        let guard = if row.is_guarded { "on" } else { "off" };
        text += &format!(
            "{name:12} {:>7.0}% {guard:>8} {before:>18} {under:>18} {after:>18} {:>8.0}% {taken_back:>13}\n",
            100.0 * row.hostile,
            100.0 * row.course.withheld
        );
    }
    text
}
