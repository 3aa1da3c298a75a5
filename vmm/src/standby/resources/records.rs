//! The records of who may write to the disks, as this side sees them: whether they could be written, and are still those that the
//! primary holds (P2).

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ft_core::Term;
use io_gate_host::backend::disk_fence::DiskFence;
use rustix::fs::{Access, access};

use crate::config::DiskConfig;
use crate::machine::disks::fence_record;

/// Whose the records are to be: a primary's, by its term and its name; none while there is no session.
#[derive(Debug, Default)]
pub struct Expected(Mutex<Option<(Term, String)>>);

impl Expected {
    /// A session begins with this primary, or what was held of it was given up.
    pub fn set(&self, primary: Option<(Term, String)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = primary;
    }

    /// Of whom.
    pub(super) fn get(&self) -> Option<(Term, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The record of a disk can be read and written: without, nothing is written to the disk after a takeover.
pub(super) fn usable(disk: &DiskConfig) -> Result<(), String> {
    let Some(path) = fence_record(disk) else { return Ok(()) };
    // It names the record, and says what to do.
    let found = DiskFence::look(&path).map_err(|error| error.to_string())?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let to_write = match found {
        Some(_) => path.as_path(),
        None => parent.unwrap_or(Path::new(".")),
    };
    access(to_write, Access::WRITE_OK).map_err(|error| {
        format!("the fence record {}: it cannot be written: {error}", path.display())
    })
}

/// The record is the one that the primary holds. Told, and no more: the arbiter still says who may perform.
pub(super) fn is_of(disk: &DiskConfig, primary: &(Term, String)) -> Result<(), String> {
    let Some(path) = fence_record(disk) else { return Ok(()) };
    let (term, holder) = primary;
    let found = match DiskFence::look(&path) {
        // A primary that has ended in good order says so itself.
        Ok(Some(claim)) if claim.free || claim.is_of(term.0, holder) => return Ok(()),
        Ok(Some(claim)) => claim.to_string(),
        Ok(None) => "no record".to_owned(),
        // Found by others.
        Err(_) => return Ok(()),
    };
    Err(format!(
        "the fence record {}: expected term {term}, held by {holder}, found: {found}; it is another file than the primary's: put \
         that one back",
        path.display()
    ))
}
