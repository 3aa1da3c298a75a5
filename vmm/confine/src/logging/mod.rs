//! The log: lines on standard error.
//!
//! Every thread puts its lines into one bounded queue, which drops a line if it is full. Only the
//! thread `log` writes to standard error. So no thread waits for a stalled log reader (P7), threads
//! that run device code write to no descriptor (P5), and the number of lines that an outsider can
//! cause is limited (P9): see [`limit`].

mod limit;
mod queue;

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use env_logger::{Builder, Env, Logger, Target, WriteStyle};
use log::{Log, Metadata, Record};

use self::limit::{Line, Place};
use self::queue::Queue;
use crate::seccomp::{self, Role, threads};
use crate::terminal::{self, Terminal};

/// The target of lines that report a change of state to an operator, for instance `protected` and
/// `standby lost`. One place may log several such lines within a second: it may log a burst of 16,
/// then one line per second as any other place.
pub const STATE: &str = "kemari::state";

/// How long the end of the process waits for the last lines: a stalled stderr must not block it.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Upper bound of a line's length in bytes; the rest is cut. The text may come from a peer.
const MAX_LINE: usize = 4096;

static QUEUE: OnceLock<Queue> = OnceLock::new();
static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Sets up the log. `RUST_LOG` selects the lines; the default is `info`. Lines wait until
/// [`start_writer`] or [`flush`]. The writing thread restores `terminal` before it writes the
/// message of a panic.
pub fn start(terminal: Terminal) {
    terminal::hand_in(terminal);
    let color = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let style = if color { WriteStyle::Always } else { WriteStyle::Never };
    let logger = LOGGER.get_or_init(|| {
        Builder::from_env(Env::default().default_filter_or("info"))
            .format_target(false)
            .write_style(style)
            .target(Target::Pipe(Box::new(Router)))
            .build()
    });
    log::set_max_level(logger.filter());
    // A test may have installed another logger, which stays.
    let _ = log::set_logger(&Entrance);
}

/// Starts the writing thread. Call it after [`seccomp::start`], so that the thread inherits the
/// filter of the process.
///
/// # Errors
/// When the thread cannot be started.
pub fn start_writer() -> io::Result<()> {
    let queue = queue();
    queue
        .begin_writing(|| threads::start("log", Role::Log, move || queue.write_all(show)).map(drop))
}

/// Waits up to 1 s until the last lines are written. Call it before the process ends.
pub fn flush() {
    let queue = queue();
    queue.take_suppressed().into_iter().for_each(show);
    if queue.is_idle() {
        return;
    }
    match start_writer() {
        Ok(()) => queue.wait_idle(LAST_LINES),
        // The process may be out of threads, and the line may report just that.
        Err(_) => queue.write_here(&io::stderr(), LAST_LINES),
    }
}

/// Logs why the process ends: its last line, after all waiting lines.
pub fn last_words(text: &str) {
    queue().push(format!("{text}\n").into_bytes());
    flush();
}

/// Ends the process after a panic: with an exit code, or by `abort`, which leaves a core. The
/// thread `log` writes the message and restores the terminal: the thread that panicked may not be
/// allowed to write, and stderr may be stalled.
pub fn end_for_panic(message: String, code: Option<u8>) -> ! {
    let queue = queue();
    queue.panic(message, code);
    // Starts a thread only if `main` panics early; otherwise the writer exists.
    let _ = start_writer();
    queue.wait_idle(LAST_LINES);
    // Standard error is stalled.
    if seccomp::has_mains_rights() {
        terminal::restore();
    }
    queue::end(code)
}

fn queue() -> &'static Queue {
    QUEUE.get_or_init(Queue::default)
}

/// Formats a line and queues it.
fn show(line: Line) {
    let Some(logger) = LOGGER.get() else { return };
    let Line { level, target, text } = line;
    let mut record = Record::builder();
    record.level(level).target(&target);
    logger.log(&record.args(format_args!("{text}")).build());
}

/// Receives every line of this process, including those of other crates. There is no other way to
/// the log.
struct Entrance;

impl Log for Entrance {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        LOGGER.get().is_some_and(|logger| logger.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if !LOGGER.get().is_some_and(|logger| logger.matches(record)) {
            return;
        }
        // Format without a lock: formatting runs other code.
        let text = one_line(record.args().to_string());
        let line = Line { level: record.level(), target: record.target().to_owned(), text };
        if let Some(line) = queue().admit(Place::of(record), line, Instant::now()) {
            show(line);
        }
    }

    fn flush(&self) {}
}

/// Makes text one line of bounded length: the author of the text must not add lines, nor control
/// the terminal.
fn one_line(mut text: String) -> String {
    if text.len() > MAX_LINE {
        text.truncate(text.floor_char_boundary(MAX_LINE));
        text.push_str(" [...]");
    }
    if !text.contains(|c: char| c.is_control() && c != '\t') {
        return text;
    }
    let escaped = text.chars().map(|c| match c {
        '\t' => "\t".to_owned(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    });
    escaped.collect()
}

/// Passes formatted records to the queue, one write per record.
struct Router;

impl Write for Router {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        queue().push(record.to_vec());
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_text_is_one_line_of_bounded_length() {
        assert_eq!(one_line("as it is:\tü".to_owned()), "as it is:\tü");
        assert_eq!(one_line("a\nb\u{1b}[2J".to_owned()), "a\\nb\\u{1b}[2J");
        let long = one_line("ü".repeat(MAX_LINE));
        assert!(long.len() <= MAX_LINE + 6, "{}", long.len());
    }
}
