//! `undrift run`: the daemon.

use super::check_config::ConfigArguments;
use super::sysexits::{EX_CONFIG, EX_OSERR};
use crate::config::LogFormat;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::shell::daemon;
use clap::Args;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Threads for sockets and timers; models have threads of their own.
const ASYNC_THREADS: usize = 2;
/// Of a process that a signal ended: 128 and the signal's number.
const SECOND_SIGNAL: i32 = 128 + 15;

#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    config: ConfigArguments,
}

pub fn run(command: &Run) -> ExitCode {
    let config = match command.config.load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("undrift: {error}");
            return ExitCode::from(EX_CONFIG);
        }
    };
    start_log(config.log.format);
    #[cfg(feature = "cuda")]
    log_gpu();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(ASYNC_THREADS).thread_name("async").enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("undrift: failed to start threads: {error}");
            return ExitCode::from(EX_OSERR);
        }
    };
    let shutdown = CancellationToken::new();
    runtime.spawn(watch_signals(shutdown.clone()));
    match runtime.block_on(daemon::run(config, shutdown)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the daemon ends");
            eprintln!("undrift: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// One line: whether this machine's GPU takes the kernels. The models run on the CPU either way.
#[cfg(feature = "cuda")]
fn log_gpu() {
    match cuda::Device::open(0).and_then(|device| device.name()) {
        Ok(name) => tracing::info!(name, "the GPU takes the CUDA kernels; the models run on the CPU"),
        Err(error) => tracing::info!(%error, "no GPU: everything runs on the CPU"),
    }
}

/// To stderr, at the levels of `RUST_LOG`; without it, `info`.
fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,async_nats=warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// The first SIGTERM or SIGINT asks for an orderly end, the second ends at once.
async fn watch_signals(shutdown: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("signals cannot be watched: they end the daemon without a last checkpoint");
        return;
    };
    for count in 1.. {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if count > 1 {
            std::process::exit(SECOND_SIGNAL);
        }
        tracing::info!("stopping");
        shutdown.cancel();
    }
}
