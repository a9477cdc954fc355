//! Bytes of a checkpoint: all of [`DurableState`], in a container that notices every changed bit.
//!
//! ```text
//! magic "UNDRIFT\0" | version u32 | header bytes u32 | payload bytes u64 | BLAKE3 of all before and of the header
//! header  = named MessagePack: time, fingerprints, state hash, BLAKE3 of the payload and of each tensor, the scalars
//! payload = safetensors
//! ```
//! Integers are little-endian. As the header holds the payload's hash, the hash in front is one root over everything, and the
//! header can be believed without the payload.
//! Invariants: no length is believed before it was compared with the size of the file; what is decoded has just the tensors
//! that the header lists, and every value is finite; a float keeps its bits.
//! Absent on purpose: a key. The hash finds damage, not a forger who can write to the folder.

use crate::model::{ParameterError, Tensors, parameters};
use crate::recent::Recent;
use crate::state::{DurableState, Scalars, StateError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

const MAGIC: [u8; 8] = *b"UNDRIFT\0";

/// Version of the layout. A file of another one is refused and left alone: before the first release nothing reads older ones.
pub const FORMAT_VERSION: u32 = 7;

/// Length of what precedes the header.
pub const PREFIX_BYTES: usize = 56;

/// Name of the bundle among the fingerprints.
pub const BUNDLE_FINGERPRINT: &str = "bundle";

/// Largest header: room for thousands of tensors and remembered labels.
const HEADER_BYTES_MAX: u32 = 1 << 24;

/// Largest payload, 16 GiB: above it, a length is damage, whatever the size of the (sparse) file.
const PAYLOAD_BYTES_MAX: u64 = 1 << 34;

/// What a checkpoint says of itself, next to the state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Nanoseconds since 1970 (UTC), by the daemon's clock; for people, nothing depends on it.
    pub created_ns: i64,
    /// What the state's next bit depends on outside of it, by name: model, configuration, noise key, build.
    pub fingerprints: BTreeMap<String, String>,
}

impl Meta {
    /// Names of the fingerprints that are not as `expected`: with them, the state goes on, but not to the same bits.
    pub fn differing<'a>(&'a self, expected: &'a BTreeMap<String, String>) -> Vec<&'a str> {
        let mut names: Vec<&str> = self.fingerprints.keys().chain(expected.keys()).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|&name| self.fingerprints.get(name) != expected.get(name));
        names
    }

    /// Whether the weights are those of the bundle that `expected` is of: others may fit it, and are another model's.
    pub fn is_of_bundle(&self, expected: &BTreeMap<String, String>) -> bool {
        self.fingerprints.get(BUNDLE_FINGERPRINT) == expected.get(BUNDLE_FINGERPRINT)
    }
}

/// All of a checkpoint but its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub meta: Meta,
    /// See [`state_hash`].
    pub state_hash: [u8; 32],
    payload_hash: [u8; 32],
    /// Hash of name, shape and values of each tensor, by name.
    tensors: BTreeMap<String, [u8; 32]>,
    pub scalars: Scalars,
}

impl Header {
    /// The header of the bytes of a whole checkpoint.
    pub fn of(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let prefix = Prefix::parse(bytes, bytes.len() as u64)?;
        prefix.header(&bytes[PREFIX_BYTES..][..prefix.header_bytes()])
    }

    /// Whether what the learner goes on from has the same weights.
    pub fn has_learner_of(&self, other: &Self) -> bool {
        let learner = |header: &Self| -> Vec<[u8; 32]> {
            header.tensors.iter().filter(|(name, _)| name.starts_with("learner/")).map(|(_, &hash)| hash).collect()
        };
        learner(self) == learner(other)
    }

    /// Hash of name, shape and values of each tensor, by name.
    pub fn tensors(&self) -> &BTreeMap<String, [u8; 32]> {
        &self.tensors
    }
}

/// Bytes that are not a checkpoint, or a state that must not become one.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{got} bytes are too short for a checkpoint, which has at least {PREFIX_BYTES}")]
    Short { got: usize },
    #[error("not a checkpoint: it starts with {got:02x?}")]
    Magic { got: [u8; 8] },
    #[error(
        "format version {got}, this build reads {FORMAT_VERSION}: run the build that wrote it, or start from the source weights with an \
         empty checkpoint.dir"
    )]
    Version { got: u32 },
    #[error("header of {header} and payload of {payload} bytes do not make a file of {size} bytes")]
    Length { header: u32, payload: u64, size: u64 },
    #[error("the {part} does not have the BLAKE3 that was written with it")]
    Hash { part: String },
    #[error("the header is not canonical")]
    Header,
    #[error("tensor {name:?} is {problem} the payload")]
    TensorSet { name: String, problem: &'static str },
    #[error("average {name:?} is {value}, not finite")]
    NotFinite { name: String, value: f64 },
    #[error("header: {0}")]
    Decode(#[from] rmp_serde::decode::Error),
    #[error("header: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl CheckpointError {
    /// Whether the bytes are damaged or foreign; a checkpoint of another version is neither.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Version { .. })
    }
}

/// The bytes of a checkpoint of `state`.
///
/// # Errors
/// `Parameter` and `NotFinite` for values that are not finite: such a state must not become the one to go on from.
pub fn encode(state: &DurableState, meta: &Meta) -> Result<Vec<u8>, CheckpointError> {
    let (scalars, tensors) = state.to_parts()?;
    check_averages(state)?;
    check_tensors(&tensors)?;
    let payload = parameters::write(&tensors, HashMap::new())?;
    let hashes = hash_tensors(&tensors)?;
    let header = Header {
        meta: meta.clone(),
        state_hash: hash_state(&scalars, &hashes)?,
        payload_hash: blake3::hash(&payload).into(),
        tensors: hashes,
        scalars,
    };
    let header = rmp_serde::to_vec_named(&header)?;
    let length = |got: usize| CheckpointError::Length { header: u32::MAX, payload: payload.len() as u64, size: got as u64 };
    let header_bytes = u32::try_from(header.len()).ok().filter(|&bytes| bytes <= HEADER_BYTES_MAX).ok_or_else(|| length(header.len()))?;
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + header.len() + payload.len());
    bytes.extend(MAGIC);
    bytes.extend(FORMAT_VERSION.to_le_bytes());
    bytes.extend(header_bytes.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    let root = blake3::Hasher::new().update(&bytes).update(&header).finalize();
    bytes.extend(root.as_bytes());
    bytes.extend(header);
    bytes.extend(payload);
    Ok(bytes)
}

/// The state that [`encode`] was given.
///
/// # Errors
/// `Version` for another format; else one for whatever is damaged, before anything is made of it.
pub fn decode(bytes: &[u8]) -> Result<(DurableState, Meta), CheckpointError> {
    let prefix = Prefix::parse(bytes, bytes.len() as u64)?;
    let (header, payload) = bytes[PREFIX_BYTES..].split_at(prefix.header_bytes());
    let header = prefix.header(header)?;
    if blake3::hash(payload) != header.payload_hash {
        return Err(CheckpointError::Hash { part: "payload".to_owned() });
    }
    let tensors = parameters::read(payload)?;
    let hashes = hash_tensors(&tensors)?;
    check_set(&header.tensors, &hashes)?;
    if hash_state(&header.scalars, &hashes)? != header.state_hash {
        return Err(CheckpointError::Hash { part: "state".to_owned() });
    }
    let state = DurableState::from_parts(header.scalars, &tensors)?;
    check_averages(&state)?;
    // A tensor that no part of the state has taken would be lost in silence: the state must give back what it was made of.
    check_set(&header.tensors, &hash_tensors(&state.to_parts()?.1)?)?;
    Ok((state, header.meta))
}

/// BLAKE3 over all of `state`: its scalars, and name, shape and values of each tensor in the order of the names.
///
/// Two states with one hash go on to the same bits. When and as which generation a state was written does not enter.
pub fn state_hash(state: &DurableState) -> Result<[u8; 32], CheckpointError> {
    let (scalars, tensors) = state.to_parts()?;
    hash_state(&scalars, &hash_tensors(&tensors)?)
}

/// What stands before the header: enough to know the exact size of the file.
pub struct Prefix {
    bytes: [u8; PREFIX_BYTES],
    header_bytes: u32,
}

impl Prefix {
    /// Reads the first bytes of a file of `size` bytes.
    ///
    /// # Errors
    /// `Short`, `Magic`, `Version`, or `Length` where the lengths do not add up to `size`.
    pub fn parse(bytes: &[u8], size: u64) -> Result<Self, CheckpointError> {
        let bytes: [u8; PREFIX_BYTES] = *bytes.first_chunk().ok_or(CheckpointError::Short { got: bytes.len() })?;
        let magic = *bytes.first_chunk().expect("the prefix is longer than the magic");
        if magic != MAGIC {
            return Err(CheckpointError::Magic { got: magic });
        }
        let version = u32_at(&bytes, 8);
        if version != FORMAT_VERSION {
            return Err(CheckpointError::Version { got: version });
        }
        let header = u32_at(&bytes, 12);
        let payload = u64::from(u32_at(&bytes, 16)) | u64::from(u32_at(&bytes, 20)) << 32;
        let is_allowed = header <= HEADER_BYTES_MAX && payload <= PAYLOAD_BYTES_MAX;
        if !is_allowed || PREFIX_BYTES as u64 + u64::from(header) + payload != size {
            return Err(CheckpointError::Length { header, payload, size });
        }
        Ok(Self { bytes, header_bytes: header })
    }

    /// Length of the header that follows.
    pub fn header_bytes(&self) -> usize {
        self.header_bytes as usize
    }

    /// The header, from the `header_bytes` bytes after the prefix.
    ///
    /// # Errors
    /// `Hash` where they are not those that were written, `Decode` and `Header` where they never were a header.
    pub fn header(&self, bytes: &[u8]) -> Result<Header, CheckpointError> {
        let (lengths, root) = self.bytes.split_at(PREFIX_BYTES - blake3::OUT_LEN);
        if blake3::Hasher::new().update(lengths).update(bytes).finalize() != *root {
            return Err(CheckpointError::Hash { part: "header".to_owned() });
        }
        let header: Header = rmp_serde::from_slice(bytes)?;
        // One header has one encoding: no trailing bytes, repeated keys or longer forms of a number.
        if rmp_serde::to_vec_named(&header)? == bytes { Ok(header) } else { Err(CheckpointError::Header) }
    }
}

fn u32_at(bytes: &[u8; PREFIX_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("only the prefix's own offsets are asked for"))
}

fn hash_tensors(tensors: &Tensors) -> Result<BTreeMap<String, [u8; 32]>, CheckpointError> {
    let hash = |name: &str, tensor: &candle_core::Tensor| -> Result<[u8; 32], CheckpointError> {
        let mut hasher = blake3::Hasher::new_derive_key("undrift tensor 1");
        update_framed(&mut hasher, name.as_bytes());
        let shape: Vec<u8> = tensor.dims().iter().flat_map(|&dimension| (dimension as u64).to_le_bytes()).collect();
        update_framed(&mut hasher, &shape);
        let values: Vec<u8> = tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect();
        hasher.update(&values);
        Ok(hasher.finalize().into())
    };
    tensors.iter().map(|(name, tensor)| Ok((name.clone(), hash(name, tensor)?))).collect()
}

fn hash_state(scalars: &Scalars, tensors: &BTreeMap<String, [u8; 32]>) -> Result<[u8; 32], CheckpointError> {
    let mut hasher = blake3::Hasher::new_derive_key("undrift state 1");
    update_framed(&mut hasher, &rmp_serde::to_vec_named(scalars)?);
    for hash in tensors.values() {
        hasher.update(hash);
    }
    Ok(hasher.finalize().into())
}

/// Length first, so that no two sequences of fields have the same bytes.
fn update_framed(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
}

fn check_set(expected: &BTreeMap<String, [u8; 32]>, got: &BTreeMap<String, [u8; 32]>) -> Result<(), CheckpointError> {
    let wrong_set = |name: &String, problem| Err(CheckpointError::TensorSet { name: name.clone(), problem });
    if let Some(name) = expected.keys().find(|name| !got.contains_key(*name)) {
        return wrong_set(name, "missing from");
    }
    if let Some(name) = got.keys().find(|name| !expected.contains_key(*name)) {
        return wrong_set(name, "more than the header lists in");
    }
    match expected.iter().find(|(name, hash)| got.get(*name) != Some(hash)) {
        Some((name, _)) => Err(CheckpointError::Hash { part: format!("tensor {name:?}") }),
        None => Ok(()),
    }
}

fn check_tensors(tensors: &Tensors) -> Result<(), CheckpointError> {
    for (name, tensor) in tensors {
        if tensor.flatten_all()?.to_vec1::<f32>()?.iter().any(|value| !value.is_finite()) {
            return Err(ParameterError::NotFinite { name: name.clone() }.into());
        }
    }
    Ok(())
}

fn check_averages(state: &DurableState) -> Result<(), CheckpointError> {
    let policies = [&state.learner.policy].into_iter().chain(state.learner.good.as_ref().map(|good| &good.policy));
    let gates = policies.clone().flat_map(|policy| policy.gates.values().chain([&policy.common])).map(|gate| &gate.averages);
    let averages = gates.chain(policies.map(|policy| &policy.averages)).chain([&state.monitor.averages]).flatten();
    let averages = averages.map(|(name, &value)| (name.as_str(), value));
    let recent = state.recent.values().flat_map(Recent::values).map(|value| ("recent", value));
    let priors = state.open.iter().flat_map(|open| &open.prior).map(|&value| ("prior", value));
    match averages.chain(recent).chain(priors).find(|(_, value)| !value.is_finite()) {
        Some((name, value)) => Err(CheckpointError::NotFinite { name: name.to_owned(), value }),
        None => Ok(()),
    }
}
