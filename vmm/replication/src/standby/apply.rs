//! Receives checkpoints. Each one is tried, then acknowledged, then written to the machine (P4).

use std::sync::Arc;
use std::time::Duration;

use ft_core::pages::{PAGE_SIZE, is_zero};
use ft_core::standby::{CheckedPages, Checkpoint, Event};
use ft_core::wire::Hashes;
use kemari_machine::{LoopError, Machine};
use vm_memory::{Bytes, GuestAddress};

use super::StandbyDriver;
use super::hosted::Hosted;
use super::serve::Next;
use crate::session::{MachineState, hash_memory};

/// The device thread usually restores a checkpoint's state in a fraction of this time.
const SOON: Duration = Duration::from_millis(20);
/// P9: a state that the device thread has not restored within this time is refused. That thread is
/// stuck, and could not serve the guest either.
const DEVICE_PATIENCE: Duration = Duration::from_secs(5);
/// A checkpoint of at most this many pages is processed long before the primary misses a sign of
/// life.
const FEW_PAGES: u64 = 1024;

impl StandbyDriver {
    pub(super) fn apply_bulk(&mut self, pages: &CheckedPages) {
        if let Some(hosted) = &self.hosted {
            let written =
                pages.for_each_piece(|address, page| fill(&hosted.machine, address, page));
            written.expect("P4: the core has checked every address against the machine's layout");
        }
    }

    /// Checks that the checkpoint can be applied (P4): its state decodes, and the devices and KVM
    /// accept it.
    pub(super) fn check(&mut self, checkpoint: &Checkpoint) -> Event {
        let epoch = checkpoint.epoch();
        let refuse = |reason: String| Event::NotApplicable { epoch, reason };
        if self.hosted.as_ref().is_some_and(|hosted| hosted.applied.is_none())
            && let Err(reason) = self.ready_to_boot()
        {
            return refuse(reason);
        }
        let blob: Vec<u8> = checkpoint.state().flatten().copied().collect();
        match self.try_state(&blob) {
            Ok(state) if state.epoch() == epoch => {
                if let Some(hosted) = &mut self.hosted {
                    hosted.tried = Some(state);
                }
                Event::Applicable { epoch }
            }
            Ok(state) => refuse(format!("its state belongs to epoch {}", state.epoch())),
            Err(reason) => refuse(reason.to_string()),
        }
    }

    pub(super) fn apply(&mut self, checkpoint: &Checkpoint) -> Next {
        let Some(hosted) = &mut self.hosted else {
            unreachable!("a checkpoint is applied after it was checked against the machine");
        };
        let applied =
            checkpoint.for_each_piece(|address, piece| write(&hosted.machine, address, piece));
        applied.expect("P4: the core has checked every address against the machine's layout");
        hosted.applied = hosted.tried.take();
        self.shown().applied(checkpoint.pages());
        match checkpoint.hashes() {
            None => Next::Nothing,
            Some(_) => match self.hash() {
                Ok(hashes) => Next::Event(Event::Hashed { epoch: checkpoint.epoch(), hashes }),
                Err(error) => {
                    let (epoch, reason) = (checkpoint.epoch(), error.to_string());
                    Next::Event(Event::CannotHash { epoch, reason })
                }
            },
        }
    }

    /// Checks that the guest can be reset here (P7): this side has its own boot files, or has
    /// received the primary's.
    fn ready_to_boot(&self) -> Result<(), String> {
        let Some(Hosted { machine, boot: Some(source), .. }) = &self.hosted else { return Ok(()) };
        let boot = match &self.config.boot {
            Some(own) => own.clone(),
            None => Arc::new(self.images.boot(source)?),
        };
        machine.set_boot_files(boot);
        Ok(())
    }

    fn try_state(&mut self, blob: &[u8]) -> Result<MachineState, Box<dyn std::error::Error>> {
        let hosted = self.hosted.as_ref().ok_or("no machine for it exists")?;
        let state = MachineState::decode(blob, &hosted.machine)?;
        let answer = state.try_on(&hosted.machine)?;
        let mut tried = answer.within(SOON);
        if matches!(tried, Err(LoopError::Silent(_))) {
            self.give_signs_of_life();
            tried = answer.within(DEVICE_PATIENCE);
        }
        tried??;
        let hosted = self.hosted.as_mut().ok_or("no machine for it exists")?;
        state.admit(hosted.trial()?)?;
        Ok(state)
    }

    fn hash(&self) -> Result<Hashes, Box<dyn std::error::Error>> {
        let hosted = self.hosted.as_ref().ok_or("there is no machine")?;
        let state = hosted.applied.as_ref().ok_or("there is no checkpoint")?;
        Ok(Hashes {
            memory: hash_memory(hosted.machine.memory())?,
            state: state.hash_after_restore(&hosted.machine, DEVICE_PATIENCE)?,
        })
    }

    /// Starts the pulse if the work with this checkpoint may take long.
    pub(super) fn give_signs_of_life_for(&mut self, checkpoint: &Checkpoint) {
        let first = self.hosted.as_ref().is_some_and(|hosted| hosted.applied.is_none());
        if first || checkpoint.pages() > FEW_PAGES || checkpoint.hashes().is_some() {
            self.give_signs_of_life();
        }
    }

    /// Starts the pulse, which sends signs of life until it is stopped: this thread is about to do
    /// work that may take long, and neither reads nor writes the link in the meantime.
    fn give_signs_of_life(&mut self) {
        let now = self.now();
        let Some((id, frame)) = self.core.sign_of_life(now) else { return };
        let Some((_, link)) = self.link.as_ref().filter(|(current, _)| *current == id) else {
            return;
        };
        let mut bytes = Vec::new();
        // The link's reader reports a link that cannot be written to.
        if frame.encode(&mut bytes).is_ok()
            && let Ok(link) = link.try_clone()
        {
            self.pulse.give(link, bytes);
        }
    }
}

/// As [`write`], but skips zeros where memory is already zero: pages that the guest never touched
/// then take no memory of this host.
fn fill(machine: &Machine, address: u64, page: &[u8]) -> Result<(), vm_memory::GuestMemoryError> {
    if page.try_into().is_ok_and(is_zero) {
        let mut present = [0; PAGE_SIZE];
        machine.memory().read_slice(&mut present, GuestAddress(address))?;
        if is_zero(&present) {
            return Ok(());
        }
    }
    write(machine, address, page)
}

fn write(machine: &Machine, address: u64, piece: &[u8]) -> Result<(), vm_memory::GuestMemoryError> {
    machine.memory().write_slice(piece, GuestAddress(address))
}
