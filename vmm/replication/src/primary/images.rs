//! Sends the kernel and the initrd to a standby that has none, so that it can reset the guest after
//! a takeover (P7).
//!
//! They are sent before guest memory: no checkpoint exists yet that would have to wait for them.

use std::io;
use std::sync::Arc;

use ft_core::handshake::{BootSource, ImageId};
use ft_core::wire::{Data, Kind, Message};
use kemari_machine::boot::{Boot, BootError, Image};

use super::Engine;
use super::outbox::Outbox;
use super::output::Output;
use crate::session::hello;

/// Bytes sent between two looks at the queue: a heartbeat waits for at most this many.
const CHUNK: u64 = 512 << 10;
const _: () = assert!(CHUNK <= Kind::Image.max_body() as u64);

/// The guest's boot files, read once per session.
pub(super) struct SessionBoot {
    boot: Arc<Boot>,
    source: BootSource,
}

impl SessionBoot {
    /// Reads the files if they have not been read yet. This may take seconds.
    pub(super) fn look(boot: Arc<Boot>) -> Result<Self, BootError> {
        let source = hello::boot_source(&boot)?;
        Ok(Self { boot, source })
    }

    pub(super) fn source(&self) -> &BootSource {
        &self.source
    }

    /// The files with these ids.
    pub(super) fn find(&self, ids: &[ImageId]) -> Vec<(ImageId, Arc<Image>)> {
        let all = [
            (Some(self.source.kernel), Some(&self.boot.kernel)),
            (self.source.initrd, self.boot.initrd.as_ref()),
        ];
        let known = all.into_iter().filter_map(|(id, image)| id.zip(image.cloned()));
        known.filter(|(id, _)| ids.contains(id)).take(ids.len()).collect()
    }
}

/// Sends the files. Returns `false` when the session has ended.
pub(super) fn send_images(
    engine: &Arc<Engine>,
    images: &[(ImageId, Arc<Image>)],
    out: &mut Output,
    items: &Outbox,
) -> io::Result<bool> {
    let about = (engine.machine().gate().epoch(), engine.lock().primary.term());
    for (id, image) in images {
        let mut sent = 0;
        while sent < id.size {
            let mut bytes = vec![0; CHUNK.min(id.size - sent) as usize];
            let count = image.read_at(&mut bytes, sent)?;
            if count == 0 {
                // Only the length is checked here: the standby checks the content.
                return Err(io::Error::other(format!(
                    "{}: expected {id}, found its end after {sent} bytes: it was changed, and is read again",
                    image.path().display()
                )));
            }
            bytes.truncate(count);
            sent += count as u64;
            out.data(about.0, about.1, Message::Image(Data(bytes)))?;
            out.flush()?;
            if !out.interleave(items)? {
                return Ok(false);
            }
        }
        log::info!("sent the file that the standby lacked: {}, {id}", image.path().display());
    }
    Ok(true)
}
