//! Writes what `tests/reference/competitors.py` needs to run public code on the same frames: a stream as PNG files with
//! frames.csv, and logits.f32, the source's logits (frames, K) on them, f32, little-endian.
//!
//! cargo run --release --example competitor_frames -- configs/fashion-mnist/undrift.toml continual 1600 201 DIR

use clap::ValueEnum;
use image::{ColorType, save_buffer};
use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use undrift::config::Config;
use undrift::lab::corruptions::{Severity, Table};
use undrift::lab::dataset::{self, Split};
use undrift::lab::streams::{Plan, Playback, Request, Stream};
use undrift::learner::FrozenClassifier;
use undrift::shell::bundle_reader::read_bundle;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, stream, frames, seed, dir] = arguments.as_slice() else {
        return Err("expected CONFIG STREAM FRAMES SEED DIR".into());
    };
    let (stream, dir) = (Stream::from_str(stream, false)?, Path::new(dir));
    let bundle = read_bundle(&Config::load(Path::new(config), &[], std::iter::empty())?)?;
    let classifier = FrozenClassifier::new(&bundle.classifier_config, &bundle.classifier)?;
    let request = Request { frames: frames.parse()?, severity: Severity::try_from(5)?, seed: seed.parse()?, visits: 1, walk: None };
    let images = dataset::load(Path::new("/usr/share/datasets/fashion-mnist"), Split::Test)?;
    let plan = Plan::new(stream, &request, &images)?;
    std::fs::create_dir_all(dir)?;
    let (mut table, mut logits, mut planes) = ("file,label,domain\n".to_owned(), Vec::new(), vec![0f32; 32 * 32]);
    for (index, frame) in (Playback { plan: &plan, images: &images, table: Table::Tiny, side: 32 }).frames().enumerate() {
        let file = format!("{index:05}.png");
        save_buffer(dir.join(&file), frame.image.pixels(), 32, 32, ColorType::L8)?;
        writeln!(table, "{file},{},{}", frame.label.0, frame.domain)?;
        frame.image.write_planes(&mut planes);
        // The same f32 that the model gave.
        logits.extend(classifier.logits(&planes)?.concat().into_iter().flat_map(|z| (z as f32).to_le_bytes()));
    }
    std::fs::write(dir.join("frames.csv"), table)?;
    Ok(std::fs::write(dir.join("logits.f32"), logits)?)
}
