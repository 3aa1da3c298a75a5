//! Whether both hosts see the same disk: the primary leaves a mark beside each image that is new for every session, and the
//! standby reads what it finds there.
//!
//! Neither the path, nor the size, nor the inode number tells: a copy has the same size, and two hosts number the files of
//! a shared file system as they like. A mark that was written a moment ago is found by whoever sees the same directory, and
//! in no copy, since that was made earlier. The standby leaves another for the primary to find, the counter-mark: a replica that
//! is kept up has all that the primary writes, but what is written to the replica is not seen by the primary. They are files of
//! their own because an image may be any bytes, and because not all file systems that are shared have extended attributes.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ft_core::handshake::{CounterMark, DiskStorage, FenceView, Storage};
use io_gate_host::backend::disk_fence::DiskFence;
use io_gate_host::own_files::{self, COUNTER_MARK_SUFFIX, MARK_SUFFIX};
use io_gate_host::ownership::{self, Maker, Opened, Sign};
use kemari_support::given_file;
use kemari_support::random::random_id;

use super::disks;
use crate::config::{DiskConfig, FenceRecord, MachineConfig};

const SIGN: Sign = Sign { purpose: "disk mark", content: Some(is_mark) };
/// Longer than any mark.
const MAX_MARK: usize = 64;

/// A disk could not be marked.
#[derive(Debug, thiserror::Error)]
#[error(
    "disk {disk}: its mark {mark} cannot be written: {error}; the two sides can only tell by it that they see the same disk: have it be a file that can be written to"
)]
pub(crate) struct MarkError {
    disk: PathBuf,
    mark: PathBuf,
    error: io::Error,
}

/// Marks every disk that the guest can write, anew. `fenced`: there are terms, and records beside the disks have been written.
///
/// # Errors
/// When a mark cannot be written.
pub(crate) fn mark_disks(
    config: &MachineConfig,
    fenced: bool,
) -> Result<Vec<DiskStorage>, MarkError> {
    let mark = |path: &Path| match device_identity(path) {
        Some(identity) => Ok(identity),
        None => write_mark(path, &mark_path(path)).map(|mark| format!("mark {mark}")),
    };
    // Not what a standby says that finds none either: two files that are not there are not the same.
    each_disk(config, mark, |disk| {
        fence_view(disk, "expected the record of this machine, found none").filter(|_| fenced)
    })
}

/// Reads what a primary has left.
#[must_use]
pub(crate) fn read_marks(config: &MachineConfig, fenced: bool) -> Vec<DiskStorage> {
    let read = |path: &Path| -> Result<String, std::convert::Infallible> {
        let mark =
            || read_mark(&mark_path(path)).map_or_else(|none| none, |mark| format!("mark {mark}"));
        Ok(device_identity(path).unwrap_or_else(mark))
    };
    match each_disk(config, read, |disk| fence_view(disk, "no record").filter(|_| fenced)) {
        Ok(disks) => disks,
        Err(never) => match never {},
    }
}

/// As [`read_marks`], of a standby: where it finds what the primary has left, `theirs`, it leaves a word of its own.
///
/// P2, P3: what this side would write after a takeover is to reach the primary's disk, not a replica of it.
///
/// # Errors
/// When a counter-mark cannot be written.
pub(crate) fn answer_marks(
    config: &MachineConfig,
    fenced: bool,
    theirs: &[DiskStorage],
) -> Result<Vec<DiskStorage>, MarkError> {
    let mut disks = read_marks(config, fenced);
    for (ours, (_, disk)) in disks.iter_mut().zip(written(config)) {
        // Nothing is left beside what is another disk: both sides say so by what was read.
        let is_same = theirs.iter().any(|theirs| {
            theirs.slot == ours.slot
                && theirs.storage == ours.storage
                && theirs.fence.as_ref().map(|view| &view.says)
                    == ours.fence.as_ref().map(|view| &view.says)
        });
        if is_same {
            let leave = |place: PathBuf| {
                let word = write_mark(&disk.path, &place)?;
                Ok(CounterMark { place: place.display().to_string(), word })
            };
            ours.counter_marks =
                counter_places(disk, fenced).map(leave).collect::<Result<_, _>>()?;
        }
    }
    Ok(disks)
}

/// What this side, which is the primary, finds of a standby's counter-marks.
#[must_use]
pub(crate) fn read_counter_marks(config: &MachineConfig, fenced: bool) -> Vec<DiskStorage> {
    let mut disks = read_marks(config, fenced);
    for (ours, (_, disk)) in disks.iter_mut().zip(written(config)) {
        let read = |place: PathBuf| {
            let word = read_mark(&place).unwrap_or_else(|none| none);
            CounterMark { place: place.display().to_string(), word }
        };
        ours.counter_marks = counter_places(disk, fenced).map(read).collect();
    }
    disks
}

/// Where a standby leaves its counter-marks: beside the image, and beside a record that is elsewhere. A block device has no
/// place for one.
fn counter_places(disk: &DiskConfig, fenced: bool) -> impl Iterator<Item = PathBuf> {
    let image = device_identity(&disk.path).is_none().then_some(&disk.path);
    let record = match &disk.fence {
        // What has the default's place is the default, whether it is said or not: the other side may not have said it.
        FenceRecord::At(record)
            if fenced && !(image.is_some() && is_beside(record, &disk.path)) =>
        {
            Some(record)
        }
        _ => None,
    };
    image.into_iter().chain(record).map(|path| beside(path, COUNTER_MARK_SUFFIX))
}

/// The disks that the guest can write: one that nobody writes may as well be a copy.
fn written(config: &MachineConfig) -> impl Iterator<Item = (u16, &DiskConfig)> {
    config.disks().filter(|(_, disk)| !disk.read_only)
}

fn each_disk<E>(
    config: &MachineConfig,
    mut mark: impl FnMut(&Path) -> Result<String, E>,
    fence: impl Fn(&DiskConfig) -> Option<FenceView>,
) -> Result<Vec<DiskStorage>, E> {
    written(config)
        .map(|(slot, disk)| {
            let storage = Storage::Shared { mark: mark(&disk.path)? };
            Ok(DiskStorage { slot, storage, fence: fence(disk), counter_marks: Vec::new() })
        })
        .collect()
}

/// What the record of who may write to a disk says here; `none`: what to say where there is none.
fn fence_view(disk: &DiskConfig, none: &str) -> Option<FenceView> {
    let path = disks::fence_record(disk)?;
    let says = match DiskFence::look(&path) {
        Ok(Some(claim)) => claim.to_string(),
        Ok(None) => none.to_owned(),
        Err(error) => error.to_string(),
    };
    Some(FenceView { place: path.display().to_string(), says })
}

/// Whether a record is the one that the image has where none is named.
fn is_beside(record: &Path, image: &Path) -> bool {
    let place = |path: &Path| {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = fs::canonicalize(directory.unwrap_or(Path::new("."))).ok()?;
        fs::canonicalize(path).ok().or_else(|| Some(directory.join(path.file_name()?)))
    };
    place(record).is_some_and(|record| Some(record) == place(&DiskFence::beside(image)))
}

/// Beside the image itself: each host may have a symbolic link of its own to it.
fn beside(disk: &Path, suffix: &str) -> PathBuf {
    let mut path = fs::canonicalize(disk).unwrap_or_else(|_| disk.to_owned()).into_os_string();
    path.push(suffix);
    path.into()
}

fn mark_path(disk: &Path) -> PathBuf {
    beside(disk, MARK_SUFFIX)
}

/// Every file that is made beside a disk to tell whether both sides see it, and what it is called.
pub(crate) fn mark_files(disk: &DiskConfig) -> Vec<(&'static str, PathBuf)> {
    let counter = counter_places(disk, true).map(|place| ("counter-mark", place));
    std::iter::once(("mark", mark_path(&disk.path))).chain(counter).collect()
}

/// Leaves a new word in a mark.
fn write_mark(disk: &Path, path: &Path) -> Result<String, MarkError> {
    let write = || -> io::Result<String> {
        let mark = random_id();
        // Written in place and closed: what is opened after that shows it, on NFS too. Nobody needs it after a power failure,
        // so it is not synced: storage that is busy with other writes may take seconds for that, and a primary waits.
        let mut file = open_mark(path)?;
        file.write_all(mark.as_bytes())?;
        file.set_len(mark.len() as u64)?;
        Ok(mark)
    };
    write().map_err(|error| MarkError { disk: disk.to_owned(), mark: path.to_owned(), error })
}

/// The file of a mark, to be written over. Nothing but a mark is: something else of this name may be
/// what nobody wants to lose.
fn open_mark(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    given_file::ask_server_of_name(path)?;
    // Two sides that begin at once may both have it: the later mark counts.
    let Opened { mut file, maker, .. } = ownership::open_or_make(path, &options, &SIGN)?;
    let metadata = file.metadata()?;
    let is_ours = metadata.is_file() && (maker != Maker::Other || metadata.len() == 0);
    if !is_ours {
        let found = own_files::describe(&metadata);
        return Err(io::Error::other(format!(
            "expected a mark of kemari's, found {found}, which is left alone"
        )));
    }
    file.rewind()?;
    Ok(file)
}

/// 32 hexadecimal digits; of an earlier release with hyphens (RFC 9562).
fn is_mark(head: &[u8]) -> bool {
    matches!(head.len(), 32 | 36)
        && head.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-')
}

/// The word in a mark, or what is there instead.
fn read_mark(path: &Path) -> Result<String, String> {
    match given_file::ask_server_of_name(path).and_then(|()| given_file::read_text(path)) {
        Ok(mark) if mark.len() <= MAX_MARK => Ok(mark.trim().to_owned()),
        Ok(_) => Err(format!("no mark in {}", path.display())),
        Err(error) => Err(format!("no mark in {} ({error})", path.display())),
    }
}

/// What a block device is called wherever it is attached to: there is no place beside it for a mark.
fn device_identity(disk: &Path) -> Option<String> {
    let metadata = fs::metadata(disk).ok().filter(|data| data.file_type().is_block_device())?;
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let name = |file: &str| {
        let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{file}")).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let name = ["wwid", "device/wwid", "dm/uuid"].into_iter().find_map(name);
    // Without one nothing can be compared; sizes are, elsewhere.
    Some(name.map_or("block device without a name".to_owned(), |name| format!("device {name}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::collections::BTreeMap;

    use ft_core::handshake::compare_disk_counter_marks;
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    };

    use super::*;

    fn machine(disk: &Path, flags: &str) -> MachineConfig {
        MachineConfig {
            disks: vec![format!("path={}{flags}", disk.display()).parse().unwrap()],
            ..MachineConfig::bare("vm", 16 << 20, 1)
        }
    }

    #[test]
    fn a_copy_is_told_from_the_disk_itself() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (disk, copy) = (one.path().join("disk"), other.path().join("disk"));
        let link = other.path().join("link");
        fs::write(&disk, [0; 512]).unwrap();
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        let first = mark_disks(&machine(&disk, ""), false).unwrap();
        assert_eq!(first, read_marks(&machine(&disk, ""), false));
        assert_eq!(first, read_marks(&machine(&link, ""), false));
        // Even a copy with everything beside it was made before the next session began.
        for file in ["disk", "disk.kemari-mark"] {
            fs::copy(one.path().join(file), other.path().join(file)).unwrap();
        }
        let second = mark_disks(&machine(&disk, ""), false).unwrap();
        assert_ne!(second, first);
        assert_eq!(read_marks(&machine(&copy, ""), false), first);
        assert_eq!(read_marks(&machine(&disk, ""), false), second);
        assert!(mark_disks(&machine(&disk, ",readonly=on"), false).unwrap().is_empty());
        // What has the name of a mark and is none is kept.
        let mark = one.path().join("disk.kemari-mark");
        for others in [&[7; 512][..], b"42", b"cafe-1"] {
            fs::remove_file(&mark).unwrap();
            fs::write(&mark, others).unwrap();
            let other = mark_disks(&machine(&disk, ""), false).unwrap_err().to_string();
            assert!(other.contains("found a regular file of"), "{other}");
            assert_eq!(fs::read(&mark).unwrap(), others);
        }
        let nowhere = mark_disks(&machine(Path::new("/nowhere/disk"), ""), false).unwrap_err();
        assert!(nowhere.to_string().contains("/nowhere/disk.kemari-mark"), "{nowhere}");
    }

    /// P3. Nothing is left beside what is another disk, and nothing of others is written over.
    #[test]
    fn what_a_standby_leaves_is_found_beside_the_same_disk_only() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (disk, copy) = (one.path().join("disk"), other.path().join("disk"));
        fs::write(&disk, [0; 512]).unwrap();
        fs::write(&copy, [0; 512]).unwrap();
        let words = |disks: Vec<DiskStorage>| -> Vec<String> {
            let marks = disks.into_iter().flat_map(|disk| disk.counter_marks);
            marks.map(|mark| mark.word).collect()
        };
        let (ours, read_only) = (machine(&disk, ""), machine(&disk, ",readonly=on"));
        let theirs = mark_disks(&ours, false).unwrap();
        let former = words(answer_marks(&ours, false, &theirs).unwrap());
        assert_eq!(words(read_counter_marks(&ours, false)), former);
        let left = words(answer_marks(&ours, false, &theirs).unwrap());
        assert_eq!(words(read_counter_marks(&ours, false)), left);
        assert!(left.len() == 1 && left != former);
        assert!(answer_marks(&read_only, false, &theirs).unwrap().is_empty());
        let left = answer_marks(&machine(&copy, ""), false, &theirs).unwrap();
        assert_eq!(words(left), [""; 0]);
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1);

        let place = one.path().join("disk.kemari-counter-mark");
        fs::write(&place, "somebody's notes").unwrap();
        let refused = answer_marks(&ours, false, &theirs).unwrap_err().to_string();
        assert!(
            refused.contains("kemari-counter-mark") && refused.contains("left alone"),
            "{refused}"
        );
        assert_eq!(fs::read(&place).unwrap(), b"somebody's notes");
    }

    /// Fails where a record that is named counts as another one than the same record that is not.
    #[test]
    fn a_record_that_is_named_as_it_is_called_anyway_is_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, link) = (dir.path().join("disk"), dir.path().join("link"));
        fs::write(&disk, [0; 512]).unwrap();
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let unnamed = machine(&disk, "");
        for directory in [dir.path(), &link] {
            let record = directory.join("disk.kemari-fence");
            let named = machine(&disk, &format!(",fence={}", record.display()));
            DiskFence::open(&record, "vm").unwrap().claim(1, "primary").unwrap();
            for (primary, standby) in [(&unnamed, &named), (&named, &unnamed)] {
                let theirs = mark_disks(primary, true).unwrap();
                let left = answer_marks(standby, true, &theirs).unwrap();
                compare_disk_counter_marks(&read_counter_marks(primary, true), &left).unwrap();
            }
        }
        let elsewhere = dir.path().join("elsewhere");
        let elsewhere = machine(&disk, &format!(",fence={}", elsewhere.display()));
        assert_eq!(mark_files(&elsewhere.disks[0]).len(), 3);
        assert_eq!(mark_files(&unnamed.disks[0]).len(), 2);
    }

    /// Has this thread find no server that could be asked (`AT_STATX_FORCE_SYNC`).
    fn without_a_server() {
        const FLAGS: u8 = 2;
        let sync = u64::from(libc::AT_STATX_FORCE_SYNC.cast_unsigned());
        let asks = SeccompCondition::new(
            FLAGS,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(sync),
            sync,
        );
        let rule = SeccompRule::new(vec![asks.unwrap()]).unwrap();
        let stale = SeccompAction::Errno(libc::ESTALE.cast_unsigned());
        let filter = SeccompFilter::new(
            BTreeMap::from([(libc::SYS_statx, vec![rule])]),
            SeccompAction::Allow,
            stale,
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let filter: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&filter).unwrap();
    }

    /// P3. Fails where a mark is looked for, or left, by what a network file system's client remembers of its directory.
    #[test]
    fn the_server_is_asked_for_a_mark() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        fs::write(&disk, [0; 512]).unwrap();
        let config = machine(&disk, "");
        let theirs = mark_disks(&config, false).unwrap();
        answer_marks(&config, false, &theirs).unwrap();
        let asked = std::thread::spawn(move || {
            without_a_server();
            let found = read_counter_marks(&config, false);
            let Storage::Shared { mark } = &found[0].storage;
            let words = [mark.clone(), found[0].counter_marks[0].word.clone()];
            (words, mark_disks(&config, false).unwrap_err().to_string())
        });
        let (words, refused) = asked.join().unwrap();
        for said in words.iter().chain([&refused]) {
            assert!(said.contains("os error 116"), "{said}");
        }
    }
}
