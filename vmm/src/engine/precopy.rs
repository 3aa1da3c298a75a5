//! Pre-copy: guest memory goes to a fresh standby while the guest runs, until little is left.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use ft_core::LinkId;
use ft_core::pages::{PAGE_SIZE, Page};
use ft_core::wire::Kind;
use vm_memory::{Bytes, GuestAddress};

use super::outbox::Outbox;
use super::sender::Output;
use super::{Engine, Step};

/// Rounds after which the rest is sent with the guest paused, however much it is.
const MAX_ROUNDS: usize = 12;
/// So few dirty pages are sent with the guest paused.
const FEW_PAGES: usize = 512;
/// Pages between two looks at what else is to be sent.
const SLICE: usize = 256;

/// Sends all of memory, then what was written meanwhile, and so on. `false`: the session is over.
///
/// The pages are read while the guest writes them, so a page may be sent torn; but it is marked
/// dirty again by the very write that tore it, because the log is cleared before it is read, and
/// no checkpoint is complete before it has been sent again (P4).
pub(super) fn precopy(
    engine: &Arc<Engine>,
    link: LinkId,
    out: &mut Output,
    items: &Outbox,
) -> io::Result<bool> {
    let machine = engine.machine();
    let begun = Instant::now();
    let Ok(mut live) = engine.live(link) else { return Ok(false) };
    live.start_log().map_err(io::Error::other)?;
    drop(live);
    engine.options.steps.reached(link, Step::LogStarted);
    let Ok(mut live) = engine.live(link) else { return Ok(false) };
    live.mark_all();
    drop(live);
    let (epoch, term) = (machine.gate().epoch(), engine.lock().primary.term());
    let memory = machine.memory();
    let mut sent = 0;
    let mut last = usize::MAX;
    for round in 1..=MAX_ROUNDS {
        let Ok(mut live) = engine.live(link) else { return Ok(false) };
        let frames = live.collect().map_err(io::Error::other)?;
        drop(live);
        // A set that no longer shrinks is the guest's working set: more rounds only repeat it.
        let stuck = round > 2 && frames.len() * 10 > last * 9;
        if round > 1 && (frames.len() <= FEW_PAGES || stuck || round == MAX_ROUNDS) {
            // They belong to the first checkpoint.
            engine.tracking.give_back(&frames);
            break;
        }
        last = frames.len();
        sent += frames.len();
        for slice in frames.chunks(SLICE) {
            let mut numbers = slice.iter().copied();
            out.pages(Kind::Bulk, epoch, term, |frame| {
                let Some(number) = numbers.next() else { return Ok(false) };
                let address = number * PAGE_SIZE as u64;
                let read = |page: &mut Page| memory.read_slice(page, GuestAddress(address));
                frame.push(address, read).map_err(io::Error::other)?;
                Ok(true)
            })?;
            out.flush()?;
            if !out.interleave(items)? {
                return Ok(false);
            }
        }
        engine.options.steps.reached(link, Step::RoundSent);
    }
    log::info!("pre-copy: {sent} pages in {} ms", begun.elapsed().as_millis());
    Ok(true)
}
