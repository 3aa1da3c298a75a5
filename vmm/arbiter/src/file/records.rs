//! The files in the directory of a `file:` arbiter.
//!
//! | file | is |
//! | --- | --- |
//! | `term-N.json` | the winner of term N: written once; [`SUCCEEDED`] is appended when a later term has been won |
//! | `set-N.json` | the set of term N once the standby's image is in it; before, the set is that of `term-N.json`: written once |
//! | `ended-N` | the machine has ended in term N, in good order |
//! | `pace-N` | in microseconds: the oldest answer that the holder of term N may act on, if that is more than usual |
//! | `id` | the directory's identity, made with it |
//! | `mark` | the primary's mark for the session that it begins |
//! | `counter-mark` | the standby's mark for the session that it joins |
//!
//! A record with a set is one that an earlier release must not pass over, also not with `--seize`,
//! which ignores a record that it cannot read. That release refuses, in every command, a record
//! that is longer than 64 KiB: so a record with a set is filled up with spaces to more than that.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ft_core::arbiter::Last;
use ft_core::disks::set::{ImageSet, SetRecord};
use io_gate::host::Term;
use serde::{Deserialize, Serialize};

use super::directory::Directory;
use crate::{ArbiterError, TermRecord, record};

/// The file of the directory's identity.
pub(super) const ID: &str = "id";
/// The file of a primary's mark for a session.
pub(super) const MARK: &str = "mark";
/// The file of a standby's mark for a session.
pub(super) const COUNTER_MARK: &str = "counter-mark";
/// Appended to the record of a term that another has succeeded. Any text after a record except
/// white space counts as this mark, since an append may be incomplete.
const SUCCEEDED: &[u8] = b"succeeded\n";
/// Least bytes of a record with a set: more than an earlier release reads.
const LEAST_WITH_SET: usize = (64 << 10) + 1;

/// What `term-N.json` contains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WonTerm {
    #[serde(flatten)]
    pub(super) record: TermRecord,
    /// The set when the term was won; `None`: the machine has no own disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) set: Option<ImageSet>,
}

impl WonTerm {
    pub(super) fn last(&self) -> Last<'_> {
        Last { record: &self.record, set: self.set.as_ref() }
    }
}

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

    /// The record of a term, with the set as it is now.
    pub(super) fn with_set(&self, term: Term) -> Result<Option<WonTerm>, ArbiterError> {
        let Some((mut won, _)) = self.won_and_succeeded(term)? else { return Ok(None) };
        if let Some(first) = won.last().set_record()
            && let Some(now) = self.enlarged(&first)?
        {
            won.set = Some(now.into());
        }
        Ok(Some(won))
    }

    /// The set of the term of `first`, its set when it was won, if it has been enlarged since.
    fn enlarged(&self, first: &SetRecord) -> Result<Option<SetRecord>, ArbiterError> {
        let name = set_name(Term(first.term));
        let Some(text) = self.read(&name)? else { return Ok(None) };
        let damaged = |source| ArbiterError::SetRecord { path: self.path().join(&name), source };
        let now: SetRecord = serde_json::from_slice(&text).map_err(damaged)?;
        if now.enlarges(first) {
            return Ok(Some(now));
        }
        // The directory was set back, and this file was not.
        Err(damaged(serde::de::Error::custom(format!(
            "expected an enlarged set of term {} of {}, found one of term {} of {}",
            first.term, first.holder, now.term, now.holder
        ))))
    }

    /// Enlarges the set of a term, unless it has been enlarged.
    pub(super) fn create_set(&self, set: &SetRecord) -> Result<io::Result<()>, ArbiterError> {
        let name = set_name(Term(set.term));
        let text = serde_json::to_vec_pretty(set)
            .map_err(|source| ArbiterError::SetRecord { path: self.path().join(&name), source })?;
        Ok(self.directory.create(&name, &text))
    }

    /// The record of a term, and whether it has the mark of a later term. The mark is in the record
    /// itself. A missing file would not do as a mark: the client of a network file system may keep
    /// believing that a name is missing if the directory's times are too coarse to show a change. A
    /// link count would not do either: a backup by hard links adds a link.
    pub(super) fn term_and_succeeded(
        &self,
        term: Term,
    ) -> Result<Option<(TermRecord, bool)>, ArbiterError> {
        Ok(self.won_and_succeeded(term)?.map(|(won, succeeded)| (won.record, succeeded)))
    }

    fn won_and_succeeded(&self, term: Term) -> Result<Option<(WonTerm, bool)>, ArbiterError> {
        let name = term_name(term);
        let Some(text) = self.read(&name)? else { return Ok(None) };
        let damaged = |source| {
            let path = self.path().join(&name);
            match record::has_set(&text) {
                true => ArbiterError::SetRecord { path, source },
                false => ArbiterError::Record { path, source },
            }
        };
        let read = record::decode(&text, |won: &WonTerm| won.set.is_some()).map_err(damaged)?;
        Ok(Some((read.record, !read.rest.trim_ascii().is_empty())))
    }

    /// Writes the record of a term that has none.
    pub(super) fn create_term(&self, won: &WonTerm) -> Result<io::Result<()>, ArbiterError> {
        let mut text = record::encode(won, won.set.is_some(), true)
            .map_err(|source| ArbiterError::Record { path: self.path().to_owned(), source })?;
        if won.set.is_some() {
            text.resize(text.len().max(LEAST_WITH_SET), b' ');
        }
        Ok(self.directory.create(&term_name(Term(won.record.term)), &text))
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
                Ok(Some((_, false)))
                | Err(ArbiterError::Record { .. } | ArbiterError::SetRecord { .. }) => {
                    untold.push(before);
                }
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

pub(super) fn set_name(term: Term) -> String {
    format!("set-{:020}.json", term.0)
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
