//! The kernel and initrd of the primary's guest, as received over the link.
//!
//! They are kept in memory (a memfd), so that a reset after a takeover waits for no disk. Their
//! content identifies them, so each is sent only once.
//!
//! P9: only one guest's files are kept. The handshake bounds their size by the size of guest
//! memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use ft_core::handshake::{BootSource, Hello, ImageId, images_to_send};
use kemari_machine::boot::{Boot, ContentHash, Image};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::session::hello;

/// See the module.
#[derive(Default)]
pub(super) struct Images {
    held: Vec<(ImageId, Arc<Image>)>,
    coming: VecDeque<Coming>,
    /// The first error of this session.
    problem: Option<String>,
}

struct Coming {
    what: &'static str,
    id: ImageId,
    into: Option<(File, ContentHash)>,
}

impl Images {
    /// Keeps the files of `boot` that are already here and drops all others. Returns the ids of the
    /// kept ones.
    pub(super) fn keep(&mut self, boot: Option<&BootSource>) -> Vec<ImageId> {
        self.coming.clear();
        self.problem = None;
        let wanted: Vec<ImageId> = boot.into_iter().flat_map(BootSource::images).collect();
        self.held.retain(|(id, _)| wanted.contains(id));
        self.held.iter().map(|(id, _)| *id).collect()
    }

    /// Begins a session: the primary will send the files that are missing in `ours`.
    pub(super) fn expect(&mut self, primary: &Hello, ours: &Hello) {
        let kernel = primary.boot.as_ref().map(|boot| boot.kernel);
        let what = |id| if Some(id) == kernel { "kernel" } else { "initrd" };
        let missing = images_to_send(primary, ours);
        self.coming =
            missing.into_iter().map(|id| Coming { what: what(id), id, into: None }).collect();
        self.finish_whole();
    }

    /// Stores the next received bytes. [`boot`](Self::boot) reports an error in them.
    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.problem.is_none() {
            let Some(coming) = self.coming.front_mut() else { return };
            match coming.take(bytes) {
                Ok(taken) => bytes = &bytes[taken..],
                Err(error) => {
                    let (what, id) = (coming.what, coming.id);
                    self.problem = Some(format!(
                        "cannot keep the {what} of {id} in memory: {error}; free some memory, or give this standby \
                         the same --{what} as the primary"
                    ));
                }
            }
            self.finish_whole();
        }
    }

    /// Moves each complete file to the kept ones, if its content is the announced one.
    fn finish_whole(&mut self) {
        while self.problem.is_none()
            && let Some(coming) = self.coming.pop_front_if(|coming| coming.is_whole())
        {
            let Coming { what, id, into } = coming;
            let (file, hash) = match into.map_or_else(memory, Ok) {
                Ok(into) => into,
                Err(error) => {
                    return self.problem =
                        Some(format!("cannot allocate memory for the {what}: {error}"));
                }
            };
            let found = hello::image_id(hash.finish());
            if found != id {
                self.problem = Some(format!(
                    "{what}: expected {id}, found {found}: it was changed during the transfer, and is sent again"
                ));
                return;
            }
            log::info!("received the primary's {what}: {id}");
            self.held.push((id, Arc::new(Image::received(what, file))));
        }
    }

    /// The files that `source` names.
    pub(super) fn boot(&self, source: &BootSource) -> Result<Boot, String> {
        if let Some(problem) = &self.problem {
            return Err(problem.clone());
        }
        let find = |id: ImageId| {
            let found = self.held.iter().find(|(held, _)| *held == id);
            found.map(|(_, image)| image.clone()).ok_or_else(|| format!("{id} has not arrived"))
        };
        let kernel = find(source.kernel)?;
        Ok(Boot::new(kernel, source.initrd.map(find).transpose()?, source.cmdline.clone()))
    }
}

impl Coming {
    fn is_whole(&self) -> bool {
        self.into.as_ref().map_or(0, |(_, hash)| hash.size()) == self.id.size
    }

    /// Stores the part of `bytes` that belongs to this file. Returns the number of stored bytes.
    fn take(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let (file, hash) = match &mut self.into {
            Some(into) => into,
            none => none.insert(memory()?),
        };
        let left = usize::try_from(self.id.size - hash.size()).unwrap_or(usize::MAX);
        let bytes = &bytes[..left.min(bytes.len())];
        file.write_all(bytes)?;
        hash.add(bytes);
        Ok(bytes.len())
    }
}

fn memory() -> std::io::Result<(File, ContentHash)> {
    let file = memfd_create("kemari-image", MemfdFlags::CLOEXEC)?;
    Ok((File::from(file), ContentHash::default()))
}
