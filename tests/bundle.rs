//! The shipped bundle: it loads, is what its hashes say, and helps where it says so.

use std::path::Path;
use std::process::Command;
use undrift::config::Config;
use undrift::shell::bundle_reader::read_bundle;

const CONFIG: &str = "configs/fashion-mnist/undrift.toml";

fn config() -> Config {
    Config::load(Path::new(CONFIG), &[], std::iter::empty()).expect("the shipped configuration is valid")
}

#[test]
fn the_shipped_bundle_loads_and_fits_its_hashes() {
    let bundle = read_bundle(&config()).expect("the shipped weights fit");
    assert_eq!(bundle.labels.len(), 10);
    let bytes: u64 = ["classifier.safetensors", "diffusion.safetensors"]
        .map(|name| std::fs::metadata(Path::new("configs/fashion-mnist").join(name)).expect("a shipped file").len())
        .iter()
        .sum();
    assert!(bytes < 20 << 20, "{bytes} bytes of weights");
}

/// Runs a short demo; gives summary.json.
fn demo(arguments: &[&str]) -> serde_json::Value {
    let out = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_undrift"))
        .args(["demo", "--quiet", "--json", "--out"])
        .arg(out.path())
        .args(arguments)
        .output()
        .expect("the demo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for file in ["report.html", "summary.json", "plot-light.svg", "plot-dark.svg"] {
        assert!(out.path().join(file).exists(), "{file}");
    }
    serde_json::from_slice(&output.stdout).expect("--json prints JSON")
}

#[test]
fn the_demo_gains_and_no_stretch_of_it_loses_much() {
    // A third of the default length; the bounds are those that the whole run is held to.
    let summary = demo(&["--frames", "2000", "--seed", "1"]);
    println!("seed 1: {summary}");
    let figure = |name: &str| summary[name].as_f64().unwrap_or_else(|| panic!("{name} is not a number"));
    let gain = figure("adapted_accuracy") - figure("source_accuracy");
    assert!(gain >= 0.02, "gain {gain}");
    assert!(figure("worst_window_delta") >= -0.03, "worst window {}", figure("worst_window_delta"));
    assert_eq!(summary["frames"], 2000);
}

#[test]
fn on_clean_frames_nothing_is_lost() {
    let summary = demo(&["--frames", "1000", "--seed", "1", "--stream", "clean"]);
    let figure = |name: &str| summary[name].as_f64().unwrap_or_else(|| panic!("{name} is not a number"));
    assert!(figure("adapted_accuracy") >= figure("source_accuracy") - 0.005, "{summary}");
}

#[test]
fn the_same_seed_gives_the_same_answers() {
    let (first, second) = (demo(&["--frames", "320", "--seed", "4"]), demo(&["--frames", "320", "--seed", "4"]));
    assert_eq!(first["domains"], second["domains"]);
}
