//! Shows the progress of a run: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;

use crate::pair::Progress;

/// Prefix of a step where there is no terminal.
pub const STEP: &str = "... ";

/// Standard output and error.
pub struct Terminal {
    /// Never locked while work runs: the work may print too.
    bar: Mutex<Option<ProgressBar>>,
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

impl Terminal {
    /// With a spinner, if there is a terminal and `animated` is true.
    pub fn new(animated: bool) -> Self {
        let bar = (animated && std::io::stderr().is_terminal()).then(spinner);
        Self { bar: Mutex::new(bar) }
    }

    /// Does `work` that takes minutes and shows its own progress, as cargo does; prints what it is first.
    pub fn aside<T>(&self, what: &str, work: impl FnOnce() -> T) -> T {
        // The spinner is taken away, so that it does not disturb the lines that the work prints.
        let bar = self.bar().take();
        if let Some(bar) = &bar {
            bar.finish_and_clear();
        }
        eprintln!("{STEP}{what}");
        let result = work();
        *self.bar() = bar.map(|_| spinner());
        result
    }

    /// Takes the spinner away.
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

    /// Fails if a long piece of work that prints waits for the spinner, which waits for the work.
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
