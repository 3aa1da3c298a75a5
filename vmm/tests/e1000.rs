//! The e1000 on its PCI bus, in a machine on `/dev/kvm`. The test drives the card register by
//! register, as a driver does.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ft_core::wire::Kind;
use io_gate::host::{CommitAuthority, MAX_MEMORY, MAX_RECORDED, Term, new_gate};
use io_gate_host::{Fence, Permission, Unfenced};
use kemari_hypervisor::kvm::{ClockPolicy, VmState};
use kemari_machine::config::{BootSource, ConsoleConfig, MachineConfig};
use kemari_machine::{AttachOptions, DeviceRecord, DeviceState, Machine};
use kemari_replication::session::MachineState;
use kemari_testbed::switch::{Cable, Switch};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_memory::{Bytes, GuestAddress};

const PATIENCE: Duration = Duration::from_secs(20);
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// The memory window, I/O window and pin of the first card in this machine.
const WINDOW: u64 = 0xe000_0000;
const PORTS: u16 = 0xc000;
const PIN: u32 = 22;

const ICR: u64 = 0xc0;
const IMS: u64 = 0xd0;
const RCTL: u64 = 0x100;
const TCTL: u64 = 0x400;
const RDBAL: u64 = 0x2800;
const RDLEN: u64 = 0x2808;
const RDH: u64 = 0x2810;
const RDT: u64 = 0x2818;
const TDBAL: u64 = 0x3800;
const TDLEN: u64 = 0x3808;
const TDH: u64 = 0x3810;
const TDT: u64 = 0x3818;

/// Guest addresses of the driver's rings and buffers.
const TX_RING: u64 = 0x40_0000;
const RX_RING: u64 = 0x40_1000;
const TX_BUFFER: u64 = 0x40_2000;
const RX_BUFFERS: u64 = 0x41_0000;
const BUFFER: u64 = 2048;
const RING: u64 = 8;

/// A guest that makes the card's pin level-triggered, as the ACPI tables demand, and masks it,
/// because the guest does not handle its interrupt. The guest reports that on the serial line and
/// leaves everything else to the test.
const CODE: [u8; 31] = [
    0xc7,
    0x05,
    0x00,
    0x00,
    0xc0,
    0xfe,
    0x10 + 2 * PIN as u8,
    0,
    0,
    0, // mov [ioapic], entry
    0xc7,
    0x05,
    0x10,
    0x00,
    0xc0,
    0xfe,
    0x00,
    0x80,
    0x01,
    0x00, // mov [ioapic + 16], level | masked
    0x66,
    0xba,
    0xf8,
    0x03,
    0xb0,
    b'R',
    0xee, // mov dx, 0x3f8; mov al, 'R'; out dx, al
    0xfa,
    0xf4,
    0xeb,
    0xfd, // cli; hlt; jmp
];

/// A kernel with [`CODE`] at 1 MiB, entered by the PVH note.
fn idle_kernel() -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    let mut put = |at: usize, bytes: &[u8]| {
        image.resize(image.len().max(at + bytes.len()), 0);
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &0x10_0000_u64.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 2, 0]);
    for (at, kind, offset, address, len) in
        [(64, 1_u32, 0x100_u64, 0x10_0000_u64, CODE.len() as u64), (120, 4, 0x200, 0, 20)]
    {
        put(at, &kind.to_le_bytes());
        put(at + 4, &7_u32.to_le_bytes());
        for (index, field) in [offset, address, address, len, len, 4].into_iter().enumerate() {
            put(at + 8 + index * 8, &field.to_le_bytes());
        }
    }
    put(0x100, &CODE);
    for (index, word) in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0000].iter().enumerate() {
        put(0x200 + index * 4, &word.to_le_bytes());
    }
    image
}

/// A machine with a card, and a vCPU's ways to access the card.
struct Bench {
    machine: Arc<Machine>,
    authority: CommitAuthority,
    io: IoManager,
    serial: PathBuf,
}

impl Bench {
    fn new(dir: &Path, socket: &Path, model: &str) -> Self {
        Self::behind(dir, socket, model, Arc::new(Unfenced))
    }

    fn behind(dir: &Path, socket: &Path, model: &str, fence: Arc<dyn Fence>) -> Self {
        let name = socket.file_name().unwrap().to_str().unwrap();
        let (kernel, serial) = (dir.join("kernel"), dir.join(format!("{name}.serial")));
        std::fs::write(&kernel, idle_kernel()).unwrap();
        let config = MachineConfig {
            boot: Some(BootSource { kernel, initrd: None, cmdline: String::new() }),
            nets: vec![
                format!("stream={},mac=52:54:00:12:34:56,model={model}", socket.display())
                    .parse()
                    .unwrap(),
            ],
            serial: ConsoleConfig::File(serial.clone()),
            ..MachineConfig::bare("test", 16 << 20, 1)
        };
        let (ledger, authority) = new_gate();
        let machine = Machine::build(config, ledger, fence).unwrap();
        let mut io = IoManager::new();
        if let Some(pci) = machine.devices().pci() {
            pci.put_on(&mut io).unwrap();
        }
        Self { machine, authority, io, serial }
    }

    fn start(&self) {
        self.machine.attach_backends(AttachOptions { shared_disks: true, append: false }).unwrap();
        self.machine.boot().unwrap();
        self.machine.start().unwrap();
    }

    fn run_alone(&mut self) {
        self.machine.gate().run_alone(self.authority.alone(Term(1)));
    }

    fn config(&self, device: u32, offset: u32) -> u32 {
        self.select(device, offset);
        let mut bytes = [0; 4];
        self.io.pio_read(PioAddress(0xcfc), &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn set_config(&self, device: u32, offset: u32, value: u32) {
        self.select(device, offset);
        self.io.pio_write(PioAddress(0xcfc), &value.to_le_bytes()).unwrap();
    }

    fn select(&self, device: u32, offset: u32) {
        let address = 1 << 31 | device << 11 | offset;
        self.io.pio_write(PioAddress(0xcf8), &address.to_le_bytes()).unwrap();
    }

    fn peek(&self, address: u64) -> u32 {
        let mut bytes = [0; 4];
        self.io.mmio_read(MmioAddress(address), &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn read(&self, register: u64) -> u32 {
        self.peek(WINDOW + register)
    }

    fn write(&self, register: u64, value: u64) {
        let bytes = (value as u32).to_le_bytes();
        self.io.mmio_write(MmioAddress(WINDOW + register), &bytes).unwrap();
    }

    /// Whether KVM's I/O APIC has the card's pin asserted.
    fn pin(&self) -> bool {
        let state = VmState::save(self.machine.vm()).unwrap();
        state.asserted_pins() >> PIN & 1 == 1
    }

    /// Waits for the pin. The device thread sets it after the effect or the buffer, which an
    /// observer sees first.
    fn wait_pin(&self) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !self.pin() {
            assert!(std::time::Instant::now() < deadline, "the pin is not asserted");
            std::thread::yield_now();
        }
    }

    /// Waits until the guest has made the pin level-triggered.
    fn wait_booted(&self) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::fs::read(&self.serial).unwrap() != b"R" {
            assert!(std::time::Instant::now() < deadline, "the guest says nothing");
            std::thread::yield_now();
        }
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.machine.memory().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.machine.memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Does a driver's work before the first frame: sets up windows, rings, buffers and interrupts.
    fn bring_up(&self) {
        self.set_config(1, 4, 7);
        for index in 0..RING {
            self.put(RX_RING + index * 16, &(RX_BUFFERS + index * BUFFER).to_le_bytes());
        }
        for (register, value) in [
            (TDBAL, TX_RING),
            (TDLEN, RING * 16),
            (TCTL, 0xa),
            (RDBAL, RX_RING),
            (RDLEN, RING * 16),
            (RCTL, 1 << 1 | 1 << 15 | 1 << 26),
            (IMS, 0xff),
        ] {
            self.write(register, value);
        }
    }

    fn send(&self, index: u64, frame: &[u8]) {
        self.put(TX_BUFFER, frame);
        let descriptor = [
            TX_BUFFER.to_le_bytes(),
            // End of packet, report status.
            (frame.len() as u64 | 0x0900_0000).to_le_bytes(),
        ];
        self.put(TX_RING + index * 16, &descriptor.concat());
        self.write(TDT, index + 1);
    }

    /// Waits for a frame in the buffer `index`.
    fn wait_received(&self, index: u64) -> Vec<u8> {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let back: [u8; 8] = self.get(RX_RING + index * 16 + 8);
            if back[4] & 1 == 1 {
                let frame: [u8; 64] = self.get(RX_BUFFERS + index * BUFFER);
                return frame[..usize::from(back[0])].to_vec();
            }
            assert!(std::time::Instant::now() < deadline, "no frame in buffer {index}");
            std::thread::yield_now();
        }
    }
}

fn frame(to: [u8; 6], from: [u8; 6], mark: u8) -> Vec<u8> {
    [&to[..], &from, &[0x88, 0xb5], &[mark; 46]].concat()
}

const HOST: [u8; 6] = [0x52, 0x55, 0, 0, 0, 1];

/// The guest's next frame at the other end of the cable, announcements excluded.
fn arrives(cable: &Cable) -> Option<Vec<u8>> {
    let of_guest = |frame: &Vec<u8>| frame[6..12] == MAC && frame[12..14] == [0x88, 0xb5];
    loop {
        match cable.receive(PATIENCE) {
            Some(frame) if of_guest(&frame) => return Some(frame),
            Some(_) => {}
            None => return None,
        }
    }
}

#[test]
fn the_card_is_found_and_its_windows_can_be_moved() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path(), &dir.path().join("net"), "e1000");
    assert_eq!(bench.config(0, 8) >> 16, 0x0600, "a host bridge");
    assert_eq!((bench.config(1, 0), bench.config(1, 8) >> 8), (0x100e_8086, 0x02_0000));
    assert_eq!((bench.config(2, 0), bench.config(31, 0)), (u32::MAX, u32::MAX), "nobody there");
    assert_eq!(bench.config(1, 0x3c), 0x100 | PIN, "pin A");
    assert_eq!(bench.read(8), u32::MAX, "its windows are closed");
    // Read the size of each window with decoding off, as operating systems do.
    for (offset, found, size) in
        [(0x10, WINDOW as u32, 0xfffe_0000), (0x14, PORTS as u32 | 1, 0xffff_ffc1)]
    {
        assert_eq!(bench.config(1, offset), found);
        bench.set_config(1, offset, u32::MAX);
        assert_eq!(bench.config(1, offset), size);
        bench.set_config(1, offset, found);
    }
    bench.set_config(1, 4, 3);
    assert_eq!(bench.read(8) & 2, 2, "the link is up");
    // The same register through the I/O window.
    bench.io.pio_write(PioAddress(PORTS), &8_u32.to_le_bytes()).unwrap();
    let mut bytes = [0; 4];
    bench.io.pio_read(PioAddress(PORTS + 4), &mut bytes).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), bench.read(8));
    // Move the window, and then move it outside of the bus's ranges.
    bench.set_config(1, 0x10, 0xe080_0000);
    assert_eq!((bench.read(8), bench.peek(0xe080_0008) & 2), (u32::MAX, 2));
    bench.set_config(1, 0x10, 0x1000_0000);
    assert_eq!(bench.peek(0xe080_0008), u32::MAX);
}

#[test]
fn a_driver_sends_and_receives_and_goes_on_in_another_machine() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::new(dir.path(), &["a", "b"]).unwrap();
    let cable = switch.plug_in();
    let mut one = Bench::new(dir.path(), switch.socket(0), "e1000");
    one.run_alone();
    one.start();
    one.wait_booted();
    one.bring_up();
    one.write(RDT, 3);

    one.send(0, &frame(HOST, MAC, 1));
    assert_eq!(arrives(&cable), Some(frame(HOST, MAC, 1)));
    assert_eq!((one.read(TDH), one.get::<1>(TX_RING + 12)), (1, [1]));
    // The pin is asserted until the driver reads the cause.
    one.wait_pin();
    assert_eq!(one.read(ICR) & 3, 3);
    assert!(!one.pin());
    cable.send(&frame(MAC, HOST, 2));
    assert_eq!(one.wait_received(0), frame(MAC, HOST, 2));
    one.wait_pin();

    // P1: a closed gate holds a frame, although the driver sees it as done.
    one.machine.gate().hold();
    one.send(1, &frame(HOST, MAC, 3));
    assert_eq!(one.read(TDH), 2);
    let inner = one.machine.clone();
    let (sealed, saved, chips) = one
        .machine
        .device_loop()
        .call(move |_| {
            inner.vcpus().pause();
            let chips = VmState::save(inner.vm()).unwrap();
            (inner.gate().seal(), inner.save_devices(), chips)
        })
        .unwrap();
    assert_eq!((sealed.staged, sealed.in_flight.len()), (1, 1));

    let mut two = Bench::new(dir.path(), switch.socket(1), "e1000");
    assert_eq!(one.machine.description(), two.machine.description());
    chips.restore(two.machine.vm(), ClockPolicy::Continue).unwrap();
    two.machine.restore_devices(&saved).wait().unwrap().unwrap();
    assert_eq!(two.machine.save_devices(), saved);
    let mut memory = vec![0; 0x2_0000];
    one.machine.memory().read_slice(&mut memory, GuestAddress(TX_RING)).unwrap();
    two.put(TX_RING, &memory);
    two.machine.gate().adopt(sealed.epoch, sealed.next_id, sealed.in_flight);
    two.start();
    assert!(two.pin(), "the line is where the card has it");
    switch.cut(0);
    two.run_alone();
    assert_eq!(arrives(&cable), Some(frame(HOST, MAC, 3)), "held there, performed here");

    assert_ne!(two.read(ICR), 0);
    assert!(!two.pin(), "and goes where the card puts it");
    two.send(2, &frame(HOST, MAC, 4));
    assert_eq!(arrives(&cable), Some(frame(HOST, MAC, 4)));
    cable.send(&frame(MAC, HOST, 5));
    assert_eq!(two.wait_received(1), frame(MAC, HOST, 5));
    // The card had at most two buffers: the third frame waits for the next one.
    for mark in [6, 7] {
        cable.send(&frame(MAC, HOST, mark));
    }
    assert_eq!(two.wait_received(2), frame(MAC, HOST, 6));
    assert_eq!(two.read(RDH), 3);
    two.write(RDT, 5);
    assert_eq!(two.wait_received(3), frame(MAC, HOST, 7));
    one.machine.stop();
    two.machine.stop();
}

#[test]
fn without_the_right_to_master_the_bus_memory_is_out_of_reach() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path(), &dir.path().join("net"), "e1000");
    bench.bring_up();
    bench.set_config(1, 4, 3);
    bench.send(0, &frame(HOST, MAC, 1));
    assert_eq!(bench.get::<1>(TX_RING + 12), [0], "no status is written");
    assert_eq!(bench.machine.gate().held(), 0, "and nothing is sent");
}

#[test]
fn another_model_is_refused_by_both_names() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("net");
    let one = Bench::new(dir.path(), &socket, "e1000");
    let other = Bench::new(dir.path(), &socket, "virtio");
    assert!(other.machine.devices().pci().is_none());
    let (ours, theirs) = (one.machine.description(), other.machine.description());
    let of = |devices: &[kemari_machine::DeviceDescription]| {
        let net = devices.iter().find(|device| device.slot == 16).unwrap();
        (net.kind.clone(), net.detail.clone())
    };
    let detail = "mac 52:54:00:12:34:56".to_owned();
    assert_eq!(of(&ours.devices), ("e1000".into(), format!("{detail}, PCI 00:01.0")));
    assert_eq!(of(&theirs.devices), ("virtio-net".into(), detail));
    let saved = one.machine.save_devices();
    assert!(other.machine.restore_devices(&saved).wait().unwrap().is_err());

    let refused = |change: &dyn Fn(&mut DeviceRecord)| {
        let mut saved = saved.clone();
        change(saved.last_mut().unwrap());
        one.machine.restore_devices(&saved).wait().unwrap().unwrap_err().to_string()
    };
    let state = |record: &mut DeviceRecord, version, command| {
        let DeviceState::Pci(state) = &mut record.state else { panic!("the bus is last") };
        state.version = version;
        state.functions[1].command = command;
    };
    assert!(refused(&|record| state(record, 9, 0)).contains("expected version 1, found 9"));
    assert!(refused(&|record| state(record, 1, 0xffff)).contains("PCI state of device 1"));
}

/// An arbiter that does not answer until the flag is set.
#[derive(Debug, Default)]
struct Away(AtomicBool);

impl Fence for Away {
    fn ask(&self) -> Permission {
        if self.0.load(Ordering::Acquire) { Permission::Granted } else { Permission::Unknown }
    }
}

/// P9: with a driver that sends without a pause, the machine buffers a bounded amount, both while
/// its frames are held and while the arbiter does not answer. The held frames fit a checkpoint, and
/// the card continues without loss when its frames leave.
#[test]
fn p9_a_card_stops_in_front_of_a_full_gate_and_goes_on() {
    const FRAME: usize = 1514;
    const ENOUGH: usize = 64 << 20;
    for open in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let switch = Switch::new(dir.path(), &["a"]).unwrap();
        let cable = switch.plug_in();
        let arbiter = Arc::new(Away::default());
        let mut bench = Bench::behind(dir.path(), switch.socket(0), "e1000", arbiter.clone());
        if open {
            bench.run_alone();
        }
        // The guest prints at its start; without the arbiter's answer, that output is held.
        bench.start();
        bench.bring_up();
        let mut frame = frame(HOST, MAC, 7);
        frame.resize(FRAME, 7);
        bench.put(TX_BUFFER, &frame);
        for index in 0..RING {
            let descriptor = [TX_BUFFER.to_le_bytes(), (FRAME as u64 | 0x0900_0000).to_le_bytes()];
            bench.put(TX_RING + index * 16, &descriptor.concat());
        }
        // The card has taken all frames before its head is read, unless the card has stopped.
        let (mut tail, mut sent) = (0, 0);
        while sent * FRAME < ENOUGH {
            tail = (tail + RING - 1) % RING;
            bench.write(TDT, tail);
            sent += RING as usize - 1;
            if u64::from(bench.read(TDH)) != tail {
                break;
            }
        }
        let load = bench.machine.gate().load();
        assert!(sent * FRAME < ENOUGH, "{} MiB taken, {load:?}", (sent * FRAME) >> 20);
        assert!(load.memory <= MAX_MEMORY && load.recorded <= MAX_RECORDED, "{load:?}");
        assert_ne!(u64::from(bench.read(TDH)), tail, "it stands");

        // P4: a standby accepts the machine with all held frames.
        let machine = &bench.machine;
        machine.vcpus().pause();
        let sealed = machine.gate().seal();
        let state = MachineState::capture(machine, sealed).unwrap().encode().unwrap();
        machine.vcpus().resume();
        assert!(state.len() <= Kind::State.max_body() as usize, "a state of {} bytes", state.len());

        arbiter.0.store(true, Ordering::Release);
        if !open {
            bench.run_alone();
        }
        for number in 0..sent {
            let arrived = arrives(&cable).unwrap_or_else(|| panic!("{number} of {sent} frames"));
            assert_eq!(arrived.len(), FRAME);
        }
        let deadline = std::time::Instant::now() + PATIENCE;
        while u64::from(bench.read(TDH)) != tail {
            assert!(std::time::Instant::now() < deadline, "the card does not go on");
            std::thread::yield_now();
        }
    }
}
