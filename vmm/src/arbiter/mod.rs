//! Arbiters: who may perform effects for a virtual machine, as a compare-and-swap on a term (P2).

mod ask;
#[cfg(feature = "etcd")]
mod clock;
#[cfg(feature = "etcd")]
mod etcd;
mod file;
#[cfg(feature = "etcd")]
mod lease;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use io_gate::host::Term;
use io_gate_host::Fence;

use crate::values;
pub use ask::{Answer, ask};
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

/// An arbiter could not be asked, or gave an answer that makes no sense. The claimant has won
/// nothing.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// The arbiter's directory does not answer as it should.
    #[error(
        "arbiter {what} {path}: {source}; check that the directory of --arbiter file:DIR exists, is writable and is the same on both hosts"
    )]
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
        "{dir} has no record of term {term}: --arbiter must name the same directory on both hosts"
    )]
    Stranger {
        /// The virtual machine's directory.
        dir: PathBuf,
        /// The term.
        term: u64,
    },
    /// A fresh start of a virtual machine that somebody holds.
    #[error("virtual machine `{}`: {}; if that machine is known to be dead, start with --seize", .0.vm, .0)]
    Taken(TermRecord),
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

    /// Claims `term`: granted to the first who asks, and to the same holder again.
    ///
    /// # Errors
    /// When the arbiter cannot be asked: nothing was won.
    fn claim(&self, term: Term, why: &str) -> Result<Verdict, ArbiterError>;

    /// Begins a virtual machine's life under this arbiter and gives its first term here.
    ///
    /// # Errors
    /// [`ArbiterError::Taken`] when somebody holds it and `seize` is not set.
    fn begin(&self, seize: bool) -> Result<Term, ArbiterError>;

    /// The virtual machine has ended in `term`: its name is free again.
    ///
    /// # Errors
    /// When the arbiter cannot be asked.
    fn end(&self, term: Term) -> Result<(), ArbiterError>;

    /// The check before each effect, for a machine that performs in the term last won.
    fn fence(&self) -> Arc<dyn Fence>;
}

/// How this process calls itself in a term's record: nobody else is called so, even where hosts and
/// containers share names and process ids (P2).
#[must_use]
pub fn holder_name(role: &str) -> String {
    static NONCE: OnceLock<String> = OnceLock::new();
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let host = read("/proc/sys/kernel/hostname");
    let nonce = NONCE.get_or_init(|| read("/proc/sys/kernel/random/uuid"));
    format!("{role}@{host} (pid {}, {nonce})", std::process::id())
}
