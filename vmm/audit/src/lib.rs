//! The audit log records what each side did with every effect, and when, so that the files of a
//! pair can prove P1 and P2 afterwards.
//!
//! ```text
//!   gate, engine, standby ─► Recorder (one buffer, fixed size) ─► thread `audit` ─► FILE.<run>.<n>
//!                                                                     files opened at the start
//! ```
//!
//! One log holds the events of one side in order: what permits an action is recorded before it, and
//! an effect right before it is performed. So a log that is cut off is the beginning of a true
//! history. See `docs/audit.md`.
//!
//! The log's format, recorder, reader and verifier belong here. Code for engines, machines or
//! arbiters does not: of this project's crates, this one depends only on the gate, `kemari-confine`
//! and `kemari-support`.

mod entry;
mod files;
mod format;
mod reader;
mod recorder;
mod summary;
mod verify;

#[cfg(test)]
mod tests;

pub use entry::{Entry, Event, Won};
pub use files::{AuditError, AuditSpec};
pub use format::{FormatError, HEADER_LEN, Header, RECORD_LEN, Side};
pub use reader::{Log, ReadError, read, read_all};
pub use recorder::{AuditLog, Recorder};
pub use summary::Summary;
pub use verify::{Counts, Verdict, verify};
