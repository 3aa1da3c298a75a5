//! Boots, starts, resets and ends a machine.

use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use io_gate::PowerEvent;
use kemari_confine::seccomp::{self, Role};
use kemari_confine::threads;
use kemari_hypervisor::kvm::{ClockPolicy, FatalExit};
use kemari_hypervisor::layout::PAGE_SIZE;
use kvm_bindings::KVM_SYSTEM_EVENT_RESET;
use vm_memory::{Address, Bytes, GuestMemoryBackend, GuestMemoryRegion};

use super::subscribers::DeviceEvents;
use super::{Machine, MachineError};
use crate::boot::{self, Boot, BootError, BootMachine};
use crate::events::{Ended, MachineEvent};

/// Number of cleared bytes after which progress is reported to the watchdog.
const WORK_BYTES: u64 = 64 << 20;

impl Machine {
    /// Loads the kernel and sets the first vCPU to enter it. The vCPUs must be paused.
    ///
    /// # Errors
    /// When there is no kernel, or it cannot be booted.
    pub fn boot(&self) -> Result<(), MachineError> {
        let boot = self.open_boot()?.ok_or(MachineError::NoKernel)?;
        let windows: Vec<_> = self.devices.virtio().iter().map(|device| device.window()).collect();
        let machine = BootMachine {
            cpus: self.vcpus.len() as u32,
            windows: &windows,
            pci: self.devices.pci().is_some(),
        };
        let entry = boot::load_open(&self.memory, &boot, machine, &|| self.note_work())?;
        self.vcpus.with_vcpu(0, |fd| boot::set_entry_registers(fd, entry))??;
        Ok(())
    }

    /// Starts the guest for the first time: after [`boot`](Self::boot), or after a restore and
    /// [`attach_backends`](Self::attach_backends). Do not call it on the device thread.
    ///
    /// # Errors
    /// When the device thread has ended.
    pub fn start(self: &Arc<Self>) -> Result<(), MachineError> {
        self.start_after(|| ())
    }

    /// As [`start`](Self::start), and runs `last` immediately before the guest runs: what the guest
    /// does can end the process at once.
    ///
    /// # Errors
    /// When the device thread has ended.
    pub fn start_after(
        self: &Arc<Self>,
        last: impl FnOnce() + Send + 'static,
    ) -> Result<(), MachineError> {
        if self.started.swap(true, Ordering::AcqRel) {
            last();
            self.vcpus.resume();
            return Ok(());
        }
        self.confine_vcpus();
        // Open the files for a reset now: the device thread may not open any. After a takeover, a
        // guest needs them only at its next reset.
        if let Err(error) = self.open_boot() {
            log::warn!("{error}: the guest cannot be reset");
        }
        let machine = self.clone();
        // Run this on the device thread: it then serves every queue before it handles an event.
        self.device_loop().call(move |context| {
            context.add(Box::new(DeviceEvents::new(machine.devices.clone())));
            // A fresh machine has no driver yet; a restored one may have lost notifications and
            // interrupts.
            machine.raise_all_interrupts();
            last();
            machine.runs.store(true, Ordering::Release);
            machine.vcpus.resume();
        })?;
        Ok(())
    }

    /// Makes each vCPU's thread give up the rights that it does not need, before it first enters
    /// the guest.
    fn confine_vcpus(&self) {
        let wakes = self.wakes();
        self.vcpus.before_first_run(move || seccomp::enter(Role::Vcpu, &wakes));
    }

    /// The guest's boot files; `None` while this host has none.
    #[must_use]
    pub fn boot_files(&self) -> Option<Arc<Boot>> {
        self.boot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the guest's boot files from its next reset on, instead of those of the command line.
    pub fn set_boot_files(&self, boot: Arc<Boot>) {
        *self.boot.lock().unwrap_or_else(PoisonError::into_inner) = Some(boot);
    }

    /// The guest's boot files; opens those of the command line if there are none yet.
    fn open_boot(&self) -> Result<Option<Arc<Boot>>, BootError> {
        let known = self.boot_files();
        let Some(source) = self.config.boot.as_ref().filter(|_| known.is_none()) else {
            return Ok(known);
        };
        let boot = Boot::open(&source.kernel, source.initrd.as_deref(), &source.cmdline)?;
        self.set_boot_files(Arc::new(boot));
        Ok(self.boot_files())
    }

    /// Serves every queue and interrupts every driver: notifications and interrupts between a
    /// checkpoint and the takeover may be lost. Call it on the device thread;
    /// [`start`](Self::start) does so.
    pub fn raise_all_interrupts(&self) {
        self.devices.retry();
    }

    /// Whether the device thread has started the guest. Before that, do not resume its vCPUs: they
    /// are not confined yet (P5).
    #[must_use]
    pub fn has_run(&self) -> bool {
        self.runs.load(Ordering::Acquire)
    }

    /// Resets the machine to power-on and boots again. Call it on the device thread. All its writes
    /// to memory go through vm-memory, so that they are tracked (P8).
    ///
    /// # Errors
    /// When there is no kernel, or KVM refuses a call. The machine then stays paused.
    pub fn reset(&self) -> Result<(), MachineError> {
        self.vcpus.pause();
        if self.boot_files().is_none() {
            return Err(MachineError::NoKernel);
        }
        // Reset the devices first: a disk write that still reads memory would otherwise write parts
        // of the loaded kernel to the disk.
        self.devices.reset(|| self.note_work()).map_err(|slot| MachineError::Busy { slot })?;
        self.gate.forget_resets();
        self.power_on.vm.restore(&self.vm, ClockPolicy::Continue)?;
        self.vcpus.restore(&self.plan, &self.power_on.vcpus)?;
        self.clear_memory()?;
        self.boot()?;
        self.vcpus.revive();
        self.vcpus.resume();
        Ok(())
    }

    /// Clears memory: an image must be loaded over zeros, not over the former guest's data. Skips
    /// pages that are zero, so that they are neither allocated nor marked dirty.
    fn clear_memory(&self) -> Result<(), MachineError> {
        let zeros = [0_u8; PAGE_SIZE as usize];
        let mut page = zeros;
        for region in self.memory.iter() {
            for offset in (0..region.len()).step_by(PAGE_SIZE as usize) {
                let address = region.start_addr().unchecked_add(offset);
                if offset.is_multiple_of(WORK_BYTES) {
                    self.note_work();
                }
                self.memory.read_slice(&mut page, address)?;
                if page != zeros {
                    self.memory.write_slice(&zeros, address)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until the machine has ended: by its guest, a signal, a failure, the loss of its right,
    /// or [`end`](Self::end).
    #[must_use]
    pub fn wait(&self) -> Ended {
        self.events.wait()
    }

    /// Ends the machine and wakes the thread in [`wait`](Self::wait). Only the first call has an
    /// effect.
    pub fn end(&self, ended: Ended) {
        self.events.end(ended);
    }

    /// Stops the device thread and the vCPUs, then performs all released effects. Effects still
    /// held at the gate are never performed (P1). Do not call it on the device thread.
    pub fn stop(&self) {
        // Stop the device thread first: at the end of a checkpoint it would resume the vCPUs.
        self.device_thread.stop();
        self.vcpus.pause();
        self.gate.drain();
    }

    /// Presses the guest's power button; the guest decides how to react. P9: while one press waits
    /// for the device thread, further presses are ignored.
    pub fn press_power_button(&self) {
        if self.button_pressed.swap(true, Ordering::AcqRel) {
            return;
        }
        let (devices, pressed) = (self.devices.clone(), self.button_pressed.clone());
        self.device_loop().post(move |_| {
            // Clear first, so that a press from now on counts again.
            pressed.store(false, Ordering::Release);
            devices.press_power_button();
        });
    }

    /// How the guest handles its power button; `None` if not known now. Does not block.
    #[must_use]
    pub fn power_button(&self) -> Option<devices::Button> {
        self.devices.power_button()
    }

    /// Does what [`stop`](Self::stop) does, but waits at most for `limit`: a device, a vCPU or a
    /// lane may be stuck. `false`: one is stuck, and its threads end with the process.
    #[must_use]
    pub fn stop_within(self: &Arc<Self>, limit: Duration) -> bool {
        let (stopped, wait) = sync_channel(1);
        let machine = self.clone();
        let stop = move || {
            machine.stop();
            // Fails if the caller has stopped waiting.
            let _ = stopped.send(());
        };
        match threads::start("stopper", Role::Main, stop) {
            Ok(_) => wait.recv_timeout(limit).is_ok(),
            Err(error) => {
                log::warn!(
                    "the machine is ended without a time limit: {error}; the thread that requested it may wait \
                    for a long time"
                );
                self.stop();
                true
            }
        }
    }

    /// Sets a function to call at the loss of the right to perform (P2), instead of ending the
    /// machine. Only the first call has an effect.
    pub fn set_fence_hook(&self, hook: impl Fn() + Send + Sync + 'static) {
        if self.fence_hook.set(Box::new(hook)).is_err() {
            log::error!("ignoring a second fence hook: expected only one");
        }
    }

    pub(crate) fn on_fenced_off(&self) {
        match self.fence_hook.get() {
            Some(hook) => hook(),
            None => self.end(Ended::Fenced(
                "the right to run this machine is lost; nothing more is performed".into(),
            )),
        }
    }

    /// Handles a power event that the gate has released. Call it on the device thread.
    pub(crate) fn on_power(&self, event: PowerEvent) {
        match event {
            PowerEvent::Off => self.end(Ended::PoweredOff),
            PowerEvent::Reset => self.reset_or_end("the guest resets itself"),
        }
    }

    /// Handles an event of a vCPU. Call it on the device thread.
    pub(crate) fn on_event(&self, event: MachineEvent) {
        let MachineEvent::Fatal { vcpu, exit } = event;
        match exit {
            FatalExit::TripleFault { .. }
            | FatalExit::SystemEvent { kind: KVM_SYSTEM_EVENT_RESET } => {
                self.reset_or_end(&format!("vCPU {vcpu}: {exit}"));
            }
            exit => {
                self.vcpus.pause();
                self.end(Ended::Failed(format!(
                    "vCPU {vcpu} cannot continue: {exit}{}",
                    hint(&exit)
                )));
            }
        }
    }

    fn reset_or_end(&self, why: &str) {
        if self.events.ended().is_some() {
            return;
        }
        log::info!("{why}: resetting the machine");
        if let Err(error) = self.reset() {
            self.end(Ended::Failed(format!(
                "{why}, but the machine cannot be reset, and powers off: {error}"
            )));
        }
    }
}

fn hint(exit: &FatalExit) -> &'static str {
    match exit {
        FatalExit::InternalError { suberror: 1, .. } => {
            "; this host's KVM emulates part of the guest: `kemari probe` reports what it can run"
        }
        FatalExit::Panicked => "; this is a fault of kemari: please report the messages above",
        _ => "",
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.device_thread.stop();
    }
}
