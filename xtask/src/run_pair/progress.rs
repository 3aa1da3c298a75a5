//! Shows how a run goes: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;
use kemari_tests::pair::Progress;

/// How a step is told where there is no terminal.
pub(super) const STEP: &str = "... ";

/// Standard output and error.
pub(crate) struct Terminal {
    /// Never locked while work is done: that may say something, too.
    bar: Mutex<Option<ProgressBar>>,
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

impl Terminal {
    /// With a spinner, if there is a terminal and `animated` says so.
    pub(crate) fn new(animated: bool) -> Self {
        let bar = (animated && std::io::stderr().is_terminal()).then(spinner);
        Self { bar: Mutex::new(bar) }
    }

    /// Does `work` that takes minutes and shows its own progress, as cargo does; says before what it is.
    pub(crate) fn aside<T>(&self, what: &str, work: impl FnOnce() -> T) -> T {
        // Lines that the work says go past the spinner.
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
    pub(crate) fn finish(&self) {
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

    /// Fails where a long piece of work, which says what it does, waits for the spinner that waits for it.
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
