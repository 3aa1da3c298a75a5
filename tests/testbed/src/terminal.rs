//! Shows the progress of a run: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;

use crate::pair::Progress;

/// Prefix of the line of a step without a terminal.
pub const STEP: &str = "... ";

/// Standard output and error.
pub struct Terminal {
    /// Never locked while work runs, because the work may print too.
    bar: Mutex<Option<ProgressBar>>,
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

impl Terminal {
    /// Creates it, with a spinner if `animated` is true and standard error is a terminal.
    pub fn new(animated: bool) -> Self {
        let bar = (animated && std::io::stderr().is_terminal()).then(spinner);
        Self { bar: Mutex::new(bar) }
    }

    /// Prints `what`, then runs `work`, which prints its own progress (cargo, for instance).
    pub fn aside<T>(&self, what: &str, work: impl FnOnce() -> T) -> T {
        // Remove the spinner, which would disturb the lines of the work.
        let bar = self.bar().take();
        if let Some(bar) = &bar {
            bar.finish_and_clear();
        }
        eprintln!("{STEP}{what}");
        let result = work();
        *self.bar() = bar.map(|_| spinner());
        result
    }

    /// Removes the spinner.
    pub fn finish(&self) {
        if let Some(bar) = &*self.bar() {
            bar.finish_and_clear();
        }
    }

    fn bar(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Terminal {
    fn step(&self, what: &str) {
        match &*self.bar() {
            Some(bar) => bar.set_message(what.to_owned()),
            None => eprintln!("{STEP}{what}"),
        }
    }

    fn line(&self, line: &str) {
        match &*self.bar() {
            Some(bar) => bar.suspend(|| println!("{line}")),
            None => println!("{line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::sync::mpsc::channel;

    use super::*;

    /// Fails if work that prints waits for the spinner, which waits for the work.
    #[test]
    fn work_may_say_something() {
        let (said, is_said) = channel();
        std::thread::spawn(move || {
            let terminal = Terminal { bar: Mutex::new(Some(ProgressBar::hidden())) };
            terminal.aside("work", || {
                terminal.step("a part of it");
                terminal.line("a line");
            });
            said.send(terminal.bar().is_some()).unwrap();
        });
        assert_eq!(is_said.recv_timeout(Duration::from_secs(60)), Ok(true));
    }
}
