//! Arbiters decide which machine may perform effects for a virtual machine: a compare-and-swap on a
//! term (P2).
//!
//! Code that asks an arbiter, and each kind of arbiter, belongs here; no other crate uses etcd or
//! its runtime. Code for engines, machines or the command line does not belong here: of this
//! project's crates, this one depends only on `ft-core`, the gate, `kemari-confine` and
//! `kemari-support`.

mod ask;
#[cfg(feature = "etcd")]
mod clock;
#[cfg(feature = "etcd")]
mod etcd;
mod file;
#[cfg(feature = "etcd")]
mod lease;
mod record;

use std::path::PathBuf;
use std::sync::Arc;

use ft_core::arbiter::DiskClaim;
use ft_core::disks::set::{Member, SetError, SetRecord};
use ft_core::handshake::ArbiterView;
use io_gate::host::Term;
use io_gate_host::{Fence, utc};
use kemari_support::identity::hostname;
use kemari_support::values;

pub use ask::{ClaimAnswer, ask, end};
#[cfg(feature = "etcd")]
pub use etcd::{EtcdArbiter, EtcdOptions};
pub use file::FileArbiter;
pub use ft_core::arbiter::{ImageClaim, ImageStart, TermRecord};

/// The arbiter to ask, from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArbiterSpec {
    /// No arbiter: a side that suspects the other holds its output until the operator decides.
    None,
    /// A directory that both hosts see.
    File(PathBuf),
    /// An etcd cluster: the client addresses of its members, `HOST:PORT`.
    Etcd(Vec<String>),
}

impl std::str::FromStr for ArbiterSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            Some(("file", dir)) if !dir.is_empty() => Ok(Self::File(PathBuf::from(dir))),
            Some(("etcd", members)) => members_of(members).map(Self::Etcd),
            _ => Err(
                "expected `etcd:HOST:PORT,...`, `file:DIRECTORY` (a directory that both hosts see) or `none`".to_owned()
            ),
        }
    }
}

fn members_of(text: &str) -> Result<Vec<String>, String> {
    let mut members: Vec<String> = Vec::new();
    for member in text.split(',') {
        values::address(member)?;
        if members.iter().any(|known| known == member) {
            return Err(format!("`{member}` is given twice, expected each member once"));
        }
        members.push(member.to_owned());
    }
    Ok(members)
}

/// An arbiter's answer to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The claimant holds the term.
    Granted,
    /// Another process holds the term.
    Denied(TermRecord),
}

/// An arbiter's answer to a side with own disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetVerdict {
    /// This process holds the term of this record, and its set is as asked for. After a repeated
    /// question the generation may be that of the first one.
    Recorded(SetRecord),
    /// Another process holds the term, or the machine has ended. The record has not changed.
    Denied(TermRecord),
    /// The set does not allow it. The record has not changed.
    Refused(SetError),
}

/// What to change after an error: the directory is not at fault if this process or its host has run
/// out of file descriptors.
fn advice(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            "raise the limit of open files (`ulimit -Hn`, LimitNOFILE= of the service, or `sysctl fs.file-max`)"
        }
        _ => {
            "check that the directory of --arbiter file:DIR exists, is writable and is the same on both hosts"
        }
    }
}

/// An arbiter cannot be asked, or gives an invalid answer. The claimant has won nothing.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// An operation on the arbiter's directory failed.
    #[error("arbiter {what} {path}: {source}; {}", advice(source))]
    Directory {
        /// The attempted operation.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// etcd failed.
    #[error("etcd at {endpoint}: {problem}")]
    Etcd {
        /// The member's address, or those of all members.
        endpoint: String,
        /// What was expected and found, and what to change.
        problem: String,
    },
    /// A record cannot be read.
    #[error("arbiter record {path} is damaged: {source}; expected JSON that kemari has written")]
    Record {
        /// The record's path.
        path: PathBuf,
        /// The error in it.
        source: serde_json::Error,
    },
    /// The arbiter does not know the previous term.
    #[error(
        "{dir} has no record of term {term}: --arbiter must name the same directory on both hosts, and its data must \
         not go back to an earlier state"
    )]
    Stranger {
        /// The virtual machine's directory.
        dir: PathBuf,
        /// The term.
        term: u64,
    },
    /// Another directory is in the arbiter's place.
    #[error(
        "{dir} is not the directory that this process opened at its start (expected the same id in its file `id`): \
         mount the former directory again, or end this machine"
    )]
    Replaced {
        /// The virtual machine's directory.
        dir: PathBuf,
    },
    /// The recorded holder of a term is not the one that this process knows.
    #[error(
        "expected {place} to belong to {expected}, found: {}; --arbiter must name the same arbiter on both hosts, and \
         its data must not go back to an earlier state",
        describe(record)
    )]
    OtherHolder {
        /// The record.
        place: String,
        /// The expected holder.
        expected: String,
        /// The actual holder.
        record: Box<TermRecord>,
    },
    /// Another process holds the virtual machine that is to start.
    #[error(
        "virtual machine `{}`: {} (record: {place}); if that process and its host are known to be dead, start with \
         --seize",
        record.vm, describe(record)
    )]
    Taken {
        /// The place of the record.
        place: String,
        /// The holder's record.
        record: Box<TermRecord>,
    },
    /// Another process has started the machine at the same time.
    #[error(
        "virtual machine `{}`: another process started it at the same time: {} (record: {place}). This start is \
         refused; the other one runs",
        record.vm, describe(record)
    )]
    Outrun {
        /// The place of the record.
        place: String,
        /// The holder's record.
        record: Box<TermRecord>,
    },
    /// The machine has own disks, and the claimant has none.
    #[error("virtual machine `{vm}`: {refusal}")]
    Refused {
        /// The virtual machine.
        vm: String,
        /// Why.
        refusal: Box<SetError>,
    },
    /// The record of a term with own disks cannot be read. No seizure passes over it: the hosts in
    /// the set are not known.
    #[error(
        "arbiter record {path} of a machine with own disks is damaged: {source}; expected what kemari has written. \
         Restore the file"
    )]
    SetRecord {
        /// The record's path.
        path: PathBuf,
        /// The error in it.
        source: serde_json::Error,
    },
    /// A disk's record names a holder that the arbiter does not know.
    #[error(
        "the record beside the disk says: {disk}; the arbiter at {place} does not have that term, its last record is \
         {last}: its \
         data went back to an earlier state, or the machine was started with another arbiter; if that process and its \
         host are known to be dead, start with --seize"
    )]
    Behind {
        /// The arbiter's place.
        place: String,
        /// The arbiter's last record.
        last: String,
        /// The content of the disk's record.
        disk: String,
    },
}

impl ArbiterError {
    fn missing(dir: &std::path::Path, term: Term) -> Self {
        Self::Stranger { dir: dir.to_owned(), term: term.0 }
    }

    fn behind(
        place: impl AsRef<std::path::Path>,
        last: Option<TermRecord>,
        claim: DiskClaim,
    ) -> Self {
        let last = last.map_or_else(|| "nothing".to_owned(), |record| describe(&record));
        Self::Behind { place: place.as_ref().display().to_string(), last, disk: claim.text }
    }
}

/// Describes the holder of a term.
fn describe(record: &TermRecord) -> String {
    let mut text = record.to_string();
    if record.won_at > 0 {
        text += &format!(" since {}", utc(record.won_at));
    }
    if !record.why.is_empty() {
        text += &format!(" (won for: {})", record.why);
    }
    if is_gone(&record.holder) {
        text += "; no such process runs on this host now";
    }
    text
}

/// Whether `holder` names a process of this host that does not exist.
fn is_gone(holder: &str) -> bool {
    let here = format!("@{} (pid ", hostname());
    let pid = holder.split_once(&here).and_then(|(_, rest)| rest.split_once(',')?.0.parse().ok());
    pid.is_some_and(|pid: u32| !std::path::Path::new(&format!("/proc/{pid}")).exists())
}

/// An arbiter that grants terms.
pub trait Arbiter: Send + Sync {
    /// Its kind, `file` or `etcd`; both sides of a pair must use the same.
    fn kind(&self) -> &'static str;

    /// Checks that a claim could be made now: a standby that cannot claim does not take over.
    ///
    /// # Errors
    /// When no claim can be made; the error says why.
    fn answers(&self) -> Result<(), ArbiterError>;

    /// The claimant's name: a text that no other process ever has.
    fn holder(&self) -> &str;

    /// Claims `term`. The arbiter grants it to the first claimant, and to the same holder again.
    /// P2: it grants the term only if the previous one is held by this process, or by the holder
    /// that this process [follows](Self::follow).
    ///
    /// # Errors
    /// When the arbiter cannot be asked, or is not the same one as before. The claimant has won
    /// nothing.
    fn claim(&self, term: Term, why: &str) -> Result<Verdict, ArbiterError>;

    /// Records the holder of `term`, as that process reported it. This process then claims the next
    /// term only as the successor of `holder`.
    fn follow(&self, term: Term, holder: &str);

    /// As [`begin_on`](Self::begin_on), without records beside disks.
    ///
    /// # Errors
    /// As [`begin_on`](Self::begin_on).
    fn begin(&self, seize: bool) -> Result<Term, ArbiterError> {
        self.begin_on(None, seize)
    }

    /// Begins a fresh start of the virtual machine under this arbiter and returns its first term.
    /// That term is later than the term of `disk`, the newest record beside its disks.
    ///
    /// # Errors
    /// Without `seize`: [`ArbiterError::Taken`] when another process holds the machine,
    /// [`ArbiterError::Behind`] when a disk's record names a holder that the arbiter does not know.
    fn begin_on(&self, disk: Option<&DiskClaim>, seize: bool) -> Result<Term, ArbiterError>;

    /// Records that the virtual machine has ended in `term`: the next start needs no seizure.
    ///
    /// # Errors
    /// When the arbiter cannot be asked.
    fn end(&self, term: Term) -> Result<(), ArbiterError>;

    /// Writes a new mark, for the session that this primary begins, and returns this arbiter's
    /// identity with it.
    ///
    /// # Errors
    /// When the arbiter cannot be asked.
    fn mark(&self) -> Result<ArbiterView, ArbiterError>;

    /// Writes a new counter-mark for the primary to find. Returns this arbiter's identity with that
    /// counter-mark and the mark found there.
    ///
    /// # Errors
    /// When the arbiter cannot be asked.
    fn counter_mark(&self) -> Result<ArbiterView, ArbiterError>;

    /// This arbiter's identity and the marks found there. They equal what [`mark`](Self::mark) or
    /// [`counter_mark`](Self::counter_mark) returned on the other host only if this side sees what
    /// that host writes.
    ///
    /// # Errors
    /// When the arbiter cannot be asked.
    fn read_marks(&self) -> Result<ArbiterView, ArbiterError>;

    /// The check before each effect, in the last term that this machine has won.
    fn fence(&self) -> Arc<dyn Fence>;
}

/// An arbiter for machines with own disks: beside each term it records the set of the images that
/// have all that the machine has told (R6, R7). Each method is one compare-and-swap on the term.
///
/// After an error the result is unknown. Ask the same again: what was carried out is recorded once,
/// and the answer says so.
pub trait SetArbiter: Arbiter {
    /// The term that a start would win now. [`ImageStart::next`] is of this term.
    ///
    /// # Errors
    /// When the arbiter cannot be asked.
    fn next_term(&self) -> Result<Term, ArbiterError>;

    /// Claims the term of `claim`, as [`Arbiter::claim`] does, if the set names the claimant's
    /// image. Its set is then that image.
    ///
    /// # Errors
    /// As [`Arbiter::claim`].
    fn claim_image(&self, claim: &ImageClaim, why: &str) -> Result<SetVerdict, ArbiterError>;

    /// Begins the virtual machine, as [`Arbiter::begin`] does, from an image that is the newest.
    ///
    /// # Errors
    /// As [`Arbiter::begin`].
    fn begin_image(&self, start: &ImageStart) -> Result<SetVerdict, ArbiterError>;

    /// Adds the standby's image to the set of `term`, which this process holds.
    ///
    /// # Errors
    /// When the arbiter cannot be asked, or does not know the term.
    fn enlarge(&self, term: Term, member: &Member) -> Result<SetVerdict, ArbiterError>;
}
