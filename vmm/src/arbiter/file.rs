//! The `file:` arbiter: one file per term in a directory that both hosts see.
//!
//! A term is won by `link(2)` of a complete, synced record to its name: it fails when the name
//! exists, on local file systems and on NFS alike, and no reader ever sees half a record (P2).
//!
//! There is no lease: the right to perform is read from the directory before effects, and one answer
//! is good for those of the next 0.2 ms, in which nobody who has won the next term does anything yet.
//! Between an answer and its effect lies a window, unbounded when the process is stopped exactly there. `etcd:` closes it up to the length of one system call; the fence record beside
//! each disk image narrows it for writes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use io_gate::host::Term;
use io_gate_host::{Fence, Permission};
use rustix::fs::{AtFlags, StatxFlags};
use tempfile::NamedTempFile;

use super::{Arbiter, ArbiterError, TermRecord, Verdict};

/// How long a look at the directory is good for: the effects of a batch share one, which takes longer than a frame does.
const GOOD_FOR: Duration = Duration::from_micros(200);
/// How long whoever has won a term does nothing with it.
const SETTLES: Duration = Duration::from_millis(1);
const _: () = assert!(SETTLES.as_micros() >= 5 * GOOD_FOR.as_micros(), "P2");

/// See the module.
#[derive(Debug)]
pub struct FileArbiter {
    dir: PathBuf,
    vm: String,
    holder: String,
    fence: Arc<TermFence>,
}

impl FileArbiter {
    /// Opens the terms of `vm` below `base`, for a claimant called `holder`.
    ///
    /// # Errors
    /// When the directory cannot be made or written.
    pub fn open(base: &Path, vm: &str, holder: String) -> Result<Self, ArbiterError> {
        let dir = base.join(vm);
        fs::create_dir_all(&dir).map_err(at("cannot make", &dir))?;
        let fence = Arc::new(TermFence {
            dir: dir.clone(),
            term: AtomicU64::new(0),
            holder: holder.clone(),
            trouble: Mutex::default(),
        });
        // The name of the machine's directory is to survive a power failure as its records do.
        sync_directory(base)?;
        Ok(Self { dir, vm: vm.to_owned(), holder, fence })
    }

    fn record(&self, term: Term) -> Result<Option<TermRecord>, ArbiterError> {
        read_record(&self.dir, term)
    }

    /// Takes `term` if nobody has it.
    fn take(&self, term: Term, why: &str) -> Result<Verdict, ArbiterError> {
        let temporary = self.write_temporary(term, why)?;
        let path = term_path(&self.dir, term);
        let linked = fs::hard_link(temporary.path(), &path);
        drop(temporary);
        // Over NFS the answer to a link that succeeded can be lost: the record decides, not it.
        let record = self.record(term)?;
        match (linked, record) {
            (_, Some(record)) if record.holder == self.holder => {
                sync_directory(&self.dir)?;
                // P2: from here on nobody is told yes any more; what others were told before is no longer good after this.
                std::thread::sleep(SETTLES);
                self.fence.term.fetch_max(term.0, Ordering::SeqCst);
                Ok(Verdict::Granted)
            }
            (_, Some(record)) => Ok(Verdict::Denied(record)),
            (Err(error), None) => Err(at("cannot create", &path)(error)),
            (Ok(()), None) => Err(at("lost", &path)(io::ErrorKind::NotFound.into())),
        }
    }

    fn highest(&self) -> Result<Option<Term>, ArbiterError> {
        revalidate(&self.dir).map_err(at("cannot look at", &self.dir))?;
        let mut highest = None;
        for entry in fs::read_dir(&self.dir).map_err(at("cannot list", &self.dir))? {
            let entry = entry.map_err(at("cannot list", &self.dir))?;
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_prefix("term-")?.strip_suffix(".json")?.parse().ok());
            highest = highest.max(number.map(Term));
        }
        Ok(highest)
    }

    /// A complete, synced record under a name of its own.
    fn write_temporary(&self, term: Term, why: &str) -> Result<NamedTempFile, ArbiterError> {
        let won_at =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let record = TermRecord {
            vm: self.vm.clone(),
            term: term.0,
            holder: self.holder.clone(),
            why: why.to_owned(),
            won_at,
        };
        let text = serde_json::to_vec_pretty(&record)
            .map_err(|source| ArbiterError::Record { path: self.dir.clone(), source })?;
        let write = || -> io::Result<NamedTempFile> {
            let mut file = NamedTempFile::with_prefix_in("claim-", &self.dir)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            Ok(file)
        };
        write().map_err(at("cannot write in", &self.dir))
    }

    fn ended_path(&self, term: Term) -> PathBuf {
        self.dir.join(format!("ended-{:020}", term.0))
    }
}

impl Arbiter for FileArbiter {
    fn kind(&self) -> &'static str {
        "file"
    }

    fn answers(&self) -> Result<(), ArbiterError> {
        self.highest().map(drop)
    }

    fn claim(&self, term: Term, why: &str) -> Result<Verdict, ArbiterError> {
        let before = Term(term.0.saturating_sub(1));
        revalidate(&self.dir).map_err(at("cannot look at", &self.dir))?;
        // P2: whoever joined this machine has a term in this very directory; a directory without it is
        // another one, and its word is worth nothing.
        let Some(record) = self.record(before)? else {
            return Err(ArbiterError::Stranger { dir: self.dir.clone(), term: before.0 });
        };
        if self.ended_path(before).exists() {
            // The machine ended in good order, and its standby was not reached: nobody brings it back.
            let why = format!("{} ended the machine", record.holder);
            return Ok(Verdict::Denied(TermRecord { why, ..record }));
        }
        self.take(term, why)
    }

    fn begin(&self, seize: bool) -> Result<Term, ArbiterError> {
        let term = match self.highest()? {
            None => Term(1),
            Some(last) => {
                if !seize
                    && !self.ended_path(last).exists()
                    && let Some(record) = self.record(last)?
                {
                    return Err(ArbiterError::Taken(record));
                }
                last.next()
            }
        };
        match self.take(term, "start")? {
            Verdict::Granted => Ok(term),
            Verdict::Denied(record) => Err(ArbiterError::Taken(record)),
        }
    }

    fn end(&self, term: Term) -> Result<(), ArbiterError> {
        let path = self.ended_path(term);
        File::create(&path).map_err(at("cannot write", &path))?;
        sync_directory(&self.dir)
    }

    fn fence(&self) -> Arc<dyn Fence> {
        self.fence.clone()
    }
}

/// Whether nobody has won a later term: asked before effects, each time that the last answer is older than [`GOOD_FOR`]
/// (P2). There is no lease here: the directory's own answer decides, and one that does not answer leaves it open.
#[derive(Debug)]
struct TermFence {
    dir: PathBuf,
    term: AtomicU64,
    holder: String,
    trouble: Mutex<String>,
}

impl TermFence {
    fn look(&self) -> Result<Permission, ArbiterError> {
        let ours = Term(self.term.load(Ordering::SeqCst));
        revalidate(&self.dir).map_err(at("cannot look at", &self.dir))?;
        if let Some(next) = read_record(&self.dir, ours.next())? {
            // Or won by this very process, which is about to learn of it.
            return Ok(if next.holder == self.holder {
                Permission::Granted
            } else {
                self.note(next.to_string());
                Permission::Lost
            });
        }
        // Not the directory in which this term was won: a file system that is not mounted now, say.
        let path = term_path(&self.dir, ours);
        match path.try_exists().map_err(at("cannot look at", &path))? {
            true => Ok(Permission::Granted),
            false => Err(ArbiterError::Stranger { dir: self.dir.clone(), term: ours.0 }),
        }
    }

    fn note(&self, trouble: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

impl Fence for TermFence {
    fn good_for(&self) -> Duration {
        GOOD_FOR
    }

    fn ask(&self) -> Permission {
        self.look().unwrap_or_else(|error| {
            self.note(error.to_string());
            Permission::Unknown
        })
    }

    fn term(&self) -> Option<u64> {
        Some(self.term.load(Ordering::SeqCst))
    }

    fn reason(&self) -> String {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Has the file system ask its server. An NFS client keeps what it knows of a directory for up to a
/// minute (`acdirmax`), the absence of names included, and would go on to say that a term is free
/// which is not. `AT_STATX_FORCE_SYNC` is the documented way to have it look (statx(2)); names are
/// looked up again when the directory turns out to have changed. Mounted with `nocto` or
/// `lookupcache=all`, this still holds.
fn revalidate(dir: &Path) -> io::Result<()> {
    let flags = AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(rustix::fs::CWD, dir, flags, StatxFlags::MTIME | StatxFlags::CTIME)?;
    Ok(())
}

fn sync_directory(dir: &Path) -> Result<(), ArbiterError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at("cannot sync", dir))
}

fn read_record(dir: &Path, term: Term) -> Result<Option<TermRecord>, ArbiterError> {
    let path = term_path(dir, term);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| ArbiterError::Record { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("cannot read", &path)(error)),
    }
}

fn term_path(dir: &Path, term: Term) -> PathBuf {
    dir.join(format!("term-{:020}.json", term.0))
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArbiterError + use<> {
    let path = path.to_owned();
    move |source| ArbiterError::Directory { what, path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::sync::Barrier;

    use super::*;

    fn arbiter(dir: &Path, holder: &str) -> FileArbiter {
        FileArbiter::open(dir, "vm", holder.to_owned()).unwrap()
    }

    /// P2: what others were told before a term was won is no longer good when its winner may do something.
    #[test]
    fn p2_whoever_wins_a_term_keeps_still_for_longer_than_an_answer_is_good_for() {
        let dir = tempfile::tempdir().unwrap();
        let begun = std::time::Instant::now();
        arbiter(dir.path(), "first").begin(false).unwrap();
        assert!(begun.elapsed() >= SETTLES);
        let other = arbiter(dir.path(), "second");
        let good_for = arbiter(dir.path(), "third").fence().good_for();
        let begun = std::time::Instant::now();
        assert_eq!(other.claim(Term(2), "test").unwrap(), Verdict::Granted);
        assert!(begun.elapsed() > 4 * good_for && good_for > Duration::ZERO);
    }

    #[test]
    fn p2_one_of_many_claimants_wins_each_term() {
        let dir = tempfile::tempdir().unwrap();
        arbiter(dir.path(), "first").begin(false).unwrap();
        for term in 2..20 {
            let barrier = Barrier::new(4);
            let winners: usize = std::thread::scope(|scope| {
                let claims: Vec<_> = (0..4)
                    .map(|i| {
                        let (barrier, dir) = (&barrier, dir.path());
                        scope.spawn(move || {
                            let arbiter = arbiter(dir, &format!("h{i}"));
                            barrier.wait();
                            arbiter.claim(Term(term), "test").unwrap() == Verdict::Granted
                        })
                    })
                    .collect();
                claims.into_iter().map(|claim| usize::from(claim.join().unwrap())).sum()
            });
            assert_eq!(winners, 1, "term {term}");
        }
    }

    #[test]
    fn p2_the_fence_falls_when_a_later_term_is_won() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (arbiter(dir.path(), "a"), arbiter(dir.path(), "b"));
        assert_eq!(a.begin(false).unwrap(), Term(1));
        assert_eq!(a.fence().ask(), Permission::Granted);
        assert_eq!(b.claim(Term(2), "suspicion").unwrap(), Verdict::Granted);
        assert_eq!(a.fence().ask(), Permission::Lost);
        assert_eq!(b.fence().ask(), Permission::Granted);
        assert!(matches!(a.claim(Term(2), "late"), Ok(Verdict::Denied(r)) if r.holder == "b"));
    }

    #[test]
    fn effects_wait_while_the_directory_is_away() {
        let dir = tempfile::tempdir().unwrap();
        let a = arbiter(dir.path(), "a");
        a.begin(false).unwrap();
        let (there, away) = (dir.path().join("vm"), dir.path().join("away"));
        fs::rename(&there, &away).unwrap();
        assert_eq!(a.fence().ask(), Permission::Unknown);
        assert!(a.fence().reason().contains("cannot look at"), "{}", a.fence().reason());
        // An empty directory, as a file system leaves that is not mounted.
        fs::create_dir(&there).unwrap();
        assert_eq!(a.fence().ask(), Permission::Unknown);
        fs::remove_dir(&there).unwrap();
        fs::rename(&away, &there).unwrap();
        assert_eq!(a.fence().ask(), Permission::Granted);
    }

    #[test]
    fn a_fresh_start_respects_the_holder_unless_it_seizes_or_the_machine_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (arbiter(dir.path(), "a"), arbiter(dir.path(), "b"));
        a.begin(false).unwrap();
        let refusal = b.begin(false).unwrap_err().to_string();
        assert!(refusal.contains("held by a") && refusal.contains("--seize"), "{refusal}");
        assert_eq!(b.begin(true).unwrap(), Term(2));
        b.end(Term(2)).unwrap();
        assert_eq!(a.begin(false).unwrap(), Term(3));
    }

    #[test]
    fn p2_a_directory_that_never_heard_of_the_machine_grants_nothing() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        arbiter(here.path(), "a").begin(false).unwrap();
        let refusal =
            arbiter(there.path(), "b").claim(Term(2), "suspicion").unwrap_err().to_string();
        assert!(refusal.contains("same directory"), "{refusal}");
    }

    #[test]
    fn a_machine_that_has_ended_is_not_brought_back_by_its_standby() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (arbiter(dir.path(), "a"), arbiter(dir.path(), "b"));
        let term = a.begin(false).unwrap();
        a.end(term).unwrap();
        assert!(matches!(b.claim(term.next(), "silence"), Ok(Verdict::Denied(_))));
    }

    #[test]
    fn p2_the_fence_stays_open_for_whoever_wins() {
        let dir = tempfile::tempdir().unwrap();
        let a = arbiter(dir.path(), "a");
        a.begin(false).unwrap();
        let fence = a.fence();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let answer = fence.ask();
                    assert_eq!(answer, Permission::Granted, "closed while its own holder wins");
                }
            });
            for term in 2..40 {
                assert_eq!(a.claim(Term(term), "again").unwrap(), Verdict::Granted);
            }
            stop.store(true, Ordering::SeqCst);
            watcher.join().unwrap();
        });
    }
}
