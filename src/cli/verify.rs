//! `undrift verify`: is this checkpoint what the stream makes of the source weights?

use super::check_config::ConfigArguments;
use super::sysexits::{EX_CONFIG, EX_DATAERR, EX_UNAVAILABLE};
use crate::lab::verify::{Difference, Verdict, Verifier, VerifyError};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::process::ExitCode;

#[derive(Args)]
#[command(
    after_help = "Reads the checkpoint, the decisions beside it and the streams; changes nothing, and may run beside the daemon.\nExit code: 0 yes, 65 no, 69 where nothing can be said."
)]
pub struct Verify {
    #[command(flatten)]
    config: ConfigArguments,
    /// Generation to verify; the newest without it
    #[arg(long)]
    generation: Option<u64>,
    /// In JSON, the hash of the state after each window too
    #[arg(long, requires = "json")]
    states: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(command: &Verify) -> ExitCode {
    let config = match command.config.load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("undrift: {error}");
            return ExitCode::from(EX_CONFIG);
        }
    };
    let verdict = async {
        let verifier = Verifier::new(config, command.generation).await?;
        let bar = ProgressBar::new(verifier.length()).with_message("frames");
        bar.set_style(ProgressStyle::with_template(super::eval::BAR).expect("the template is fixed"));
        let verdict = verifier.run(command.states, |sequence| bar.set_position(sequence)).await;
        bar.finish_and_clear();
        verdict
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let verdict: Result<Verdict, VerifyError> = match runtime {
        Ok(runtime) => runtime.block_on(verdict),
        Err(error) => {
            eprintln!("undrift: failed to start: {error}");
            return ExitCode::from(EX_UNAVAILABLE);
        }
    };
    match verdict {
        Ok(verdict) => {
            print(&verdict, command.json);
            ExitCode::from(if verdict.is_true { 0 } else { EX_DATAERR })
        }
        Err(error) => {
            eprintln!("undrift: {error}");
            ExitCode::from(EX_UNAVAILABLE)
        }
    }
}

fn print(verdict: &Verdict, is_json: bool) {
    if is_json {
        println!("{}", serde_json::to_string_pretty(verdict).expect("a verdict is JSON"));
        return;
    }
    let Verdict { generation, sequence, frames, predictions, .. } = verdict;
    let from = verdict.from.map_or("the source weights".to_owned(), |from| format!("generation {from}"));
    let word = if verdict.is_true { "yes" } else { "no" };
    println!("{word}: generation {generation}, frame {sequence}; from {from}, {frames} frames, {predictions} predictions as stored");
    if let Some(frame) = verdict.answered_before {
        println!("up to frame {frame} another bundle, configuration, build or start has answered: not compared");
    }
    if let Some((at, difference)) = verdict.first_difference {
        println!("first difference at frame {at}: {}", explain(difference));
    }
    if !verdict.fingerprints_differing.is_empty() {
        println!("not what the checkpoint was written with: {}", verdict.fingerprints_differing.join(", "));
    }
}

fn explain(difference: Difference) -> &'static str {
    match difference {
        Difference::Stream => "the stream was made anew; its frames are others",
        Difference::Frame => "the stream holds other frames up to here than those that were answered",
        Difference::Prediction => "another prediction is stored",
        Difference::Proof => "the stored prediction is not the one that its proof was made of",
        Difference::Repeated => "more than one prediction is stored",
        Difference::Missing => "no prediction is stored",
        Difference::History => "a prediction is stored that another bundle, configuration, build or start has made",
        Difference::State => "all predictions agree; the checkpoint's state does not",
    }
}
