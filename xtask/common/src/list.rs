//! Prints lists on standard output, which a reader such as `head` may close early.

use std::io::{self, ErrorKind, Write, stdout};

/// Prints the lines.
///
/// # Errors
/// Standard output cannot be written. A reader that closes it early causes no error.
pub fn print_lines(lines: impl IntoIterator<Item = String>) -> io::Result<()> {
    write_lines(&mut stdout().lock(), lines)
}

fn write_lines(out: &mut impl Write, lines: impl IntoIterator<Item = String>) -> io::Result<()> {
    let written = lines.into_iter().try_for_each(|line| writeln!(out, "{line}"));
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    /// Fails if `cargo xtask fuzz --list | head -1` ends with a panic or an error.
    #[test]
    fn a_closed_pipe_ends_the_list_and_another_error_is_reported() {
        let lines = || ["a".to_owned(), "b".to_owned()];
        assert!(write_lines(&mut Failing(ErrorKind::BrokenPipe), lines()).is_ok());
        assert!(write_lines(&mut Failing(ErrorKind::StorageFull), lines()).is_err());
        let mut out = Vec::new();
        assert!(write_lines(&mut out, lines()).is_ok());
        assert_eq!(out, b"a\nb\n");
    }
}
