//! `undrift eval`: methods side by side on labelled frames.

use super::source::{LabelledPayload, SourceArguments};
use crate::bundle::Bundle;
use crate::config::Config;
use crate::decode::{self, Limits, Message};
use crate::frame::{Frame, FrameSeq};
use crate::lab::methods::{self, Method, Score};
use crate::shell::bundle_reader::read_bundle;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

#[derive(Args)]
pub struct Eval {
    #[command(flatten)]
    source: SourceArguments,
    /// Methods, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["source", "undrift"])]
    methods: Vec<Method>,
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

pub fn run(eval: &Eval) -> Result<(), Box<dyn Error>> {
    let config = Config::load(&eval.config, &eval.sets, std::env::vars())?;
    let bundle = read_bundle(&config.bundle)?;
    let frames = decoded(&eval.source.load()?, &config, &bundle)?;
    let mut scores = BTreeMap::new();
    for &method in &eval.methods {
        let bar = ProgressBar::new(frames.len() as u64).with_message(method.name());
        bar.set_style(ProgressStyle::with_template("{msg:>14} {bar:30} {pos}/{len} {per_sec} {eta} left")?);
        let score = methods::evaluate(method, &bundle, &config.adapt, &frames, eval.source.seed(), || bar.inc(1))?;
        bar.finish();
        scores.insert(method.name(), score);
    }
    let json = serde_json::to_string_pretty(&serde_json::json!({ "methods": scores }))?;
    match &eval.json {
        Some(path) if path.as_os_str() == "-" => println!("{json}"),
        Some(path) => {
            std::fs::write(path, json).map_err(|error| format!("file {}: {error}", path.display()))?;
            print!("{}", table(&scores));
        }
        None => print!("{}", table(&scores)),
    }
    Ok(())
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
        let message = Message { subject_camera: "eval", headers: &headers, payload, sequence, broker_time_ns: None };
        let frame = decode::decode(&message, &limits, bundle.classifier_config.trunk.image, bundle.labels.len());
        frames.push(frame.map_err(|reject| format!("frame {}: {reject}", sequence.0))?);
    }
    Ok(frames)
}

fn table(scores: &BTreeMap<&str, Score>) -> String {
    let domains: Vec<&String> = scores.values().next().map(|score| score.domains.keys().collect()).unwrap_or_default();
    let line = |name: &str, value: &dyn Fn(&Score) -> f64| {
        let cells: String = scores.values().map(|score| format!("{:>15.1}", value(score))).collect();
        format!("{name:<20}{cells}\n")
    };
    let names: String = scores.keys().map(|name| format!("{name:>15}")).collect();
    let mut text = format!("{:<20}{names}\n", "accuracy, percent");
    for domain in domains {
        text += &line(domain, &|score| 100.0 * score.domains[domain]);
    }
    text += &line("all", &|score| 100.0 * score.accuracy);
    text + &line("frames per second", &|score| score.frames_per_second)
}
