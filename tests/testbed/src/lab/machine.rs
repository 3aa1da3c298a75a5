//! A QEMU process: its serial console and its end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::scratch::Scratch;
use super::{LabImages, LabSpec, Stalled};

/// Longest delay until a signal is noticed while the console is silent.
const SIGNAL_LATENCY: Duration = Duration::from_millis(100);

/// A running QEMU. Dropping it kills QEMU; if this process dies, the kernel kills QEMU.
#[derive(Debug)]
pub(super) struct Machine {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    /// Keeps the thread that started QEMU alive until the machine is dropped.
    _alive: Sender<()>,
    started: Instant,
    errors: PathBuf,
}

impl Machine {
    /// Starts QEMU.
    pub(super) fn start(images: &LabImages, spec: &LabSpec, scratch: &Scratch) -> Result<Self> {
        let errors = scratch.path("qemu-errors");
        let mut command = command(images, spec, scratch);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&errors)?);
        let (to_us, from_reader) = mpsc::channel();
        let (to_lines, lines) = mpsc::channel();
        let (alive, until_dropped) = mpsc::channel::<()>();
        // This thread reads QEMU's output and then waits until the machine is dropped: the kernel
        // sends the parent-death signal when the *thread* that started QEMU ends.
        std::thread::Builder::new().name(format!("lab-{}", spec.name)).spawn(move || {
            spawn_and_read(command, &to_us, to_lines);
            // Returns an error when the machine is dropped.
            let _ = until_dropped.recv();
        })?;
        let (child, input) =
            from_reader.recv().context("the thread that reads the lab's output ended")??;
        let started = Instant::now();
        Ok(Self { child, input, lines, _alive: alive, started, errors })
    }

    /// The next line of the serial console. Fails if the console is silent for too long, or if the
    /// time limit of the lab has passed.
    pub(super) fn next_line(&mut self, spec: &LabSpec) -> Result<String> {
        match self.receive(spec)? {
            Some(line) => Ok(line),
            None => {
                let status = self.child.wait()?;
                bail!("QEMU ended early ({status}); it said:\n{}", self.error_text())
            }
        }
    }

    /// Waits until QEMU ends by itself.
    pub(super) fn wait_for_power_off(&mut self, spec: &LabSpec) -> Result<()> {
        while self.receive(spec)?.is_some() {}
        let status: ExitStatus = self.child.wait()?;
        ensure!(status.success(), "QEMU ended with {status}; it said:\n{}", self.error_text());
        Ok(())
    }

    /// The next line; `None` when QEMU has closed its output because it ends.
    fn receive(&self, spec: &LabSpec) -> Result<Option<String>> {
        let silent_since = Instant::now();
        loop {
            match self.lines.recv_timeout(SIGNAL_LATENCY) {
                Ok(line) => return Ok(Some(line)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if spec.interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if self.started.elapsed() > spec.timeout {
                bail!(
                    "expected the lab to end within {} s, found it running; raise LabSpec::timeout",
                    spec.timeout.as_secs()
                );
            }
            if silent_since.elapsed() > spec.stall {
                bail!(Stalled(format!("no output for {} s", spec.stall.as_secs())));
            }
        }
    }

    /// Writes to the serial console.
    pub(super) fn type_in(&mut self, text: &[u8]) -> Result<()> {
        self.input.write_all(text).context("the lab's serial console")?;
        Ok(self.input.flush()?)
    }

    /// Kills QEMU.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Fails if QEMU still runs.
    pub(super) fn ensure_ended(&mut self) -> Result<()> {
        ensure!(self.child.try_wait()?.is_some(), "the lab runs, and may still write to its disk");
        Ok(())
    }

    fn error_text(&self) -> String {
        let text = fs::read_to_string(&self.errors).unwrap_or_default();
        // Remove QEMU's list of features that its emulator lacks: nothing here depends on them.
        text.lines().filter(|l| !l.contains("TCG doesn't support")).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Ignore the error: a drop cannot report it, and there is none if the process has already
        // ended.
        let _ = self.kill();
    }
}

type Spawned = Result<(Child, ChildStdin)>;

fn spawn_and_read(mut command: Command, to_us: &Sender<Spawned>, lines: Sender<String>) {
    let output = match spawn(&mut command) {
        Ok((child, input, output)) => {
            if to_us.send(Ok((child, input))).is_err() {
                return;
            }
            output
        }
        Err(why) => {
            let _ = to_us.send(Err(why));
            return;
        }
    };
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line);
        // The send fails while the lab is being dropped. Read on until then: QEMU must not block on
        // a full pipe.
        let _ = lines.send(text.trim_end_matches(['\r', '\n']).to_owned());
        line.clear();
    }
}

fn spawn(command: &mut Command) -> Result<(Child, ChildStdin, ChildStdout)> {
    let mut child = command.spawn().context("cannot start QEMU through `setpriv` (util-linux)")?;
    let input = child.stdin.take().context("QEMU's standard input")?;
    let output = child.stdout.take().context("QEMU's standard output")?;
    Ok((child, input, output))
}

fn command(images: &LabImages, spec: &LabSpec, scratch: &Scratch) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).args(&images.qemu);
    // q35, because the calibration of the PIT sometimes fails on microvm under the emulator.
    // One processor, even for guests with two: with two processors about one boot in ninety hung.
    command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "EPYC", "-smp", "1"]);
    command.args(["-m", &format!("{}M", spec.memory_mib)]);
    command.args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]);
    command.arg("-kernel").arg(&images.kernel).arg("-initrd").arg(&images.initramfs);
    command.args(["-append", "console=ttyS0 quiet panic=-1 tsc=reliable"]);
    let mut drive = |id: &str, path: &std::path::Path, options: &str| {
        command.args(["-device", &format!("virtio-blk-pci,drive={id}")]);
        command
            .arg("-drive")
            .arg(format!("if=none,id={id},format=raw,{options},file={}", path.display()));
    };
    drive("userland", &images.userland, "readonly=on");
    // QEMU need not flush the lab's disk: killing QEMU loses the lab's page cache, not this
    // machine's.
    drive("scratch", &scratch.disk(), "cache=unsafe");
    command
}
