//! `undrift eval --ablations`: this daemon's method with one thing changed at a time.

use super::{Eval, decoded, runs, say};
use crate::bundle::Bundle;
use crate::config::{self, Config};
use crate::frame::Frame;
use crate::lab::baselines::Tuning;
use crate::lab::methods::{self, Answers, COMPETITOR_WINDOW, Method, Trial};
use crate::lab::report::{Ablation, ablations_html};
use crate::lab::suite::in_parallel;
use crate::lab::summary::{WINDOW_FRAMES, points, worst_window_delta};
use crate::learner::AdaptConfig;
use crate::shell::bundle_reader::read_bundle;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use std::error::Error;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

/// A file of variants.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ablations {
    variant: Vec<Variant>,
}

/// What is changed: keys as `--set` takes them.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    name: String,
    set: Vec<String>,
}

pub fn run(eval: &Eval, path: &Path) -> Result<(), Box<dyn Error>> {
    let variants = read(path, &eval.config, &eval.sets)?;
    let config = Config::load(&eval.config, &eval.sets, config::environment())?;
    let bundle = read_bundle(&config)?;
    let payloads = eval.source.load()?;
    let runs = runs(decoded(&payloads, &config, &bundle)?, &payloads);
    let bar = ProgressBar::new((payloads.len() * variants.len()) as u64).with_message("ablations");
    bar.set_style(ProgressStyle::with_template(super::BAR)?);
    let (seed, window) = (eval.source.seed(), eval.source.window().unwrap_or(COMPETITOR_WINDOW));
    let answers = |method, adapt: &AdaptConfig| answers(method, &bundle, adapt, window, &runs, seed, || bar.inc(1));
    let source = answers(Method::Source, &config.adapt)?;
    let rows = Mutex::new(vec![None; variants.len()]);
    let indices: Vec<usize> = (0..variants.len()).collect();
    let work = |&index: &usize| -> Result<(), Box<dyn Error + Send + Sync>> {
        let (variant, adapt) = &variants[index];
        let row = row(variant, &source, &answers(Method::Undrift, adapt).map_err(|error| format!("variant {:?}: {error}", variant.name))?);
        rows.lock().expect("no work panics")[index] = Some(row);
        Ok(())
    };
    in_parallel(std::thread::available_parallelism()?, &indices, work).map_err(|error| -> Box<dyn Error> { error })?;
    bar.finish();
    let rows: Vec<Ablation> = rows.into_inner().expect("no work panics").into_iter().flatten().collect();
    if let Some(path) = &eval.report {
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        let page = ablations_html(accuracy(&source), &rows, &command);
        std::fs::write(path, page).map_err(|error| format!("file {}: {error}", path.display()))?;
    }
    say(eval, &serde_json::json!({ "source_accuracy": accuracy(&source), "variants": rows }), &table(&source, &rows))
}

/// The variants in `path`, with what each makes of `config` after `sets`.
fn read(path: &Path, config: &Path, sets: &[String]) -> Result<Vec<(Variant, AdaptConfig)>, Box<dyn Error>> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("file {}: {error}", path.display()))?;
    let Ablations { variant: variants } = toml::from_str(&text).map_err(|error| format!("file {}: {error}", path.display()))?;
    let adapt = |variant: Variant| {
        let sets: Vec<String> = sets.iter().chain(&variant.set).cloned().collect();
        let config = Config::load(config, &sets, config::environment()).map_err(|error| format!("variant {:?}: {error}", variant.name))?;
        Ok((variant, config.adapt))
    };
    variants.into_iter().map(adapt).collect()
}

fn answers(
    method: Method,
    bundle: &Bundle,
    adapt: &AdaptConfig,
    window: usize,
    runs: &[Vec<Frame>],
    seed: u64,
    shown: impl Fn(),
) -> Result<Answers, Box<dyn Error>> {
    let mut answers = Answers::default();
    for frames in runs {
        let clock = methods::processor_seconds;
        let importance = &OnceLock::new();
        let trial = Trial { bundle, config: adapt, window, frames, seed, source_images: &[], importance, tuning: Tuning::default(), clock };
        answers.append(methods::evaluate(method, &trial, &shown)?);
    }
    Ok(answers)
}

fn accuracy(answers: &Answers) -> f64 {
    crate::lab::evaluate::accuracy(answers.hits.iter().copied())
}

fn row(variant: &Variant, source: &Answers, answers: &Answers) -> Ablation {
    let pairs: Vec<(bool, bool)> = source.hits.iter().copied().zip(answers.hits.iter().copied()).collect();
    let frames = answers.hits.len() as f64;
    Ablation {
        name: variant.name.clone(),
        set: variant.set.clone(),
        accuracy: accuracy(answers),
        gain: accuracy(answers) - accuracy(source),
        worst_window_gain: worst_window_delta(&pairs, WINDOW_FRAMES),
        frames_per_second: frames / answers.seconds,
        passes_per_frame: answers.passes.per_frame(frames),
    }
}

fn table(source: &Answers, rows: &[Ablation]) -> String {
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let mut text =
        format!("source: {:.1} %\n\n{:width$}  accuracy  gain  worst 500  frames/s  diffusion passes\n", 100.0 * accuracy(source), "");
    for row in rows {
        text += &format!(
            "{:width$} {:7.1} % {:>5} {:>10} {:9.0} {:>17.1}\n",
            row.name,
            100.0 * row.accuracy,
            points(row.gain),
            points(row.worst_window_gain),
            row.frames_per_second,
            row.passes_per_frame.diffusion_forward + row.passes_per_frame.diffusion_backward,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shipped_variant_is_a_configuration_of_its_own() {
        let [file, config] = ["ablations.toml", "undrift.toml"].map(|name| Path::new("configs/fashion-mnist").join(name));
        let variants = read(&file, &config, &[]).expect("variants");
        for (i, (variant, adapt)) in variants.iter().enumerate() {
            let twin = variants[..i].iter().find(|(_, other)| other == adapt);
            assert!(twin.is_none(), "{:?} is {:?}", variant.name, twin.map(|(other, _)| &other.name));
        }
    }
}
