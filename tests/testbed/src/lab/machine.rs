//! One QEMU process: its serial console and its end.

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

/// How long a signal may go unnoticed while the console is silent.
const SIGNAL_LATENCY: Duration = Duration::from_millis(100);

/// A running QEMU. Killed, by its own pid, when dropped; the kernel kills it when this process dies.
#[derive(Debug)]
pub(super) struct Machine {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    /// Dropped with the machine; the thread that started QEMU lives until then.
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
        // The kernel sends the parent-death signal when the *thread* that started QEMU ends. This thread therefore
        // reads QEMU's output and then waits until the machine is dropped.
        std::thread::Builder::new().name(format!("lab-{}", spec.name)).spawn(move || {
            spawn_and_read(command, &to_us, to_lines);
            // Returns an error when the other side is dropped; that is the event to wait for.
            let _ = until_dropped.recv();
        })?;
        let (child, input) = from_reader.recv().context("the lab's reader ended")??;
        let started = Instant::now();
        Ok(Self { child, input, lines, _alive: alive, started, errors })
    }

    /// The next line of the serial console. A silence that lasts too long, or no end within the time allowed, is an
    /// error.
    pub(super) fn next_line(&mut self, spec: &LabSpec) -> Result<String> {
        match self.receive(spec)? {
            Some(line) => Ok(line),
            None => {
                let status = self.child.wait()?;
                bail!("QEMU ended early ({status}); it said:\n{}", self.error_text())
            }
        }
    }

    /// Waits until QEMU has ended by itself.
    pub(super) fn wait_for_power_off(&mut self, spec: &LabSpec) -> Result<()> {
        while self.receive(spec)?.is_some() {}
        let status: ExitStatus = self.child.wait()?;
        ensure!(status.success(), "QEMU ended with {status}; it said:\n{}", self.error_text());
        Ok(())
    }

    /// The next line; `None` when QEMU has closed its output, which happens when it ends.
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
                bail!("no end after {} s; LabSpec::timeout allows more", spec.timeout.as_secs());
            }
            if silent_since.elapsed() > spec.stall {
                bail!(Stalled(format!("no output for {} s", spec.stall.as_secs())));
            }
        }
    }

    /// Types into the serial console.
    pub(super) fn type_in(&mut self, text: &[u8]) -> Result<()> {
        self.input.write_all(text).context("the lab's serial console")?;
        Ok(self.input.flush()?)
    }

    /// Ends QEMU at once.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// An error unless QEMU has ended.
    pub(super) fn ensure_ended(&mut self) -> Result<()> {
        ensure!(
            self.child.try_wait()?.is_some(),
            "the lab still runs and may still write its disk"
        );
        Ok(())
    }

    fn error_text(&self) -> String {
        let text = fs::read_to_string(&self.errors).unwrap_or_default();
        // The emulator lists features of the named processor that it lacks. Nothing here depends on those features.
        text.lines().filter(|l| !l.contains("TCG doesn't support")).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A drop cannot report an error, and a process that has already ended gives none.
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
        // While the lab is being dropped the receiver is gone; QEMU must not block on a full pipe until then.
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
    // q35, because on microvm the calibration of the PIT sometimes fails under the emulator. One processor, also for
    // guests with two: with two processors about one boot in ninety hung.
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
    // Flushes of the lab's disk need not reach this machine's disk: a killed QEMU loses the lab's page cache, not ours.
    drive("scratch", &scratch.disk(), "cache=unsafe");
    command
}
