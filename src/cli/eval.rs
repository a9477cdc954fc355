//! `undrift eval`: methods side by side on labelled frames.

mod ablations;
mod poison;
mod suite;

use super::source::{LabelledPayload, SourceArguments};
use crate::bundle::Bundle;
use crate::config::{self, Config};
use crate::decode::{self, Limits, Message};
use crate::frame::{Frame, FrameSeq};
use crate::lab::baselines::Tuning;
use crate::lab::corruptions::Table;
use crate::lab::dataset::Labelled;
use crate::lab::dataset::{self, Split};
use crate::lab::methods::{self, Answers, COMPETITOR_WINDOW, Method, Score, Trial};
use crate::lab::streams::Calibration;
use crate::learner::FrozenClassifier;
use crate::model::ImageShape;
use crate::shell::bundle_reader::read_bundle;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use suite::SuiteArguments;

/// Shown below the help.
const EXAMPLES: &str = "\
Examples:
  Two methods on one stream:
    undrift eval --stream continual --length 3750 --methods source,undrift
  A first look at every stream and every quick method, in minutes, with results/report.html:
    undrift eval --suite quick
  The published comparison. It may be stopped at any time, and goes on where it was:
    undrift eval --suite full --seeds 5
  Some cells of it again, and the report with all that there is:
    rm results/*-undrift.json; undrift eval --suite full --seeds 5 --methods undrift
  What each part of the method is worth:
    undrift eval --stream continual --length 3750 --ablations configs/fashion-mnist/ablations.toml --report ablations.html
  What a hostile camera can do, and what the guard makes of it:
    undrift eval --poison --length 3600
  The figures and the report alone:
    undrift eval --suite full --seeds 5 --report-only --json -";

#[derive(Args)]
#[command(after_help = EXAMPLES, mut_arg("frames", |frames| frames.required_unless_present_any(["stream", "suite", "poison"])))]
pub struct Eval {
    #[command(flatten)]
    source: SourceArguments,
    /// Methods, separated by commas [default: source,undrift; with --suite, its own]
    #[arg(long, value_enum, value_delimiter = ',')]
    methods: Vec<Method>,
    /// Run the daemon's own method once for each variant in this file, instead of --methods
    #[arg(long, value_name = "FILE", conflicts_with_all = ["suite", "methods"])]
    ablations: Option<PathBuf>,
    /// File for a page with the ablations as bars
    #[arg(long, value_name = "FILE", requires = "ablations")]
    report: Option<PathBuf>,
    /// Put a hostile camera among nine benign ones, with the guard and without, and see what it does to what is learned
    #[arg(long, conflicts_with_all = ["suite", "methods", "ablations", "frames"])]
    poison: bool,
    #[command(flatten)]
    suite: SuiteArguments,
    #[command(flatten)]
    tuning: Tuning,
    /// Folder of the four Fashion-MNIST files, whose training images EATA looks at first
    #[arg(long, default_value = "/usr/share/datasets/fashion-mnist")]
    source_images: PathBuf,
    /// File for the result as JSON; "-" for standard output
    #[arg(long)]
    json: Option<PathBuf>,
    /// The bundle's configuration
    #[arg(long, default_value = "configs/fashion-mnist/undrift.toml")]
    config: PathBuf,
    /// Change one key of the configuration, key.path=value
    #[arg(long = "set")]
    sets: Vec<String>,
}

/// What is compared without a list of methods.
const METHODS: [Method; 2] = [Method::Source, Method::Undrift];

pub(super) const BAR: &str = "{msg:>20} {bar:30} {pos}/{len} {per_sec} {eta} left";

pub fn run(eval: &Eval) -> Result<(), Box<dyn Error>> {
    if eval.poison {
        return poison::run(eval);
    }
    match (&eval.ablations, eval.suite.suite) {
        (Some(variants), _) => ablations::run(eval, variants),
        (None, Some(suite)) => suite::run(eval, suite),
        (None, None) => compare(eval),
    }
}

/// Methods on the frames of one folder or stream.
fn compare(eval: &Eval) -> Result<(), Box<dyn Error>> {
    let methods = if eval.methods.is_empty() { METHODS.as_slice() } else { &eval.methods };
    let config = Config::load(&eval.config, &eval.sets, config::environment())?;
    let bundle = read_bundle(&config)?;
    if let Some(path) = eval.source.missing_calibration() {
        let calibration = calibrate(&bundle, &eval.source.calibration_images()?, eval.source.table(), eval.source.seed())?;
        std::fs::write(path, serde_json::to_string_pretty(&calibration)?).map_err(|error| format!("file {}: {error}", path.display()))?;
    }
    let payloads = eval.source.load()?;
    let runs = runs(decoded(&payloads, &config, &bundle)?, &payloads);
    let source_images = match methods.contains(&Method::Eata) {
        true => source_images(&eval.source_images, bundle.classifier_config.image())?,
        false => Vec::new(),
    };
    let trial = Trial {
        bundle: &bundle,
        config: &config.adapt,
        window: eval.source.window().unwrap_or(COMPETITOR_WINDOW),
        frames: &[],
        seed: eval.source.seed(),
        source_images: &source_images,
        importance: &OnceLock::new(),
        tuning: eval.tuning,
        clock: methods::wall_seconds,
    };
    let mut scores = BTreeMap::new();
    for &method in methods {
        let bar = ProgressBar::new(payloads.len() as u64).with_message(method.name());
        bar.set_style(ProgressStyle::with_template(BAR)?);
        let mut answers = Answers::default();
        for frames in &runs {
            answers.append(methods::evaluate(method, &Trial { frames, ..trial }, || bar.inc(1))?);
        }
        let score = answers.score(runs.iter().flatten());
        bar.finish();
        scores.insert(method.name(), score);
    }
    say(eval, &serde_json::json!({ "methods": scores }), &table(&scores))
}

/// The result as JSON where it was asked for, and as text where that leaves standard output free.
fn say(eval: &Eval, result: &impl Serialize, text: &str) -> Result<(), Box<dyn Error>> {
    let json = serde_json::to_string_pretty(result)?;
    match &eval.json {
        Some(path) if path.as_os_str() == "-" => println!("{json}"),
        Some(path) => {
            std::fs::write(path, json).map_err(|error| format!("file {}: {error}", path.display()))?;
            print!("{text}");
        }
        None => print!("{text}"),
    }
    Ok(())
}

/// The source's accuracies on `images` that `ccc` needs.
fn calibrate(bundle: &Bundle, images: &[Labelled], table: Table, seed: u64) -> Result<Calibration, Box<dyn Error>> {
    let classifier = FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier)?;
    let bar = ProgressBar::new(Calibration::scenes().len() as u64).with_message("calibration");
    bar.set_style(ProgressStyle::with_template(BAR)?);
    let calibration = Calibration::measure(|scene| {
        bar.inc(1);
        methods::source_accuracy(&classifier, scene, images, table, seed)
    });
    bar.finish();
    Ok(calibration?)
}

/// The frames, parted where adaptation starts afresh.
fn runs(frames: Vec<Frame>, payloads: &[LabelledPayload]) -> Vec<Vec<Frame>> {
    let mut runs = Vec::new();
    for (frame, payload) in frames.into_iter().zip(payloads) {
        if payload.is_fresh_start || runs.is_empty() {
            runs.push(Vec::new());
        }
        runs.last_mut().expect("one was pushed").push(frame);
    }
    runs
}

/// Clean images that EATA measures importance on (`fisher_size` of its `main.py`).
const SOURCE_IMAGES: usize = 2000;

/// Planes of the first training images in `dir`, in the middle of the classifier's frame.
fn source_images(dir: &Path, shape: ImageShape) -> Result<Vec<f32>, Box<dyn Error>> {
    if shape.channels != 1 || shape.height != shape.width {
        return Err(format!("eata: Fashion-MNIST is grey and square, the classifier takes {shape:?}").into());
    }
    let examples = dataset::load(dir, Split::Train)?;
    let mut planes = vec![0f32; examples.len().min(SOURCE_IMAGES) * shape.elements()];
    for (example, planes) in examples.iter().zip(planes.chunks_exact_mut(shape.elements())) {
        dataset::pad(&example.image, shape.height).write_planes(planes);
    }
    Ok(planes)
}

/// Frames as the daemon decodes them.
fn decoded(payloads: &[LabelledPayload], config: &Config, bundle: &Bundle) -> Result<Vec<Frame>, Box<dyn Error>> {
    let limits = Limits {
        payload_bytes_max: config.limits.payload_bytes_max,
        pixels_max: config.limits.pixels_max,
        dimension_max: usize::try_from(config.limits.dimension_max)?,
    };
    let mut frames = Vec::new();
    for (item, sequence) in payloads.iter().zip(1..) {
        let headers = [("Label".to_owned(), item.label.to_string()), ("Domain".to_owned(), item.domain.clone())];
        let (payload, sequence) = (item.payload.as_slice(), FrameSeq(sequence));
        let message = Message { subject_camera: item.camera.unwrap_or("eval"), headers: &headers, payload, sequence, broker_time_ns: None };
        let frame = decode::decode(&message, &limits, bundle.classifier_config.image(), bundle.labels.len());
        frames.push(frame.map_err(|reject| format!("frame {}: {reject}", sequence.0))?);
    }
    Ok(frames)
}

fn table(scores: &BTreeMap<&str, Score>) -> String {
    let domains: Vec<&String> = scores.values().next().map(|score| score.domains.keys().collect()).unwrap_or_default();
    let width = |name: &str| name.len().max(8) + 2;
    let line = |name: &str, value: &dyn Fn(&Score) -> f64| {
        let cells: String = scores.iter().map(|(name, score)| format!("{:>1$.1}", value(score), width(name))).collect();
        format!("{name:<20}{cells}\n")
    };
    let names: String = scores.keys().map(|name| format!("{name:>0$}", width(name))).collect();
    let mut text = format!("{:<20}{names}\n", "accuracy, percent");
    for domain in domains {
        text += &line(domain, &|score| 100.0 * score.domains[domain]);
    }
    text += &line("all", &|score| 100.0 * score.accuracy);
    text += &line("frames per second", &|score| score.frames_per_second);
    text += "\npasses for each frame\n";
    text += &line("classifier, forward", &|score| score.passes_per_frame.classifier_forward);
    text += &line("classifier, backward", &|score| score.passes_per_frame.classifier_backward);
    text += &line("diffusion, forward", &|score| score.passes_per_frame.diffusion_forward);
    text + &line("diffusion, backward", &|score| score.passes_per_frame.diffusion_backward)
}
