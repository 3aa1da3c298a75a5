//! A disk that is read and written without the host's page cache (`direct=on`).
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{DATA, DiskMachine, SECTORS};
use io_gate::host::Term;
use io_gate_host::backend::disk::{Disk, DiskError, DiskOptions};
use tempfile::NamedTempFile;

const DIRECT: DiskOptions =
    DiskOptions { read_only: false, lock: false, write_through: false, direct: true };
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// An image of this size in bytes.
fn image(bytes: u64) -> NamedTempFile {
    let file = common::image(0);
    file.as_file().set_len(bytes).unwrap();
    file
}

fn open(image: &Path) -> Result<Disk, DiskError> {
    Disk::open(image, DIRECT)
}

/// Each of the guest's writes reaches its place, and nothing else changes.
#[test]
fn sectors_go_where_they_belong() {
    let image = image(SECTORS * 512);
    let mut machine = DiskMachine::with(open(image.path()).unwrap(), 1);
    machine.gate.run_alone(machine.authority.alone(Term(1)));
    let mut expected = vec![0; SECTORS as usize * 512];
    // The guest's buffer is not aligned. One write is larger than the buffer for direct I/O, and
    // one ends at the end of the disk.
    let places = [(3, 512), (8, 4096), (13, 1536), (100, 700 * 1024), (SECTORS - 1, 512)];
    for (fill, (sector, len)) in (1_u8..).zip(places) {
        let addr = DATA + 24;
        let bytes: Vec<u8> = (0..len).map(|at| fill ^ (at % 199) as u8).collect();
        machine.fill(addr, &bytes);
        // Two pieces: a gathered write.
        let (header, status) = machine.header(1, sector);
        let first = (len / 3) as u32;
        let rest = (addr + u64::from(first), len as u32 - first);
        machine.driver.add(&[header, (addr, first), rest], &[status]);
        let _ = machine.kick();
        let _ = machine.complete(1);
        assert_eq!(machine.status(status.0), 0);
        expected[sector as usize * 512..][..len].copy_from_slice(&bytes);
        assert!(std::fs::read(image.path()).unwrap() == expected, "{len} bytes at {sector}");
        machine.fill(addr, &vec![0; len]);
        let status = machine.read(sector, addr, len as u32);
        let _ = machine.kick();
        let _ = machine.complete(1);
        assert_eq!(machine.status(status), 0);
        assert!(machine.bytes(addr, len) == bytes, "{len} bytes read at {sector}");
    }
    for (kind, sector, sectors) in [(WRITE_ZEROES, 101_u64, 333_u32), (DISCARD, 9, 2)] {
        let segment =
            [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &0_u32.to_le_bytes()].concat();
        machine.fill(DATA, &segment);
        let (header, status) = machine.header(kind, 0);
        machine.driver.add(&[header, (DATA, 16)], &[status]);
        let _ = machine.kick();
        let _ = machine.complete(1);
        assert_eq!(machine.status(status.0), 0);
        expected[sector as usize * 512..][..sectors as usize * 512].fill(0);
        assert!(std::fs::read(image.path()).unwrap() == expected, "request {kind}");
    }
    assert_eq!(std::fs::metadata(image.path()).unwrap().len(), SECTORS * 512);
}

/// A file system without direct I/O is refused when the disk is opened, with advice.
#[test]
fn a_file_system_that_refuses_is_named() {
    let options = DiskOptions { read_only: true, ..DIRECT };
    let error = Disk::open(Path::new("/proc/cpuinfo"), options).unwrap_err();
    assert!(matches!(error, DiskError::Direct { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("/proc/cpuinfo") && text.contains("direct=on"), "{text}");
}

/// An image that ends with a partial block is refused: writing that block would make the image
/// larger.
#[test]
fn an_image_is_whole_blocks() {
    let image = image(512 * 9 + 100);
    let error = open(image.path()).unwrap_err();
    assert!(matches!(error, DiskError::Blocks { bytes: 4708, .. }), "{error}");
    assert!(error.to_string().contains("make the image larger"), "{error}");
}

/// A file system on a disk with 4096-byte sectors.
struct LargeSectors {
    dir: tempfile::TempDir,
    device: String,
}

impl LargeSectors {
    /// `None` if this process may not create one.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = dir.path().join("disk");
        std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        let run = |program: &str, arguments: &[&str]| -> Option<String> {
            let output = Command::new(program).args(arguments).output().ok()?;
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            output.status.success().then_some(said)
        };
        let device = run("losetup", &["--find", "--show", "-b", "4096", disk.to_str()?])?;
        let made = Self { dir, device };
        std::fs::create_dir(made.mount()).unwrap();
        run("mkfs.ext4", &["-q", &made.device])?;
        run("mount", &[&made.device, made.mount().to_str()?])?;
        Some(made)
    }

    fn mount(&self) -> PathBuf {
        self.dir.path().join("mount")
    }
}

impl Drop for LargeSectors {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.mount()).status();
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

/// A read of a hole does not reach the storage, so it shows nothing about the storage's block size.
#[test]
fn a_hole_does_not_hide_the_blocks_of_the_storage() {
    let Some(storage) = LargeSectors::new() else {
        kemari_not_tested::not_tested(
            "no file system can be made on a loop device (losetup, mkfs.ext4, mount)",
        );
        return;
    };
    let path = storage.mount().join("image");
    std::fs::File::create(&path).unwrap().set_len(SECTORS * 512).unwrap();
    let disk = open(&path).unwrap();
    assert_eq!(disk.direct_block(), Some(4096));
    let mut machine = DiskMachine::with(disk, 1);
    machine.gate.run_alone(machine.authority.alone(Term(1)));
    machine.fill(DATA, &[0x5a; 512]);
    let (header, status) = machine.header(1, 3);
    machine.driver.add(&[header, (DATA, 512)], &[status]);
    let _ = machine.kick();
    let _ = machine.complete(1);
    assert_eq!(machine.status(status.0), 0, "one sector of a block");
    drop(machine);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes[3 * 512..4 * 512] == [0x5a; 512] && bytes[..3 * 512] == [0; 3 * 512]);
}
