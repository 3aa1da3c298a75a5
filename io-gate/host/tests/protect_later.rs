//! P3: protection begins while a disk is in use. Earlier writes are flushed to the storage, and
//! later ones are in the storage when they complete. The test observes which pages of the image are
//! dirty in the host's page cache (cachestat(2)).
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use common::{DATA, DiskMachine, SECTORS, SLOT, image};
use io_gate::Port;
use io_gate::host::{Term, new_gate};
use io_gate_host::backend::disk::{Disk, DiskError, DiskOptions, Side};
use io_gate_host::disk_use::disk_lock::Use;
use io_gate_host::{Backend, Fence, GateHost, GateOptions, Permission};

fn dirty_pages(path: &Path) -> Option<u64> {
    common::volatile_pages(&File::open(path).unwrap())
}

#[test]
fn p3_what_completes_after_protection_has_begun_is_in_the_storage_and_all_before_it() {
    for direct in [false, true] {
        let image = image(SECTORS);
        let options = DiskOptions { lock: true, direct, ..DiskOptions::default() };
        let disk = match Disk::open(image.path(), options) {
            Err(DiskError::Direct { .. }) if direct => {
                return kemari_not_tested::not_tested("no O_DIRECT here");
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
            return kemari_not_tested::not_tested("this kernel has no cachestat");
        };
        assert!(direct || dirty > 0, "a driver that flushes has the page cache");
        // No other process may use the image before protection begins.
        let other = Disk::open(image.path(), DiskOptions::default()).unwrap();
        assert!(matches!(other.lock(Use::Pair), Err(DiskError::Locked { .. })));
        machine.gate.share_disk(SLOT, Port(0), true).unwrap();
        assert_eq!(dirty_pages(image.path()), Some(0), "cannot flush earlier writes");
        for sector in 1..4 {
            assert_eq!(write(&mut machine, sector), Some(0), "sector {sector}");
        }
        // The standby may lock it. A machine outside of the pair may not.
        other.lock(Use::Pair).unwrap();
        drop(other);
        let plain = DiskOptions { lock: true, ..DiskOptions::default() };
        let refused = Disk::open(image.path(), plain);
        assert!(matches!(refused, Err(DiskError::Locked { .. })), "{refused:?}");
        // Share it again, for the next session.
        machine.gate.share_disk(SLOT, Port(0), true).unwrap();
        assert!(machine.gate.share_disk(SLOT + 1, Port(0), true).is_err());
    }
}

/// Makes this thread behave as on a file system without locks (seccomp(2)).
fn no_locks() {
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    // The filter's input begins with the call's number. The second argument is at offset 24.
    let mut filter = [
        op(load, 0, 0, 0),
        op(equal, 0, 3, libc::SYS_fcntl as u32),
        op(load, 0, 0, 24),
        op(equal, 0, 1, libc::F_OFD_SETLK as u32),
        op(give, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOLCK as u32),
        op(give, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` and its filter live through the calls, of this thread only.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let set = libc::SECCOMP_SET_MODE_FILTER;
        assert_eq!(libc::syscall(libc::SYS_seccomp, set, 0, &raw const program), 0);
    }
}

/// A fence that always grants in its term.
struct InTerm;

impl Fence for InTerm {
    fn ask(&self) -> Permission {
        Permission::Granted
    }

    fn term(&self) -> Option<u64> {
        Some(1)
    }
}

/// P7: a machine whose disk is on a file system without locks may start, and can be protected,
/// because its terms keep other machines out.
#[test]
fn p7_a_file_system_without_locks_keeps_no_pair_from_being_protected() {
    std::thread::spawn(|| {
        no_locks();
        let image = image(SECTORS);
        let disk = Disk::open(image.path(), DiskOptions::default()).unwrap();
        for side in [Side::Active, Side::Successor, Side::Standby] {
            disk.share(side, true).unwrap();
            // Without terms nothing would keep another machine out.
            let refused = disk.share(side, false);
            assert!(matches!(refused, Err(DiskError::Lock { .. })), "{refused:?}");
        }
        let (ledger, _authority) = new_gate();
        let gate =
            GateHost::new(ledger, common::guest_memory(), Arc::new(InTerm), GateOptions::default())
                .unwrap();
        gate.attach(SLOT, Port(0), Backend::Disk(disk)).unwrap();
        gate.share_disk(SLOT, Port(0), true).unwrap();
    })
    .join()
    .unwrap();
}
