//! Exit codes of the commands, after sysexits.h.

/// Input that is not what it should be.
pub const EX_DATAERR: u8 = 65;
/// Who was asked does not answer.
pub const EX_UNAVAILABLE: u8 = 69;
/// The system has a fault.
pub const EX_OSERR: u8 = 71;
/// Something is not configured, or wrongly.
pub const EX_CONFIG: u8 = 78;
