//! P3: protection that begins while a disk is in use. What was written before is brought to the storage, and what is written
//! after is there when it completes: seen by what the host's page cache has to write of the image (cachestat(2)).
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use common::{DATA, DiskMachine, SECTORS, SLOT, image};
use io_gate::Port;
use io_gate::host::Term;
use io_gate_host::backend::disk::{Disk, DiskError, DiskOptions};
use io_gate_host::backend::disk_lock::Use;

/// How many pages of a file are in this host's page cache only; none where the kernel cannot tell (before 6.5).
fn dirty_pages(path: &Path) -> Option<u64> {
    const SYS_CACHESTAT: libc::c_long = 451;
    let file = File::open(path).unwrap();
    let range = [0_u64; 2];
    // Cached, dirty, in writeback, evicted, recently evicted.
    let mut found = [0_u64; 5];
    // SAFETY: both arrays are of the sizes that the call wants, and live through it.
    let result = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), found.as_mut_ptr(), 0)
    };
    (result == 0).then(|| found[1] + found[2])
}

#[test]
fn p3_what_completes_after_protection_has_begun_is_in_the_storage_and_all_before_it() {
    for direct in [false, true] {
        let image = image(SECTORS);
        let options = DiskOptions { lock: true, direct, ..DiskOptions::default() };
        let disk = match Disk::open(image.path(), options) {
            Err(DiskError::Direct { .. }) if direct => {
                return eprintln!("skipped: no O_DIRECT here");
            }
            disk => disk.unwrap(),
        };
        let mut machine = DiskMachine::with(disk, 1);
        machine.gate.run_alone(machine.authority.alone(Term(0)));
        let write = |machine: &mut DiskMachine, sector| {
            machine.fill(DATA, &[sector as u8 + 1; 512]);
            let status = machine.write(sector, DATA, 512);
            let _ = machine.kick();
            let _ = machine.complete(1);
            assert_eq!(machine.status(status), 0);
            dirty_pages(image.path())
        };
        let Some(dirty) = write(&mut machine, 0) else {
            return eprintln!("skipped: this kernel has no cachestat");
        };
        assert!(direct || dirty > 0, "a driver that flushes has the page cache");
        // Nobody else has the image until then.
        let other = Disk::open(image.path(), DiskOptions::default()).unwrap();
        assert!(matches!(other.lock(Use::Pair), Err(DiskError::Locked { .. })));
        machine.gate.share_disk(SLOT, Port(0), true).unwrap();
        assert_eq!(dirty_pages(image.path()), Some(0), "what was written before");
        for sector in 1..4 {
            assert_eq!(write(&mut machine, sector), Some(0), "sector {sector}");
        }
        // The standby may have it open, a plain run may not.
        other.lock(Use::Pair).unwrap();
        drop(other);
        let plain = DiskOptions { lock: true, ..DiskOptions::default() };
        let refused = Disk::open(image.path(), plain);
        assert!(matches!(refused, Err(DiskError::Locked { .. })), "{refused:?}");
        // Again, for the next session.
        machine.gate.share_disk(SLOT, Port(0), true).unwrap();
        assert!(machine.gate.share_disk(SLOT + 1, Port(0), true).is_err());
    }
}
