//! Terms of a machine with own disks: the record of such a term has the set as well, so that a term
//! and its set are one compare-and-swap (R6, R7).
//!
//! Each function here is the condition of one transaction, given the record that it replaces. The
//! arbiters `file:` and `etcd:` both use them.

use alloc::boxed::Box;

use super::TermRecord;
use crate::disks::set::{self, Claim, ImageSet, Member, SetError, SetRecord};
use crate::disks::{Generation, Sidecar};

/// A claim of the next term by a side with own disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageClaim {
    /// The claimant's host and image.
    pub member: Member,
    /// The generation of its image so far.
    pub current: Generation,
    /// Its generation from now on, in the term that is claimed. Its sidecar has it as pending
    /// already.
    pub next: Generation,
}

/// A start of a machine from an own disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageStart {
    /// This host and its image.
    pub member: Member,
    /// What the image is.
    pub sidecar: Sidecar,
    /// Its generation from now on, in the term after the arbiter's last one. Its sidecar has it as
    /// pending already.
    pub next: Generation,
    /// Even if the machine has a recorded holder.
    pub seize: bool,
    /// The term that is given up by a start from outside of the set.
    pub force: Option<u64>,
}

/// A term and its set, if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Last<'a> {
    /// Term and holder.
    pub record: &'a TermRecord,
    /// `None`: the machine had no own disks.
    pub set: Option<&'a ImageSet>,
}

impl Last<'_> {
    /// The record of its set.
    #[must_use]
    pub fn set_record(&self) -> Option<SetRecord> {
        self.set.map(|set| set.record(self.record.term, &self.record.holder))
    }

    /// Checks that a machine without own disks may be the next holder: the images of a machine that
    /// has them would not be what that machine expects.
    ///
    /// # Errors
    /// When there is a set.
    pub fn shared(&self) -> Result<(), SetError> {
        match self.set_record() {
            Some(found) => Err(SetError::OwnDisks { found: Box::new(found) }),
            None => Ok(()),
        }
    }

    /// The set of the next term, claimed by `holder`, who has followed (or is) the process
    /// `follows`.
    ///
    /// # Errors
    /// As [`set::claim`]; also when there is no set.
    pub fn claimed(
        &self,
        (holder, follows): (&str, &str),
        claim: &ImageClaim,
    ) -> Result<ImageSet, SetError> {
        let Some(record) = self.set_record() else {
            return Err(SetError::Forgotten { ours: claim.current, last: self.record.term });
        };
        let claim = Claim {
            term: claim.next.term,
            holder: holder.into(),
            follows: follows.into(),
            member: claim.member.clone(),
            current: claim.current,
            next: claim.next,
        };
        set::claim(&record, &claim).map(ImageSet::from)
    }

    /// The set of this term with the standby in it.
    ///
    /// # Errors
    /// As [`set::enlarge`]; also when there is no set.
    pub fn enlarged(&self, holder: &str, member: &Member) -> Result<ImageSet, SetError> {
        let term = self.record.term;
        let record = self.set_record().ok_or(SetError::Missing { term })?;
        set::enlarge(&record, (term, holder), member).map(ImageSet::from)
    }
}

/// The set of a term that begins a machine.
///
/// # Errors
/// As [`set::begin`] and [`set::first`].
pub fn begun(
    last: Option<Last<'_>>,
    holder: &str,
    start: &ImageStart,
) -> Result<ImageSet, SetError> {
    let side = (holder, &start.member);
    let record = last.and_then(|last| last.set_record());
    let begun = match (&record, last) {
        (None, Some(last)) => {
            set::first(last.record.term, side, &start.sidecar, start.next, start.force)
        }
        _ => set::begin(record.as_ref(), side, &start.sidecar, start.next, start.force),
    };
    begun.map(ImageSet::from)
}
