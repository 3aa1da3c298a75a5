//! The link to the primary: it is admitted, written to by the standby's thread, and read by a
//! thread of its own.

use std::io::{self, Write};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use ft_core::LinkId;
use ft_core::standby::Event;
use ft_core::wire::{Kind, Message, Outgoing};
use kemari_confine::seccomp::Role;
use kemari_confine::threads;

use super::serve::Next;
use super::{Input, StandbyDriver};
use crate::link::{Buffers, Link};
use crate::session::{ReadEnd, Watched, read_frames};

/// Upper bound of checkpoint frames in one input. The standby's thread wakes once for several
/// frames, and checks them while the next ones are received.
const TOGETHER: usize = 8;
/// Bytes after which an input of several frames is full. The last frame may exceed them.
const BYTES_TOGETHER: usize = 4 << 20;
/// Time limit for sending to the primary: one that does not read for this long is dropped.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

impl StandbyDriver {
    /// Starts the reader of a link whose Hello has arrived.
    pub(super) fn admit(&mut self, link: Link, peer: &str) -> Option<LinkId> {
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let (inputs, buffers) = (self.inputs.clone(), self.buffers.clone());
        let every = self.config.options.heartbeat_interval;
        let reader = link.set_write_timeout(Some(WRITE_TIMEOUT)).and_then(|()| link.try_clone());
        let started = reader.and_then(|reader| {
            threads::start("reader", Role::LinkReader, move || {
                read(reader, id, every, &buffers, &inputs);
            })
        });
        if let Err(error) = started {
            log::warn!("cannot serve a connection from {peer}: {error}");
            return None;
        }
        let secured = if link.is_secured() { "TLS" } else { "not encrypted" };
        log::info!("connection from {peer} ({secured})");
        if self.link.is_some() {
            // The core answers on the new link and closes it, and the current link keeps its place.
            self.refuse_second(id, link);
        } else {
            self.link = Some((id, link));
            let end = self.event(Event::Connected { link: id });
            debug_assert!(end.is_none(), "a new connection ends no standby");
        }
        Some(id)
    }

    /// One primary at a time: the core refuses the second one, with a reason.
    fn refuse_second(&mut self, id: LinkId, link: Link) {
        let current = self.link.replace((id, link));
        let end = self.event(Event::Connected { link: id });
        debug_assert!(end.is_none(), "a new connection ends no standby");
        if self.link.is_none() {
            self.link = current;
        } else if let Some((_, old)) = current {
            // The core has accepted the new link: it comes from a primary of a later term.
            old.shutdown();
        }
    }

    pub(super) fn rotate_keys(&self) -> Result<(), String> {
        let (_, link) = self.link.as_ref().ok_or("expected a link to a primary, found none")?;
        if !link.is_secured() {
            return Err("expected a link with --tls, found one without".to_owned());
        }
        // If this fails, the link's reader gets the same error and reports it to the core.
        link.rotate_keys()
            .map_err(|error| format!("the keys of the link are unchanged: {error}"))?;
        log::info!("the link has new keys");
        Ok(())
    }

    pub(super) fn send(&mut self, to: LinkId, frame: &Outgoing) -> Next {
        if self.link.as_ref().is_some_and(|(id, _)| *id == to) {
            self.record_word(to, frame);
            if matches!(frame.message, Message::Welcome(_)) {
                self.follow();
            }
        }
        let Some((_, link)) = self.link.as_mut().filter(|(id, _)| *id == to) else {
            return Next::Nothing;
        };
        let mut bytes = Vec::new();
        let sent =
            frame.encode(&mut bytes).map_err(io::Error::other).and_then(|_| link.write_all(&bytes));
        if let Err(error) = sent {
            // The link's reader reports the loss after it has read what has arrived: a primary that
            // has said Bye has closed the link, and its Bye may not have been read yet (P7).
            log::debug!("cannot send to the primary: {error}");
            link.shutdown();
        }
        Next::Nothing
    }

    /// P1: writes each message that lets the primary act (Welcome, Ack, Bye) to the audit log
    /// before it is sent.
    fn record_word(&mut self, link: LinkId, frame: &Outgoing) {
        let Some(audit) = self.config.audit.clone() else { return };
        let (epoch, term) = (frame.epoch.0, frame.term.0);
        match &frame.message {
            Message::Welcome(ours) => {
                self.session = (link, ours.session);
                audit.record(kemari_audit::Event::Accepted { term, session: ours.session });
            }
            Message::Ack => {
                let tried = self.hosted.as_ref().and_then(|hosted| hosted.tried.as_ref());
                let next = tried.map_or(0, |state| state.next_id().0);
                let session = self.session.1;
                audit.settle(kemari_audit::Event::AckSent { epoch, term, session, next });
            }
            Message::Bye { session, .. } => {
                audit.settle(kemari_audit::Event::GaveUp { session: *session });
            }
            _ => {}
        }
    }

    /// Accepts a primary. P2: from now on this side claims the next term only as the successor of
    /// exactly this process.
    fn follow(&self) {
        let primary = self.hosted.as_ref().map(|hosted| hosted.primary.clone());
        if let (Some(arbiter), Some((term, holder))) = (&self.arbiter, &primary) {
            arbiter.follow(*term, holder);
        }
        self.expected.set(primary);
        self.devices.set(self.hosted.as_ref().map(|hosted| hosted.machine.device_loop().clone()));
    }
}

fn read(link: Link, id: LinkId, every: Duration, buffers: &Buffers, inputs: &SyncSender<Input>) {
    // Sending fails when the standby has ended. It needs no input then.
    let progress = || {
        let _ = inputs.send(Input::Event(Event::Progress { link: id }));
    };
    let (mut frames, mut bytes) = (Vec::new(), 0);
    let end = read_frames(Watched::new(link, every, progress), buffers, |frame| {
        // These frames are of no use before the end of the checkpoint arrives, so they may wait.
        let waits = matches!(frame.header.kind, Kind::Pages | Kind::State);
        bytes += frame.header.body_len as usize;
        frames.push(frame);
        if !waits || frames.len() == TOGETHER || bytes >= BYTES_TOGETHER {
            let _ = inputs.send(Input::Frames(id, std::mem::take(&mut frames)));
            bytes = 0;
        }
    });
    let event = match end {
        ReadEnd::Garbled(error) => Event::Garbled { link: id, error },
        ReadEnd::Lost(reason) => Event::LinkLost { link: id, reason },
    };
    let _ = inputs.send(Input::Event(event));
}
