//! Takes a checkpoint of the paused machine, and gives it to the core.

use std::sync::Arc;
use std::time::Instant;

use ft_core::pages::{PAGE_SIZE, PageFrames};
use ft_core::primary::Event;
use ft_core::wire::Hashes;
use ft_core::{Epoch, LinkId};
use io_gate::host::EffectId;
use kemari_hypervisor::memory::PageReader;

use super::item::Checkpoint;
use super::pause::Pause;
use super::{Engine, EngineState};
use crate::session::{MachineState, hash_memory_telling};

/// Progress is reported to the watchdog after each batch of this many copied pages.
const WORK_PAGES: usize = 1 << 14;

/// The state that was taken from the machine while it was paused.
pub(super) struct Taken {
    epoch: Epoch,
    next: EffectId,
    /// Number of effects staged in the epoch.
    pub(super) staged: usize,
    state: MachineState,
    page_numbers: Vec<u64>,
    pages: PageFrames,
    hashes: Option<Hashes>,
}

pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Engine {
    /// Takes the checkpoint of a paused machine. Returns `None` when the session has ended.
    pub(super) fn take(&self, link: LinkId, pause: &mut Pause) -> Result<Option<Taken>, Failure> {
        let Ok(mut live) = self.live(link) else { return Ok(None) };
        let sealed = live.seal();
        drop(live);
        let (epoch, next, staged) = (sealed.epoch, sealed.next_id, sealed.staged);
        pause.sealed = Instant::now();
        let state = MachineState::capture(&self.machine, sealed)?;
        pause.saved = Instant::now();
        // P8: collect after the vCPUs are read, because KVM itself writes guest memory during that
        // read.
        let Ok(mut live) = self.live(link) else { return Ok(None) };
        let (mut page_numbers, mut pages) = live.buffers();
        live.collect_epoch(&mut page_numbers)?;
        drop(live);
        pause.collected = Instant::now();
        let copied = self.copy_pages(&page_numbers, &mut pages);
        pause.copied = Instant::now();
        let hashes = copied.and_then(|()| self.hashes(&state));
        match hashes {
            Ok(hashes) => {
                Ok(Some(Taken { epoch, next, staged, state, page_numbers, pages, hashes }))
            }
            Err(error) => {
                self.tracking.give_back(&page_numbers);
                Err(error)
            }
        }
    }

    fn hashes(&self, state: &MachineState) -> Result<Option<Hashes>, Failure> {
        if !self.options.verify {
            return Ok(None);
        }
        let memory = hash_memory_telling(self.machine.memory(), || self.machine.note_work())?;
        Ok(Some(Hashes { memory, state: state.hash()? }))
    }

    /// Gives the checkpoint to the core, which assigns it to the session over `link`. Returns
    /// `None` when that session has ended in the meantime.
    pub(super) fn seal_taken(
        self: &Arc<Self>,
        link: LinkId,
        taken: Taken,
    ) -> Result<Option<Checkpoint>, Failure> {
        let Taken { epoch, next, state, page_numbers, pages, hashes, staged: _ } = taken;
        let mut state = state;
        self.options.steps.change(&mut state);
        let encoded = state.encode().inspect_err(|_| self.tracking.give_back(&page_numbers))?;
        let mut state = self.lock();
        let state: &mut EngineState = &mut state;
        let term = state.primary.term();
        let sealed = state.primary.handle(self.now(), Event::Sealed { link, epoch });
        let Ok(actions) = sealed.inspect_err(|illegal| log::debug!("{illegal}")) else {
            // The session ended between the decision and now. The next one may already copy memory:
            // the pages taken from the log must still be sent (P4).
            self.tracking.give_back(&page_numbers);
            return Ok(None);
        };
        if let Some(session) = state.session_of(link) {
            let (epoch, term, session) = (epoch.0, term.0, session.number());
            self.record(kemari_audit::Event::Sealed { epoch, term, session, next: next.0 });
        }
        self.perform(state, actions);
        self.tell_ticker(state);
        Ok(Some(Checkpoint { epoch, term, page_numbers, pages, state: encoded, hashes }))
    }

    fn copy_pages(&self, page_numbers: &[u64], pages: &mut PageFrames) -> Result<(), Failure> {
        pages.begin(page_numbers.len());
        let mut memory = PageReader::new(self.machine.memory());
        for (index, page) in page_numbers.iter().enumerate() {
            if index % WORK_PAGES == 0 {
                self.machine.note_work();
            }
            let address = page * PAGE_SIZE as u64;
            pages.push(address, |page| memory.read(address, page))?;
        }
        Ok(())
    }

    /// Ends the session because the machine's state cannot be saved. The machine is not protected
    /// then; the core decides what follows.
    pub(super) fn give_session_up(self: &Arc<Self>, link: LinkId, error: &Failure) {
        let reason = format!("cannot take a checkpoint: {error}");
        log::error!("{reason}");
        self.event(Event::LinkLost { link, reason });
    }
}
