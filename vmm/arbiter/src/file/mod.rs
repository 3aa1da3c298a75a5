//! The `file:` arbiter: one file per term in a directory that both hosts see.
//!
//! To win a term, a process links (`link(2)`) a complete, synced record to the term's name. The
//! link fails if the name exists, on local file systems and on NFS alike, and no reader sees an
//! incomplete record (P2). The winner then marks the records of earlier terms, and waits longer
//! than any holder acts on an answer.
//!
//! There is no lease: the fence reads the right to perform from the directory before effects. One
//! answer is valid for the effects of the next 0.2 ms, and the winner of the next term does nothing
//! in that time. Between an answer and its effect is a window, which has no bound if the process is
//! stopped exactly there. `etcd:` narrows this window to the length of one system call. The fence
//! record beside each disk image narrows it for writes.

mod directory;
mod fence;
mod images;
mod records;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ft_core::arbiter::{Beginning, DiskClaim, beginning};
use ft_core::disks::set::{ImageSet, SetError};
use ft_core::handshake::ArbiterView;
use io_gate::host::Term;
use io_gate_host::Fence;
use kemari_support::random::random_id;

use super::{Arbiter, ArbiterError, TermRecord, Verdict};
use directory::{Directory, HostDirectory};
use fence::{LONGEST_PACE, TermFence, settle};
use records::{COUNTER_MARK, ID, MARK, Records, WonTerm, at, term_name};

/// The answer to a claim or a start.
enum Claimed {
    Won(WonTerm),
    Denied(TermRecord),
    /// The set of the last term does not allow it.
    Refused(SetError),
}

/// The arbiter, for one virtual machine and one claimant.
#[derive(Debug)]
pub struct FileArbiter {
    records: Records,
    vm: String,
    holder: String,
    /// The directory's identity, created with the directory.
    id: String,
    fence: Arc<TermFence>,
    /// The term and holder of the process that this one follows, as that process reported them.
    /// Never held across a system call.
    followed: Mutex<Option<(Term, String)>>,
}

impl FileArbiter {
    /// Opens the terms of `vm` below `base`, for the claimant `holder`.
    ///
    /// # Errors
    /// When the directory cannot be created or written.
    pub fn open(base: &Path, vm: &str, holder: String) -> Result<Self, ArbiterError> {
        let failed = at("cannot make", &base.join(vm));
        let directory = HostDirectory::open(base, vm).map_err(failed)?;
        Self::open_directory(Arc::new(directory), vm, holder)
    }

    fn open_directory(
        directory: Arc<dyn Directory>,
        vm: &str,
        holder: String,
    ) -> Result<Self, ArbiterError> {
        let records = Records::new(directory)?;
        records.create(ID, &random_id())?;
        let id = records.text(ID)?;
        let id =
            id.ok_or_else(|| at("lost", &records.path().join(ID))(io::ErrorKind::NotFound.into()))?;
        let fence = TermFence::start(records.clone(), holder.clone());
        let fence = fence.map_err(at("no thread for", records.path()))?;
        Ok(Self { records, vm: vm.to_owned(), holder, id, fence, followed: Mutex::default() })
    }

    /// Claims `term`, which must have no record, with this set.
    fn take(&self, term: Term, why: &str, set: Option<ImageSet>) -> Result<Claimed, ArbiterError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let record = TermRecord {
            vm: self.vm.clone(),
            term: term.0,
            holder: self.holder.clone(),
            why: why.to_owned(),
            won_at: now.map_or(0, |since| since.as_secs()),
        };
        let created = self.records.create_term(&WonTerm { record, set })?;
        let path = self.records.path().join(term_name(term));
        // Over NFS, the answer to a successful link can be lost: the record decides.
        match (created, self.records.with_set(term)?) {
            (_, Some(won)) if won.record.holder == self.holder => {
                if let Some(later) = self.later(term)? {
                    return Ok(Claimed::Denied(later));
                }
                self.settle(term)?;
                self.fence.won(term);
                Ok(Claimed::Won(won))
            }
            (_, Some(won)) => Ok(Claimed::Denied(won.record)),
            (Err(error), None) => Err(at("cannot create", &path)(error)),
            (Ok(()), None) => Err(at("lost", &path)(io::ErrorKind::NotFound.into())),
        }
    }

    /// Claims the term after `before`. `set` makes its set from the last term, or says why not.
    fn claim_term(
        &self,
        term: Term,
        why: &str,
        set: impl FnOnce(&WonTerm) -> Result<Option<ImageSet>, SetError>,
    ) -> Result<Claimed, ArbiterError> {
        let before = Term(term.0.saturating_sub(1));
        self.check_identity()?;
        // P2: a process that follows a holder expects that holder's term in this directory. A
        // directory without it is another one, and its answer has no value. The number alone is not
        // enough: the record may be another process's.
        let Some(won) = self.records.with_set(before)? else {
            return Err(ArbiterError::missing(self.records.path(), before));
        };
        let record = &won.record;
        match self.known_holder(before) {
            // This process's own term has another holder: the right is lost.
            Some(known) if known == self.holder && known != record.holder => {
                return Ok(Claimed::Denied(won.record));
            }
            Some(known) => self.check_holder(record, known)?,
            None => {}
        }
        // Check before creating a record: a record stays.
        if let Some(later) = self.later(term)? {
            return Ok(Claimed::Denied(later));
        }
        if self.records.has_ended(before)? {
            // The machine ended in good order and could not tell its standby: do not restart the
            // guest.
            let why = format!("{} ended the machine", record.holder);
            return Ok(Claimed::Denied(TermRecord { why, ..won.record }));
        }
        match set(&won) {
            Ok(set) => self.take(term, why, set),
            Err(refusal) => Ok(Claimed::Refused(refusal)),
        }
    }

    /// Begins in the term after the last one. `set` makes its set from the last term, or says why
    /// not.
    fn begin_term(
        &self,
        disk: Option<&DiskClaim>,
        seize: bool,
        set: impl FnOnce(Option<&WonTerm>) -> Result<Option<ImageSet>, SetError>,
    ) -> Result<Claimed, ArbiterError> {
        self.check_identity()?;
        let last = match self.records.highest()? {
            None => None,
            // A seizure ignores a record that cannot be read: it needs only the number.
            Some(last) => match self.records.with_set(last) {
                Ok(won) => won.map(|won| (won, last)),
                Err(ArbiterError::Record { .. }) if seize => Some((nameless(&self.vm, last), last)),
                Err(error) => return Err(error),
            },
        };
        let last = match last {
            Some((won, term)) => Some((won, self.records.has_ended(term)?)),
            None => None,
        };
        let known = last.as_ref().map(|(won, ended)| (&won.record, *ended));
        let term = match beginning(known, disk, seize) {
            Beginning::In(term) => term,
            Beginning::Taken(record) => return Err(self.taken(record)),
            Beginning::Behind(claim) => {
                let last = last.map(|(won, _)| won.record);
                return Err(ArbiterError::behind(self.records.path(), last, claim));
            }
        };
        let set = match set(last.as_ref().map(|(won, _)| won)) {
            Ok(set) => set,
            Err(refusal) => return Ok(Claimed::Refused(refusal)),
        };
        match self.take(term, "start", set)? {
            Claimed::Denied(record) => {
                let place = self.place_of(record.term);
                Err(ArbiterError::Outrun { place, record: record.into() })
            }
            claimed => Ok(claimed),
        }
    }

    fn refused(&self, refusal: SetError) -> ArbiterError {
        ArbiterError::Refused { vm: self.vm.clone(), refusal: refusal.into() }
    }

    /// P2: another process's term later than `term`. Where terms have gaps, the next number may be
    /// free although another process holds the machine. Call this after creating the record of
    /// `term`: a process that wins a later term afterwards finds that record and marks it.
    fn later(&self, term: Term) -> Result<Option<TermRecord>, ArbiterError> {
        Ok(self.records.later_than(term)?.filter(|later| later.holder != self.holder))
    }

    /// P2: after this returns, no process acts on an answer from before `term` was won.
    fn settle(&self, term: Term) -> Result<(), ArbiterError> {
        self.records.succeed(term)?;
        let pace = self.records.pace(LONGEST_PACE)?;
        // No holder gets a positive answer any more. After this wait, earlier answers are too old.
        std::thread::sleep(settle(pace));
        self.fence.renew_pace(term)
    }

    /// P2: checks the id, not only the place: this must still be the directory that was opened.
    fn check_identity(&self) -> Result<(), ArbiterError> {
        self.records.check_place()?;
        match self.records.text(ID)? {
            Some(id) if id == self.id => Ok(()),
            _ => Err(ArbiterError::Replaced { dir: self.records.path().to_owned() }),
        }
    }

    /// The expected holder of `term`, if this process knows it.
    fn known_holder(&self, term: Term) -> Option<String> {
        if self.fence.term() == Some(term.0) {
            return Some(self.holder.clone());
        }
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.as_ref().filter(|(of, _)| *of == term).map(|(_, holder)| holder.clone())
    }

    fn check_holder(&self, record: &TermRecord, expected: String) -> Result<(), ArbiterError> {
        if record.holder == expected {
            return Ok(());
        }
        let (place, record) = (self.place_of(record.term), record.clone().into());
        Err(ArbiterError::OtherHolder { place, expected, record })
    }

    /// Writes a new mark into the file `name`. Does not read it back: a tool that copies the
    /// directory may have put another mark there.
    fn leave(&self, name: &str) -> Result<String, ArbiterError> {
        self.check_identity()?;
        let word = random_id();
        self.records.replace(name, word.as_bytes())?;
        Ok(word)
    }

    fn place_of(&self, term: u64) -> String {
        self.records.path().join(term_name(Term(term))).display().to_string()
    }

    fn taken(&self, record: TermRecord) -> ArbiterError {
        ArbiterError::Taken { place: self.place_of(record.term), record: record.into() }
    }
}

impl Arbiter for FileArbiter {
    fn kind(&self) -> &'static str {
        "file"
    }

    fn holder(&self) -> &str {
        &self.holder
    }

    fn answers(&self) -> Result<(), ArbiterError> {
        self.check_identity()?;
        // P9: a directory that was set back cannot grant the successor of a term that it does not
        // know.
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((term, holder)) = followed {
            let record = self.records.term(term)?;
            let missing = || ArbiterError::missing(self.records.path(), term);
            self.check_holder(&record.ok_or_else(missing)?, holder)?;
        }
        self.records.take_claims()
    }

    fn claim(&self, term: Term, why: &str) -> Result<Verdict, ArbiterError> {
        match self.claim_term(term, why, |before| before.last().shared().map(|()| None))? {
            Claimed::Won(_) => Ok(Verdict::Granted),
            Claimed::Denied(record) => Ok(Verdict::Denied(record)),
            Claimed::Refused(refusal) => Err(self.refused(refusal)),
        }
    }

    fn follow(&self, term: Term, holder: &str) {
        let followed = Some((term, holder.to_owned()));
        *self.followed.lock().unwrap_or_else(PoisonError::into_inner) = followed;
    }

    fn begin_on(&self, disk: Option<&DiskClaim>, seize: bool) -> Result<Term, ArbiterError> {
        let shared = |last: Option<&WonTerm>| {
            last.map_or(Ok(None), |last| last.last().shared().map(|()| None))
        };
        match self.begin_term(disk, seize, shared)? {
            Claimed::Won(won) => Ok(Term(won.record.term)),
            Claimed::Denied(record) => Err(self.taken(record)),
            Claimed::Refused(refusal) => Err(self.refused(refusal)),
        }
    }

    fn end(&self, term: Term) -> Result<(), ArbiterError> {
        match self.records.term(term)? {
            Some(record) if record.holder == self.holder => self.records.end(term),
            Some(record) => {
                let (place, expected) = (self.place_of(term.0), self.holder.clone());
                Err(ArbiterError::OtherHolder { place, expected, record: record.into() })
            }
            None => Err(ArbiterError::missing(self.records.path(), term)),
        }
    }

    fn mark(&self) -> Result<ArbiterView, ArbiterError> {
        let mark = self.leave(MARK)?;
        Ok(ArbiterView { mark, ..self.read_marks()? })
    }

    fn counter_mark(&self) -> Result<ArbiterView, ArbiterError> {
        let counter_mark = self.leave(COUNTER_MARK)?;
        Ok(ArbiterView { counter_mark, ..self.read_marks()? })
    }

    fn read_marks(&self) -> Result<ArbiterView, ArbiterError> {
        // This also makes the file system ask its server for the names.
        self.check_identity()?;
        let word = |name| Ok(self.records.text(name)?.unwrap_or_else(|| "none".to_owned()));
        Ok(ArbiterView {
            kind: self.kind().to_owned(),
            place: format!("file:{}", self.records.path().display()),
            id: self.id.clone(),
            mark: word(MARK)?,
            counter_mark: word(COUNTER_MARK)?,
        })
    }

    fn fence(&self) -> Arc<dyn Fence> {
        self.fence.clone()
    }
}

/// A replacement for a record that cannot be read.
fn nameless(vm: &str, term: Term) -> WonTerm {
    let (holder, why) = ("a holder whose record cannot be read".to_owned(), String::new());
    let record = TermRecord { vm: vm.to_owned(), term: term.0, holder, why, won_at: 0 };
    WonTerm { record, set: None }
}

#[cfg(test)]
mod tests;
