//! Direct I/O (`O_DIRECT`), past the host's page cache: whole blocks of the storage, in aligned
//! memory.
//!
//! A guest's sectors have 512 bytes, and its buffers have any alignment, so all data passes through
//! a buffer of the disk. If the storage's blocks are larger than a sector, the rest of a block is
//! read before the block is written. One lane performs all requests of a disk in turn, so this
//! overwrites no other write.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard};

use super::sector::SECTOR;
use crate::aligned::{ALIGNMENT, Aligned};
use crate::descriptors;
use crate::out::{self, Outgoing, Refused, Stretch, Target, with_permits};
use crate::permit::May;
use crate::poisoned::POISONED;

/// Size of the buffer in bytes: the most that is read or written at once.
const BUFFER: usize = 256 * 1024;

/// Reads and writes a disk in whole blocks.
#[derive(Debug)]
pub(super) struct Direct {
    /// The size of a block in bytes: 512, or a larger power of two.
    block: u64,
    buffer: Mutex<Aligned>,
}

impl Direct {
    /// Asks the kernel for the block size. A test read would not show it, because a read of a hole
    /// does not reach the storage.
    ///
    /// # Errors
    /// When direct I/O is not possible, or the blocks are larger than any known ones.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let block = descriptors::direct_block(file)?;
        if !block.is_power_of_two() || block > ALIGNMENT as u64 {
            let what = format!("expected blocks of 512 to {ALIGNMENT} bytes, found {block}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        Ok(Self { block: block.max(SECTOR), buffer: Mutex::new(Aligned::new(BUFFER)) })
    }

    /// The size of a block in bytes.
    pub(super) fn block(&self) -> u64 {
        self.block
    }

    pub(super) fn read(&self, file: &File, at: u64, into: &mut [u8]) -> io::Result<()> {
        let mut buffer = self.buffer();
        let (mut at, mut rest) = (at, into);
        while !rest.is_empty() {
            let piece = self.stretch(at, rest.len());
            let blocks = buffer.slice(piece.len);
            file.read_exact_at(blocks, piece.at)?;
            let (now, later) = rest.split_at_mut(piece.wanted);
            now.copy_from_slice(&blocks[piece.skip..piece.skip + piece.wanted]);
            at += piece.wanted as u64;
            rest = later;
        }
        Ok(())
    }

    /// Writes at least one of the bytes. Returns how many.
    pub(super) fn write_some(
        &self,
        target: Target<'_>,
        at: u64,
        bytes: &Outgoing<'_>,
        may: May<'_>,
    ) -> Result<usize, Refused> {
        let piece = self.stretch(at, bytes.len());
        let mut buffer = self.buffer();
        // P2: request the permit after the reads, which may have taken long.
        let blocks = bytes.within_blocks(target.file, &piece, buffer.slice(piece.len))?;
        let written = with_permits(may, |permit| out::write_at(permit, target, piece.at, &blocks))?;
        match written.saturating_sub(piece.skip).min(piece.wanted) {
            0 => Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            written => Ok(written),
        }
    }

    /// The whole blocks around `len` bytes at `at`, or around as many of them as the buffer holds.
    fn stretch(&self, at: u64, len: usize) -> Stretch {
        let block = self.block as usize;
        let start = at - at % self.block;
        let skip = (at - start) as usize;
        let wanted = len.min(BUFFER - skip);
        let len = (skip + wanted).next_multiple_of(block);
        Stretch { block, at: start, len, skip, wanted }
    }

    fn buffer(&self) -> MutexGuard<'_, Aligned> {
        self.buffer.lock().expect(POISONED)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::given_up::NotPermitted;
    use crate::permit::Permit;

    const LEN: usize = 1 << 20;

    /// Storage with blocks of 4096 bytes. The page cache behind it accepts any alignment.
    fn large_blocks() -> (File, Direct, Vec<u8>) {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..LEN).map(|at| (at % 241) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        (file, Direct { block: 4096, buffer: Mutex::new(Aligned::new(BUFFER)) }, bytes)
    }

    fn whole(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn plain(file: &File) -> Target<'_> {
        Target { file, durably: false }
    }

    const PLACES: [(usize, usize); 9] = [
        (0, 512),
        (512, 512),
        (3584, 512),
        (3584, 1024),
        (4096, 4096),
        (4096, 512),
        (512, 9 * 1024),
        (512, 600 * 1024),
        (LEN - 512, 512),
    ];

    #[test]
    fn what_is_around_a_write_stays() {
        for (at, len) in PLACES {
            let (file, direct, mut expected) = large_blocks();
            let mut may = || Ok(Permit::granted());
            let new = vec![0xee; len];
            let mut bytes = Outgoing::made_up(&new);
            let mut done = 0;
            while bytes.len() > 0 {
                let now =
                    direct.write_some(plain(&file), (at + done) as u64, &bytes, &mut may).unwrap();
                bytes.advance(now);
                done += now;
            }
            expected[at..at + len].fill(0xee);
            assert!(whole(&file) == expected, "{len} bytes at {at}");
        }
    }

    #[test]
    fn any_sectors_can_be_read() {
        let (file, direct, bytes) = large_blocks();
        for (at, len) in PLACES {
            let mut read = vec![0; len];
            direct.read(&file, at as u64, &mut read).unwrap();
            assert!(read == bytes[at..at + len], "{len} bytes at {at}");
        }
    }

    /// P2: without a permit no byte is written.
    #[test]
    fn p2_nothing_is_written_without_permission() {
        let (file, direct, bytes) = large_blocks();
        let bytes_of_guest = Outgoing::made_up(&[0xee; 512]);
        let refused =
            direct.write_some(plain(&file), 0, &bytes_of_guest, &mut || Err(NotPermitted));
        assert!(matches!(refused, Err(Refused::NotPermitted)));
        assert!(whole(&file) == bytes);
    }
}
