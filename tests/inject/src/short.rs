//! Transfers half of the bytes of a call, on the program's descriptor and memory.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::Call;

/// Maximum size of a transfer in bytes. A larger transfer is cut to this size, which is short as
/// well.
const AT_MOST: usize = 1 << 20;
/// Size of a `struct iovec` in bytes.
const IOVEC: u64 = 16;

/// A piece of the program's memory: address and length.
type Piece = (u64, usize);

impl Call {
    /// Whether the call may transfer fewer bytes than requested: it transfers bytes, and its
    /// descriptor permits short transfers.
    pub fn can_be_short(&self) -> bool {
        let Some(total) = self.asked_for() else { return false };
        let on = self.descriptor(self.arguments[0]);
        // Counters, timers, signals and frames of a tap are read as a whole or not at all.
        let is_whole = on.starts_with("anon_inode:") || on == "/dev/net/tun" || on == "/dev/kvm";
        total >= 2 && !is_whole
    }

    /// The requested number of bytes; `None` if the call transfers none.
    fn asked_for(&self) -> Option<usize> {
        Some(self.pieces().ok()??.iter().map(|(_, len)| len).sum())
    }

    fn pieces(&self) -> io::Result<Option<Vec<Piece>>> {
        let [_, address, count, ..] = self.arguments;
        Ok(Some(match self.number {
            libc::SYS_read
            | libc::SYS_write
            | libc::SYS_pread64
            | libc::SYS_pwrite64
            | libc::SYS_recvfrom
            | libc::SYS_sendto => vec![(address, count as usize)],
            libc::SYS_readv
            | libc::SYS_writev
            | libc::SYS_preadv
            | libc::SYS_pwritev
            | libc::SYS_pwritev2 => self.vector(address, count)?,
            // msg_iov and msg_iovlen of a `struct msghdr`. Passing descriptors is not supported.
            libc::SYS_sendmsg => self.vector(self.word(address + 16)?, self.word(address + 24)?)?,
            _ => return Ok(None),
        }))
    }

    fn vector(&self, address: u64, count: u64) -> io::Result<Vec<Piece>> {
        (0..count.min(1024))
            .map(|index| {
                let at = address + index * IOVEC;
                Ok((self.word(at)?, self.word(at + 8)? as usize))
            })
            .collect()
    }

    fn word(&self, address: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.memory()?.read_exact_at(&mut bytes, address)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// Transfers the first half, and returns the number of bytes.
pub(crate) fn transfer(call: &Call) -> io::Result<usize> {
    let pieces = call.pieces()?.ok_or(io::ErrorKind::Unsupported)?;
    let half = (pieces.iter().map(|(_, len)| len).sum::<usize>() / 2).min(AT_MOST);
    let on = descriptor(call)?;
    let offset = call.arguments[3];
    let mut bytes = vec![0; half];
    let flags = call.arguments[3] as u32;
    match call.number {
        libc::SYS_read | libc::SYS_readv => {
            let count = rustix::io::read(&on, &mut bytes)?;
            scatter(call, &pieces, &bytes[..count])
        }
        libc::SYS_pread64 | libc::SYS_preadv => {
            let count = rustix::io::pread(&on, &mut bytes, offset)?;
            scatter(call, &pieces, &bytes[..count])
        }
        libc::SYS_recvfrom => {
            let (count, _) =
                rustix::net::recv(&on, &mut bytes, RecvFlags::from_bits_retain(flags))?;
            scatter(call, &pieces, &bytes[..count])
        }
        libc::SYS_write | libc::SYS_writev => {
            gather(call, &pieces, &mut bytes)?;
            Ok(rustix::io::write(&on, &bytes)?)
        }
        libc::SYS_sendto | libc::SYS_sendmsg => {
            gather(call, &pieces, &mut bytes)?;
            let flags =
                if call.number == libc::SYS_sendmsg { call.arguments[2] as u32 } else { flags };
            Ok(rustix::net::send(&on, &bytes, SendFlags::from_bits_retain(flags))?)
        }
        _ => {
            gather(call, &pieces, &mut bytes)?;
            Ok(rustix::io::pwrite(&on, &bytes, offset)?)
        }
    }
}

/// A copy of the program's descriptor in this process.
fn descriptor(call: &Call) -> io::Result<OwnedFd> {
    let process = process_of(call.thread)?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    Ok(pidfd_getfd(process, call.arguments[0] as i32, PidfdGetfdFlags::empty())?)
}

/// The process of a thread (proc_pid_status(5)).
fn process_of(thread: u32) -> io::Result<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status"))?;
    let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    let group = group.and_then(|group| group.trim().parse().ok());
    group.and_then(Pid::from_raw).ok_or_else(|| Errno::SRCH.into())
}

fn gather(call: &Call, pieces: &[Piece], bytes: &mut [u8]) -> io::Result<()> {
    let memory = call.memory()?;
    let mut rest = bytes;
    for (address, len) in pieces {
        let (now, later) = rest.split_at_mut((*len).min(rest.len()));
        memory.read_exact_at(now, *address)?;
        rest = later;
    }
    Ok(())
}

fn scatter(call: &Call, pieces: &[Piece], bytes: &[u8]) -> io::Result<usize> {
    let memory = call.memory()?;
    let mut rest = bytes;
    for (address, len) in pieces {
        let (now, later) = rest.split_at((*len).min(rest.len()));
        memory.write_all_at(now, *address)?;
        rest = later;
    }
    Ok(bytes.len())
}
