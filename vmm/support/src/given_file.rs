//! Files that an operator names, or has a directory for, and that are read: keys, certificates, passwords, marks, the arbiter's
//! records, logs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use io_gate_host::own_files;
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};

/// Longer than any of them.
const MOST: u64 = 4 << 20;

/// Reads a regular file. Nobody waits here for somebody who writes to a FIFO, or reads a device
/// without an end.
///
/// # Errors
/// When it is no regular file, too long, or cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_up_to(path, MOST)
}

/// As [`read`], where less is too long already.
///
/// # Errors
/// As [`read`].
pub fn read_up_to(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let len = file.metadata()?.len();
    if len > most {
        return Err(io::Error::other(format!(
            "expected a regular file of at most {most} bytes, found one of {len} bytes"
        )));
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map(|_| bytes)
}

/// Opens a regular file of any length: as [`read`], nobody waits here.
///
/// # Errors
/// When it is no regular file, or cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    let file = open_at_once(path);
    // A socket cannot even be opened.
    match file.as_ref().map_or_else(|_| fs::metadata(path), File::metadata) {
        Ok(found) if !found.is_file() => Err(io::Error::other(format!(
            "expected a regular file, found {}",
            own_files::describe(&found)
        ))),
        _ => file,
    }
}

/// Opens whatever is there to be read, and waits for nobody: neither for a FIFO's writer nor for a line's carrier.
///
/// # Errors
/// When it cannot be opened.
pub fn open_at_once(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// As [`read`], for text.
///
/// # Errors
/// As [`read`].
pub fn read_text(path: &Path) -> io::Result<String> {
    let text = String::from_utf8(read(path)?);
    text.map_err(|_| io::Error::other("bytes that are no text (expected UTF-8)"))
}

/// Has the file system ask its server. An NFS client keeps what it knows of a directory for up to a
/// minute (`acdirmax`), the absence of names included. `AT_STATX_FORCE_SYNC` is the documented way to have it look (statx(2)).
///
/// # Errors
/// Where nothing is found there, or the server does not say.
pub fn ask_server(path: &Path, what: StatxFlags) -> io::Result<Statx> {
    Ok(statx(CWD, path, AtFlags::STATX_FORCE_SYNC, what)?)
}

/// Has it ask which names the directory of `path` has: a file that another host has just made is found then.
///
/// # Errors
/// As [`ask_server`].
pub fn ask_server_of_name(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let what = StatxFlags::INO | StatxFlags::MTIME | StatxFlags::CTIME;
    ask_server(directory.unwrap_or(Path::new(".")), what).map(drop)
}
