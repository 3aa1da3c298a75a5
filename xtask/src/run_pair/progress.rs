//! Shows how a run goes: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::ProgressBar;
use kemari_tests::pair::Progress;

/// How a step is told where there is no terminal.
pub(super) const STEP: &str = "... ";

/// Standard output and error.
pub(crate) struct Terminal {
    bar: Option<ProgressBar>,
}

impl Terminal {
    /// With a spinner, if there is a terminal and `animated` says so.
    pub(crate) fn new(animated: bool) -> Self {
        let bar = (animated && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar }
    }

    /// Does `work` that takes minutes and shows its own progress, as cargo does; says before what it is.
    pub(crate) fn aside<T>(&self, what: &str, work: impl FnOnce() -> T) -> T {
        let work = || {
            eprintln!("{STEP}{what}");
            work()
        };
        match &self.bar {
            Some(bar) => bar.suspend(work),
            None => work(),
        }
    }

    /// Takes the spinner away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Terminal {
    fn step(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => eprintln!("{STEP}{what}"),
        }
    }

    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{line}")),
            None => println!("{line}"),
        }
    }
}
