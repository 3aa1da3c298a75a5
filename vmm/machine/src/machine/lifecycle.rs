//! Boot, start, reset and end of a machine.

use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use io_gate::PowerEvent;
use kemari_confine::seccomp::{self, Role};
use kemari_hypervisor::kvm::{ClockPolicy, FatalExit};
use kemari_hypervisor::layout::PAGE_SIZE;
use kvm_bindings::KVM_SYSTEM_EVENT_RESET;
use vm_memory::{Address, Bytes, GuestMemoryBackend, GuestMemoryRegion};

use super::subscribers::DeviceEvents;
use super::{Machine, MachineError};
use crate::boot::{self, Boot, BootError, BootMachine};
use crate::events::{Ended, MachineEvent};

/// Progress is reported to the watchdog after each batch of this many cleared bytes.
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

    /// Lets the guest run for the first time: after [`boot`](Self::boot), or after a restore and
    /// [`attach_backends`](Self::attach_backends). Do not call it on the device thread.
    ///
    /// # Errors
    /// When the device thread is gone.
    pub fn start(self: &Arc<Self>) -> Result<(), MachineError> {
        if self.started.swap(true, Ordering::AcqRel) {
            self.vcpus.resume();
            return Ok(());
        }
        self.confine_vcpus();
        // Open the files for a reset now: the device thread may not. A guest that was taken over needs them only at its next
        // reset.
        if let Err(error) = self.open_boot() {
            log::warn!("{error}: the guest cannot be reset");
        }
        let machine = self.clone();
        // On the device thread, so that no event is served before the queues are looked at.
        self.device_loop().call(move |context| {
            context.add(Box::new(DeviceEvents::new(machine.devices.clone())));
            // A fresh machine has no driver yet; a restored one may have lost notifications and interrupts.
            machine.raise_all_interrupts();
            machine.runs.store(true, Ordering::Release);
            machine.vcpus.resume();
        })?;
        Ok(())
    }

    /// Makes each vCPU's thread give up the rights it does not need before it first enters the guest.
    fn confine_vcpus(&self) {
        let wakes = self.wakes();
        self.vcpus.before_first_run(move || seccomp::enter(Role::Vcpu, &wakes));
    }

    /// What the guest boots, if this host knows.
    #[must_use]
    pub fn boot_files(&self) -> Option<Arc<Boot>> {
        self.boot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets what the guest boots from its next reset on; this replaces the command line's files.
    pub fn set_boot_files(&self, boot: Arc<Boot>) {
        *self.boot.lock().unwrap_or_else(PoisonError::into_inner) = Some(boot);
    }

    /// What the guest boots; opens the command line's files if they are not open yet.
    fn open_boot(&self) -> Result<Option<Arc<Boot>>, BootError> {
        let known = self.boot_files();
        let Some(source) = self.config.boot.as_ref().filter(|_| known.is_none()) else {
            return Ok(known);
        };
        let boot = Boot::open(&source.kernel, source.initrd.as_deref(), &source.cmdline)?;
        self.set_boot_files(Arc::new(boot));
        Ok(self.boot_files())
    }

    /// Looks at every queue and interrupts every driver, because notifications and interrupts between a checkpoint and the
    /// takeover may be lost. Called on the device thread; part of [`start`](Self::start).
    pub fn raise_all_interrupts(&self) {
        self.devices.retry();
    }

    /// Whether the device thread has let the guest run for the first time. Do not resume its vCPUs before: they and the device
    /// thread are not confined yet (P5).
    #[must_use]
    pub fn has_run(&self) -> bool {
        self.runs.load(Ordering::Acquire)
    }

    /// Resets the machine to power-on and boots again. Called on the device thread. Writes memory through vm-memory only, so
    /// that these writes are tracked as well (P8).
    ///
    /// # Errors
    /// When there is no kernel, or KVM refuses; the machine then stays paused.
    pub fn reset(&self) -> Result<(), MachineError> {
        self.vcpus.pause();
        if self.boot_files().is_none() {
            return Err(MachineError::NoKernel);
        }
        // Reset the devices first: a kernel loaded over memory that a disk write still reads would end up on the disk.
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

    /// Clears memory to its content at power-on: an image must be loaded over zeros, not over the former guest's data. Skips
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

    /// Waits until the machine has ended: by its guest, a signal, a failure, the loss of its right, or [`end`](Self::end).
    #[must_use]
    pub fn wait(&self) -> Ended {
        self.events.wait()
    }

    /// Ends the machine and wakes the thread in [`wait`](Self::wait). Only the first reason counts.
    pub fn end(&self, ended: Ended) {
        self.events.end(ended);
    }

    /// Stops the vCPUs, performs what was released, then stops the device thread. Effects still held at the gate are never
    /// performed (P1). Do not call it on the device thread.
    pub fn stop(&self) {
        // Stop the device thread first: at the end of a checkpoint it would resume the vCPUs.
        self.device_thread.stop();
        self.vcpus.pause();
        self.gate.drain();
    }

    /// Presses the guest's power button; how the guest reacts is its own affair. P9: while one press waits for the device
    /// thread, further presses are ignored.
    pub fn press_power_button(&self) {
        if self.button_pressed.swap(true, Ordering::AcqRel) {
            return;
        }
        let (devices, pressed) = (self.devices.clone(), self.button_pressed.clone());
        self.device_loop().post(move |_| {
            // Clear first: a later press counts anew.
            pressed.store(false, Ordering::Release);
            devices.press_power_button();
        });
    }

    /// What the guest does about its power button; `None` if that is not known at this moment. Does not block.
    #[must_use]
    pub fn power_button(&self) -> Option<devices::Button> {
        self.devices.power_button()
    }

    /// As [`stop`](Self::stop), but waits at most `limit`: a device, a vCPU or a lane may be stuck. Returns `false` when one is;
    /// its threads then end with the process.
    #[must_use]
    pub fn stop_within(self: &Arc<Self>, limit: Duration) -> bool {
        let (stopped, wait) = sync_channel(1);
        let machine = self.clone();
        let stop = move || {
            machine.stop();
            // The caller has gone if this took too long.
            let _ = stopped.send(());
        };
        match std::thread::Builder::new().name("stopper".to_owned()).spawn(stop) {
            Ok(_) => wait.recv_timeout(limit).is_ok(),
            Err(error) => {
                log::warn!(
                    "cannot start a thread for the end of the machine: {error}; the thread that requested it may wait \
                    for a long time"
                );
                self.stop();
                true
            }
        }
    }

    /// Sets what to do when the right to perform is lost (P2), instead of ending the machine. Only the first hook counts.
    pub fn set_fence_hook(&self, hook: impl Fn() + Send + Sync + 'static) {
        if self.fence_hook.set(Box::new(hook)).is_err() {
            log::error!("ignoring a second fence hook: expected one");
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

    /// Handles a power event that the gate has released. Called on the device thread.
    pub(crate) fn on_power(&self, event: PowerEvent) {
        match event {
            PowerEvent::Off => self.end(Ended::PoweredOff),
            PowerEvent::Reset => self.reset_or_end("the guest resets itself"),
        }
    }

    /// Handles an event of a vCPU. Called on the device thread.
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
