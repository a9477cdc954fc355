//! `undrift check-config`: what is configured, and where each value comes from.

use super::sysexits::EX_CONFIG;
use crate::config::{self, Config, ConfigError, NoiseConfig};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// The arguments of every command that needs the configuration.
#[derive(Args)]
pub struct ConfigArguments {
    /// TOML file of a bundle
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Another value for one key, as nats.prefix=lab.v1; may be given again
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArguments {
    /// The configuration, from file, environment and arguments.
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.config, &self.set, config::environment())
    }
}

#[derive(Args)]
pub struct CheckConfig {
    #[command(flatten)]
    config: ConfigArguments,
    /// Print JSON: settings of key, value and origin, or the error
    #[arg(long)]
    json: bool,
}

pub fn run(command: &CheckConfig) -> ExitCode {
    let config = match command.config.load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("undrift: {error}");
            if command.json {
                println!("{}", json!({ "error": error.to_string() }));
            }
            return ExitCode::from(EX_CONFIG);
        }
    };
    if command.json {
        println!("{}", json!({ "settings": config.settings.entries(), "noise_key": noise_key(&config) }));
    } else {
        println!("{}\n# noise key: {}", config.settings, noise_key(&config));
    }
    ExitCode::SUCCESS
}

fn noise_key(config: &Config) -> String {
    match &config.noise {
        NoiseConfig::File(path) => path.display().to_string(),
        NoiseConfig::Environment(secret) => format!("from the environment, id {}", secret.id()),
        NoiseConfig::Generated => format!("made at the first start in {}", config.checkpoint.dir.display()),
    }
}
