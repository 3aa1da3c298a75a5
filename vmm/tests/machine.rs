//! A machine on the real `/dev/kvm`, driven through its library interface: virtio-mmio registers,
//! saved state, the device thread, resets.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use io_gate::Port;
use io_gate::host::new_gate;
use io_gate_host::Unfenced;
use io_gate_host::backend::Backend;
use io_gate_host::backend::console::Console;
use kemari_machine::config::{BootSource, ConsoleConfig, MachineConfig};
use kemari_machine::{
    AttachOptions, DeviceRecord, DeviceState, Ended, Machine, MachineError, VirtioMmio,
};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

const VERSION_1: u64 = 1 << 32;
const ACKNOWLEDGE_DRIVER: u32 = 1 | 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;

fn config(dir: &Path) -> MachineConfig {
    let disk = dir.join("disk.img");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    MachineConfig {
        disks: vec![format!("path={},serial=abc", disk.display()).parse().unwrap()],
        nets: vec![
            format!("stream={},mac=52:54:00:12:34:56", dir.join("net").display()).parse().unwrap(),
        ],
        rng: true,
        rtc: true,
        virtio_console: Some(ConsoleConfig::None),
        devices: vec!["beeper".parse().unwrap()],
        serial: ConsoleConfig::File(dir.join("serial")),
        ..MachineConfig::bare("test", 16 << 20, 1)
    }
}

fn build(config: MachineConfig) -> Arc<Machine> {
    let (ledger, mut authority) = new_gate();
    let machine = Machine::build(config, ledger, Arc::new(Unfenced)).unwrap();
    machine.gate().run_alone(authority.alone(io_gate::host::Term(0)));
    machine
}

/// P7. A reset that reads a large initrd from slow storage, or waits for disks that do not answer,
/// makes progress and is not a stall. Fails if only cleared memory counts as progress.
#[test]
fn what_a_reset_does_is_seen_to_go_on() {
    const INITRD: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let initrd = dir.path().join("initrd");
    std::fs::write(&initrd, vec![1; INITRD << 20]).unwrap();
    let boot = BootSource {
        kernel: micro::image().to_owned(),
        initrd: Some(initrd),
        cmdline: String::new(),
    };
    let machine = build(MachineConfig { memory: 64 << 20, boot: Some(boot), ..config(dir.path()) });
    machine.boot().unwrap();
    let (resetting, before) = (machine.clone(), machine.work_done());
    machine.device_loop().call(move |_| resetting.reset().unwrap()).unwrap();
    let devices = machine.devices().virtio().len();
    let noted = machine.work_done() - before;
    assert!(noted >= (INITRD + devices) as u64, "{noted} for {INITRD} MiB and {devices} devices");
    machine.stop();
}

/// P9. Fails if each press waits for the device thread separately.
#[test]
fn one_press_of_the_power_button_waits() {
    let dir = tempfile::tempdir().unwrap();
    let machine = build(config(dir.path()));
    let (let_go, stuck) = std::sync::mpsc::channel::<()>();
    machine.device_loop().post(move |_| {
        // Blocks until the test releases the device thread.
        let _ = stuck.recv();
    });
    // The waiting command holds the devices.
    let holders = Arc::strong_count(machine.devices());
    (0..1000).for_each(|_| machine.press_power_button());
    assert!(Arc::strong_count(machine.devices()) <= holders + 1);
    drop(let_go);
    machine.device_loop().call(|_| {}).unwrap();
    machine.press_power_button();
    machine.device_loop().call(|_| {}).unwrap();
    assert_eq!(Arc::strong_count(machine.devices()), holders, "the later press was taken up, too");
    machine.stop();
}

fn read(device: &VirtioMmio, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    device.mmio_read(MmioAddress(device.window().base), offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn write(device: &VirtioMmio, offset: u64, value: u32) {
    device.mmio_write(MmioAddress(device.window().base), offset, &value.to_le_bytes());
}

fn set_features(device: &VirtioMmio, features: u64) {
    for half in [0, 1] {
        write(device, 0x24, half);
        write(device, 0x20, (features >> (32 * half)) as u32);
    }
}

fn features(device: &VirtioMmio) -> u64 {
    [0, 1].into_iter().fold(0, |all, half| {
        write(device, 0x14, half);
        all | u64::from(read(device, 0x10)) << (32 * half)
    })
}

/// Sets up a virtqueue at a guest address.
fn set_queue(device: &VirtioMmio, queue: u32, address: u32) {
    write(device, 0x30, queue);
    write(device, 0x38, 16);
    for (offset, address) in [(0x80, address), (0x90, address + 0x1000), (0xa0, address + 0x2000)] {
        write(device, offset, address);
        write(device, offset + 4, 0);
    }
    write(device, 0x44, 1);
}

#[test]
fn every_window_identifies_its_device() {
    let dir = tempfile::tempdir().unwrap();
    let machine = build(config(dir.path()));
    let ids: Vec<u32> =
        machine.devices().virtio().iter().map(|device| read(device, 0x08)).collect();
    assert_eq!(ids, [2, 1, 4, 3, 0xff00], "disk, network, random bytes, console, beeper");
    for device in machine.devices().virtio() {
        assert_eq!((read(device, 0x00), read(device, 0x04)), (u32::from_le_bytes(*b"virt"), 2));
        assert_ne!(features(device) & VERSION_1, 0);
        assert_eq!(read(device, 0xb0), u32::MAX, "no shared memory");
        write(device, 0x30, 99);
        assert_eq!(read(device, 0x34), 0, "no such queue");
    }
    let disk = &machine.devices().virtio()[0];
    assert_eq!(read(disk, 0x100), 2048, "the capacity in sectors");
    let mut byte = [0];
    disk.mmio_read(MmioAddress(disk.window().base), 0x00, &mut byte);
    assert_eq!(byte, [0], "registers are read as 32 bits");
}

#[test]
fn features_that_were_not_offered_are_refused_and_a_reset_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let machine = build(config(dir.path()));
    let device = &machine.devices().virtio()[0];
    write(device, 0x70, ACKNOWLEDGE_DRIVER);
    set_features(device, VERSION_1 | 1 << 63);
    write(device, 0x70, ACKNOWLEDGE_DRIVER | FEATURES_OK);
    assert_eq!(read(device, 0x70), ACKNOWLEDGE_DRIVER, "FEATURES_OK does not stick");
    set_features(device, 0);
    write(device, 0x70, ACKNOWLEDGE_DRIVER | FEATURES_OK);
    assert_eq!(read(device, 0x70), ACKNOWLEDGE_DRIVER, "nor without VERSION_1");
    set_features(device, VERSION_1);
    write(device, 0x70, ACKNOWLEDGE_DRIVER | DRIVER_OK);
    assert_eq!(read(device, 0x70), ACKNOWLEDGE_DRIVER, "no start before FEATURES_OK");
    write(device, 0x70, ACKNOWLEDGE_DRIVER | FEATURES_OK);
    assert_eq!(read(device, 0x70), ACKNOWLEDGE_DRIVER | FEATURES_OK);
    set_queue(device, 0, 0x10_0000);
    write(device, 0x70, ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(read(device, 0x70), ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK);
    write(device, 0x70, 0);
    assert_eq!((read(device, 0x70), read(device, 0x44), read(device, 0x60)), (0, 0, 0));
}

#[test]
fn a_queue_outside_of_memory_needs_a_reset() {
    let dir = tempfile::tempdir().unwrap();
    let machine = build(config(dir.path()));
    let device = &machine.devices().virtio()[0];
    set_features(device, VERSION_1);
    write(device, 0x70, ACKNOWLEDGE_DRIVER | FEATURES_OK);
    set_queue(device, 0, 0x4000_0000);
    write(device, 0x70, ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK);
    assert_ne!(read(device, 0x70) & NEEDS_RESET, 0);
    assert_eq!(read(device, 0x60), 2, "the driver is told by a configuration interrupt");
    write(device, 0x64, 2);
    assert_eq!(read(device, 0x60), 0);
    write(device, 0x70, 0);
    assert_eq!(read(device, 0x70), 0);
}

#[test]
fn saved_state_is_taken_on_by_another_machine_like_it_and_refused_by_others() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let machine = build(config(dir.path()));
    let device = &machine.devices().virtio()[0];
    set_features(device, VERSION_1);
    write(device, 0x70, ACKNOWLEDGE_DRIVER | FEATURES_OK);
    set_queue(device, 0, 0x10_0000);
    write(device, 0x70, ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK);
    let saved = machine.save_devices();

    let other = build(config(other_dir.path()));
    assert_eq!(machine.description(), other.description());
    assert_eq!(machine.facts(), other.facts());
    other.restore_devices(&saved).wait().unwrap().unwrap();
    assert_eq!(other.save_devices(), saved);

    let refused = |records: Vec<DeviceRecord>| {
        other.restore_devices(&records).wait().unwrap().unwrap_err().to_string()
    };
    let mut records = saved.clone();
    records.remove(2);
    assert!(refused(records).contains("expected slots"));
    let mut records = saved.clone();
    let DeviceState::Virtio(state) = &mut records[0].state else { panic!("the first is virtio") };
    state.version += 1;
    assert!(refused(records).contains("expected version 1, found 2"));
    let mut records = saved.clone();
    let (first, second) = (records[0].state.clone(), records[1].state.clone());
    (records[0].state, records[1].state) = (second, first);
    let text = refused(records);
    assert!(text.contains("virtqueue") || text.contains("virtio-blk"), "{text}");
    // After all refusals the machine is still usable.
    other.restore_devices(&saved).wait().unwrap().unwrap();
    assert_eq!(other.save_devices(), saved);
}

#[test]
fn layouts_tell_machines_apart() {
    let dir = tempfile::tempdir().unwrap();
    let one = build(config(dir.path())).description();
    let more = MachineConfig { memory: 32 << 20, rng: false, ..config(dir.path()) };
    let two = build(more).description();
    assert_ne!(one.memory, two.memory);
    assert_ne!(one.devices.len(), two.devices.len());
    assert!(one.devices.iter().any(|device| device.detail == "mac 52:54:00:12:34:56"), "{one:?}");
}

#[test]
fn a_reset_without_a_kernel_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let machine = build(config(dir.path()));
    let inner = machine.clone();
    let error = machine.device_loop().call(move |_| inner.reset()).unwrap().unwrap_err();
    assert!(matches!(error, MachineError::NoKernel), "{error}");
}

#[test]
fn a_command_to_a_device_thread_that_has_ended_fails() {
    let dir = tempfile::tempdir().unwrap();
    let machine = build(config(dir.path()));
    assert_eq!(machine.device_loop().call(|_| 7), Ok(7));
    let handle = machine.device_loop().clone();
    machine.stop();
    drop(machine);
    assert!(handle.call(|_| 7).is_err());
}

/// An ELF image with a PVH note whose entry is `code`.
fn pvh_image(code: &[u8]) -> Vec<u8> {
    const LOAD: u32 = 0x10_0000;
    let note_at = 64 + 2 * 56_u64;
    let note: Vec<u8> = [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), LOAD]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let code_at = note_at + note.len() as u64;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2_u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    image.extend(1_u32.to_le_bytes());
    image.extend([u64::from(LOAD), 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    image.extend(0_u32.to_le_bytes());
    image.extend([64_u16, 56, 2, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    for (kind, at, address, len) in
        [(1_u32, code_at, u64::from(LOAD), code.len() as u64), (4, note_at, 0, note.len() as u64)]
    {
        image.extend([kind, 7].iter().flat_map(|word| word.to_le_bytes()));
        image
            .extend([at, address, address, len, len, 4].iter().flat_map(|word| word.to_le_bytes()));
    }
    image.extend(note);
    image.extend(code);
    image
}

#[test]
fn a_triple_fault_resets_the_machine() {
    // The code prints `B` on the serial line and then executes an invalid instruction, without
    // interrupt descriptors to handle the exception.
    speaks_again_after_its_reset(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'B', 0xee, 0x0f, 0x0b], b'B');
}

#[test]
fn a_guest_finds_the_clock_and_resets_by_the_keyboard_controller() {
    let code = [
        0xa1, 0xe0, 0x0f, 0x10,
        0xd0, // mov eax, [0xd0100fe0]: the chip's identification, 0x31
        0x66, 0xba, 0xf8, 0x03, 0xee, // mov dx, 0x3f8; out dx, al
        0xb0, 0xfe, 0xe6, 0x60, // mov al, 0xfe; out 0x60, al: nothing there
        0xe6, 0x64, // out 0x64, al: the reset
        0xf4, 0xeb, 0xfd, // hlt; jmp
    ];
    speaks_again_after_its_reset(&code, b'1');
}

/// Runs a guest that prints `word` and then resets the machine; waits for several boots.
fn speaks_again_after_its_reset(code: &[u8], word: u8) {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, pvh_image(code)).unwrap();
    let boot = Some(BootSource { kernel, initrd: None, cmdline: String::new() });
    let machine = build(MachineConfig { boot, ..config(dir.path()) });
    machine.attach_backends(AttachOptions { shared_disks: false, append: false }).unwrap();
    machine.boot().unwrap();
    machine.start().unwrap();
    let serial = dir.path().join("serial");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    // A reset is not reported to the outside: wait for its output.
    while std::fs::read(&serial).unwrap().len() < 3 {
        assert!(std::time::Instant::now() < deadline, "{:?}", machine.events().ended());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(std::fs::read(&serial).unwrap().iter().all(|byte| *byte == word));
    assert_eq!(machine.events().ended(), None);
    machine.end(Ended::PoweredOff);
    assert_eq!(machine.wait(), Ended::PoweredOff);
    machine.stop();
}

/// P7: a call that cannot open every backend opens none, and can be repeated. The serial line's
/// path, which comes last, is in use.
#[test]
fn backends_are_attached_all_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let machine = build(config(dir.path()));
    let attach = |slot| machine.gate().attach(slot, Port(0), Backend::Console(Console::none()));
    attach(0).unwrap();
    let options = AttachOptions { shared_disks: false, append: false };
    let refused = machine.attach_backends(options).unwrap_err().to_string();
    assert!(refused.contains("slot 0, port 0: expected no backend yet"), "{refused}");
    for slot in [16, 17] {
        attach(slot).unwrap();
    }
}
