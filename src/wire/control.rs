//! Control messages: what an operator may ask for, on which terms it counts, and what is replied.
//!
//! Invariant: nothing is guessed. A verb, payload or header that is not exactly one of those accepted is refused, and the refusal
//! says what is accepted.

use super::{SMALL_PAYLOAD_BYTES_MAX, TIME_ACCEPTED, excerpt, time_ns};

/// What an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Adapt {
        enabled: bool,
    },
    Status,
    Checkpoint,
    Reset,
    /// To a generation of the store, or to one with earlier weights.
    RollBack {
        generation: Option<u64>,
    },
}

/// Why a control message does nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("no command {got:?}; adapt, status, checkpoint, reset and rollback are accepted")]
    Verb { got: String },
    #[error("the control message has {got} bytes; up to {limit} are accepted")]
    Size { got: usize, limit: usize },
    #[error("{verb} was sent {got:?}; accepted is {accepted}")]
    Payload { verb: &'static str, got: String, accepted: &'static str },
    #[error("header {name} is {got:?}; accepted is {accepted}, once")]
    Header { name: &'static str, got: String, accepted: &'static str },
    #[error("this was to be decision {got}, and the next is {next}: somebody decided before; look at the status again")]
    Stale { got: u64, next: u64 },
    #[error("it expired {late_ms} ms ago, by the clock of the daemon's machine")]
    Expired { late_ms: i64 },
}

impl ControlError {
    pub const ALL_REASONS: [&'static str; 6] = ["verb", "size", "payload", "header", "stale", "expired"];

    /// Value of the metric label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Verb { .. } => "verb",
            Self::Size { .. } => "size",
            Self::Payload { .. } => "payload",
            Self::Header { .. } => "header",
            Self::Stale { .. } => "stale",
            Self::Expired { .. } => "expired",
        }
    }
}

/// Headers of a control message.
pub const DECISION_HEADER: &str = "Decision";
pub const EXPIRES_HEADER: &str = "Expires";

/// On which terms a command counts: a message may be late, or sent again by who should not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Number that the decision is to have: the status' `decision`, plus one.
    pub decision: Option<u64>,
    /// Nanoseconds since 1970.
    pub expires_ns: Option<i64>,
}

impl Terms {
    /// # Errors
    /// `Header` where one is malformed, or there twice.
    pub fn parse(headers: &[(String, String)]) -> Result<Self, ControlError> {
        let decision = parsed(headers, DECISION_HEADER, "the number of a decision, in digits", |value| digits(value.as_bytes()))?;
        Ok(Self { decision, expires_ns: parsed(headers, EXPIRES_HEADER, TIME_ACCEPTED, time_ns)? })
    }

    /// Whether a command counts now; `next` is the number of the next decision.
    ///
    /// # Errors
    /// `Expired` and `Stale`.
    pub fn check(self, next: u64, now_ns: i64) -> Result<(), ControlError> {
        if let Some(late_ns) = self.expires_ns.and_then(|expires| now_ns.checked_sub(expires)).filter(|&late| late > 0) {
            return Err(ControlError::Expired { late_ms: late_ns / 1_000_000 });
        }
        match self.decision.filter(|&decision| decision != next) {
            Some(got) => Err(ControlError::Stale { got, next }),
            None => Ok(()),
        }
    }
}

/// Reads the message on `<prefix>.control.<verb>`. A payload where none belongs is refused: it may have meant something else.
pub fn parse_control(verb: &str, payload: &[u8]) -> Result<Command, ControlError> {
    if payload.len() > SMALL_PAYLOAD_BYTES_MAX {
        return Err(ControlError::Size { got: payload.len(), limit: SMALL_PAYLOAD_BYTES_MAX });
    }
    let payload = payload.trim_ascii();
    let error = |verb, accepted| ControlError::Payload { verb, got: excerpt(&String::from_utf8_lossy(payload)), accepted };
    let bare = |verb, command| if payload.is_empty() { Ok(command) } else { Err(error(verb, "no payload")) };
    match verb {
        "adapt" if payload.eq_ignore_ascii_case(b"on") => Ok(Command::Adapt { enabled: true }),
        "adapt" if payload.eq_ignore_ascii_case(b"off") => Ok(Command::Adapt { enabled: false }),
        "adapt" => Err(error("adapt", "on or off")),
        "status" => bare("status", Command::Status),
        "checkpoint" => bare("checkpoint", Command::Checkpoint),
        "reset" => bare("reset", Command::Reset),
        "rollback" if payload.is_empty() => Ok(Command::RollBack { generation: None }),
        "rollback" => {
            let generation = digits(payload).ok_or_else(|| error("rollback", "the number of a generation, or nothing for the previous"))?;
            Ok(Command::RollBack { generation: Some(generation) })
        }
        _ => Err(ControlError::Verb { got: excerpt(verb) }),
    }
}

/// The reply to a command that was carried out.
pub fn accepted(mut body: serde_json::Value) -> serde_json::Value {
    body["ok"] = true.into();
    body
}

/// The reply to one that was not, and why: a word for programs, and a sentence for people.
pub fn refused(reason: &str, error: &str) -> serde_json::Value {
    serde_json::json!({ "ok": false, "reason": reason, "error": error })
}

/// The value of a header that may be there once.
fn parsed<T>(
    headers: &[(String, String)],
    name: &'static str,
    accepted: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, ControlError> {
    let mut values = headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim());
    let Some(value) = values.next() else { return Ok(None) };
    let error = || ControlError::Header { name, got: excerpt(value), accepted };
    if values.next().is_some() { Err(error()) } else { parse(value).map(Some).ok_or_else(error) }
}

fn digits(text: &[u8]) -> Option<u64> {
    let text = str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_verb_reads_with_and_without_space_around_its_payload() {
        let adapt = |enabled| Ok(Command::Adapt { enabled });
        let cases = [
            ("adapt", "on", adapt(true)),
            ("adapt", " OFF\n", adapt(false)),
            ("status", "", Ok(Command::Status)),
            ("checkpoint", "\n", Ok(Command::Checkpoint)),
            ("reset", "", Ok(Command::Reset)),
            ("rollback", " ", Ok(Command::RollBack { generation: None })),
            ("rollback", "17\n", Ok(Command::RollBack { generation: Some(17) })),
        ];
        for (verb, payload, expected) in cases {
            assert_eq!(parse_control(verb, payload.as_bytes()), expected, "{verb} {payload:?}");
        }
    }

    #[test]
    fn control_replies_say_whether_it_was_done() {
        assert_eq!(accepted(json!({ "generation": 4 })), json!({ "ok": true, "generation": 4 }));
        let error = parse_control("adapt", b"maybe").expect_err("no such switch");
        let expected = json!({ "ok": false, "reason": "payload", "error": "adapt was sent \"maybe\"; accepted is on or off" });
        assert_eq!(refused(error.reason(), &error.to_string()), expected);
    }

    #[test]
    fn a_command_counts_as_the_decision_that_it_was_to_be_and_before_it_expires() {
        let terms = |headers: &[(&str, &str)]| {
            let headers: Vec<(String, String)> = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Terms::parse(&headers)
        };
        let both = terms(&[("decision", " 3 "), ("EXPIRES", "1970-01-01T00:00:05Z")]).expect("terms");
        assert_eq!(both, Terms { decision: Some(3), expires_ns: Some(5_000_000_000) });
        assert_eq!(both.check(3, 5_000_000_000), Ok(()));
        assert_eq!(both.check(4, 5_000_000_000), Err(ControlError::Stale { got: 3, next: 4 }));
        assert_eq!(both.check(3, 5_500_000_000), Err(ControlError::Expired { late_ms: 500 }));
        assert_eq!(terms(&[]).expect("none").check(7, i64::MAX), Ok(()));
        for wrong in [[("Decision", "-1"), ("a", "")], [("Expires", "soon"), ("a", "")], [("Decision", "1"), ("Decision", "1")]] {
            assert_eq!(terms(&wrong).expect_err("malformed terms").reason(), "header", "{wrong:?}");
        }
    }
}
