//! The arbiter's set record (R6, R7): whose images have all that the machine has told. It is kept
//! beside the term, and each function here is the condition and the effect of one transaction.
//!
//! | transaction | condition | the new set |
//! | --- | --- | --- |
//! | [`claim`] by the primary | it holds the term | itself |
//! | [`claim`] by the standby | the primary that it follows holds the term, and the set names its disk | itself |
//! | [`enlarge`] | it holds the term, and has not enlarged its set | itself and the standby |
//! | [`begin`] | the set names the disk in this generation | itself |
//! | [`first`] | there is no set, and the image has been in none | itself |

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

/// The set as the record of a term keeps it, beside the term and its holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSet {
    /// The generation of the images in the set.
    pub generation: Generation,
    /// The hosts in the set: one or two.
    pub members: Vec<Member>,
}

impl ImageSet {
    /// The whole record of this set.
    #[must_use]
    pub fn record(&self, term: u64, holder: &str) -> SetRecord {
        let (generation, members) = (self.generation, self.members.clone());
        SetRecord { term, holder: holder.into(), generation, members }
    }
}

impl From<SetRecord> for ImageSet {
    fn from(record: SetRecord) -> Self {
        Self { generation: record.generation, members: record.members }
    }
}

impl SetRecord {
    /// Whether this is `earlier`, enlarged. Within a term a set does not change in any other way.
    #[must_use]
    pub fn enlarges(&self, earlier: &Self) -> bool {
        let same = (self.term, &self.holder, self.generation)
            == (earlier.term, &earlier.holder, earlier.generation);
        same && self.members.len() > earlier.members.len()
            && self.members.starts_with(&earlier.members)
    }

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
    /// The set of this term has been enlarged by another image.
    #[error(
        "the set of term {} names {} already: win the next term before another image is added",
        found.term, found.hosts()
    )]
    Full {
        /// The record.
        found: Box<SetRecord>,
    },
    /// The claimant has no own disks, and the set belongs to a machine that has them.
    #[error(
        "term {} is of a machine with own disks, the newest image is that of {}: start {} with its own disks, or \
         give this machine another name",
        found.term, found.hosts(), found.hosts()
    )]
    OwnDisks {
        /// The record.
        found: Box<SetRecord>,
    },
    /// The arbiter has no set, and the image has been in one.
    #[error(
        "the image of this host is of generation {ours} and has had a peer, the arbiter has no set of this machine \
         (its last term is {last}): its data went back, or it is another arbiter. Start the host whose image is \
         the newest, and give up term {last}"
    )]
    Forgotten {
        /// The generation of the image.
        ours: Generation,
        /// The arbiter's last term; 0 if there is none.
        last: u64,
    },
    /// The arbiter's last term is not the one that the caller has seen.
    #[error(
        "expected term {} to be the arbiter's last one, found {last}: another process was faster, or the arbiter's \
         data went back; start again",
        next.term.saturating_sub(1)
    )]
    Moved {
        /// The arbiter's last term; 0 if there is none.
        last: u64,
        /// The generation of the start.
        next: Generation,
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
/// Within a term a set only grows, and once: an arbiter may read the set first and win the next
/// term after that. A primary whose standby is gone wins a term before it takes another one.
///
/// # Errors
/// When this side does not hold the term, or has added another image in it.
pub fn enlarge(
    record: &SetRecord,
    (term, holder): (u64, &str),
    member: &Member,
) -> Result<SetRecord, SetError> {
    if record.term != term || record.holder != holder {
        return Err(SetError::Denied { found: Box::new(record.clone()) });
    }
    let mut new = record.clone();
    if new.names(member.disk) {
        return Ok(new);
    }
    if new.members.len() > 1 {
        return Err(SetError::Full { found: Box::new(new) });
    }
    new.members.push(member.clone());
    Ok(new)
}

/// Begins a machine from an image, in the term after the last one, which the caller has seen:
/// `next` is of the term after that. `force` names the term that is given up by a start from
/// outside of the set.
///
/// # Errors
/// When the image is not the newest, or cannot be started at all, or the term has been won since.
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
    let Some(record) = record else { return first(0, (holder, member), sidecar, next, force) };
    check_last(record.term, next)?;
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

fn check_last(last: u64, next: Generation) -> Result<(), SetError> {
    if last.checked_add(1) == Some(next.term) {
        return Ok(());
    }
    Err(SetError::Moved { last, next })
}

/// Begins a machine of which the arbiter has no set: its last term, `last`, is of a machine without
/// own disks, or there is none.
///
/// # Errors
/// When the image has been in a set.
pub fn first(
    last: u64,
    (holder, member): (&str, &Member),
    sidecar: &Sidecar,
    next: Generation,
    force: Option<u64>,
) -> Result<SetRecord, SetError> {
    if sidecar.state != State::Whole {
        return Err(SetError::Unusable { state: sidecar.state });
    }
    check_last(last, next)?;
    if sidecar.peer.is_some() && force != Some(last) {
        return Err(SetError::Forgotten { ours: sidecar.lineage.current(), last });
    }
    Ok(alone(last + 1, holder, member, next))
}
