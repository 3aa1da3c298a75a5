//! What only the directory of a `file:` arbiter can show: files of earlier releases, damage, lost
//! answers, and another process between two files.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::{fs, io};

use ft_core::disks::set::SetRecord;
use ft_core::disks::{DiskId, Generation, ImageIdentity, Lineage, PairId, Seq, Sidecar, State};
use io_gate_host::Permission;
use kemari_support::given_file::read_up_to;

use super::super::directory::{Directory, HostDirectory};
use super::super::records::{set_name, term_name};
use super::*;
use crate::Arbiter as _;

const A: DiskId = DiskId(1);
const B: DiskId = DiskId(2);

fn member(disk: DiskId) -> Member {
    Member { host: format!("host {}", disk.0), disk }
}

fn generation(term: u64) -> Generation {
    Generation { term, id: 5 }
}

fn start(disk: DiskId, term: u64) -> ImageStart {
    let sidecar = Sidecar {
        pair: PairId(1),
        disk,
        lineage: Lineage::new(generation(term - 1)),
        pending: None,
        durable: Seq(0),
        state: State::Whole,
        peer: None,
        image: ImageIdentity { inode: 1, filesystem: 1, size: 1 },
    };
    let (member, next) = (member(disk), generation(term));
    ImageStart { member, sidecar, next, seize: false, force: None }
}

fn claim(disk: DiskId, term: u64) -> ImageClaim {
    let (current, next) = (generation(term - 1), generation(term));
    ImageClaim { member: member(disk), current, next }
}

fn both() -> SetVerdict {
    let (generation, members) = (generation(1), vec![member(A), member(B)]);
    SetVerdict::Recorded(SetRecord { term: 1, holder: "a".to_owned(), generation, members })
}

fn arbiter(dir: &Path, holder: &str) -> FileArbiter {
    FileArbiter::open(dir, "vm", holder.to_owned()).unwrap()
}

fn file(dir: &Path, name: &str) -> PathBuf {
    dir.join("vm").join(name)
}

/// R7. The release before own disks reads up to 64 KiB of a record, and passes over a damaged one
/// with `--seize`, not over one that it does not read. Fails if a record with a set is as short as
/// one without.
#[test]
fn r7_a_record_with_a_set_is_longer_than_an_earlier_release_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (arbiter(dir.path(), "a"), arbiter(dir.path(), "b"));
    a.begin_image(&start(A, 1)).unwrap();
    let record = file(dir.path(), &term_name(Term(1)));
    let error = read_up_to(&record, 64 << 10).unwrap_err();
    assert!(error.to_string().contains("at most 65536 bytes"), "{error}");
    // This release reads it, and its mark of a later term.
    assert_eq!(a.fence().ask(), Permission::Granted);
    assert_eq!(a.enlarge(Term(1), &member(B)).unwrap(), both());
    assert_eq!(a.fence().ask(), Permission::Granted);
    b.follow(Term(1), "a");
    let won = b.claim_image(&claim(B, 2), "a test").unwrap();
    assert!(matches!(won, SetVerdict::Recorded(_)), "{won:?}");
    let (_, succeeded) = a.records.term_and_succeeded(Term(1)).unwrap().unwrap();
    assert!(succeeded);
    assert_eq!((a.fence().ask(), b.fence().ask()), (Permission::Lost, Permission::Granted));
}

/// R7: fails if `--seize` passes over the damaged record of a machine with own disks.
#[test]
fn r7_a_damaged_record_with_a_set_is_not_seized() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (arbiter(dir.path(), "a"), arbiter(dir.path(), "b"));
    a.begin_image(&start(A, 1)).unwrap();
    let record = file(dir.path(), &term_name(Term(1)));
    let mut text = fs::read(&record).unwrap();
    let at = text.iter().position(|byte| *byte == b'{').unwrap();
    text[at] = b'x';
    fs::write(&record, text).unwrap();
    let seizes = ImageStart { seize: true, force: Some(1), ..start(A, 2) };
    for error in [b.begin(true).unwrap_err(), b.begin_image(&seizes).unwrap_err()] {
        assert!(matches!(error, ArbiterError::SetRecord { .. }), "{error}");
        assert!(error.to_string().contains("Restore the file"), "{error}");
    }
}

/// R6: a set is of one term and one holder. A file that the directory's past left behind is not
/// taken for it.
#[test]
fn r6_an_enlargement_that_does_not_fit_its_term_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (arbiter(dir.path(), "a"), arbiter(dir.path(), "b"));
    a.begin_image(&start(A, 1)).unwrap();
    a.enlarge(Term(1), &member(B)).unwrap();
    b.follow(Term(1), "a");
    let set = file(dir.path(), &set_name(Term(1)));
    let text = fs::read_to_string(&set).unwrap();
    let others = [
        text.replace("\"a\"", "\"z\""),
        text.replace("\"id\": 5", "\"id\": 6"),
        text.replace("\"term\": 1", "\"term\": 2"),
        text.replace("\"disk\": 1", "\"disk\": 3"),
        text[..text.len() / 2].to_owned(),
    ];
    for other in others {
        assert_ne!(other, text);
        fs::write(&set, &other).unwrap();
        let error = b.claim_image(&claim(B, 2), "a test").unwrap_err();
        assert!(matches!(error, ArbiterError::SetRecord { .. }), "{error}");
        assert!(a.enlarge(Term(1), &member(B)).is_err());
    }
    fs::write(&set, text).unwrap();
    assert_eq!(a.enlarge(Term(1), &member(B)).unwrap(), both());
}

/// What happens to the creation of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Creation {
    /// The file is created, and the answer says that it is not: as over NFS.
    AnswerLost,
    /// Nothing is created.
    Fails,
    /// Another process wins the next term before it.
    Late,
    /// Another process wins the next term after it.
    Overtaken,
}

#[derive(Debug)]
struct Disturbed {
    host: HostDirectory,
    base: PathBuf,
    creation: Mutex<Option<Creation>>,
}

impl Disturbed {
    fn another_wins(&self) {
        let forced = ImageStart { seize: true, force: Some(1), ..start(DiskId(9), 2) };
        let won = arbiter(&self.base, "other").begin_image(&forced).unwrap();
        assert!(matches!(won, SetVerdict::Recorded(_)), "{won:?}");
    }
}

impl Directory for Disturbed {
    fn path(&self) -> &Path {
        self.host.path()
    }
    fn place(&self) -> io::Result<(u64, u64)> {
        self.host.place()
    }
    fn names(&self) -> io::Result<Vec<String>> {
        self.host.names()
    }
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.host.read(name)
    }
    fn create(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let here = name == set_name(Term(1));
        let creation = here.then(|| self.creation.lock().unwrap().take()).flatten();
        match creation {
            Some(Creation::Fails) => return Err(io::ErrorKind::TimedOut.into()),
            Some(Creation::Late) => self.another_wins(),
            _ => {}
        }
        let created = self.host.create(name, bytes);
        match creation {
            Some(Creation::AnswerLost) => return Err(io::ErrorKind::AlreadyExists.into()),
            Some(Creation::Overtaken) => self.another_wins(),
            _ => {}
        }
        created
    }
    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.host.append(name, bytes)
    }
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.host.replace(name, bytes)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.host.remove(name)
    }
}

/// R6: the file decides whether the set was enlarged. An enlargement that is not before the next
/// term says that the term is over.
#[test]
fn r6_an_enlargement_is_what_the_directory_says_in_its_term() {
    for creation in [Creation::AnswerLost, Creation::Fails, Creation::Late, Creation::Overtaken] {
        let dir = tempfile::tempdir().unwrap();
        let host = HostDirectory::open(dir.path(), "vm").unwrap();
        let (base, creation_once) = (dir.path().to_owned(), Mutex::new(Some(creation)));
        let directory = Disturbed { host, base, creation: creation_once };
        let a = FileArbiter::open_directory(Arc::new(directory), "vm", "a".to_owned()).unwrap();
        a.begin_image(&start(A, 1)).unwrap();
        let answer = a.enlarge(Term(1), &member(B));
        match creation {
            Creation::AnswerLost => assert_eq!(answer.unwrap(), both()),
            Creation::Fails => {
                let error = answer.unwrap_err();
                assert!(error.to_string().contains("cannot enlarge the set"), "{error}");
                assert_eq!(a.enlarge(Term(1), &member(B)).unwrap(), both());
            }
            Creation::Late | Creation::Overtaken => {
                let answer = answer.unwrap();
                assert!(
                    matches!(&answer, SetVerdict::Denied(record) if record.holder == "other"),
                    "{creation:?}: {answer:?}"
                );
            }
        }
    }
}
