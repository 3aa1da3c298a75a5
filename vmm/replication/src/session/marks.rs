//! Checks that both hosts use the same disk. For every session the primary writes a new mark beside
//! each image, and the standby reads the mark that it finds there.
//!
//! Path, size and inode number do not show this: a copy has the same size, and two hosts number the
//! files of a shared file system independently. Every host that uses the same directory sees a new
//! mark at once, and no earlier copy has it. The standby writes a counter-mark for the primary to
//! find: a live replica also gets what the primary writes, but the primary does not see what is
//! written to the replica. Marks are files of their own, because an image may hold any bytes and
//! some shared file systems have no extended attributes.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ft_core::handshake::{CounterMark, DiskStorage, FenceView, Storage};
use io_gate_host::disk_use::disk_fence::DiskFence;
use io_gate_host::own_files::{self, COUNTER_MARK_SUFFIX, MARK_SUFFIX};
use io_gate_host::ownership::{self, Maker, Opened, Sign};
use kemari_machine::config::{DiskConfig, FenceRecord, MachineConfig};
use kemari_machine::disks;
use kemari_support::given_file;
use kemari_support::random::random_id;

const SIGN: Sign = Sign { purpose: "disk mark", content: Some(is_mark) };
/// Upper bound for a mark's length in bytes.
const MAX_MARK: usize = 64;

/// A disk could not be marked.
#[derive(Debug, thiserror::Error)]
#[error(
    "disk {disk}: its mark {mark} cannot be written: {error}; without it the two sides cannot verify that they use \
    the same disk; make this path a writable file"
)]
pub(crate) struct MarkError {
    disk: PathBuf,
    mark: PathBuf,
    error: io::Error,
}

/// Writes a new mark for every disk that the guest can write. `fenced`: an arbiter gives terms, so
/// each disk has a fence record.
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
    // Not the standby's text for a missing record: two missing records do not show that the disk is
    // the same.
    each_disk(config, mark, |disk| {
        fence_view(disk, "expected the record of this machine, found none").filter(|_| fenced)
    })
}

/// Reads the marks that a primary has written.
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

/// As [`read_marks`], on a standby. Where a mark equals the primary's in `theirs`, it also writes a
/// counter-mark.
///
/// P2, P3: the writes of this side after a takeover must reach the primary's disk, not a replica of
/// it.
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
        // Write nothing beside another disk: the marks already show the difference to both sides.
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

/// Reads a standby's counter-marks, on the primary.
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

/// The places of a standby's counter-marks: beside the image, and beside a fence record that is
/// elsewhere. A block device has no place beside it.
fn counter_places(disk: &DiskConfig, fenced: bool) -> impl Iterator<Item = PathBuf> {
    let image = device_identity(&disk.path).is_none().then_some(&disk.path);
    let record = match &disk.fence {
        // A record in the default place counts as the default, because the other side may not have
        // named it.
        FenceRecord::At(record)
            if fenced && !(image.is_some() && is_beside(record, &disk.path)) =>
        {
            Some(record)
        }
        _ => None,
    };
    image.into_iter().chain(record).map(|path| beside(path, COUNTER_MARK_SUFFIX))
}

/// The disks that the guest can write. A disk that is only read may be a copy.
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

/// The content of a disk's fence record. `none` is the text for a missing record.
fn fence_view(disk: &DiskConfig, none: &str) -> Option<FenceView> {
    let path = disks::fence_record(disk)?;
    let says = match DiskFence::look(&path) {
        Ok(Some(claim)) => claim.to_string(),
        Ok(None) => none.to_owned(),
        Err(error) => error.to_string(),
    };
    Some(FenceView { place: path.display().to_string(), says })
}

/// Whether a record is in the image's default place.
fn is_beside(record: &Path, image: &Path) -> bool {
    let place = |path: &Path| {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = fs::canonicalize(directory.unwrap_or(Path::new("."))).ok()?;
        fs::canonicalize(path).ok().or_else(|| Some(directory.join(path.file_name()?)))
    };
    place(record).is_some_and(|record| Some(record) == place(&DiskFence::beside(image)))
}

/// Beside the image itself, not beside a symbolic link to it: each host may have its own link.
fn beside(disk: &Path, suffix: &str) -> PathBuf {
    let mut path = fs::canonicalize(disk).unwrap_or_else(|_| disk.to_owned()).into_os_string();
    path.push(suffix);
    path.into()
}

fn mark_path(disk: &Path) -> PathBuf {
    beside(disk, MARK_SUFFIX)
}

/// All mark files of a disk, each with its name for messages.
pub fn mark_files(disk: &DiskConfig) -> Vec<(&'static str, PathBuf)> {
    let counter = counter_places(disk, true).map(|place| ("counter-mark", place));
    std::iter::once(("mark", mark_path(&disk.path))).chain(counter).collect()
}

/// Writes a new random word into a mark.
fn write_mark(disk: &Path, path: &Path) -> Result<String, MarkError> {
    let write = || -> io::Result<String> {
        let mark = random_id();
        // Write in place and close: a later open sees the new word, on NFS too. Do not sync: the
        // mark is not needed after a power failure, and storage that is busy with other writes may
        // take seconds to sync while a primary waits.
        let mut file = open_mark(path)?;
        file.write_all(mark.as_bytes())?;
        file.set_len(mark.len() as u64)?;
        Ok(mark)
    };
    write().map_err(|error| MarkError { disk: disk.to_owned(), mark: path.to_owned(), error })
}

/// Opens a mark's file for overwriting. Refuses a file that is not a mark, because its owner may
/// need it.
fn open_mark(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    given_file::ask_server_of_name(path)?;
    // Two sides that begin at the same time may both open the file: the later mark counts.
    let Opened { mut file, maker, .. } = ownership::open_or_make(path, &options, &SIGN)?;
    let metadata = file.metadata()?;
    let is_ours = metadata.is_file() && (maker != Maker::Other || metadata.len() == 0);
    if !is_ours {
        let found = own_files::describe(&metadata);
        return Err(io::Error::other(format!(
            "expected a mark written by kemari, found {found}; it is left alone"
        )));
    }
    file.rewind()?;
    Ok(file)
}

/// 32 hexadecimal digits. An earlier release wrote them with hyphens (RFC 9562).
fn is_mark(head: &[u8]) -> bool {
    matches!(head.len(), 32 | 36)
        && head.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-')
}

/// The word in a mark, or why there is none.
fn read_mark(path: &Path) -> Result<String, String> {
    match given_file::ask_server_of_name(path).and_then(|()| given_file::read_text(path)) {
        Ok(mark) if mark.len() <= MAX_MARK => Ok(mark.trim().to_owned()),
        Ok(_) => Err(format!("no mark in {}", path.display())),
        Err(error) => Err(format!("no mark in {} ({error})", path.display())),
    }
}

/// The name of a block device, which is the same on every host: there is no place beside a device
/// for a mark.
fn device_identity(disk: &Path) -> Option<String> {
    let metadata = fs::metadata(disk).ok().filter(|data| data.file_type().is_block_device())?;
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let name = |file: &str| {
        let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{file}")).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let name = ["wwid", "device/wwid", "dm/uuid"].into_iter().find_map(name);
    // Two devices without a name compare as equal here. The handshake compares sizes.
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
        // A copy with all files beside it was made before the next session began, so it has an old
        // mark.
        for file in ["disk", "disk.kemari-mark"] {
            fs::copy(one.path().join(file), other.path().join(file)).unwrap();
        }
        let second = mark_disks(&machine(&disk, ""), false).unwrap();
        assert_ne!(second, first);
        assert_eq!(read_marks(&machine(&copy, ""), false), first);
        assert_eq!(read_marks(&machine(&disk, ""), false), second);
        assert!(mark_disks(&machine(&disk, ",readonly=on"), false).unwrap().is_empty());
        // A file with the name of a mark that is not a mark is kept.
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

    /// P3. No mark is written beside another disk, and no foreign file is overwritten.
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

    /// Fails if a named record counts as another one than the same record in its default place.
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

    /// Makes this thread unable to reach a server (`AT_STATX_FORCE_SYNC` fails).
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

    /// P3. Fails if a mark is read or written by the cached directory of a network file system's
    /// client.
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
