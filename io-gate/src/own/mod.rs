//! Own disks: each host has an image of its own. A disk that only the pair can see is state of the
//! machine, like its memory, so an operation on it needs no proof of commitment. It cannot be
//! performed without being recorded for the standby. The rules R1 to R12 are in
//! `docs/own-disks.md`.
//!
//! ```text
//! token ─stage─► Listable ─Place─► Recorded ─Marked─► Performable
//!                (ledger)  (list)            (marks)
//! ```
//!
//! - [`Place`] and [`Marked`] are made by the one [`ListAuthority`] of the gate: the place in the
//!   list, or that nothing is recorded (R1, R12), and that the mark of the extent is durable (R3).
//! - Outputs are committed by a [`DurableCommitAuthority`]: the flushes before them are durable on
//!   the standby, too (R4).
//! - An image is opened for writing with an [`ImageRight`]: a won term, whose set names it (R7).
//!
//! Device code sees none of this: it stages the same effects on an own disk as on any other.

mod commit;
mod image;
mod list;
mod ports;

pub use commit::{DurableCommitAuthority, DurableEpoch};
pub use image::{DiskId, ImageRight, NotInSet, TermAuthority, WonTerm};
pub use list::{Completable, ListAuthority, Listable, Marked, OwnRequest, Place, Recorded};
pub use ports::OwnPorts;
