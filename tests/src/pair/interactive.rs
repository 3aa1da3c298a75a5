//! A pair for a person to play with: the guest's console on the terminal, and keys that kill either side.

use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::members::{Launcher, Member};
use super::watch::Watch;
use super::{PATIENCE, Surroundings};
use crate::bed::{Bed, Host};

/// Ctrl-], which begins an order; twice, it goes to the guest.
const PREFIX: u8 = 0x1d;
/// How often the processes are looked at while no key is pressed.
const LOOK: Duration = Duration::from_millis(100);

/// What the keys do; shown at the start.
pub const HELP: &str =
    "Ctrl-] then: p kills the primary, s kills the standby, i shows the status, q quits";

/// Runs a pair until the guest powers off or the person quits. `keys` is what is typed; `show` puts bytes on the
/// terminal, from several threads.
///
/// # Errors
/// When the pair does not come up, or neither side goes on after a kill.
pub fn run(
    surroundings: &Surroundings<'_>,
    keys: &Receiver<Vec<u8>>,
    show: fn(&[u8]),
) -> Result<()> {
    let config = surroundings.config;
    let bed = if config.loopback { Bed::loopback("not wanted".to_owned())? } else { Bed::new()? };
    let launcher =
        Launcher::new(config, &bed, surroundings.switch, surroundings.dir)?.with_console();
    let watch = Watch::new(surroundings.stop.clone(), config.scaled(PATIENCE));
    Playing::start(launcher, watch, show)?.play(surroundings, keys)
}

/// A process, and the guest's keyboard on it.
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
    /// The last byte was [`PREFIX`].
    ordering: bool,
}

/// What an order asks for.
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
        let playing = Self { launcher, watch, show, active, passive, ordering: false };
        playing.say(HELP);
        Ok(playing)
    }

    fn play(mut self, surroundings: &Surroundings<'_>, keys: &Receiver<Vec<u8>>) -> Result<()> {
        while !surroundings.stop.load(Ordering::SeqCst) {
            match keys.recv_timeout(LOOK) {
                Ok(typed) => {
                    if self.take_keys(&typed)? == Next::Quit {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if let Some(exit) = self.active.member.process.exited() {
                if exit.success() {
                    self.say("the guest has powered off");
                    return Ok(());
                }
                self.survive()?;
            } else if self.passive.member.process.exited().is_some() {
                self.say("the standby is dead");
                self.protect()?;
            }
        }
        Ok(())
    }

    fn take_keys(&mut self, typed: &[u8]) -> Result<Next> {
        for &key in typed {
            match (std::mem::take(&mut self.ordering), key) {
                (false, PREFIX) => self.ordering = true,
                (true, b'q') => return Ok(Next::Quit),
                (true, b'p') => drop(self.active.member.process.kill()),
                (true, b's') => drop(self.passive.member.process.kill()),
                (true, b'i') => self.show_status(),
                (true, key) if key != PREFIX => self.say(HELP),
                (_, key) => {
                    // A process that has just died is found out on the next look.
                    let _ = self.active.keyboard.write_all(&[key]);
                }
            }
        }
        Ok(Next::GoOn)
    }

    /// The side that ran the guest is dead: the other one takes over.
    fn survive(&mut self) -> Result<()> {
        let dead = Instant::now();
        self.say("the primary is dead");
        let takeover = self.watch.until(
            "the standby takes over",
            &mut [&mut self.passive.member],
            |members| Ok(Some(members[0].status()?).filter(super::status::Status::runs_guest)),
        )?;
        let took = takeover.takeover_us().unwrap_or_default();
        self.say(&format!(
            "host {} has taken over, {} ms after the kill; the takeover itself took {took} us",
            self.passive.member.host.name(),
            dead.elapsed().as_millis()
        ));
        std::mem::swap(&mut self.active, &mut self.passive);
        self.protect()
    }

    /// Gives the survivor a fresh standby.
    fn protect(&mut self) -> Result<()> {
        let host = self.active.member.host.other();
        self.passive = seat(self.launcher.start_standby(host)?, self.show)?;
        listens(&self.watch, &self.passive)?;
        self.launcher.protect(&self.active.member)?;
        self.watch.until("the guest is protected", &mut [&mut self.active.member], |members| {
            Ok(members[0].status()?.is_protected().then_some(()))
        })?;
        self.say("protected by a fresh standby");
        Ok(())
    }

    fn show_status(&self) {
        match self.active.member.status() {
            Ok(status) => {
                let (pause, latency) =
                    (status.quantiles("pause_us"), status.quantiles("commit_latency_us"));
                self.say(&format!(
                    "host {}: {}, term {}, {} checkpoints, pause p50 {} us, commit latency p50 {} us",
                    self.active.member.host.name(),
                    status.state(),
                    status.number("term"),
                    status.number("checkpoints"),
                    pause.p50,
                    latency.p50
                ));
            }
            Err(error) => self.say(&format!("{error:#}")),
        }
    }

    /// A line of the harness among the guest's: the terminal is raw.
    fn say(&self, text: &str) {
        (self.show)(format!("\r\n[pair] {text}\r\n").as_bytes());
    }
}

fn listens(watch: &Watch, seat: &Seat) -> Result<()> {
    watch.until("the standby listens", &mut [], |_| Ok(seat.member.status().is_ok().then_some(())))
}

/// Puts what the guest prints on the terminal; gives its keyboard.
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
