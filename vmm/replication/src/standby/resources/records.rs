//! The fence records as this side sees them: whether they can be written, and whether they are
//! still those that the primary holds (P2).

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ft_core::Term;
use io_gate_host::disk_use::disk_fence::{DiskFence, FenceClaim};
use kemari_machine::config::DiskConfig;
use kemari_machine::disks::fence_record;
use rustix::fs::{Access, access};

use super::FileOf;

/// The expected holder of the records: the primary's term and name; `None` without a session.
#[derive(Debug, Default)]
pub struct Expected(Mutex<SessionRecords>);

#[derive(Debug, Default)]
struct SessionRecords {
    primary: Option<(Term, String)>,
    /// The identity of each record's file at its first check in the session.
    records: BTreeMap<PathBuf, FileOf>,
}

impl Expected {
    /// Sets the primary of a new session; `None` when the session's checkpoint was dropped.
    pub fn set(&self, primary: Option<(Term, String)>) {
        *self.session() = SessionRecords { primary, ..SessionRecords::default() };
    }

    /// The expected holder.
    pub(super) fn get(&self) -> Option<(Term, String)> {
        self.session().primary.clone()
    }

    /// Whether the record at `path` is the same file as at its first check in the session.
    fn is_known(&self, path: &Path, found: FileOf) -> bool {
        *self.session().records.entry(path.to_owned()).or_insert(found) == found
    }

    fn session(&self) -> MutexGuard<'_, SessionRecords> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was found in the place of a disk's record.
pub(super) struct Record {
    path: PathBuf,
    /// `None`: there is no record yet.
    found: Option<(FileOf, FenceClaim)>,
}

impl Record {
    /// Reads the record of a disk that has one, and checks that it can be read and written. Without
    /// the record nothing could be written to the disk after a takeover.
    pub(super) fn look(disk: &DiskConfig) -> Result<Option<Self>, String> {
        let Some(path) = fence_record(disk) else { return Ok(None) };
        let cannot = |what, error: io::Error| {
            format!("the fence record {}: it cannot be {what}: {error}", path.display())
        };
        // The error names the record and says what to do.
        let claim = DiskFence::look(&path).map_err(|error| error.to_string())?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let to_write = match claim {
            Some(_) => path.as_path(),
            None => parent.unwrap_or(Path::new(".")),
        };
        access(to_write, Access::WRITE_OK).map_err(|error| cannot("written", error.into()))?;
        let found = match claim {
            Some(claim) => {
                let file = std::fs::metadata(&path).map_err(|error| cannot("found", error))?;
                Some((FileOf(file.dev(), file.ino()), claim))
            }
            None => None,
        };
        Ok(Some(Self { path, found }))
    }

    /// Checks that this record is the one that the primary holds, by its content and by its file: a
    /// copy has the same content, but does not show who wins the next term. The result is only
    /// reported: the arbiter still decides who may perform.
    pub(super) fn is_the_primarys(&self, expected: &Expected) -> Result<(), String> {
        let Some((term, holder)) = expected.get() else { return Ok(()) };
        let found = match &self.found {
            // A primary that has ended in good order has released its record.
            Some((_, claim)) if claim.free => return Ok(()),
            Some((file, claim)) if claim.is_of(term.0, &holder) => {
                if expected.is_known(&self.path, *file) {
                    return Ok(());
                }
                "another file with the same content".to_owned()
            }
            Some((_, claim)) => claim.to_string(),
            None => "no record".to_owned(),
        };
        Err(format!(
            "the fence record {}: expected term {term}, held by {holder}, found: {found}; it is not the primary's \
             file: restore the primary's file",
            self.path.display()
        ))
    }
}
