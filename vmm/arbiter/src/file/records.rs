//! The files in the directory of a `file:` arbiter.
//!
//! | file | is |
//! | --- | --- |
//! | `term-N.json` | the winner of term N: written once; [`SUCCEEDED`] is appended when a later term has been won |
//! | `ended-N` | the machine has ended in term N, in good order |
//! | `pace-N` | in microseconds: the oldest answer that the holder of term N may act on, if that is more than usual |
//! | `id` | the directory's identity, made with it |
//! | `mark` | the primary's mark for the session that it begins |
//! | `counter-mark` | the standby's mark for the session that it joins |

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use io_gate::host::Term;

use super::directory::Directory;
use crate::{ArbiterError, TermRecord};

/// The file of the directory's identity.
pub(super) const ID: &str = "id";
/// The file of a primary's mark for a session.
pub(super) const MARK: &str = "mark";
/// The file of a standby's mark for a session.
pub(super) const COUNTER_MARK: &str = "counter-mark";
/// Appended to the record of a term that another has succeeded. Any text after a record except
/// white space counts as this mark, since an append may be incomplete.
const SUCCEEDED: &[u8] = b"succeeded\n";

/// The records, in one directory.
#[derive(Clone, Debug)]
pub(super) struct Records {
    directory: Arc<dyn Directory>,
    /// The directory's identity when it was opened.
    place: (u64, u64),
}

impl Records {
    pub(super) fn new(directory: Arc<dyn Directory>) -> Result<Self, ArbiterError> {
        let place = directory.place().map_err(at("cannot look at", directory.path()))?;
        Ok(Self { directory, place })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// P2: another directory under the same name (an unmounted file system, a copy) is another
    /// arbiter: processes that have this one open do not see claims made there.
    pub(super) fn check_place(&self) -> Result<(), ArbiterError> {
        let place = self.directory.place().map_err(at("cannot look at", self.path()))?;
        if place == self.place {
            return Ok(());
        }
        Err(ArbiterError::Replaced { dir: self.path().to_owned() })
    }

    pub(super) fn term(&self, term: Term) -> Result<Option<TermRecord>, ArbiterError> {
        Ok(self.term_and_succeeded(term)?.map(|(record, _)| record))
    }

    /// The record of a term, and whether it has the mark of a later term. The mark is in the record
    /// itself. A missing file would not do as a mark: the client of a network file system may keep
    /// believing that a name is missing if the directory's times are too coarse to show a change. A
    /// link count would not do either: a backup by hard links adds a link.
    pub(super) fn term_and_succeeded(
        &self,
        term: Term,
    ) -> Result<Option<(TermRecord, bool)>, ArbiterError> {
        let name = term_name(term);
        let Some(text) = self.read(&name)? else { return Ok(None) };
        let damaged = |source| ArbiterError::Record { path: self.path().join(&name), source };
        let mut values = serde_json::Deserializer::from_slice(&text).into_iter();
        let record: Option<Result<TermRecord, _>> = values.next();
        // An empty file counts as damaged: parse it to get the error.
        let record = record.unwrap_or_else(|| serde_json::from_slice(&text)).map_err(damaged)?;
        let succeeded =
            text.get(values.byte_offset()..).is_some_and(|rest| !rest.trim_ascii().is_empty());
        Ok(Some((record, succeeded)))
    }

    /// Writes the record of a term that has none.
    pub(super) fn create_term(&self, record: &TermRecord) -> Result<io::Result<()>, ArbiterError> {
        let text = serde_json::to_vec_pretty(record)
            .map_err(|source| ArbiterError::Record { path: self.path().to_owned(), source })?;
        Ok(self.directory.create(&term_name(Term(record.term)), &text))
    }

    /// Checks that a claim could be written now: the newest record is readable, and permission and
    /// space allow another one.
    pub(super) fn take_claims(&self) -> Result<(), ArbiterError> {
        if let Some(highest) = self.highest()? {
            self.term(highest)?;
        }
        self.directory.takes_files().map_err(at("cannot write to", self.path()))
    }

    pub(super) fn highest(&self) -> Result<Option<Term>, ArbiterError> {
        Ok(self.terms()?.into_iter().max())
    }

    /// All terms that have a record, in no order.
    fn terms(&self) -> Result<Vec<Term>, ArbiterError> {
        self.check_place()?;
        let of = |name: &String| number(name, "term-", ".json").map(Term);
        Ok(self.names()?.iter().filter_map(of).collect())
    }

    /// The record of the highest term above `term`.
    pub(super) fn later_than(&self, term: Term) -> Result<Option<TermRecord>, ArbiterError> {
        match self.highest()?.filter(|highest| *highest > term) {
            Some(highest) => self.term(highest),
            None => Ok(None),
        }
    }

    /// Marks all earlier terms as succeeded, the oldest first: if a term is marked, all before it
    /// are. A number without a record is skipped, not an end: the term before the gap may have a
    /// live holder.
    pub(super) fn succeed(&self, term: Term) -> Result<(), ArbiterError> {
        let mut untold = Vec::new();
        let mut earlier = self.terms()?;
        earlier.retain(|earlier| *earlier < term);
        earlier.sort_unstable();
        for before in earlier.into_iter().rev() {
            match self.term_and_succeeded(before) {
                Ok(Some((_, true))) => break,
                // The record may have been damaged after its holder won the term.
                Ok(Some((_, false))) | Err(ArbiterError::Record { .. }) => untold.push(before),
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        }
        for before in untold.into_iter().rev() {
            let name = term_name(before);
            let appended = self.directory.append(&name, SUCCEEDED);
            appended.map_err(at("cannot write to", &self.path().join(&name)))?;
        }
        Ok(())
    }

    pub(super) fn has_ended(&self, term: Term) -> Result<bool, ArbiterError> {
        Ok(self.read(&ended_name(term))?.is_some())
    }

    pub(super) fn end(&self, term: Term) -> Result<(), ArbiterError> {
        self.replace(&ended_name(term), b"")
    }

    /// The age of the oldest answer that a holder may act on; zero if there is no pace. A pace that
    /// cannot be parsed counts as `longest`.
    pub(super) fn pace(&self, longest: Duration) -> Result<Duration, ArbiterError> {
        let mut pace = Duration::ZERO;
        for name in self.names()? {
            if number(&name, "pace-", "").is_some()
                && let Some(text) = self.read(&name)?
            {
                let micros =
                    String::from_utf8_lossy(&text).trim().parse().map(Duration::from_micros);
                pace = pace.max(micros.unwrap_or(longest));
            }
        }
        Ok(pace)
    }

    pub(super) fn set_pace(&self, term: Term, pace: Duration) -> Result<(), ArbiterError> {
        self.replace(&pace_name(term), pace.as_micros().to_string().as_bytes())
    }

    /// Removes the paces of earlier terms, whose holders act on no answer any more.
    pub(super) fn forget_paces_before(&self, term: Term) -> Result<(), ArbiterError> {
        for name in self.names()? {
            if number(&name, "pace-", "").is_some_and(|of| of < term.0) {
                let removed = self.directory.remove(&name);
                removed.map_err(at("cannot remove", &self.path().join(&name)))?;
            }
        }
        Ok(())
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<String>, ArbiterError> {
        let text = self.read(name)?;
        Ok(text.map(|text| String::from_utf8_lossy(&text).trim().to_owned()))
    }

    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), ArbiterError> {
        let path = self.path().join(name);
        self.directory.replace(name, bytes).map_err(at("cannot write", &path))
    }

    /// Creates a file with this text unless the file exists.
    pub(super) fn create(&self, name: &str, text: &str) -> Result<(), ArbiterError> {
        match self.directory.create(name, text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(at("cannot write", &self.path().join(name))(error))
            }
            _ => Ok(()),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ArbiterError> {
        self.directory.read(name).map_err(at("cannot read", &self.path().join(name)))
    }

    fn names(&self) -> Result<Vec<String>, ArbiterError> {
        self.directory.names().map_err(at("cannot list", self.path()))
    }
}

/// The file name of a term's record.
pub(super) fn term_name(term: Term) -> String {
    format!("term-{:020}.json", term.0)
}

fn ended_name(term: Term) -> String {
    format!("ended-{:020}", term.0)
}

fn pace_name(term: Term) -> String {
    format!("pace-{:020}", term.0)
}

fn number(name: &str, before: &str, after: &str) -> Option<u64> {
    name.strip_prefix(before)?.strip_suffix(after)?.parse().ok()
}

pub(super) fn at(
    what: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> ArbiterError + use<> {
    let path = path.to_owned();
    move |source| ArbiterError::Directory { what, path, source }
}
