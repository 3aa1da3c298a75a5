//! An interactive pair: the guest's console on the terminal, and keys that kill the primary or the
//! standby.

use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout, ExitStatus};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::members::{Launcher, Member};
use super::status::Status;
use super::watch::Watch;
use super::{PATIENCE, RunContext};
use crate::network::{Host, TestNetwork};

/// Ctrl-], the prefix of a command key. Pressed twice, it is sent to the guest.
const PREFIX: u8 = 0x1d;
/// Interval of the checks of the processes.
const LOOK: Duration = Duration::from_millis(100);
/// Interval of status requests.
const ASK: Duration = Duration::from_secs(1);
/// The state of a standby that holds no checkpoint.
const EMPTY: &str = "waiting";

/// The command keys, shown at the start.
pub const HELP: &str =
    "Ctrl-] then: p kills the primary, s kills the standby, i shows the status, q quits";

/// Runs a pair until the guest powers off or the user quits. `keys` receives the typed bytes.
/// `show` writes bytes to the terminal; several threads call it.
///
/// # Errors
/// The pair does not start, or neither side continues after a kill.
pub fn run(context: &RunContext<'_>, keys: &Receiver<Vec<u8>>, show: fn(&[u8])) -> Result<()> {
    let config = context.config;
    let network = if config.loopback {
        TestNetwork::loopback("not wanted".to_owned())?
    } else {
        TestNetwork::new()?
    };
    let launcher = Launcher::new(config, &network, context.switch, context.dir)?.with_console();
    let watch = Watch::new(context.stop.clone(), config.scaled(PATIENCE));
    Playing::start(launcher, watch, show)?.play(context, keys)
}

/// A process, and the input of its guest's console.
struct Seat {
    member: Member,
    keyboard: ChildStdin,
}

struct Playing<'a> {
    launcher: Launcher<'a>,
    watch: Watch,
    show: fn(&[u8]),
    active: Seat,
    passive: Seat,
    /// Whether the last byte was [`PREFIX`].
    ordering: bool,
    /// Whether a key has killed the active side.
    has_killed: bool,
    /// Whether a fresh standby is joining.
    is_joining: bool,
    /// When the standby's end with exit code 0 was seen.
    dismissed: Option<Instant>,
    /// The thread that requests the status of both sides.
    asking: Option<JoinHandle<Answers>>,
    /// The thread that shows the active side's status on request.
    showing: Option<JoinHandle<()>>,
}

/// The status of both sides. A stopped process does not answer for a minute. A separate thread
/// therefore waits for the answers, and the thread that handles keys does not block.
struct Answers {
    active: Option<Status>,
    passive: Option<Status>,
}

/// What happened to the standby after the active side ended.
enum Fate {
    TookOver(Status),
    Ended(ExitStatus),
    HeldNothing,
}

/// What to do after an event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    Quit,
}

impl<'a> Playing<'a> {
    fn start(mut launcher: Launcher<'a>, watch: Watch, show: fn(&[u8])) -> Result<Self> {
        let passive = seat(launcher.start_standby(Host::B)?, show)?;
        listens(&watch, &passive)?;
        let active = seat(launcher.start_primary(Host::A)?, show)?;
        let playing = Self {
            launcher,
            watch,
            show,
            active,
            passive,
            ordering: false,
            has_killed: false,
            is_joining: false,
            dismissed: None,
            asking: None,
            showing: None,
        };
        playing.say(HELP);
        Ok(playing)
    }

    fn play(mut self, context: &RunContext<'_>, keys: &Receiver<Vec<u8>>) -> Result<()> {
        let mut asked = Instant::now();
        while !context.stop.load(Ordering::SeqCst) {
            match keys.recv_timeout(LOOK) {
                Ok(typed) => {
                    if self.take_keys(&typed)? == Next::Quit {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            let next = if let Some(exit) = self.active.member.process.exited() {
                self.active_has_ended(exit)?
            } else if let Some(exit) = self.passive.member.process.exited() {
                self.passive_has_ended(exit)?;
                Next::GoOn
            } else if let Some(answers) = self.answers() {
                self.hear(&answers)?
            } else {
                if self.asking.is_none() && asked.elapsed() >= ASK {
                    asked = Instant::now();
                    self.ask_both()?;
                }
                Next::GoOn
            };
            if next == Next::Quit {
                return Ok(());
            }
        }
        Ok(())
    }

    fn take_keys(&mut self, typed: &[u8]) -> Result<Next> {
        for &key in typed {
            match (std::mem::take(&mut self.ordering), key) {
                (false, PREFIX) => self.ordering = true,
                (true, b'q') => return Ok(Next::Quit),
                (true, b'p') => {
                    self.has_killed = true;
                    let _ = self.active.member.process.kill();
                }
                (true, b's') => drop(self.passive.member.process.kill()),
                (true, b'i') => self.show_status(),
                (true, key) if key != PREFIX => self.say(HELP),
                (_, key) => {
                    // Ignore the error: the next check of the processes finds the dead one.
                    let _ = self.active.keyboard.write_all(&[key]);
                }
            }
        }
        Ok(Next::GoOn)
    }

    fn ask_both(&mut self) -> Result<()> {
        let (active, passive) = (self.active.member.asker(), self.passive.member.asker());
        let ask = || Answers { passive: passive().ok(), active: active().ok() };
        let asking = std::thread::Builder::new().name("ask".to_owned()).spawn(ask);
        self.asking = Some(asking.context("cannot start a thread that asks both sides")?);
        Ok(())
    }

    /// The status of both sides, once both have answered or failed. The answers of a replaced
    /// process are dropped.
    fn answers(&mut self) -> Option<Answers> {
        self.asking.take_if(|asking| asking.is_finished())?.join().ok()
    }

    /// Handles the status of both sides. A takeover without a key is possible: a host that is too
    /// busy for heartbeats in time is replaced.
    fn hear(&mut self, answers: &Answers) -> Result<Next> {
        if let Some(takeover) = answers.passive.as_ref().filter(|status| status.has_taken_over()) {
            self.say("the standby continues the guest, although no key asked for that");
            return self.goes_on(takeover);
        }
        if self.is_joining && answers.active.as_ref().is_some_and(Status::is_protected) {
            self.is_joining = false;
            self.say("protected by a fresh standby");
        }
        Ok(Next::GoOn)
    }

    /// Handles the end of the standby. A primary that ends tells its standby first, and then gives
    /// back its disks and its term; the standby is therefore seen to end first.
    fn passive_has_ended(&mut self, exit: ExitStatus) -> Result<()> {
        if exit.success() {
            if self.dismissed.is_none() {
                self.say("the standby was ordered to end; the primary must end too");
            }
            let since = *self.dismissed.get_or_insert_with(Instant::now);
            if since.elapsed() < self.watch.patience() {
                return Ok(());
            }
        }
        self.say("the standby is dead");
        self.protect()
    }

    /// Handles the end of the active side: the standby takes over, or ends too.
    fn active_has_ended(&mut self, exit: ExitStatus) -> Result<Next> {
        let ended = Instant::now();
        let asked_for = std::mem::take(&mut self.has_killed);
        let active = &self.active.member.process;
        let said = active.lines().pop().unwrap_or_default();
        let passive = &mut self.passive.member;
        let fate = self.watch.until("the standby takes over, or ends", &mut [], |_| {
            if let Some(exit) = passive.process.exited() {
                return Ok(Some(Fate::Ended(exit)));
            }
            let status = passive.status()?;
            // The standby holds no checkpoint, and waits for any primary.
            let is_empty = status.state() == EMPTY;
            Ok(match status.has_taken_over() {
                true => Some(Fate::TookOver(status)),
                false => is_empty.then_some(Fate::HeldNothing),
            })
        })?;
        match fate {
            Fate::TookOver(takeover) => {
                self.say(match asked_for {
                    true => "the primary is dead",
                    false => "the primary is replaced, although no key asked for that",
                });
                let after = ended.elapsed().as_millis();
                self.say(&format!(
                    "the standby went on {after} ms after the primary's end was seen"
                ));
                self.goes_on(&takeover)
            }
            Fate::Ended(_) | Fate::HeldNothing if exit.success() => {
                self.say("the guest has powered off");
                Ok(Next::Quit)
            }
            Fate::Ended(standby) if standby.success() => {
                self.say(&format!("the guest was ended ({exit}: {said}), and its standby with it"));
                Ok(Next::Quit)
            }
            Fate::Ended(standby) => bail!(
                "expected that the standby takes over, but it ended ({standby}) after the primary ({exit}: {said})"
            ),
            Fate::HeldNothing => bail!(
                "the guest is gone: its monitor ended ({exit}: {said}) before a standby held it"
            ),
        }
    }

    fn goes_on(&mut self, takeover: &Status) -> Result<Next> {
        let took = takeover.takeover_us().unwrap_or_default();
        let host = self.passive.member.host.name();
        self.say(&format!("host {host} has taken over; the takeover itself took {took} us"));
        std::mem::swap(&mut self.active, &mut self.passive);
        self.protect().map(|()| Next::GoOn)
    }

    /// Starts a fresh standby for the surviving side.
    fn protect(&mut self) -> Result<()> {
        let host = self.active.member.host.other();
        self.passive = seat(self.launcher.start_standby(host)?, self.show)?;
        self.dismissed = None;
        self.asking = None;
        listens(&self.watch, &self.passive)?;
        self.is_joining = true;
        self.launcher.protect(&self.active.member)
    }

    fn show_status(&mut self) {
        if self.showing.as_ref().is_some_and(|showing| !showing.is_finished()) {
            return self.say("still asked");
        }
        let (show, host, ask) =
            (self.show, self.active.member.host.name(), self.active.member.asker());
        let showing = move || {
            let said = match ask() {
                Ok(status) => in_a_line(host, &status),
                Err(error) => format!("{error:#}"),
            };
            say(show, &said);
        };
        self.showing = std::thread::Builder::new().name("show".to_owned()).spawn(showing).ok();
    }

    /// Prints a line of the harness between lines of the guest. The terminal is raw: lines end with
    /// CR LF.
    fn say(&self, text: &str) {
        say(self.show, text);
    }
}

fn say(show: fn(&[u8]), text: &str) {
    show(format!("\r\n[pair] {text}\r\n").as_bytes());
}

fn in_a_line(host: &str, status: &Status) -> String {
    let (pause, latency) = (status.quantiles("pause_us"), status.quantiles("commit_latency_us"));
    format!(
        "host {host}: {}, term {}, {} checkpoints, pause p50 {} us, commit latency p50 {} us",
        status.state(),
        status.number("term"),
        status.number("checkpoints"),
        pause.p50,
        latency.p50
    )
}

fn listens(watch: &Watch, seat: &Seat) -> Result<()> {
    watch.until("the standby listens", &mut [], |_| Ok(seat.member.status().is_ok().then_some(())))
}

/// Shows the guest's output on the terminal, and returns the input of the guest's console.
fn seat(mut member: Member, show: fn(&[u8])) -> Result<Seat> {
    let Some((keyboard, screen)) = member.process.take_console() else {
        bail!("{} was started without a console", member.process.name());
    };
    std::thread::Builder::new()
        .name("console".to_owned())
        .spawn(move || copy(screen, show))
        .context("cannot start a thread for the console")?;
    Ok(Seat { member, keyboard })
}

fn copy(mut screen: ChildStdout, show: fn(&[u8])) {
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = screen.read(&mut buffer) {
        show(&buffer[..len]);
    }
}
