//! The panic hook: how a process ends when one of its threads panics.
//!
//! The whole process ends: its other threads could not work correctly without the one that
//! panicked. The standby takes over the guest, as after any other end of the primary.
//!
//! A panic in a device needs more. The state in which the device panicked is replicated, and the
//! guest repeats its request on the host that continues it. So this side tells the standby the
//! place. If the standby's device panics in the same place before a standby of its own holds a
//! checkpoint, no host has the guest any more, and the operator reads that the place was the same
//! on both hosts.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use ft_core::Epoch;
use kemari_audit::Event;
use kemari_confine::logging;
use kemari_confine::seccomp;
use kemari_machine::serving::{Served, served};
use kemari_replication::primary::Engine;

use super::last;

/// Exit code: a device has panicked.
const EXIT_DEVICE: u8 = 6;
/// Exit code: a device has panicked in the same place as on the former host.
const EXIT_AGAIN: u8 = 7;
/// Time for the standby to read the reason. It delays a takeover by at most this.
const LAST_WORD: Duration = Duration::from_millis(50);
/// Time that the panicking thread waits for the last work.
const LAST_WORK: Duration = Duration::from_millis(100);

static ENGINE: OnceLock<Weak<Engine>> = OnceLock::new();
static FORMER: OnceLock<Former> = OnceLock::new();

/// What this host knows of the former host.
struct Former {
    /// The checkpoint from which the guest continued here.
    epoch: Epoch,
    /// The reason for the takeover.
    reason: String,
}

/// Installs the panic hook.
pub(super) fn watch() {
    std::panic::set_hook(Box::new(end));
}

/// Records that the guest of this process ran on another host before.
pub(super) fn goes_on_from(epoch: Epoch, reason: &str) {
    // A process takes over only once.
    let _ = FORMER.set(Former { epoch, reason: reason.to_owned() });
}

/// Records the engine whose standby hears of a panic.
pub(super) fn runs_by(engine: &Arc<Engine>) {
    // A process runs only one guest.
    let _ = ENGINE.set(Arc::downgrade(engine));
}

fn end(panic: &PanicHookInfo<'_>) {
    let code = match (panic.location(), served()) {
        (Some(place), Some(device)) => {
            let death = Death::new(device, place.file(), place.line());
            let code = death.code();
            let text = format!("kemari: {}{}", death.text(), words(panic));
            tell(death.place.clone(), Some(death.event()));
            Some((text, code))
        }
        (Some(place), None) => {
            tell(format!("a thread panicked at {}:{}", place.file(), place.line()), None);
            None
        }
        (None, _) => None,
    };
    match code {
        Some((text, code)) => logging::end_for_panic(text + &trace(), Some(code)),
        // The defect may be in the monitor itself: dump a core.
        None => logging::end_for_panic(of_thread(panic) + &trace(), None),
    }
}

/// Sends the place to the standby and writes the event to the audit log.
fn tell(place: String, event: Option<Event>) {
    let Some(engine) = ENGINE.get().and_then(Weak::upgrade) else { return };
    let work = move || {
        engine.last_word(place, LAST_WORD);
        if let Some(event) = event {
            engine.record_last(event);
        }
    };
    last::for_panic(work, LAST_WORK);
}

/// A panic in the code of a device.
struct Death {
    /// The place without the panic's message, for the standby: the message may contain bytes of the
    /// guest (P1).
    place: String,
    device: Served,
    line: u32,
    /// The checkpoint from which the guest continued here, if no standby has a later one.
    since: Option<Epoch>,
    again: bool,
}

impl Death {
    fn new(device: Served, file: &str, line: u32) -> Self {
        let place = format!("device `{}` panicked at {file}:{line}", device.kind);
        let engine = ENGINE.get().and_then(Weak::upgrade);
        let checkpointed = engine.is_some_and(|engine| engine.has_checkpointed());
        let former = FORMER.get().filter(|_| !checkpointed);
        let again = former.is_some_and(|former| is_told(&former.reason, &place));
        Self { place, device, line, since: former.map(|former| former.epoch), again }
    }

    fn code(&self) -> u8 {
        if self.again { EXIT_AGAIN } else { EXIT_DEVICE }
    }

    fn text(&self) -> String {
        let place = &self.place;
        match self.since {
            Some(epoch) if self.again => format!(
                "the {place} on both hosts, in epoch {}: a request of the guest makes it panic on any host. Not \
                started again",
                epoch.next()
            ),
            Some(epoch) => format!(
                "the {place}, in epoch {}, which this host had taken over: the same request may have ended the former \
                host. Not started again",
                epoch.next()
            ),
            None => format!(
                "the {place}: a defect of the device, triggered by a request of the guest. It may occur again on the \
                host that continues the guest"
            ),
        }
    }

    fn event(&self) -> Event {
        let Self { device, line, since, again, .. } = self;
        let epoch = since.map_or(0, |epoch| epoch.next().0);
        Event::Panicked { slot: device.slot, line: u64::from(*line), epoch, again: *again }
    }
}

/// Whether the former host has reported a panic in this place.
fn is_told(reason: &str, place: &str) -> bool {
    let mut found = reason.match_indices(place);
    // Line 7 must not match line 71.
    found.any(|(at, _)| !reason[at + place.len()..].starts_with(|c: char| c.is_ascii_digit()))
}

/// The panic's message, or an empty text if it may contain bytes of the guest (P1).
fn words(panic: &PanicHookInfo<'_>) -> String {
    match (panic.location(), panic.payload_as_str()) {
        (Some(place), Some(words)) if !is_of_a_device(place.file()) => format!(": {words}"),
        _ => String::new(),
    }
}

fn of_thread(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("?");
    match panic.location().filter(|place| is_of_a_device(place.file())) {
        // P1: the message may contain bytes of the guest.
        Some(place) => format!("thread '{name}' panicked at {place}, in the code of a device"),
        None => format!("thread '{name}' {panic}"),
    }
}

fn trace() -> String {
    // Resolving symbols opens files, which needs the main thread's rights.
    if seccomp::has_mains_rights() {
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            return format!("\n{trace}");
        }
    }
    String::new()
}

/// Whether a panic in this file is a panic of a device: on a thread that runs devices, all code
/// counts except that of the machine around them. A panic in the standard library is located at its
/// caller.
fn is_of_a_device(file: &str) -> bool {
    seccomp::runs_device_code() && !is_of_the_machine(file)
}

/// Whether this file is part of the machine around its devices. The adapters are not: they handle
/// the guest's bytes.
fn is_of_the_machine(file: &str) -> bool {
    let around = ["vmm/", "io-gate/", "ft-core/"].iter().any(|folder| file.starts_with(folder));
    around && !file.starts_with("io-gate/host/src/adapter/")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "device `pager` panicked at devices/src/pager.rs:7";

    /// P1: fails if the message of an adapter's panic, which may contain bytes of the guest, is
    /// printed.
    #[test]
    fn p1_a_panic_in_an_adapter_is_a_devices() {
        assert!(!is_of_the_machine("io-gate/host/src/adapter/serial.rs"));
        assert!(!is_of_the_machine("devices/src/beeper.rs"));
        assert!(is_of_the_machine(file!()) && is_of_the_machine("io-gate/host/src/far_side.rs"));
    }

    #[test]
    fn the_place_that_was_told_is_the_same_or_another() {
        assert!(is_told(&format!("the primary does not go on: {PLACE}"), PLACE));
        assert!(is_told(&format!("{PLACE}1; {PLACE}"), PLACE));
        assert!(!is_told(&format!("the primary does not go on: {PLACE}1"), PLACE));
        assert!(!is_told("the link to the primary was lost", PLACE));
    }

    #[test]
    fn the_last_line_says_whether_it_was_the_same_on_both_hosts() {
        let device = Served { kind: "pager", slot: 5 };
        let death = |since: Option<u64>, again| Death {
            place: PLACE.to_owned(),
            device,
            line: 7,
            since: since.map(Epoch),
            again,
        };
        let first = death(None, false);
        assert_eq!(first.code(), EXIT_DEVICE);
        assert!(first.text().starts_with(&format!("the {PLACE}: ")), "{}", first.text());
        let alone = death(Some(16), false);
        assert_eq!(alone.code(), EXIT_DEVICE);
        assert!(alone.text().contains("in epoch 17, which this host had taken over"));
        let again = death(Some(16), true);
        assert_eq!(again.code(), EXIT_AGAIN);
        assert!(again.text().starts_with(&format!("the {PLACE} on both hosts, in epoch 17: ")));
        assert_eq!(again.event(), Event::Panicked { slot: 5, line: 7, epoch: 17, again: true });
    }
}
