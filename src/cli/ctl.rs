//! `undrift ctl`: asks a running daemon, over NATS or, for its status alone, over HTTP.

use super::sysexits::{EX_CONFIG, EX_UNAVAILABLE};
use crate::shell::nats::{Identity, NatsError};
use crate::wire::{DECISION_HEADER, EXPIRES_HEADER, PrefixError, Subjects};
use async_nats::ServerAddr;
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
/// Of a status over HTTP.
const REPLY_BYTES_MAX: u64 = 1 << 20;

#[derive(Args)]
pub struct Ctl {
    /// nats://HOST:PORT, or for status http://HOST:PORT
    #[arg(long, default_value = "nats://127.0.0.1:4222")]
    url: String,
    /// First tokens of the daemon's subjects
    #[arg(long, default_value = "undrift.v1")]
    prefix: String,
    #[command(flatten)]
    identity: Identity,
    /// First part of the subjects that replies come to: what the broker lets this user hear
    #[arg(long, default_value = "_INBOX", global = true)]
    inbox_prefix: String,
    /// Only as this decision: the status' `decision` plus one, so that nobody decided in between
    #[arg(long, value_name = "N", global = true)]
    decision: Option<u64>,
    /// Print the reply as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Copy, Subcommand)]
enum Verb {
    /// Show what the daemon is doing
    Status,
    /// Switch adaptation on or off; kept across restarts
    Adapt { switch: Switch },
    /// Write a checkpoint now
    Checkpoint,
    /// Back to the source weights
    Reset,
    /// Back to the weights of an earlier checkpoint
    Rollback {
        /// As `undrift checkpoint ls` shows it; without it, the newest with earlier weights that no roll-back has left behind
        generation: Option<u64>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl Verb {
    /// Verb and payload of the control message.
    fn message(self) -> (&'static str, String) {
        match self {
            Self::Status => ("status", String::new()),
            Self::Adapt { switch: Switch::On } => ("adapt", "on".to_owned()),
            Self::Adapt { switch: Switch::Off } => ("adapt", "off".to_owned()),
            Self::Checkpoint => ("checkpoint", String::new()),
            Self::Reset => ("reset", String::new()),
            Self::Rollback { generation } => ("rollback", generation.map_or_else(String::new, |generation| generation.to_string())),
        }
    }
}

/// A request that got no reply.
#[derive(Debug, thiserror::Error)]
enum CtlError {
    #[error("{url}: {source}")]
    Url { url: String, source: std::io::Error },
    #[error("{url}: {source}")]
    Connect { url: String, source: async_nats::ConnectError },
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error("no daemon answered on {subject}: {source}")]
    Request { subject: String, source: async_nats::RequestError },
    #[error("{url}: {source}")]
    Http { url: String, source: std::io::Error },
    #[error("over HTTP only the status can be asked for: use nats://")]
    HttpVerb,
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    #[error("the reply is not JSON: {0}")]
    Reply(#[from] serde_json::Error),
    #[error("failed to start: {0}")]
    Runtime(std::io::Error),
}

impl CtlError {
    /// Whether it lies in the arguments, and not in who was asked.
    fn is_of_configuration(&self) -> bool {
        matches!(self, Self::Url { .. } | Self::Prefix(_) | Self::Nats(NatsError::InTheClear { .. } | NatsError::Credentials(_)))
    }
}

pub fn run(command: &Ctl) -> ExitCode {
    match ask(command) {
        Ok(reply) => {
            show(&reply, command.json);
            if reply["ok"] == false { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("undrift: {error}");
            ExitCode::from(if error.is_of_configuration() { EX_CONFIG } else { EX_UNAVAILABLE })
        }
    }
}

fn ask(command: &Ctl) -> Result<serde_json::Value, CtlError> {
    if let Some(address) = command.url.strip_prefix("http://") {
        let Verb::Status = command.verb else { return Err(CtlError::HttpVerb) };
        let body = get_status(address).map_err(|source| CtlError::Http { url: command.url.clone(), source })?;
        return Ok(serde_json::from_str(&body)?);
    }
    let subjects = Subjects::new(&command.prefix)?;
    let (verb, payload) = command.verb.message();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CtlError::Runtime)?;
    runtime.block_on(request(command, subjects.control(verb), payload))
}

async fn request(command: &Ctl, subject: String, payload: String) -> Result<serde_json::Value, CtlError> {
    let options = async_nats::ConnectOptions::new().custom_inbox_prefix(command.inbox_prefix.clone());
    let url: ServerAddr = command.url.parse().map_err(|source| CtlError::Url { url: command.url.clone(), source })?;
    let urls = [url];
    let connected = command.identity.apply(options, &urls).await?.connect(&urls[..]).await;
    let client = connected.map_err(|source| CtlError::Connect { url: command.url.clone(), source })?;
    let mut headers = async_nats::HeaderMap::new();
    // Who asked is told that nothing came of it, so nothing may come of it later.
    headers.insert(EXPIRES_HEADER, (Timestamp::now() + PATIENCE).to_string());
    if let Some(decision) = command.decision {
        headers.insert(DECISION_HEADER, decision.to_string());
    }
    let request = async_nats::Request::new().headers(headers).payload(payload.into()).timeout(Some(2 * PATIENCE));
    let reply = client.send_request(subject.clone(), request).await.map_err(|source| CtlError::Request { subject, source })?;
    Ok(serde_json::from_slice(&reply.payload)?)
}

/// The body of one GET.
fn get_status(address: &str) -> std::io::Result<String> {
    let address = address.trim_end_matches('/');
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /status HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut reply = String::new();
    stream.take(REPLY_BYTES_MAX).read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    if head.split(' ').nth(1) == Some("200") { Ok(body.to_owned()) } else { Err(std::io::Error::other(head.to_owned())) }
}

fn show(reply: &serde_json::Value, as_json: bool) {
    match reply.as_object() {
        Some(fields) if !as_json => fields.iter().for_each(|(name, value)| println!("{name:20} {value}")),
        _ => println!("{reply}"),
    }
}
