//! A minimal monitor on top of the library: one serial port that prints, nothing else.
//! `bare KERNEL [CPUS] [MIGRATIONS]`; each migration saves the machine and restores it into a new VM.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use kemari_vmm::kvm::state::SavePlan;
use kemari_vmm::kvm::{self, ClockPolicy, ExitHandler, FatalExit, VcpuSet, Vm, VmOptions, VmState};
use kemari_vmm::{boot, memory};

struct Print(Sender<String>);
impl ExitHandler for Print {
    fn pio_in(&self, _: u16, data: &mut [u8]) {
        data.fill(0);
    }
    fn pio_out(&self, port: u16, data: &[u8]) {
        use std::io::Write;
        match port {
            0x3f8 => {
                std::io::stdout().write_all(data).unwrap();
                std::io::stdout().flush().unwrap();
            }
            0x501 => self.0.send(format!("exit code {}", data[0])).unwrap(),
            _ => {}
        }
    }
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn on_fatal(&self, vcpu: usize, exit: FatalExit) {
        self.0.send(format!("vCPU {vcpu}: {exit}")).unwrap();
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let cpus = args.get(2).map_or(1, |a| a.parse().unwrap());
    let migrations: usize = args.get(3).map_or(0, |a| a.parse().unwrap());
    let kvm = kvm::open().unwrap_or_else(|e| panic!("{e}"));
    let memory =
        memory::create(memory::MemoryOptions { size: 256 << 20, huge_pages: false }).unwrap();
    let options = VmOptions { cpus, pit: true };
    let mut vm = Vm::new(&kvm, memory, options).unwrap();
    let fds = vm.create_vcpus().unwrap();
    let config = boot::BootConfig {
        kernel: args[1].as_ref(),
        initrd: None,
        cmdline: "console=ttyS0",
        cpus,
        windows: &[],
    };
    let entry = boot::load(vm.memory(), &config).unwrap_or_else(|e| panic!("{e}"));
    boot::set_entry_registers(&fds[0], entry).unwrap();
    let t = Instant::now();
    let plan = SavePlan::new(&kvm, &vm, &fds[0]).unwrap();
    eprintln!(
        "[plan {:?}, {} MSRs, xsave {}]",
        t.elapsed(),
        plan.msr_indices().len(),
        plan.xsave_size()
    );
    let (tx, rx) = channel();
    let handler = Arc::new(Print(tx));
    let mut set = VcpuSet::spawn(fds, handler.clone()).unwrap();
    set.resume();
    for _ in 0..migrations {
        if let Ok(end) = rx.recv_timeout(Duration::from_millis(50)) {
            println!("end: {end}");
            return;
        }
        let t = Instant::now();
        set.pause();
        let paused = t.elapsed();
        let t = Instant::now();
        let vcpus = set.save(&plan).unwrap();
        let save = t.elapsed();
        let t = Instant::now();
        let state = VmState::save(&vm).unwrap();
        let save_vm = t.elapsed();
        let bytes = postcard::to_allocvec(&(&vcpus, &state)).unwrap();
        set.stop();
        let t = Instant::now();
        let memory = vm.memory().clone();
        vm = Vm::new(&kvm, memory, options).unwrap();
        let fds = vm.create_vcpus().unwrap();
        let new = t.elapsed();
        set = VcpuSet::spawn(fds, handler.clone()).unwrap();
        let (vcpus, state): (Vec<kvm::VcpuState>, VmState) = postcard::from_bytes(&bytes).unwrap();
        let t = Instant::now();
        state.restore(&vm, ClockPolicy::Continue).unwrap();
        set.restore(&plan, &vcpus).unwrap();
        eprintln!(
            "[pause {paused:?} save vcpus {save:?} vm {save_vm:?} bytes {} new VM {new:?} restore {:?} rip {:#x}]",
            bytes.len(),
            t.elapsed(),
            vcpus[0].rip()
        );
        set.resume();
    }
    println!("end: {}", rx.recv().unwrap());
}
