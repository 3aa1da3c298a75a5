//! The set of a machine with own disks in a `file:` arbiter (R6, R7).
//!
//! There is no transaction over two files, and none is needed. The set of a term is in the record
//! that wins the term, and is enlarged at most once, by `link(2)` of `set-N.json`. So:
//!
//! - *A claim* reads the set of term N, and then links the record of term N + 1. A set that names
//!   the claimant names it for the rest of the term, so the condition holds when the link succeeds.
//! - *An enlargement* links `set-N.json`, and then looks for a later term. If there is none, the
//!   set was enlarged before the next term was won. If there is one, the answer is that the term is
//!   lost. The holder, the standby that read itself in the enlarged set, or an operator's start by
//!   force has won it.
//! - An enlargement that is carried out late, after the next term was won, changes nothing: that
//!   term has a set of its own.

use std::io;

use ft_core::arbiter::{ImageClaim, ImageStart, begun};
use ft_core::disks::set::Member;
use io_gate::host::Term;

use super::records::{WonTerm, at};
use super::{Claimed, FileArbiter};
use crate::{ArbiterError, SetArbiter, SetVerdict};

impl From<Claimed> for SetVerdict {
    fn from(claimed: Claimed) -> Self {
        match claimed {
            Claimed::Won(won) => match won.last().set_record() {
                Some(record) => Self::Recorded(record),
                // This process has asked for the same term without own disks before.
                None => Self::Denied(won.record),
            },
            Claimed::Denied(record) => Self::Denied(record),
            Claimed::Refused(refusal) => Self::Refused(refusal),
        }
    }
}

impl FileArbiter {
    /// The term as this process has won it already, with a set: the answer to that was lost.
    fn won_before(&self, term: Term) -> Result<Option<WonTerm>, ArbiterError> {
        let won = self.records.with_set(term)?;
        Ok(won.filter(|won| won.record.holder == self.holder && won.set.is_some()))
    }

    /// Why the set of a term cannot be enlarged any more: the term is over.
    fn over(&self, won: &WonTerm) -> Result<Option<SetVerdict>, ArbiterError> {
        let term = Term(won.record.term);
        if let Some(later) = self.records.later_than(term)? {
            return Ok(Some(SetVerdict::Denied(later)));
        }
        let over = won.record.holder != self.holder || self.records.has_ended(term)?;
        Ok(over.then(|| SetVerdict::Denied(won.record.clone())))
    }
}

impl SetArbiter for FileArbiter {
    fn next_term(&self) -> Result<Term, ArbiterError> {
        self.check_identity()?;
        Ok(self.records.highest()?.unwrap_or(Term(0)).next())
    }

    fn claim_image(&self, claim: &ImageClaim, why: &str) -> Result<SetVerdict, ArbiterError> {
        let term = Term(claim.next.term);
        let again = self.won_before(term)?;
        let claimed = self.claim_term(term, why, |before| match again {
            Some(won) => Ok(won.set),
            None => {
                let before_term = Term(before.record.term);
                let follows = self.known_holder(before_term).unwrap_or_default();
                before.last().claimed((&self.holder, &follows), claim).map(Some)
            }
        });
        claimed.map(SetVerdict::from)
    }

    fn begin_image(&self, start: &ImageStart) -> Result<SetVerdict, ArbiterError> {
        self.check_identity()?;
        if let Some(last) = self.records.highest()?
            && let Some(won) = self.won_before(last)?
            && !self.records.has_ended(last)?
        {
            return self.take(last, "start", won.set).map(SetVerdict::from);
        }
        let begun = self.begin_term(None, start.seize, |last| {
            begun(last.map(WonTerm::last), &self.holder, start).map(Some)
        });
        begun.map(SetVerdict::from)
    }

    fn enlarge(&self, term: Term, member: &Member) -> Result<SetVerdict, ArbiterError> {
        self.check_identity()?;
        let missing = || ArbiterError::missing(self.records.path(), term);
        let won = self.records.with_set(term)?.ok_or_else(missing)?;
        if let Some(over) = self.over(&won)? {
            return Ok(over);
        }
        let enlarged = match won.last().enlarged(&self.holder, member) {
            Ok(set) => set,
            Err(refusal) => return Ok(SetVerdict::Refused(refusal)),
        };
        let new = enlarged.record(term.0, &self.holder);
        let created = match won.set == Some(enlarged) {
            // It was carried out before, and its answer was lost.
            true => Ok(()),
            false => self.records.create_set(&new)?,
        };
        // The file decides: over NFS, the answer to a successful link can be lost.
        let now = self.records.with_set(term)?.ok_or_else(missing)?;
        if let Some(over) = self.over(&now)? {
            return Ok(over);
        }
        let lost = || io::Error::from(io::ErrorKind::NotFound);
        match now.last().set_record() {
            Some(record) if record == new => Ok(SetVerdict::Recorded(record)),
            _ => Err(at("cannot enlarge the set in", self.records.path())(
                created.err().unwrap_or_else(lost),
            )),
        }
    }
}

#[cfg(test)]
mod tests;
