//! A bare-metal guest that lets an outside observer detect each loss, rollback or repetition.
//!
//! It needs only a PVH loader and virtio-mmio devices (virtio 1.2). It runs in ring 3, and serves
//! the operations of `kemari-workload` over UDP. See README.md.

#![no_std]
#![no_main]

mod acpi;
mod clients;
mod clock;
mod cpu;
mod dirty;
mod fault;
mod faults;
mod flood;
mod ioapic;
mod lapic;
mod log;
mod memory;
mod options;
mod packet;
mod physical;
mod power;
mod pvh;
mod serial;
mod service;
mod smp;
mod table;
mod virtio;

use acpi::Processors;
use clients::Clients;
use clock::Clock;
use flood::Flood;
use ioapic::IoApic;
use log::Log;
use options::Options;
use packet::Own;
use pvh::BootInfo;
use service::{Ending, Parts, Service};
use table::Table;
use virtio::blk::{self, Blk};
use virtio::console::{self, Console};
use virtio::entropy::{self, Entropy};
use virtio::net::{self, Net};
use virtio::other::Other;
use virtio::transport::Transport;

core::arch::global_asm!(include_str!("boot.s"), options(att_syntax));

/// Time to poll for work before halting, in nanoseconds.
const POLL_NS: u64 = 50_000;
/// Number of pages to dirty between two polls for work, if there is only one CPU.
const DIRTY_SLICE: u32 = 16;

/// The devices that the guest uses.
#[derive(Default)]
struct Found {
    net: Option<Net>,
    blk: Option<Blk>,
    console: Option<Console>,
    entropy: Option<Entropy>,
    other: Option<Other>,
}

/// Entry from `boot.s` in ring 3, on the first CPU.
#[unsafe(no_mangle)]
extern "C" fn bsp_main(start_info: u64) -> ! {
    let start_stamp = cpu::time_stamp();
    let info = BootInfo::read(start_info);
    let options = Options::parse(info.command_line());
    ioapic::silence_old_controllers();
    // Start the clock before the timer: it may use the timer to calibrate itself.
    let mut clock = Clock::start(memory::allocate());
    if let Some(micros) = options.tick {
        lapic::set_wake_period(micros);
    }
    lapic::start_timer();
    memory::map_high(info.regions());
    if !options.quiet {
        let mebibytes = memory::total(info.regions()) >> 20;
        say!("micro-guest: {mebibytes} MiB, clock {}", clock.name());
        say!("micro-guest: {}", info.command_line());
    }
    let processors = acpi::processors(info.rsdp);
    let io_apic = processors.as_ref().and_then(|found| found.io_apic);
    let io_apic = IoApic::new(io_apic.unwrap_or(ioapic::DEFAULT_BASE));
    let mut found = find_devices(&options, &io_apic);
    let random = found.entropy.as_mut().map_or(0, Entropy::number);
    let boot_id = kemari_workload::chain_after(start_stamp, 0, random, 0, clock.now());
    let cpus = start_cpus(processors, &options, &mut clock);
    dirty::set_up(memory::spare(info.regions()), (cpus - 1).max(1));
    dirty::command(options.dirty, options.region);
    let service = assemble(found, &options, boot_id, cpus);
    smp::release(options.hot);
    if options.button {
        power::listen_to_button(&io_apic);
    }
    run(service, clock, cpus, &options)
}

fn find_devices(options: &Options<'_>, io_apic: &IoApic) -> Found {
    let mut found = Found::default();
    for device in options.devices() {
        let Some((transport, id)) = Transport::probe(device.base) else {
            if options.exercise {
                found.other = Some(Other::at(device.base));
            }
            continue;
        };
        if !options.quiet {
            let (base, irq) = (device.base, device.irq);
            say!("micro-guest: virtio device {id} at {base:#x}, irq {irq}");
        }
        match id {
            net::DEVICE_ID if found.net.is_none() => {
                found.net = Some(Net::start(transport));
                io_apic.route(device.irq, cpu::NET_VECTOR);
            }
            blk::DEVICE_ID if found.blk.is_none() => {
                found.blk = Some(Blk::start(transport));
                io_apic.route(device.irq, cpu::DISK_VECTOR);
            }
            console::DEVICE_ID if found.console.is_none() => {
                found.console = Some(Console::start(transport));
            }
            entropy::DEVICE_ID if found.entropy.is_none() => {
                found.entropy = Some(Entropy::start(transport));
            }
            _ if options.exercise => found.other = Some(Other::start(transport)),
            _ => {}
        }
    }
    found
}

fn start_cpus(from_acpi: Option<Processors>, options: &Options<'_>, clock: &mut Clock) -> usize {
    let by_number: [u32; smp::MAX_CPUS] = core::array::from_fn(|id| id as u32);
    let ids = match &from_acpi {
        Some(processors) => processors.ids(),
        None => &by_number[..1],
    };
    let ids = match options.cpus {
        Some(wanted) if wanted > ids.len() => &by_number[..wanted.min(smp::MAX_CPUS)],
        Some(wanted) => &ids[..wanted.max(1)],
        None => ids,
    };
    smp::start(ids, clock)
}

fn assemble(found: Found, options: &Options<'_>, boot_id: u64, cpus: usize) -> Service {
    let own = Own { mac: found.net.as_ref().map_or([0; 6], |net| net.mac), ip: options.ip };
    let disk = found.blk.as_ref().map_or(0, |blk| blk.sectors);
    let parts = Parts {
        log: found.blk.and_then(|blk| Log::new(blk, boot_id)),
        net: found.net,
        console: found.console,
        other: found.other,
        own,
        boot_id,
        cpus,
    };
    let mut service =
        Service::new(parts, memory::allocate::<Clients>(), memory::allocate::<Table>());
    service.announce();
    let [a, b, c, d, e, f] = own.mac;
    let [i, j, k, l] = own.ip;
    say!(
        "micro-guest ready mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} ip={i}.{j}.{k}.{l} cpus={cpus} disk={disk}"
    );
    service
}

fn run(mut service: Service, mut clock: Clock, cpus: usize, options: &Options<'_>) -> ! {
    let flood = options.flood;
    let hot = options.hot || flood != Flood::Nothing;
    let mut worker = (cpus == 1).then(|| dirty::Worker::new(0));
    let mut last_work = clock.now();
    let mut told = 0;
    loop {
        let seen = cpu::wake_count();
        service.acknowledge_interrupts();
        let mut busy = service.poll(&mut clock);
        if let Some(ending) = service.ending() {
            match ending {
                Ending::PowerOff => power::off(),
                Ending::Reset => power::reset(),
            }
        }
        // Read the button only after an interrupt of the network's vector, which the button shares:
        // each read costs an exit.
        let interrupts = cpu::net_interrupts();
        if options.button
            && core::mem::replace(&mut told, interrupts) != interrupts
            && power::button_was_pressed()
        {
            power::off();
        }
        flood.step();
        let now = clock.now();
        if let Some(worker) = &mut worker {
            busy |= worker.step(now, DIRTY_SLICE);
        }
        if busy {
            last_work = now;
        } else if !hot && now - last_work > POLL_NS {
            if !service.want_interrupts(true) {
                cpu::halt_unless_woken(seen);
            }
            service.want_interrupts(false);
        }
    }
}
