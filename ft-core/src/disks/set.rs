//! The arbiter's set record (R6, R7): whose images have all that the machine has told. It is kept
//! beside the term, and each function here is the condition and the effect of one transaction.
//!
//! | transaction | condition | the new set |
//! | --- | --- | --- |
//! | [`claim`] by the primary | it holds the term | itself |
//! | [`claim`] by the standby | the primary that it follows holds the term, and the set names its disk | itself |
//! | [`enlarge`] | it holds the term | itself and the standby |
//! | [`begin`] | the set names the disk in this generation | itself |

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{DiskId, Generation, Sidecar, State};
use crate::deliberate;

/// A host whose image is in the set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name, for the operator.
    pub host: String,
    /// Its image. Of a machine with several disks, the first: the group is in the set as a whole.
    pub disk: DiskId,
}

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRecord {
    /// The term.
    pub term: u64,
    /// The process that has won the term.
    pub holder: String,
    /// The generation of the images in the set.
    pub generation: Generation,
    /// The hosts in the set: one or two.
    pub members: Vec<Member>,
}

impl SetRecord {
    fn names(&self, disk: DiskId) -> bool {
        self.members.iter().any(|member| member.disk == disk)
    }

    fn hosts(&self) -> String {
        let hosts: Vec<&str> = self.members.iter().map(|member| member.host.as_str()).collect();
        hosts.join(" or ")
    }
}

/// Why a transaction left the record unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// Another process holds a later term, or this one.
    #[error("term {} is held by {}", found.term, found.holder)]
    Denied {
        /// The record.
        found: Box<SetRecord>,
    },
    /// The arbiter knows no such term.
    #[error(
        "the arbiter does not know term {term}: expected its record, found none; restore the arbiter's newest data"
    )]
    Missing {
        /// The term.
        term: u64,
    },
    /// The set does not name the image.
    #[error(
        "the image of this host is not in the set of term {}: the image is of generation {ours}, the set of {}; start {}",
        found.term, found.generation, found.hosts()
    )]
    NotInSet {
        /// The generation of the image.
        ours: Generation,
        /// The record.
        found: Box<SetRecord>,
    },
    /// The set names the image, in another generation.
    #[error(
        "the image of this host is of generation {ours}, the set of term {} of {}: the image was set back to an earlier state; start {}",
        found.term, found.generation, found.hosts()
    )]
    OtherGeneration {
        /// The generation of the image.
        ours: Generation,
        /// The record.
        found: Box<SetRecord>,
    },
    /// The image cannot be started at all.
    #[error("the image of this host is {}: start another host, or make a new image", match state {
        State::Inconsistent => "half overwritten by a resync that did not end",
        _ => "failed",
    })]
    Unusable {
        /// Its state.
        state: State,
    },
    /// A forced start names another term than the one that it gives up.
    #[error("expected the last term, {}, as the one to give up, found {named}", found.term)]
    OtherTerm {
        /// The term that was named.
        named: u64,
        /// The record.
        found: Box<SetRecord>,
    },
}

/// A claim of the next term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The term.
    pub term: u64,
    /// The process that claims the term.
    pub holder: String,
    /// The holder of the term before: the claimer itself, or the primary that it has followed.
    pub follows: String,
    /// The claimer's host and image.
    pub member: Member,
    /// The generation of its image so far.
    pub current: Generation,
    /// The generation of its image after the claim. Its sidecar already has it as pending.
    pub next: Generation,
}

/// Claims a term. A repeated claim, whose first answer was lost, is granted again.
///
/// # Errors
/// When it is not granted. The record has not changed.
pub fn claim(record: &SetRecord, claim: &Claim) -> Result<SetRecord, SetError> {
    let found = || Box::new(record.clone());
    if record.term == claim.term && record.holder == claim.holder {
        return Ok(record.clone());
    }
    if record.term >= claim.term {
        return Err(SetError::Denied { found: found() });
    }
    if record.term + 1 != claim.term {
        return Err(SetError::Missing { term: claim.term - 1 });
    }
    if record.holder != claim.follows {
        return Err(SetError::Denied { found: found() });
    }
    if !record.names(claim.member.disk) && !deliberate!(TakeOverWhileSyncing) {
        return Err(SetError::NotInSet { ours: claim.current, found: found() });
    }
    Ok(alone(claim.term, &claim.holder, &claim.member, claim.next))
}

fn alone(term: u64, holder: &str, member: &Member, generation: Generation) -> SetRecord {
    SetRecord { term, holder: holder.into(), generation, members: Vec::from([member.clone()]) }
}

/// Adds the standby to the set of a term that this side holds. Repeating it has no further effect.
///
/// # Errors
/// When this side does not hold the term.
pub fn enlarge(
    record: &SetRecord,
    (term, holder): (u64, &str),
    member: &Member,
) -> Result<SetRecord, SetError> {
    if record.term != term || record.holder != holder {
        return Err(SetError::Denied { found: Box::new(record.clone()) });
    }
    let mut new = record.clone();
    if !new.names(member.disk) {
        // A pair has one standby: the former standby leaves the set.
        new.members.truncate(1);
        new.members.push(member.clone());
    }
    Ok(new)
}

/// Begins a machine from an image, in the term after the last one. `force` names the term that is
/// given up by a start from outside of the set.
///
/// # Errors
/// When the image is not the newest, or cannot be started at all.
pub fn begin(
    record: Option<&SetRecord>,
    (holder, member): (&str, &Member),
    sidecar: &Sidecar,
    next: Generation,
    force: Option<u64>,
) -> Result<SetRecord, SetError> {
    let ours = sidecar.lineage.current();
    if sidecar.state != State::Whole
        && !(deliberate!(HalfUndoneStarted) && sidecar.state == State::Inconsistent)
    {
        return Err(SetError::Unusable { state: sidecar.state });
    }
    let Some(record) = record else { return Ok(alone(1, holder, member, next)) };
    let generations = [Some(ours), sidecar.pending];
    match force {
        Some(named) if named != record.term => {
            return Err(SetError::OtherTerm { named, found: Box::new(record.clone()) });
        }
        Some(_) => {}
        None if deliberate!(StartOutsideSet) => {}
        None if !record.names(member.disk) => {
            return Err(SetError::NotInSet { ours, found: Box::new(record.clone()) });
        }
        None if !generations.contains(&Some(record.generation)) => {
            return Err(SetError::OtherGeneration { ours, found: Box::new(record.clone()) });
        }
        None => {}
    }
    Ok(alone(record.term + 1, holder, member, next))
}
