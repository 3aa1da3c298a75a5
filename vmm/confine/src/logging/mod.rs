//! The log: lines on standard error.
//!
//! Every thread puts its lines into one queue, which is bounded and drops what it has no room for; the thread
//! `log` alone writes to standard error. So nobody waits for a reader of the log that has stopped (P7), threads that
//! run device code write to no descriptor (P5), and what can be caused from outside is bounded in number (P9): see
//! [`limit`].

mod limit;
mod queue;

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use env_logger::{Builder, Env, Logger, Target, WriteStyle};
use log::{Log, Metadata, Record};

use self::limit::{Line, Place};
use self::queue::Queue;
use crate::seccomp::{self, Role};
use crate::terminal::{self, Terminal};

/// The target of lines that tell an operator of a change of state, such as `protected` and `standby lost`. Many come
/// from one place, and several within a second; their place may write a burst of them, then one a second as any other.
pub const STATE: &str = "kemari_vmm::state";

/// How long the end of the process waits for the last lines: a standard error that takes nothing must not keep it.
const LAST_LINES: Duration = Duration::from_secs(1);
/// The longest line; the rest is cut off. A peer may have made its text.
const MAX_LINE: usize = 4096;

static QUEUE: OnceLock<Queue> = OnceLock::new();
static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Sets the log up; what is shown is chosen by `RUST_LOG`, `info` by default. Lines wait until
/// [`start_writer`] or [`flush`]. The thread that writes restores `terminal` before the message of a panic.
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
    // A test may have set another one; then that counts.
    let _ = log::set_logger(&Entrance);
}

/// Starts the thread that writes. After [`seccomp::start`], so that it has given up what `main` has.
///
/// # Errors
/// When the process is out of threads.
pub fn start_writer() -> io::Result<()> {
    let queue = queue();
    queue.begin_writing(|| {
        let thread = std::thread::Builder::new().name("log".to_owned());
        let write = move || {
            seccomp::enter(Role::Log, &[]);
            queue.write_all(show)
        };
        thread.spawn(write).map(drop)
    })
}

/// Gives the last lines a bounded time to be written: before the process ends.
pub fn flush() {
    let queue = queue();
    queue.take_suppressed().into_iter().for_each(show);
    if queue.is_idle() {
        return;
    }
    match start_writer() {
        Ok(()) => queue.wait_idle(LAST_LINES),
        // What is to be said is, perhaps, that there can be no more threads.
        Err(_) => queue.write_here(&io::stderr(), LAST_LINES),
    }
}

/// Says why the process ends, as the last thing it says, with whatever else is to be said before.
pub fn last_words(text: &str) {
    queue().push(format!("{text}\n").into_bytes());
    flush();
}

/// Ends the process for a panic: with an exit code, or by `abort`, which leaves a core. The message is written by the thread
/// `log`, as all is: the one that panicked may not write, or nobody reads. So the terminal is restored there, too.
pub fn end_for_panic(message: String, code: Option<u8>) -> ! {
    let queue = queue();
    queue.panic(message, code);
    // There is one, unless `main` panics early.
    let _ = start_writer();
    queue.wait_idle(LAST_LINES);
    // Standard error takes nothing.
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

/// Where every line of this process comes in, those of other crates too: there is no other way to the log.
struct Entrance;

impl Log for Entrance {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        LOGGER.get().is_some_and(|logger| logger.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if !LOGGER.get().is_some_and(|logger| logger.matches(record)) {
            return;
        }
        // Before any lock is taken: what is formatted is other code.
        let text = one_line(record.args().to_string());
        let line = Line { level: record.level(), target: record.target().to_owned(), text };
        if let Some(line) = queue().admit(Place::of(record), line, Instant::now()) {
            show(line);
        }
    }

    fn flush(&self) {}
}

/// Text as one line of bounded length: whoever made it has no say in how many lines there are, nor in what a terminal does.
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

/// Where formatted lines go: each record in one piece.
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
