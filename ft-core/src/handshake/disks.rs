//! The disks of both sides, their fence records, and the marks beside them (P2, P3).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::refusal::Refusal;

/// Where a disk's data is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStorage {
    /// The disk's slot.
    pub slot: u16,
    /// The storage.
    pub storage: Storage,
    /// The fence record; `None` if there is none, or if there are no terms for it.
    pub fence: Option<FenceView>,
    /// From a standby: the marks that it has left beside the data for the primary to find.
    pub counter_marks: Vec<CounterMark>,
}

/// A mark that a standby leaves for one session, as one side sees it. A replica gets everything
/// that the primary writes, but the primary does not see what is written to the replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterMark {
    /// How this side reaches it. For people; not compared.
    pub place: String,
    /// The mark that was left, or that is found.
    pub word: String,
}

/// The fence record of a disk, as one side sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceView {
    /// How this side reaches it. For people; not compared.
    pub place: String,
    /// Its content. The primary has rewritten it for this session, so a copy has other content.
    pub says: String,
}

impl core::fmt::Display for FenceView {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}: {}", self.place, self.says)
    }
}

/// How a pair stores a disk. The primary chooses one way for each disk, and both sides must use the
/// same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Storage {
    /// Both hosts see the same bytes.
    Shared {
        /// The mark that this side finds beside or in the disk, which no other disk has: the
        /// primary wrote it for this session.
        mark: String,
    },
}

impl core::fmt::Display for Storage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Shared { mark } => write!(f, "shared, {mark}"),
        }
    }
}

/// P2, P3: the same check for the disks and their fence records: the primary must see what a
/// standby writes there after a takeover.
///
/// # Errors
/// As [`compare_counter_marks`], for each disk.
pub fn compare_disk_counter_marks(
    primary: &[DiskStorage],
    standby: &[DiskStorage],
) -> Result<(), Refusal> {
    let mut reasons = Vec::new();
    for ours in primary {
        // `compare_disks` has already reported a missing disk.
        let Some(theirs) = standby.iter().find(|theirs| theirs.slot == ours.slot) else { continue };
        for (at, found) in ours.counter_marks.iter().enumerate() {
            let left = theirs.counter_marks.get(at);
            if left.is_some_and(|left| left.word == found.word && !left.word.is_empty()) {
                continue;
            }
            let left = left.map_or("nothing".to_string(), |left| {
                format!("the counter-mark `{}` to {}", left.word, left.place)
            });
            reasons.push(format!(
                "disk in slot {}: the standby wrote {left}, the primary found `{}` in {}: they use different disks: \
                 give both hosts the same image (and the same file in fence=) on storage that both read and write, \
                 not a replica that is updated in one direction",
                ours.slot, found.word, found.place
            ));
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(Refusal(reasons)) }
}

/// P3: a write that the primary has completed must be in the disk that the standby would use.
pub(super) fn compare_disks(
    primary: &[DiskStorage],
    standby: &[DiskStorage],
    reasons: &mut Vec<String>,
) {
    let mut slots: Vec<u16> = primary.iter().chain(standby).map(|disk| disk.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    for slot in slots {
        let of = |disks: &[DiskStorage]| {
            let found = disks.iter().find(|disk| disk.slot == slot);
            found.map_or_else(|| "none".to_string(), |disk| disk.storage.to_string())
        };
        let (ours, theirs) = (of(primary), of(standby));
        if ours != theirs {
            reasons.push(format!(
                "disk in slot {slot}: primary {ours}; standby {theirs}: they use different disks: give both hosts the \
                 same image on storage that they share, not a copy"
            ));
        }
        compare_fences(slot, primary, standby, reasons);
    }
}

/// P2: a fence record does not stop a side that does not read it.
fn compare_fences(
    slot: u16,
    primary: &[DiskStorage],
    standby: &[DiskStorage],
    reasons: &mut Vec<String>,
) {
    let of = |disks: &[DiskStorage]| disks.iter().find(|disk| disk.slot == slot).cloned();
    // `compare_disks` has already reported a missing disk.
    let (Some(ours), Some(theirs)) = (of(primary), of(standby)) else { return };
    let (ours, theirs) = (ours.fence, theirs.fence);
    let says = |view: &Option<FenceView>| view.as_ref().map(|view| view.says.clone());
    if says(&ours) != says(&theirs) {
        let shown = |view: Option<FenceView>| {
            view.map_or_else(|| "none".to_string(), |view| view.to_string())
        };
        reasons.push(format!(
            "fence record of the disk in slot {slot}: primary {}; standby {}: they are different files: name in \
             fence= of --disk one file that both hosts see, or leave fence= out on both sides",
            shown(ours),
            shown(theirs)
        ));
    }
}
