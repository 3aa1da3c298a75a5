//! The log: lines on standard error.
//!
//! Threads that run device code may not write to a descriptor, standard error included: a log is no
//! way out (P5). Their lines go to a thread that writes them, in order.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use io_gate_host::backend::terminal::RawMode;

use crate::seccomp::{self, Role};

/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

enum Item {
    Line(Vec<u8>),
    /// Everything before has been written.
    Flush(SyncSender<()>),
    /// A thread that may not write has panicked.
    Panic(String),
}

static WRITER: OnceLock<Sender<Item>> = OnceLock::new();

/// Sets the log up; what is shown is chosen by `RUST_LOG`, `info` by default.
pub fn start() {
    let color = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let style = if color { env_logger::WriteStyle::Always } else { env_logger::WriteStyle::Never };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_target(false)
        .write_style(style)
        .target(env_logger::Target::Pipe(Box::new(Router)))
        .init();
}

/// Starts the thread that writes for those that may not. After [`seccomp::start`].
///
/// # Errors
/// When the process is out of threads.
pub fn start_writer() -> io::Result<()> {
    let (sender, items) = channel();
    std::thread::Builder::new().name("log".to_owned()).spawn(move || write(&items))?;
    // The first one counts.
    let _ = WRITER.set(sender);
    Ok(())
}

/// Waits until the lines of other threads are written: before the process ends.
pub fn flush() {
    if let Some(writer) = WRITER.get() {
        let (done, is_done) = sync_channel(1);
        if writer.send(Item::Flush(done)).is_ok() {
            // A standard error that takes nothing must not keep the process.
            let _ = is_done.recv_timeout(LAST_LINES);
        }
    }
}

/// Ends the process for a panic on a thread that may not write; gives the message back if this
/// thread may.
pub(crate) fn panicked(message: impl FnOnce() -> String) {
    if seccomp::is_mute()
        && let Some(writer) = WRITER.get()
        && writer.send(Item::Panic(message())).is_ok()
    {
        // The writer ends the process.
        loop {
            std::thread::park();
        }
    }
}

fn write(items: &Receiver<Item>) {
    seccomp::enter(Role::Log, &[]);
    while let Ok(item) = items.recv() {
        match item {
            // Nobody can be told that nobody can be told.
            Item::Line(line) => drop(io::stderr().write_all(&line)),
            Item::Flush(done) => drop(done.send(())),
            Item::Panic(message) => {
                RawMode::restore();
                eprintln!("{message}");
                std::process::abort();
            }
        }
    }
}

/// Where the logger writes: each record in one piece.
struct Router;

impl Write for Router {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        match WRITER.get() {
            Some(writer) if seccomp::is_mute() => {
                // Fails only when the writer has panicked, which ends the process.
                let _ = writer.send(Item::Line(record.to_vec()));
                Ok(record.len())
            }
            _ => io::stderr().write(record),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
