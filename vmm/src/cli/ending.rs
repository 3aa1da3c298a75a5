//! How this process ends: by a signal or with its guest, and with which exit code.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use io_gate_host::backend::terminal::RawMode;
use kemari_machine::{Ended, Machine};
use kemari_replication::primary::Engine;

use super::{CliError, EXIT_FAILED, EXIT_MISMATCH, last};
use crate::signals;

/// Waits for the end of a running guest and shuts everything down in good order. Returns the exit
/// code.
pub(super) fn to_the_end(engine: &Arc<Engine>, terminal: Option<RawMode>) -> u8 {
    let ended = engine.to_the_end(|ended| last::ends(ended.exit_code()));
    drop(terminal);
    let code = report(&ended);
    match ended {
        Ended::PoweredOff | Ended::Signal(_) => judged(code, engine.mismatches()),
        Ended::Failed(_) | Ended::Fenced(_) | Ended::Unprotected(_) => code,
    }
}

/// Starts the time limit of a process that fails before its guest runs.
pub(super) fn fails() {
    last::ends(EXIT_FAILED);
}

/// The exit code of a process that has ended in good order: `code`, unless the two sides have
/// differed.
pub(super) fn judged(code: u8, mismatches: u64) -> u8 {
    if mismatches == 0 {
        return code;
    }
    log::error!(
        "--verify has found {mismatches} checkpoints that differed, expected none: see above"
    );
    EXIT_MISMATCH
}

/// Logs one line on the machine's end, and returns the exit code.
pub(super) fn report(ended: &Ended) -> u8 {
    match ended {
        Ended::PoweredOff => log::info!("powered off"),
        Ended::Signal(number) => log::info!("ended by signal {number}"),
        Ended::Fenced(reason) => {
            log::error!("fenced: {reason}; this primary performs nothing more and exits")
        }
        Ended::Failed(reason) => log::error!("{reason}"),
        Ended::Unprotected(reason) => log::error!("--require-protected: {reason}"),
    }
    ended.exit_code()
}

/// The signals that end the process. They are watched before anything runs that they could end, so
/// that none is lost. The thread that receives them never blocks, so a second signal ends the
/// process at once.
#[derive(Clone, Default)]
pub(super) struct Ending(Arc<Mutex<EndingState>>);

/// The reaction to a signal. It must not block.
type End = Box<dyn Fn(i32) + Send>;

#[derive(Default)]
struct EndingState {
    signal: Option<i32>,
    end: Option<End>,
}

impl Ending {
    /// Starts to watch for signals.
    pub(super) fn watch() -> Result<Self, CliError> {
        signals::bear_limits_of_files();
        last::watch()
            .map_err(|error| CliError::failed(format!("cannot watch the end: {error}")))?;
        let ending = Self::default();
        let watching = ending.clone();
        signals::watch(move |number| watching.came(number)).map_err(|error| {
            CliError::failed(format!("cannot install signal handlers: {error}"))
        })?;
        Ok(ending)
    }

    fn came(&self, number: i32) {
        let mut state = self.lock();
        state.signal = Some(number);
        if let Some(end) = &state.end {
            end(number);
        }
    }

    /// The signal that has arrived, if any.
    pub(super) fn signal(&self) -> Option<i32> {
        self.lock().signal
    }

    /// Sets `end` as the reaction to the next signal, in place of the previous reaction. Calls it
    /// at once if a signal has already arrived.
    pub(super) fn by(&self, end: impl Fn(i32) + Send + 'static) {
        let mut state = self.lock();
        if let Some(number) = state.signal {
            end(number);
        }
        state.end = Some(Box::new(end));
    }

    /// Makes a signal end `machine`.
    pub(super) fn ends(&self, machine: &Arc<Machine>) {
        let machine = machine.clone();
        self.by(move |number| machine.end(Ended::Signal(number)));
    }

    fn lock(&self) -> MutexGuard<'_, EndingState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// P7. Fails if a signal between two reactions triggers neither.
    #[test]
    fn a_signal_ends_what_there_is_and_what_comes() {
        let ending = Ending::default();
        let (told, ended) = channel();
        let standby = told.clone();
        ending.by(move |number| standby.send(("standby", number)).unwrap());
        assert!(ended.try_recv().is_err());
        ending.came(15);
        ending.by(move |number| told.send(("machine", number)).unwrap());
        assert_eq!(ended.iter().take(2).collect::<Vec<_>>(), [("standby", 15), ("machine", 15)]);
    }
}
