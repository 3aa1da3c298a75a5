//! Arbiters: who may perform effects for a virtual machine, as a compare-and-swap on a term (P2).
//!
//! What asks an arbiter, and each kind of arbiter, belongs here; etcd and its runtime are used in no other crate. Engines, machines and
//! the command line may not be known: of the project this crate depends on `ft-core`, the gate, `kemari-confine` and `kemari-support`.

mod ask;
#[cfg(feature = "etcd")]
mod clock;
#[cfg(feature = "etcd")]
mod etcd;
mod file;
#[cfg(feature = "etcd")]
mod lease;

use std::path::PathBuf;
use std::sync::Arc;

use ft_core::arbiter::DiskClaim;
use ft_core::handshake::ArbiterView;
use io_gate::host::Term;
use io_gate_host::{Fence, utc};
use kemari_support::identity::hostname;
use kemari_support::values;

pub use ask::{Answer, ask, end};
#[cfg(feature = "etcd")]
pub use etcd::{EtcdArbiter, EtcdOptions};
pub use file::FileArbiter;
pub use ft_core::arbiter::TermRecord;

/// Which arbiter to ask, as given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArbiterSpec {
    /// None: whoever suspects the other holds its output until the operator decides.
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
            return Err(format!("`{member}` is given twice: expected each member once"));
        }
        members.push(member.to_owned());
    }
    Ok(members)
}

/// How an arbiter answered a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The claimant holds the term.
    Granted,
    /// Somebody else does.
    Denied(TermRecord),
}

/// A directory is not to blame for what this process, or its host, has run out of.
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

/// An arbiter could not be asked, or gave an answer that makes no sense. The claimant has won
/// nothing.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// The arbiter's directory does not answer as it should.
    #[error("arbiter {what} {path}: {source}; {}", advice(source))]
    Directory {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// etcd does not answer as it should.
    #[error("etcd at {endpoint}: {problem}")]
    Etcd {
        /// Which member, or all of them.
        endpoint: String,
        /// What was expected and found, and what to change.
        problem: String,
    },
    /// A record is not readable.
    #[error("arbiter record {path} is damaged: {source}; it must be JSON as written by kemari")]
    Record {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The directory does not know the term that came before.
    #[error(
        "{dir} has no record of term {term}: --arbiter must name the same directory on both hosts, and its data must not go back"
    )]
    Stranger {
        /// The virtual machine's directory.
        dir: PathBuf,
        /// The term.
        term: u64,
    },
    /// Another directory is found where the arbiter's was.
    #[error(
        "{dir} is another directory than at the start (expected the one that this process has opened, with the id in its file \
         `id`): put the former back, mounted as it was, or end this machine"
    )]
    Replaced {
        /// The virtual machine's directory.
        dir: PathBuf,
    },
    /// A term is held by another process than the one that this one knows.
    #[error(
        "expected {place} to be of {expected}, found: {}; --arbiter must name the same arbiter on both hosts, and its data must \
         not go back",
        describe(record)
    )]
    OtherHolder {
        /// The record.
        place: String,
        /// Who has to hold it.
        expected: String,
        /// Who does.
        record: Box<TermRecord>,
    },
    /// A fresh start of a virtual machine that somebody holds.
    #[error(
        "virtual machine `{}`: {} (its record is {place}); if that process and its host are known to be dead, start with --seize",
        record.vm, describe(record)
    )]
    Taken {
        /// Where that is written.
        place: String,
        /// Who.
        record: Box<TermRecord>,
    },
    /// Another start was faster.
    #[error(
        "virtual machine `{}`: another start was faster: {} (its record is {place}); one of the two is enough",
        record.vm, describe(record)
    )]
    Outrun {
        /// Where that is written.
        place: String,
        /// Who.
        record: Box<TermRecord>,
    },
    /// A disk says that somebody holds the machine of whom the arbiter does not know.
    #[error(
        "the record beside the disk says: {disk}; the arbiter at {place} does not know of that, its last word is {last}: its \
         data went back, or it is another arbiter than the machine was begun with; if that process and its host are known to \
         be dead, start with --seize"
    )]
    Behind {
        /// The arbiter.
        place: String,
        /// What it knows.
        last: String,
        /// What the disk's record says.
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

/// What is known of the holder of a term.
fn describe(record: &TermRecord) -> String {
    let mut text = record.to_string();
    if record.won_at > 0 {
        text += &format!(" since {}", utc(record.won_at));
    }
    if !record.why.is_empty() {
        text += &format!(" (won for: {})", record.why);
    }
    if is_gone(&record.holder) {
        text += "; no such process is seen on this host now";
    }
    text
}

/// Whether a holder says that it is a process of this host, where there is none of that number.
fn is_gone(holder: &str) -> bool {
    let here = format!("@{} (pid ", hostname());
    let pid = holder.split_once(&here).and_then(|(_, rest)| rest.split_once(',')?.0.parse().ok());
    pid.is_some_and(|pid: u32| !std::path::Path::new(&format!("/proc/{pid}")).exists())
}

/// Something to ask for terms.
pub trait Arbiter: Send + Sync {
    /// Its kind, which both sides of a pair must have alike: `file`, `etcd`.
    fn kind(&self) -> &'static str;

    /// Whether it could be asked now: a standby that cannot ask will not take over.
    ///
    /// # Errors
    /// Why it cannot.
    fn answers(&self) -> Result<(), ArbiterError>;

    /// Who claims: a text that no other process ever has.
    fn holder(&self) -> &str;

    /// Claims `term`: granted to the first who asks, and to the same holder again. P2: only where the term before is of this
    /// process, or of the holder whom it [follows](Self::follow).
    ///
    /// # Errors
    /// When the arbiter cannot be asked, or is not the one that it was: nothing was won.
    fn claim(&self, term: Term, why: &str) -> Result<Verdict, ArbiterError>;

    /// `holder` has said that it holds `term`: the next one is claimed as its successor only.
    fn follow(&self, term: Term, holder: &str);

    /// As [`begin_on`](Self::begin_on), where no disk is marked.
    ///
    /// # Errors
    /// As that.
    fn begin(&self, seize: bool) -> Result<Term, ArbiterError> {
        self.begin_on(None, seize)
    }

    /// Begins a virtual machine's life under this arbiter and gives its first term here: a later one than `disk`, the newest
    /// record beside its disks, is of.
    ///
    /// # Errors
    /// [`ArbiterError::Taken`] when somebody holds it, [`ArbiterError::Behind`] when the disk says so, and `seize` is not set.
    fn begin_on(&self, disk: Option<&DiskClaim>, seize: bool) -> Result<Term, ArbiterError>;

    /// The virtual machine has ended in `term`: its name is free again.
    ///
    /// # Errors
    /// When the arbiter cannot be asked.
    fn end(&self, term: Term) -> Result<(), ArbiterError>;

    /// Which arbiter this is, with a mark that is new: the primary leaves it for the session that it begins.
    ///
    /// # Errors
    /// When the arbiter cannot be asked.
    fn mark(&self) -> Result<ArbiterView, ArbiterError>;

    /// As [`read_marks`](Self::read_marks), with a counter-mark that is new: the standby leaves it as its answer, for the primary
    /// to find.
    ///
    /// # Errors
    /// When the arbiter cannot be asked.
    fn counter_mark(&self) -> Result<ArbiterView, ArbiterError>;

    /// Which arbiter this is, with the marks that are found there: equal to what [`mark`](Self::mark) or
    /// [`counter_mark`](Self::counter_mark) gave on the other host only if this side sees what that one writes.
    ///
    /// # Errors
    /// When the arbiter cannot be asked.
    fn read_marks(&self) -> Result<ArbiterView, ArbiterError>;

    /// The check before each effect, for a machine that performs in the term last won.
    fn fence(&self) -> Arc<dyn Fence>;
}
