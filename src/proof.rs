//! What a stored prediction carries so that a replay can prove itself: hashes of what went in and what came out.
//!
//! After a restart the frames since the checkpoint are applied again. Each prediction that comes of it must be the stored one:
//! same history, same frames before it, same content. A different chain of frames under the same numbers means that the stream
//! was changed; a different content means that the replay is not exact.
//! Invariant: nothing here depends on when or how fast something was computed: latencies are left out.

use crate::prediction::{Prediction, StageLatency};
use std::collections::BTreeMap;
use std::fmt;

/// Header of a stored prediction that holds its [`Proof`].
pub const PROOF_HEADER: &str = "Undrift-Proof";

/// Names what the bits depend on beside the frames: fingerprints, and where the history began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryId([u8; 8]);

impl HistoryId {
    /// Of the fingerprints by name, and [`crate::state::DurableState::birth`].
    pub fn new(fingerprints: &BTreeMap<String, String>, birth: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("undrift history 1");
        for text in fingerprints.iter().flat_map(|(name, value)| [name, value]) {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        hasher.update(&birth.to_le_bytes());
        Self(*hasher.finalize().as_bytes().first_chunk().expect("a hash is longer"))
    }
}

/// Of one prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    pub history: HistoryId,
    /// Of all frames up to this one.
    pub input_chain: [u8; 32],
    /// BLAKE3 of the prediction without its latencies.
    pub content: [u8; 32],
}

impl Proof {
    /// # Panics
    /// Never: a prediction holds only what MessagePack can hold.
    pub fn new(history: HistoryId, prediction: &Prediction) -> Self {
        let timeless = Prediction { latency: StageLatency::default(), ..prediction.clone() };
        let bytes = rmp_serde::to_vec_named(&timeless).expect("a prediction fits MessagePack");
        Self { history, input_chain: prediction.input_chain, content: blake3::hash(&bytes).into() }
    }

    /// Reads the header's value; none where it is not one that [`Proof`] shows.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let proof = Self {
            history: HistoryId(bytes_of_hex(parts.next()?)?),
            input_chain: bytes_of_hex(parts.next()?)?,
            content: bytes_of_hex(parts.next()?)?,
        };
        parts.next().is_none().then_some(proof)
    }
}

/// Three hexadecimal numbers with colons between them.
impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, bytes) in [&self.history.0[..], &self.input_chain, &self.content].into_iter().enumerate() {
            f.write_str(if i > 0 { ":" } else { "" })?;
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        }
        Ok(())
    }
}

fn bytes_of_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_hex = text.len() == 2 * N && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate().filter(|_| is_hex) {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    is_hex.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_read_as_it_was_written_and_nothing_else_is() {
        let history = HistoryId::new(&BTreeMap::from([("build".to_owned(), "1".to_owned())]), 3);
        let proof = Proof { history, input_chain: [7; 32], content: [0xab; 32] };
        let text = proof.to_string();
        assert_eq!(Proof::parse(&text), Some(proof));
        for wrong in ["", ":", &text[1..], &format!("{text}:"), &text.to_uppercase(), &text.replace(':', "")] {
            assert_eq!(Proof::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_history_is_another_where_a_fingerprint_or_its_beginning_is() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let ids = [(&[("a", "bc")][..], 0), (&[("ab", "c")], 0), (&[("a", "bc")], 1), (&[("a", "bc"), ("d", "")], 0)]
            .map(|(pairs, birth)| HistoryId::new(&map(pairs), birth));
        for (i, id) in ids.iter().enumerate() {
            assert!(!ids[..i].contains(id), "{i}");
        }
    }
}
