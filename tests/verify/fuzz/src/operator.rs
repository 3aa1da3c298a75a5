//! Input from an operator or a file: flags, kernels, alleged checkpoints, audit logs.

use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;

use kemari_arbiter::{ArbiterSpec, TermRecord};
use kemari_audit::{AuditSpec, Entry, HEADER_LEN, Header, RECORD_LEN};
use kemari_hypervisor::memory::{MemoryOptions, create};
use kemari_machine::boot::{BootConfig, load};
use kemari_machine::config::{ConsoleConfig, DeviceConfig, DiskConfig, MemoryConfig, NetConfig};
use kemari_replication::link::LinkAddr;
use kemari_replication::session::MachineState;
use kemari_vmm::control::Command;

use crate::Target;

pub(crate) const FLAGS: Target = Target {
    name: "flags",
    what: "the values of the command line's flags",
    run: run_flags,
    seeds: flag_seeds,
};

pub(crate) const KERNELS: Target = Target {
    name: "kernels",
    what: "kernels, initrds and command lines into guest memory, with the tables that firmware would make",
    run: run_kernels,
    seeds: kernel_seeds,
};

pub(crate) const CHECKPOINTS: Target = Target {
    name: "checkpoints",
    what: "the state of a machine as it comes over the link: vCPUs, KVM's chips, devices, requests in flight",
    run: run_checkpoints,
    seeds: || vec![vec![0; 200], (0..200).collect()],
};

pub(crate) const RECORDS: Target = Target {
    name: "records",
    what: "records of an audit log, of a term at the arbiter, and a command at the control socket",
    run: run_records,
    seeds: record_seeds,
};

fn run_flags(bytes: &[u8]) {
    fn parse<T: FromStr>(text: &str)
    where
        T::Err: std::fmt::Display,
    {
        // An error must have a text.
        if let Err(error) = text.parse::<T>() {
            let shown = error.to_string();
            assert!(!shown.is_empty(), "an error without a word");
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    parse::<MemoryConfig>(text);
    parse::<DiskConfig>(text);
    parse::<NetConfig>(text);
    parse::<DeviceConfig>(text);
    parse::<ConsoleConfig>(text);
    parse::<ArbiterSpec>(text);
    parse::<LinkAddr>(text);
    parse::<AuditSpec>(text);
}

fn flag_seeds() -> Vec<Vec<u8>> {
    [
        "512",
        "path=/x,readonly,serial=a,cache=writeback",
        "tap=t0,mac=52:54:00:00:00:01,model=e1000,offload=on",
        "stream=/s,mac=52:54:00:00:00:01",
        "pager,console=file=/x",
        "file=/x",
        "etcd:a:1,b:2",
        "file:/x",
        "unix:/s",
        "[::1]:7001",
        "/x,size=64MiB,keep=4",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

fn run_checkpoints(bytes: &[u8]) {
    let Ok(state) = postcard::from_bytes::<MachineState>(bytes) else { return };
    let again = state.encode().expect("what was read can be written");
    let back = postcard::from_bytes::<MachineState>(&again).expect("what was written can be read");
    assert_eq!(back.encode().ok(), Some(again));
}

/// A file of this thread with these contents.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().expect("a directory"));
    let thread = std::thread::current().id();
    let path = dir.path().join(format!("{name}-{thread:?}"));
    let mut file = std::fs::File::create(&path).expect("a file");
    file.write_all(bytes).expect("room for it");
    path
}

fn run_kernels(bytes: &[u8]) {
    let Some((split, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (kernel, initrd) = rest.split_at(usize::from(u16::from_le_bytes(*split)).min(rest.len()));
    let memory = create(MemoryOptions { size: 16 << 20, huge_pages: false }).expect("room");
    let (kernel, initrd) = (file("kernel", kernel), file("initrd", initrd));
    let config = BootConfig {
        kernel: &kernel,
        initrd: Some(&initrd),
        cmdline: "console=ttyS0",
        cpus: 2,
        windows: &[],
        pci: true,
    };
    drop(load(&memory, &config));
}

/// A small PVH image, the head of a bzImage, and invalid data.
fn kernel_seeds() -> Vec<Vec<u8>> {
    let mut pvh = b"\x7fELF\x02\x01\x01".to_vec();
    let mut put = |at: usize, bytes: &[u8]| {
        pvh.resize(pvh.len().max(at + bytes.len()), 0);
        pvh[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &0x10_0000_u64.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 2, 0]);
    for (at, kind, offset, address, len) in
        [(64, 1_u32, 0x100_u64, 0x10_0000_u64, 16_u64), (120, 4, 0x200, 0, 20)]
    {
        put(at, &kind.to_le_bytes());
        put(at + 4, &7_u32.to_le_bytes());
        for (index, field) in [offset, address, address, len, len, 4].into_iter().enumerate() {
            put(at + 8 + index * 8, &field.to_le_bytes());
        }
    }
    put(0x100, &[0xf4; 16]);
    for (index, word) in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0000].iter().enumerate() {
        put(0x200 + index * 4, &word.to_le_bytes());
    }
    let mut bz = vec![0; 0x600];
    bz[0x1f1] = 1;
    bz[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bz[0x202..0x206].copy_from_slice(b"HdrS");
    bz[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    bz[0x211] = 1;
    bz[0x236] = 1;
    [pvh, bz].map(|kernel| [vec![0xff, 0x0f], kernel].concat()).into()
}

fn run_records(bytes: &[u8]) {
    if let Some(record) = bytes.first_chunk::<RECORD_LEN>()
        && let Ok(entry) = Entry::decode(record)
    {
        assert_eq!(Entry::decode(&entry.encode()).as_ref(), Ok(&entry));
    }
    if let Some(header) = bytes.first_chunk::<HEADER_LEN>()
        && let Ok(header) = Header::decode(header)
    {
        assert_eq!(Header::decode(&header.encode()).as_ref(), Ok(&header));
    }
    drop(serde_json::from_slice::<Command>(bytes));
    if let Ok(record) = serde_json::from_slice::<TermRecord>(bytes) {
        let text = serde_json::to_vec(&record).expect("it can be written");
        assert_eq!(serde_json::from_slice::<TermRecord>(&text).ok(), Some(record));
    }
}

fn record_seeds() -> Vec<Vec<u8>> {
    let record =
        TermRecord { vm: "vm".into(), term: 2, holder: "a".into(), why: "test".into(), won_at: 7 };
    vec![
        vec![0; HEADER_LEN.max(RECORD_LEN)],
        serde_json::to_vec(&record).expect("it can be written"),
    ]
}
