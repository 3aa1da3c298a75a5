//! A QEMU with the micro-guest, as the smallest machine that QEMU has (`-M microvm`), on
//! `/dev/kvm`.

use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kemari_testbed::process::{Process, tied_to_us};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xtask_common::stop;

use super::client::GUEST;
use super::qmp::Qmp;

/// The guest's Ethernet address.
pub(super) const MAC: &str = "52:54:00:4b:45:50";
/// The longest time until an interruption, or the end of a program, is noticed.
const TICK: Duration = Duration::from_millis(100);
/// The longest time until QEMU opens its monitor connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// The properties that all machines of a run share.
#[derive(Debug, Clone)]
pub(super) struct Model<'a> {
    /// The QEMU program and its first options.
    pub(super) qemu: &'a [String],
    /// The name and version that QEMU reports.
    pub(super) version: &'a str,
    /// The micro-guest.
    pub(super) guest: &'a Path,
    /// Memory in MiB.
    pub(super) memory: u64,
    /// The directory of sockets and logs.
    pub(super) dir: &'a Path,
    /// Set when the run must end.
    pub(super) stop: stop::Flag,
}

/// The properties in which a machine differs from the others.
#[derive(Debug)]
pub(super) struct Spec<'a> {
    /// A name that is unique in the run.
    pub(super) name: String,
    /// The socket of the switch's port.
    pub(super) network: &'a Path,
    /// Path of a raw disk image.
    pub(super) disk: Option<&'a Path>,
    /// Whether the machine waits for the state of another machine.
    pub(super) incoming: bool,
}

/// A running QEMU, which is killed when this value is dropped.
#[derive(Debug)]
pub(super) struct Machine {
    /// The connection to its monitor.
    pub(super) qmp: Qmp,
    process: Process,
}

impl Model<'_> {
    /// Starts a machine.
    ///
    /// # Errors
    /// QEMU cannot be started, or ends; the error contains its output.
    pub(super) fn start(&self, spec: &Spec<'_>) -> Result<Machine> {
        let socket = self.dir.join(format!("{}.qmp", spec.name));
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("cannot listen at {}", socket.display()))?;
        let mut command = self.command(spec, &socket)?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = self.dir.join(format!("{}.log", spec.name));
        let mut process = Process::start(&spec.name, command, &log)?;
        let monitor = accept(&listener, &mut process, &self.stop);
        // The next machine of this name creates its own socket.
        std::fs::remove_file(&socket)
            .with_context(|| format!("cannot remove {}", socket.display()))?;
        let opened = monitor.and_then(|monitor| Qmp::open(monitor, self.stop.clone()));
        match opened {
            Ok(qmp) => Ok(Machine { qmp, process }),
            Err(error) => Err(error.context(said(&process))),
        }
    }

    fn command(&self, spec: &Spec<'_>, monitor: &Path) -> Result<Command> {
        let (program, first) = self
            .qemu
            .split_first()
            .context("the QEMU command is empty: expected a program and its arguments")?;
        let mut command = tied_to_us(Path::new(program));
        command.args(first).args(["-name", &spec.name, "-accel", "kvm", "-no-user-config"]);
        // Without ACPI, the guest finds its devices on the command line.
        command.args(["-M", "microvm,x-option-roms=off,isa-serial=on,acpi=off"]);
        command.args(["-cpu", "host,arch-capabilities=off", "-smp", "1", "-nodefaults"]);
        command.args(["-no-reboot", "-display", "none", "-m", &self.memory.to_string()]);
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
        let quoted = |path: &Path| path.display().to_string().replace(',', ",,");
        let serial = self.dir.join(format!("{}.serial", spec.name));
        command.arg("-serial").arg(format!("file:{}", serial.display()));
        command.args(["-mon", "chardev=monitor,mode=control", "-chardev"]);
        command.arg(format!("socket,id=monitor,path={}", quoted(monitor)));
        command.arg("-kernel").arg(self.guest);
        command.args(["-append", &format!("ip={GUEST} smp=1")]);
        if let Some(disk) = spec.disk {
            let drive = "if=none,id=d0,format=raw,cache=writeback";
            command.arg("-drive").arg(format!("{drive},file={}", quoted(disk)));
            command.args(["-device", "virtio-blk-device,drive=d0"]);
        }
        let network = "stream,id=n0,server=off,addr.type=unix";
        command.arg("-netdev").arg(format!("{network},addr.path={}", quoted(spec.network)));
        command.args(["-device", &format!("virtio-net-device,netdev=n0,mac={MAC}")]);
        command.args(["-device", "virtio-rng-device"]);
        if spec.incoming {
            command.args(["-incoming", "defer"]);
        }
        Ok(command)
    }
}

impl Machine {
    /// Adds QEMU's output to `error`.
    pub(super) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        error.context(said(&self.process))
    }
}

/// The last lines of output of a program.
pub(super) fn said(process: &Process) -> String {
    let lines = process.lines();
    let last = lines[lines.len().saturating_sub(5)..].join(" / ");
    match last.is_empty() {
        true => format!("{} said nothing", process.name()),
        false => format!("{} said: {last}", process.name()),
    }
}

/// Accepts the connection of `process`.
fn accept(listener: &UnixListener, process: &mut Process, stop: &stop::Flag) -> Result<UnixStream> {
    listener.set_nonblocking(true).context("cannot set up the monitor socket")?;
    let deadline = Instant::now() + PATIENCE;
    let tick = Timespec::try_from(TICK).context("cannot convert the poll interval")?;
    loop {
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(false).context("cannot set up the connection to QEMU")?;
                return Ok(socket);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("cannot accept QEMU's connection"),
        }
        if let Some(status) = process.exited() {
            bail!("{} ended with {status}", process.name());
        }
        if stop.load(Ordering::SeqCst) {
            bail!("interrupted");
        }
        if Instant::now() > deadline {
            bail!("{} did not open its monitor socket", process.name());
        }
        // `poll` returns when a program connects.
        let mut wanted = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut wanted, Some(&tick)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for QEMU's connection"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shell(dir: &Path, script: &str) -> Process {
        let mut command = tied_to_us(Path::new("/bin/sh"));
        command.args(["-c", script]);
        Process::start("shell", command, &dir.join("log")).unwrap()
    }

    #[test]
    fn a_program_that_ends_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let mut process = shell(dir.path(), "echo cannot do that >&2; exit 4");
        let error = accept(&listener, &mut process, &stop::Flag::default()).unwrap_err();
        assert!(error.to_string().contains("exit status: 4"), "{error}");
        process.wait_line("cannot", PATIENCE).unwrap();
        assert_eq!(said(&process), "shell said: cannot do that");
    }

    #[test]
    fn a_run_that_is_to_end_does_not_wait() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let mut process = shell(dir.path(), "exec sleep 100");
        let stop = stop::Flag::default();
        stop.store(true, Ordering::SeqCst);
        let error = accept(&listener, &mut process, &stop).unwrap_err();
        assert!(error.to_string().contains("interrupted"), "{error}");
    }
}
