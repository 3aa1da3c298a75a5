//! What a driver must not do, tested through the registers of virtio-mmio (virtio 1.2, 2.1, 2.2,
//! 2.7, 3.1 and 4.2): it is refused at once, never replaced by something else, and guest memory
//! does not change.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::sync::Arc;

use io_gate::host::new_gate;
use io_gate_host::Unfenced;
use kemari_hypervisor::memory::GuestMemory;
use kemari_machine::config::{ConsoleConfig, MachineConfig};
use kemari_machine::{Machine, VirtioMmio};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;
use vm_memory::{Bytes, GuestAddress};

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;
const NEGOTIATED: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
const UP: u32 = NEGOTIATED | DRIVER_OK;

const VERSION_1: u64 = 1 << 32;
const INDIRECT_DESC: u64 = 1 << 28;

const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const STATUS: u64 = 0x70;
const DESC: u64 = 0x80;
const AVAIL: u64 = 0x90;
const USED: u64 = 0xa0;

const MEMORY: u64 = 4 << 20;
/// The queue of a correct driver.
const QUEUE: u64 = 0x10_0000;
const BUFFER: u64 = 0x20_0000;
/// Fills guest memory, so that every write shows.
const POISON: u8 = 0xa5;

struct Bench {
    machine: Arc<Machine>,
    _dir: tempfile::TempDir,
}

fn config(dir: &Path) -> MachineConfig {
    let disk = dir.join("disk.img");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    MachineConfig {
        disks: vec![format!("path={},serial=abc", disk.display()).parse().unwrap()],
        nets: vec![
            format!("stream={},mac=52:54:00:12:34:56,queues=2", dir.join("net").display())
                .parse()
                .unwrap(),
        ],
        rng: true,
        virtio_console: Some(ConsoleConfig::None),
        devices: vec!["beeper".parse().unwrap()],
        ..MachineConfig::bare("test", MEMORY, 1)
    }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, mut authority) = new_gate();
        let machine = Machine::build(config(dir.path()), ledger, Arc::new(Unfenced)).unwrap();
        machine.gate().run_alone(authority.alone(io_gate::host::Term(0)));
        Self { machine, _dir: dir }
    }

    fn memory(&self) -> &GuestMemory {
        self.machine.memory()
    }

    /// Its devices: disk, network, random bytes, console, beeper.
    fn devices(&self) -> Vec<&VirtioMmio> {
        self.machine.devices().virtio().iter().map(|device| &**device).collect()
    }

    fn disk(&self) -> &VirtioMmio {
        self.devices()[0]
    }

    fn poison(&self) {
        let page = vec![POISON; 1 << 20];
        for addr in (0..MEMORY).step_by(page.len()) {
            self.memory().write_slice(&page, GuestAddress(addr)).unwrap();
        }
    }

    /// The addresses that were written.
    fn touched(&self) -> Vec<u64> {
        let (mut page, poison) = (vec![0; 1 << 20], vec![POISON; 1 << 20]);
        let mut found = Vec::new();
        for addr in (0..MEMORY).step_by(page.len()) {
            self.memory().read_slice(&mut page, GuestAddress(addr)).unwrap();
            if page == poison {
                continue;
            }
            let here = page.iter().enumerate().filter(|(_, byte)| **byte != POISON);
            found.extend(here.map(|(at, _)| addr + at as u64));
        }
        found
    }
}

fn read(device: &VirtioMmio, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    device.mmio_read(MmioAddress(device.window().base), offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn write(device: &VirtioMmio, offset: u64, value: u32) {
    device.mmio_write(MmioAddress(device.window().base), offset, &value.to_le_bytes());
}

fn write_address(device: &VirtioMmio, offset: u64, address: u64) {
    write(device, offset, address as u32);
    write(device, offset + 4, (address >> 32) as u32);
}

fn status(device: &VirtioMmio) -> u32 {
    read(device, STATUS)
}

fn set_features(device: &VirtioMmio, features: u64) {
    for half in [0, 1] {
        write(device, 0x24, half);
        write(device, 0x20, (features >> (32 * half)) as u32);
    }
}

fn offered(device: &VirtioMmio) -> u64 {
    device.features()
}

/// From reset to FEATURES_OK with these features.
fn negotiate(device: &VirtioMmio, features: u64) {
    write(device, STATUS, 0);
    write(device, STATUS, ACKNOWLEDGE);
    write(device, STATUS, ACKNOWLEDGE | DRIVER);
    set_features(device, features);
    write(device, STATUS, NEGOTIATED);
}

/// The parameters of a queue.
#[derive(Clone, Copy)]
struct SetUp {
    size: u32,
    desc: u64,
    avail: u64,
    used: u64,
}

const GOOD: SetUp = SetUp { size: 16, desc: QUEUE, avail: QUEUE + 0x1000, used: QUEUE + 0x2000 };

impl SetUp {
    fn write_to(self, device: &VirtioMmio, queue: u32) {
        write(device, QUEUE_SEL, queue);
        write(device, QUEUE_NUM, self.size);
        write_address(device, DESC, self.desc);
        write_address(device, AVAIL, self.avail);
        write_address(device, USED, self.used);
        write(device, QUEUE_READY, 1);
    }
}

/// The status advances by the steps of 3.1.1 and by no others (2.1.1, 2.1.2).
#[test]
fn the_status_follows_its_steps() {
    let bench = Bench::new();
    for device in bench.devices() {
        // The values written one after the other, and the status after them.
        for (writes, expected) in [
            (&[ACKNOWLEDGE][..], ACKNOWLEDGE),
            (&[DRIVER], 0),
            (&[ACKNOWLEDGE, ACKNOWLEDGE | DRIVER], ACKNOWLEDGE | DRIVER),
            (&[FEATURES_OK], 0),
            (&[ACKNOWLEDGE, ACKNOWLEDGE | FEATURES_OK], ACKNOWLEDGE),
            (&[DRIVER_OK], 0),
            (&[ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | DRIVER_OK], ACKNOWLEDGE | DRIVER),
            (&[ACKNOWLEDGE | DRIVER_OK | FEATURES_OK], ACKNOWLEDGE),
            // In one write, for drivers that do not read the status in between.
            (&[NEGOTIATED], NEGOTIATED),
            (&[UP], UP),
            // Bits cannot be cleared one by one.
            (&[UP, ACKNOWLEDGE], UP),
            // Bits that only the device sets, and bits that do not exist.
            (&[ACKNOWLEDGE | NEEDS_RESET], ACKNOWLEDGE),
            (&[ACKNOWLEDGE | 16 | 32 | 1 << 8 | 1 << 31], ACKNOWLEDGE),
            // A driver that has given up does not get further before it resets the device.
            (&[ACKNOWLEDGE | DRIVER | FAILED], ACKNOWLEDGE | DRIVER | FAILED),
            (&[ACKNOWLEDGE | DRIVER | FAILED, UP | FAILED], ACKNOWLEDGE | DRIVER | FAILED),
            (&[NEGOTIATED, NEGOTIATED | FAILED, UP | FAILED], NEGOTIATED | FAILED),
            (&[FAILED], FAILED),
        ] {
            write(device, STATUS, 0);
            set_features(device, VERSION_1);
            for value in writes {
                write(device, STATUS, *value);
            }
            assert_eq!(status(device), expected, "{:?} after {writes:x?}", device.identity().kind);
        }
        write(device, STATUS, 0);
        assert_eq!(status(device), 0);
    }
}

/// 2.2.2: features that were not offered, or that require others which were not accepted (5.1.3.1),
/// are not a valid set.
#[test]
fn features_are_accepted_as_valid_sets_only() {
    let bench = Bench::new();
    for device in bench.devices() {
        let all = offered(device);
        let accepts = |features: u64| {
            negotiate(device, features);
            status(device) == NEGOTIATED
        };
        assert!(accepts(all) && accepts(VERSION_1));
        assert!(!accepts(all & !VERSION_1) && !accepts(0));
        for bit in (0..64).map(|bit| 1_u64 << bit).filter(|bit| all & bit == 0) {
            assert!(!accepts(all | bit), "{bit:#x} was not offered");
        }
    }
    let net = bench.devices()[1];
    let (ctrl, mq) = (1 << 17, 1 << 22);
    assert_eq!(offered(net) & (ctrl | mq), ctrl | mq);
    negotiate(net, VERSION_1 | mq);
    assert_eq!(status(net), ACKNOWLEDGE | DRIVER, "several queues without the control queue");
    negotiate(net, VERSION_1 | mq | ctrl);
    assert_eq!(status(net), NEGOTIATED);
    // Accepted features cannot be changed.
    set_features(net, VERSION_1);
    write(net, STATUS, UP);
    assert_eq!(status(net), UP);
}

/// 2.7, 4.2.2.2: a queue is as the driver has set it or is refused; the driver learns of it at
/// once.
#[test]
fn an_impossible_queue_is_refused_when_it_is_set_up() {
    let bench = Bench::new();
    let bad = [
        ("a size of 17", SetUp { size: 17, ..GOOD }),
        ("a size of 0", SetUp { size: 0, ..GOOD }),
        ("a size above the largest", SetUp { size: 512, ..GOOD }),
        ("a size of 2^16 + 16", SetUp { size: 0x1_0010, ..GOOD }),
        ("a size of 2^31", SetUp { size: 1 << 31, ..GOOD }),
        ("descriptors misaligned by 8", SetUp { desc: QUEUE + 8, ..GOOD }),
        ("an available ring misaligned by 1", SetUp { avail: QUEUE + 0x1001, ..GOOD }),
        ("a used ring misaligned by 2", SetUp { used: QUEUE + 0x2002, ..GOOD }),
        ("a used ring misaligned by 1", SetUp { used: QUEUE + 0x2001, ..GOOD }),
        ("descriptors across the end of memory", SetUp { desc: MEMORY - 128, ..GOOD }),
        ("an available ring across the end of memory", SetUp { avail: MEMORY - 32, ..GOOD }),
        ("a used ring across the end of memory", SetUp { used: MEMORY - 64, ..GOOD }),
        ("a used ring without its event index", SetUp { used: MEMORY - 4 - 8 * 16, ..GOOD }),
        ("no addresses at all", SetUp { desc: 0, avail: 0, used: 0, ..GOOD }),
        ("a used ring over the descriptors", SetUp { used: QUEUE + 0x40, ..GOOD }),
        ("an available ring over the used ring", SetUp { avail: QUEUE + 0x2080, ..GOOD }),
        ("a used ring nowhere", SetUp { used: QUEUE + (7 << 32), ..GOOD }),
        ("a used ring at the end of the address space", SetUp { used: u64::MAX - 3, ..GOOD }),
    ];
    for device in bench.devices() {
        for (name, set_up) in bad {
            let name = format!("{}: {name}", device.identity().kind);
            negotiate(device, VERSION_1);
            bench.poison();
            set_up.write_to(device, 0);
            assert_eq!(read(device, QUEUE_READY), 0, "{name}: enabled");
            assert_ne!(status(device) & NEEDS_RESET, 0, "{name}: the driver is not told");
            // A driver that continues nevertheless gets no further, not even with a good queue.
            GOOD.write_to(device, 0);
            write(device, STATUS, UP);
            assert_eq!(status(device), NEGOTIATED | NEEDS_RESET, "{name}");
            assert_eq!(read(device, INTERRUPT_STATUS), 2, "{name}: a configuration change");
            write(device, QUEUE_NOTIFY, 0);
            assert_eq!(bench.touched(), Vec::<u64>::new(), "{name}: memory was written");
            // A reset helps.
            negotiate(device, VERSION_1);
            bench.memory().write_slice(&[0; 0x3000], GuestAddress(QUEUE)).unwrap();
            GOOD.write_to(device, 0);
            write(device, STATUS, UP);
            assert_eq!((read(device, QUEUE_READY), status(device)), (1, UP), "{name}");
        }
    }
}

/// A queue in use cannot be changed; a queue that does not exist cannot be enabled.
#[test]
fn a_queue_in_use_is_not_changed() {
    let bench = Bench::new();
    let disk = bench.disk();
    for (offset, value) in
        [(QUEUE_NUM, 8), (DESC, 0x4000), (AVAIL, 0x5000), (USED, 0x6000), (USED + 4, 1)]
    {
        negotiate(disk, VERSION_1);
        GOOD.write_to(disk, 0);
        write(disk, offset, value);
        assert_ne!(status(disk) & NEEDS_RESET, 0, "{offset:#x} was taken or dropped in silence");
    }
    negotiate(disk, VERSION_1);
    GOOD.write_to(disk, 9);
    assert_eq!(read(disk, QUEUE_READY), 0);
}

/// Puts a chain into the queue: its descriptors as (address, length, flags, next), head 0.
fn offer(bench: &Bench, table: u64, descriptors: &[(u64, u32, u16, u16)], heads: u16) {
    let memory = bench.memory();
    for (index, (addr, len, flags, next)) in descriptors.iter().enumerate() {
        let at = GuestAddress(table + 16 * index as u64);
        let parts = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes()];
        memory.write_slice(&[&parts.concat()[..], &next.to_le_bytes()].concat(), at).unwrap();
    }
    memory.write_slice(&[0; 4], GuestAddress(GOOD.avail + 4)).unwrap();
    memory.write_slice(&heads.to_le_bytes(), GuestAddress(GOOD.avail + 2)).unwrap();
}

fn used(bench: &Bench) -> (u16, u32) {
    let index = bench.memory().read_obj(GuestAddress(GOOD.used + 2)).unwrap();
    let len = bench.memory().read_obj(GuestAddress(GOOD.used + 8)).unwrap();
    (index, len)
}

/// 2.7.5.3.1: indirect tables are only for drivers that have accepted them.
#[test]
fn an_indirect_table_is_not_read_unless_it_was_negotiated() {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    let bench = Bench::new();
    let disk = bench.disk();
    for (features, served) in [(VERSION_1, false), (VERSION_1 | INDIRECT_DESC, true)] {
        bench.memory().write_slice(&[0; 0x3000], GuestAddress(QUEUE)).unwrap();
        negotiate(disk, features);
        GOOD.write_to(disk, 0);
        write(disk, STATUS, UP);
        // A request for the disk's name, which is answered at once.
        let name = [(BUFFER, 16, NEXT, 1), (BUFFER + 16, 20, NEXT | WRITE, 2)];
        let name = [&name[..], &[(BUFFER + 64, 1, WRITE, 0)]].concat();
        let header = [&8_u32.to_le_bytes()[..], &[0; 12]].concat();
        bench.memory().write_slice(&header, GuestAddress(BUFFER)).unwrap();
        bench.memory().write_slice(&[0xff], GuestAddress(BUFFER + 64)).unwrap();
        offer(&bench, BUFFER + 0x1000, &name, 0);
        offer(&bench, GOOD.desc, &[(BUFFER + 0x1000, 48, INDIRECT, 0)], 1);
        write(disk, QUEUE_NOTIFY, 0);
        let answer: u8 = bench.memory().read_obj(GuestAddress(BUFFER + 64)).unwrap();
        let expected = if served { ((1, 21), 0) } else { ((1, 0), 0xff) };
        assert_eq!((used(&bench), answer), expected, "features {features:#x}");
    }
}
