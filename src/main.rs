//! Arguments, one command, an exit code.

#![forbid(unsafe_code)]

use clap::{CommandFactory, Parser, Subcommand};
use std::error::Error;
use std::process::ExitCode;
use undrift::cli;

/// Activations are allocated and freed by the megabyte: glibc gives them back to the kernel each time and pays in page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(version, about, after_help = "Start with `undrift demo`. Then `undrift run --config configs/fashion-mnist/undrift.toml`.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show it: a stream whose corruption changes, no server, no data set
    Demo(cli::demo::Demo),
    /// The daemon: answer frames from NATS, and adapt
    Run(cli::run::Run),
    /// Play labelled frames to NATS, as a camera would
    Publish(cli::publish::Publish),
    /// Talk to a running daemon: status, adapt on|off, checkpoint, reset, rollback
    Ctl(cli::ctl::Ctl),
    /// Compare methods on labelled frames
    Eval(cli::eval::Eval),
    /// Make a bundle: train the classifier and the diffusion model
    Train(cli::train::Train),
    /// Prove a checkpoint: compute its history again from the stream, and compare
    Verify(cli::verify::Verify),
    /// List and inspect checkpoints
    Checkpoint(cli::checkpoint::Checkpoint),
    /// Check a configuration, and show where each value comes from
    CheckConfig(cli::check_config::CheckConfig),
    /// Write shell completions to standard output
    Completions { shell: clap_complete::Shell },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Demo(demo) => finish(cli::demo::run(&demo)),
        Command::Run(run) => cli::run::run(&run),
        Command::Publish(publish) => cli::publish::run(&publish),
        Command::Ctl(ctl) => cli::ctl::run(&ctl),
        Command::Eval(eval) => finish(cli::eval::run(&eval)),
        Command::Train(train) => {
            tracing_subscriber::fmt().with_writer(std::io::stderr).init();
            finish(cli::train::run(&train))
        }
        Command::Verify(verify) => cli::verify::run(&verify),
        Command::Checkpoint(checkpoint) => cli::checkpoint::run(&checkpoint),
        Command::CheckConfig(check) => cli::check_config::run(&check),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "undrift", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

/// For commands of the lab: what went wrong, or nothing.
fn finish(result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("undrift: {error}");
            ExitCode::FAILURE
        }
    }
}
