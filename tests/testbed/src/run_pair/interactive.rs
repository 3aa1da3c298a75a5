//! An interactive run: the guest's console on the terminal, and keys that kill the primary or the
//! standby.

use std::fs::File;
use std::io::{Read, Write, stdin, stdout};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use super::Run;
use crate::micro;
use crate::pair::config::PairConfig;
use crate::pair::interactive;
use crate::switch::Switch;

/// Runs the pair with its files in `dir`. Creates an empty disk image if there is none.
pub(super) fn run(of: &Run<'_>, config: &PairConfig, dir: &Path) -> Result<()> {
    let image = dir.join("disk.img");
    if !image.exists() {
        let disk = File::create(&image).and_then(|disk| disk.set_len(micro::DISK_BYTES));
        disk.with_context(|| format!("cannot make {}", image.display()))?;
    }
    let switch = Switch::new(dir, &["a", "b"]).context("cannot make the switch")?;
    let context = of.context(config, dir, &switch, None);
    let _raw = Raw::enter()?;
    interactive::run(&context, &keys()?, show)
}

/// Reads the keys in a separate thread.
fn keys() -> Result<Receiver<Vec<u8>>> {
    let (typed, keys) = channel();
    let read = move || {
        let mut buffer = [0; 256];
        while let Ok(len @ 1..) = stdin().read(&mut buffer) {
            if typed.send(buffer[..len].to_vec()).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("keys".to_owned()).spawn(read)?;
    Ok(keys)
}

fn show(bytes: &[u8]) {
    let mut screen = stdout().lock();
    // Ignore the error: the thread that reads the keys sees that the terminal is gone.
    let _ = screen.write_all(bytes).and_then(|()| screen.flush());
}

/// Sets the terminal to raw mode; dropping it restores the former settings.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self> {
        let before = tcgetattr(stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).context("cannot make the terminal raw")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Ignore the error: a terminal that is gone needs no restoring.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}
