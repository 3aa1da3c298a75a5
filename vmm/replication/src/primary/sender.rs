//! The sender: the thread that writes a session's frames to the link, in order, until the session
//! ends.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use ft_core::LinkId;
use ft_core::primary::Event;

use super::images::send_images;
use super::item::Item;
use super::outbox::{Next, Outbox};
use super::output::{Output, overfull};
use super::precopy::precopy;
use super::{Engine, Step};
use crate::link::Link;

/// A peer that reads nothing for this long is gone, even if TCP still retries.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// Upper bound for a closing session to send its last frames and for the standby to read them.
const CLOSING: Duration = Duration::from_millis(500);

/// The main function of a session's sender thread.
pub(super) fn send(
    engine: &Arc<Engine>,
    id: LinkId,
    link: Link,
    items: &Outbox,
    reader: &Receiver<()>,
) {
    let mut out = Output::new(link);
    let done = out.set_write_timeout(WRITE_TIMEOUT).and_then(|()| run(engine, id, &mut out, items));
    match done {
        // P7: the last frame may be a Bye. Closing while the peer still sends would reset the
        // connection, and the frame could be lost. Wait until the peer closes: it has read the
        // frame by then.
        Ok(()) => {
            out.link().end_writing();
            let _ = reader.recv_timeout(CLOSING);
        }
        Err(error) => log::info!("link {}: cannot send: {error}", id.0),
    }
    // The session was dropped or the link is broken: in both cases the reader must end too. The
    // reader reports the loss after it has read what has arrived, because a standby that drops its
    // checkpoint says so before it closes (P7).
    out.link().shutdown();
    engine.options.steps.reached(id, Step::SenderEnded);
}

/// P7: a machine that makes no progress sends no sign of life. It closes the link instead, so that
/// its standby takes over.
fn check_progress(engine: &Engine) -> io::Result<()> {
    match engine.watchdog.is_stalled() {
        true => Err(io::Error::other(engine.stall_reason())),
        false => Ok(()),
    }
}

fn run(engine: &Arc<Engine>, link: LinkId, out: &mut Output, items: &Outbox) -> io::Result<()> {
    // The core's signs of life come sooner than this, unless the core is blocked.
    let quiet = engine.options.primary.heartbeat_interval * 3 / 2;
    loop {
        let item = match items.next(quiet) {
            Next::Item(item) => item,
            Next::Quiet => {
                check_progress(engine)?;
                out.give_sign()?;
                continue;
            }
            Next::Closed => break,
            Next::Overfull => return Err(overfull()),
        };
        match item {
            Item::Control(frame) => out.write_frame(&frame)?,
            Item::Sign(frame) => {
                check_progress(engine)?;
                out.write_frame(&frame)?;
            }
            Item::Checkpoint(checkpoint) => out.checkpoint(engine, link, *checkpoint, items)?,
            Item::RotateKeys(tell) => out.rotate_keys(&tell)?,
            Item::Precopy { session, images, sign } => {
                out.begin(session, sign, engine.delta_pages());
                if send_images(engine, &images, out, items)? && precopy(engine, link, out, items)? {
                    engine.event(Event::PrecopyDone { link });
                }
            }
        }
    }
    out.set_write_timeout(CLOSING)?;
    out.flush()
}
