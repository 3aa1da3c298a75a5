//! The file to which a console prints. It is accepted only if it is a log, or is new.
//!
//! Console output is appended to the file, and a file of an earlier machine is cleared first.
//! Neither may happen to a file that is not a log, so that a wrong path does no harm
//! (docs/files.md).

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use super::ConsoleError;
use crate::backend::image_format;
use crate::descriptors;
use crate::own_files;
use crate::ownership::{self, Maker, Opened, Sign};

/// A guest prints arbitrary bytes, so the content does not identify the file.
pub(crate) const SIGN: Sign = Sign { purpose: "console", content: None };
/// Number of bytes that are checked at the beginning and at the end.
const LOOK: usize = 4096;

/// Opens or creates the file of a machine that starts, or that continues after a takeover. In a
/// takeover the file is not checked, and the former side may still have it open.
pub(super) fn open(path: &Path, goes_on: bool) -> Result<File, ConsoleError> {
    let failed = |error| ConsoleError::Open { path: path.to_owned(), error };
    // Check by name: opening a block device may already disturb it.
    if let Ok(found) = std::fs::metadata(path)
        && found.file_type().is_block_device()
    {
        return Err(other(path, own_files::describe(&found)));
    }
    let opened = descriptors::console_file(path, &SIGN).map_err(failed)?;
    if !goes_on && opened.file.metadata().map_err(failed)?.is_file() {
        begin(path, &opened)?;
    }
    Ok(opened.file)
}

/// Checks that [`open`] would accept the file for a machine that starts. Changes nothing. A file in
/// use by another process is not checked, because the other side of a pair prints to it.
pub(super) fn check(path: &Path) -> Result<(), ConsoleError> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        // Accept without opening: opening a terminal or a FIFO early would disturb it.
        Ok(found) if found.file_type().is_char_device() || found.file_type().is_fifo() => {
            return Ok(());
        }
        Ok(found) => return Err(other(path, own_files::describe(&found))),
        Err(_) => {
            let made = own_files::check_directory(path);
            return made.map_err(|error| ConsoleError::Open { path: path.to_owned(), error });
        }
    }
    match ownership::look(path, &SIGN) {
        Some(found) if !found.is_busy => judge(path, &found.file, found.maker).map(drop),
        _ => Ok(()),
    }
}

fn begin(path: &Path, opened: &Opened) -> Result<(), ConsoleError> {
    if opened.is_anothers() {
        return Err(ConsoleError::Busy { path: path.to_owned() });
    }
    if opened.maker == Maker::New {
        return Ok(());
    }
    let failed = |error| ConsoleError::Open { path: path.to_owned(), error };
    // Open it again: the opened file is write-only.
    let reader = descriptors::console_file_to_look_at(path).map_err(failed)?;
    match judge(path, &reader, opened.maker)? {
        Next::BeginAnew => opened.file.set_len(0).map_err(failed),
        Next::Append => Ok(()),
    }
}

enum Next {
    BeginAnew,
    Append,
}

/// Decides whether a file may be cleared, appended to, or neither. Another program's data may have
/// been copied over a file of kemari.
fn judge(path: &Path, file: &File, maker: Maker) -> Result<Next, ConsoleError> {
    let failed = |error| ConsoleError::Open { path: path.to_owned(), error };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Ok(Next::Append);
    }
    if let Some(format) = image_format::of_file(file).map_err(failed)? {
        return Err(other(path, format.name.to_owned()));
    }
    let head = read(file, 0).map_err(failed)?;
    if maker != Maker::Other {
        // A guest may print any bytes, but its output rarely begins with a zero byte, the first
        // byte of an empty disk.
        return match head.first() {
            Some(0) => Err(other(path, "binary data".to_owned())),
            _ => Ok(Next::BeginAnew),
        };
    }
    if is_record(&head) {
        return Err(other(
            path,
            "a record of a program (for instance a term, an id or a process number)".to_owned(),
        ));
    }
    let tail = read(file, metadata.len().saturating_sub(LOOK as u64)).map_err(failed)?;
    match is_text(&head) && is_text(&tail) {
        true => Ok(Next::Append),
        false => Err(other(path, "binary data".to_owned())),
    }
}

fn other(path: &Path, found: String) -> ConsoleError {
    ConsoleError::Kind { path: path.to_owned(), found }
}

fn read(file: &File, at: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LOOK];
    let count = file.read_at(&mut bytes, at)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// Upper bound of an id's length in bytes: hexadecimal digits with hyphens.
const LONGEST_ID: usize = 64;

/// Whether a file begins like a record of this program or of another one. One more line would
/// damage such a record.
fn is_record(head: &[u8]) -> bool {
    let text = head.trim_ascii();
    let is_id = text.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-');
    text.first() == Some(&b'{') || (1..=LONGEST_ID).contains(&text.len()) && is_id
}

/// Whether a piece of a file is UTF-8 text for a terminal. A character may be cut at either end.
fn is_text(piece: &[u8]) -> bool {
    /// Bell, backspace, tab, line feed, form feed, carriage return, escape.
    const CONTROLS: &[u8] = b"\x07\x08\t\n\x0c\r\x1b";
    let begin = piece.iter().take(3).take_while(|byte| (0x80..0xc0).contains(*byte)).count();
    let rest = &piece[begin..];
    let text = match std::str::from_utf8(rest) {
        Ok(text) => text.as_bytes(),
        Err(error) if error.error_len().is_none() => &rest[..error.valid_up_to()],
        Err(_) => return false,
    };
    text.iter().all(|byte| *byte >= b' ' && *byte != 0x7f || CONTROLS.contains(byte))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::fs;

    use super::*;

    #[test]
    fn text_is_told_from_binary_data() {
        let cut = |text: &str, from: usize, to: usize| is_text(&text.as_bytes()[from..to]);
        assert!(is_text(b"") && is_text(b"[    0.000] \x1b[1mLinux\x1b[0m\r\n\tok\x08\x07\x0c"));
        assert!(cut("grün", 0, 3) && cut("grün", 3, 5) && cut("日本", 1, 6) && cut("日本", 0, 5));
        for other in
            [&b"LUKS\xba\xbe\0\x02"[..], b"SQLite format 3\0", b"%PDF-1.4\n%\xe2\xe3\xcf\n"]
        {
            assert!(!is_text(other), "{other:?}");
        }
        assert!(!is_text(b"a\x01b") && !is_text(&[0x80; 8]) && !is_text(b"\x7f"));
    }

    #[test]
    fn a_file_is_taken_for_a_log_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let holds = |bytes: &[u8]| fs::read(&path).unwrap() == bytes;
        for (text, taken) in [
            (&b""[..], true),
            (b"notes\n", true),
            (b"{\"holder\":\"a\"}\n", false),
            (b"0123abcd-4567\n", false),
            (b"4711", false),
            (b"LUKS\xba\xbe\0\x02", false),
            (b"SQLite format 3\0", false),
            (b"%PDF-1.7\n", false),
            (&[&[b'a'; 9000][..], b"\x80\x81"].concat(), false),
            (&[b'a'; 9000], true),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(check(&path).is_ok(), taken, "{text:?}");
            assert_eq!(open(&path, false).is_ok(), taken, "{text:?}");
            assert!(open(&path, true).is_ok(), "a takeover takes what there is");
            assert!(holds(text), "{text:?}");
        }
    }

    /// Fails if a file that was only empty when kemari found it counts as kemari's.
    #[test]
    fn what_is_copied_into_a_file_that_was_empty_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        drop(open(&path, false).unwrap());
        fs::write(&path, "somebody else's").unwrap();
        drop(open(&path, false).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "somebody else's");
    }

    #[test]
    fn a_console_file_of_before_is_begun_anew_unless_another_is_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        drop(open(&path, false).unwrap());
        fs::write(&path, "\x02 what a guest prints").unwrap();
        drop(open(&path, false).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"");
        for image in [&[0; 512][..], b"QFI\xfb\0\0\0\x03"] {
            fs::write(&path, image).unwrap();
            assert!(open(&path, false).is_err());
            assert_eq!(fs::read(&path).unwrap(), image);
        }
    }

    /// Fails if a standby that checks the file of a starting machine counts as another machine.
    #[test]
    fn a_reader_of_a_file_keeps_no_machine_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        drop(open(&path, false).unwrap());
        let look = || ownership::look(&path, &SIGN).unwrap();
        let looks = look();
        assert!(!look().is_busy, "two that look find each other");
        let opened = descriptors::console_file(&path, &SIGN).unwrap();
        assert!(opened.is_busy);
        drop(looks);
        begin(&path, &opened).unwrap();
        assert!(look().is_busy, "it is the machine's now");
        assert!(matches!(open(&path, false), Err(ConsoleError::Busy { .. })));
    }

    #[test]
    fn a_second_machine_does_not_take_the_file_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let first = open(&path, false).unwrap();
        fs::write(&path, "of the first").unwrap();
        assert!(matches!(open(&path, false), Err(ConsoleError::Busy { .. })));
        drop(open(&path, true).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "of the first");
        drop(first);
    }
}
