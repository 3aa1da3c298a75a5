//! Pre-copy: sends guest memory to a new standby while the guest runs, until few pages are dirty.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use ft_core::LinkId;
use ft_core::pages::{PAGE_SIZE, Page};
use ft_core::wire::Kind;
use vm_memory::{Bytes, GuestAddress};

use super::outbox::Outbox;
use super::output::Output;
use super::{Engine, Step};

/// Upper bound of rounds. After the last one the remaining pages are sent with the guest paused,
/// whatever their number.
const MAX_ROUNDS: usize = 12;
/// With at most this many dirty pages left, they are sent with the guest paused.
const FEW_PAGES: usize = 512;
/// Pages sent between two looks at the queue.
const SLICE: usize = 256;

/// Sends all of memory, then the pages that the guest has written since, and so on. Returns `false`
/// when the session has ended.
///
/// P4: the pages are read while the guest writes them, so a page may be sent torn. The log is
/// cleared before a page is read, so the write that tears the page marks it dirty again. No
/// checkpoint is complete before that page is sent again.
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
        let page_numbers = live.collect().map_err(io::Error::other)?;
        drop(live);
        // A set that no longer shrinks is the guest's working set: more rounds would only repeat
        // it.
        let stuck = round > 2 && page_numbers.len() * 10 > last * 9;
        if round > 1 && (page_numbers.len() <= FEW_PAGES || stuck || round == MAX_ROUNDS) {
            // These pages belong to the first checkpoint.
            engine.tracking.give_back(&page_numbers);
            break;
        }
        last = page_numbers.len();
        sent += page_numbers.len();
        for slice in page_numbers.chunks(SLICE) {
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
