//! The system calls that write to the files of an own disk.
//!
//! They let nothing out (P1): the image and its sidecar are state of the machine, which only this
//! host sees, and no other process can write to them while this one has them locked (P2). So they
//! take no permit. `tests/one_way_out.rs` checks that no other module of this folder writes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

/// Size in bytes of the pieces in which zeroes are written where the file system has no better way.
const ZEROES: u64 = 256 * 1024;

/// Writes all of the bytes.
pub(super) fn write(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, at)
}

/// Makes a part of a file zero, as a hole if possible. Its size stays.
pub(super) fn zero(file: &File, at: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    for way in [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE] {
        match fallocate(file, way | FallocateFlags::KEEP_SIZE, at, len).map_err(io::Error::from) {
            Err(error) if is_unsupported(&error) => {}
            result => return result,
        }
    }
    let (mut at, end) = (at, at + len);
    let zeroes = vec![0; ZEROES.min(len) as usize];
    while at < end {
        let count = ZEROES.min(end - at);
        write(file, at, &zeroes[..count as usize])?;
        at += count;
    }
    Ok(())
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
}

/// Makes written data durable.
pub(super) fn sync(file: &File) -> io::Result<()> {
    file.sync_data()
}

/// Gives a new file its size, all hole.
pub(super) fn set_size(file: &File, size: u64) -> io::Result<()> {
    file.set_len(size)
}

/// Makes a new file durable, its size included.
pub(super) fn sync_all(file: &File) -> io::Result<()> {
    file.sync_all()
}
