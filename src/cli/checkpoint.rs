//! `undrift checkpoint`: what lies in a folder of checkpoints; works beside a running daemon.

use super::sysexits::EX_DATAERR;
use crate::checkpoint::Header;
use crate::shell::store::{self, Generation, Listed, StoreError};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub struct Checkpoint {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// List the checkpoints, newest first
    Ls(Folder),
    /// Read one checkpoint in full, check every hash, and show what it holds
    Inspect {
        generation: u64,
        #[command(flatten)]
        folder: Folder,
    },
}

#[derive(Args)]
struct Folder {
    /// The folder, as in checkpoint.dir
    #[arg(long)]
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One line of the list.
#[derive(Serialize)]
struct Row {
    generation: Generation,
    /// Last frame that the state has seen.
    sequence: u64,
    weights_version: u64,
    state_hash: String,
    bytes: u64,
    /// RFC 3339, UTC.
    created: String,
}

/// All that `inspect` shows.
#[derive(Serialize)]
struct Inspection<'a> {
    #[serde(flatten)]
    row: Row,
    fingerprints: &'a BTreeMap<String, String>,
    /// BLAKE3 by name.
    tensors: BTreeMap<&'a str, String>,
}

pub fn run(command: &Checkpoint) -> ExitCode {
    let done = match &command.what {
        What::Ls(folder) => ls(folder),
        What::Inspect { generation, folder } => inspect(folder, Generation(*generation)),
    };
    done.unwrap_or_else(|error| {
        eprintln!("undrift: {error}");
        ExitCode::from(EX_DATAERR)
    })
}

fn ls(folder: &Folder) -> Result<ExitCode, StoreError> {
    let mut rows = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for listed in store::list(&folder.dir)? {
        match listed {
            Ok(listed) => rows.push(row(&listed)),
            Err(error) => {
                eprintln!("undrift: {error}");
                code = ExitCode::from(EX_DATAERR);
            }
        }
    }
    if folder.json {
        print_json(&rows);
        return Ok(code);
    }
    println!("{:>10}  {:>12}  {:>7}  {:16}  {:>10}  created", "generation", "sequence", "weights", "state", "bytes");
    for Row { generation, sequence, weights_version, state_hash, bytes, created } in rows {
        println!("{:>10}  {sequence:>12}  {weights_version:>7}  {:.16}  {bytes:>10}  {created}", generation.0, state_hash);
    }
    Ok(code)
}

fn inspect(folder: &Folder, generation: Generation) -> Result<ExitCode, StoreError> {
    store::load(&folder.dir, generation)?;
    let listed = store::read_header(&folder.dir, generation)?;
    let tensors = listed.header.tensors().iter().map(|(name, hash)| (name.as_str(), to_hex(hash))).collect();
    let inspection = Inspection { row: row(&listed), fingerprints: &listed.header.meta.fingerprints, tensors };
    if folder.json {
        print_json(&inspection);
        return Ok(ExitCode::SUCCESS);
    }
    let Row { sequence, weights_version, state_hash, bytes, created, .. } = inspection.row;
    println!("generation {generation}\nsequence {sequence}\nweights_version {weights_version}\nstate_hash {state_hash}");
    println!("bytes {bytes}\ncreated {created}");
    for (name, fingerprint) in inspection.fingerprints {
        println!("fingerprint {name} {fingerprint}");
    }
    for (name, hash) in inspection.tensors {
        println!("tensor {name} {hash}");
    }
    Ok(ExitCode::SUCCESS)
}

fn row(listed: &Listed) -> Row {
    let Header { meta, state_hash, scalars, .. } = &listed.header;
    let created = jiff::Timestamp::from_nanosecond(i128::from(meta.created_ns)).expect("an i64 of nanoseconds ends in 2262");
    Row {
        generation: listed.generation,
        sequence: scalars.sequence.0,
        weights_version: scalars.learner_version.0,
        state_hash: to_hex(state_hash),
        bytes: listed.bytes,
        created: created.to_string(),
    }
}

fn to_hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

fn print_json(value: &impl Serialize) {
    println!("{}", serde_json::to_string_pretty(value).expect("plain structs always encode"));
}
