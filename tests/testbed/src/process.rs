//! Child processes. Each is in its own process group, is signalled by its process ID, and is killed
//! at the end. Its output is read line by line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::unread::Valve;
use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// A running child. Dropping it kills the child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    exit: Option<ExitStatus>,
    heard: Arc<Heard>,
    log: PathBuf,
    peak: PeakMemory,
    /// The valves of its standard output (if that is written to a file) and of its standard error.
    valves: [Option<Valve>; 2],
}

/// The largest peak memory of several processes (`VmHWM` of proc_pid_status(5)).
#[derive(Clone, Debug, Default)]
pub struct PeakMemory(Arc<AtomicU64>);

impl PeakMemory {
    /// The peak in KiB.
    pub fn kib(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Reads the peak of a process. The last value before the end of a process counts.
    fn look(&self, pid: u32) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = field.and_then(|field| field.trim().strip_suffix(" kB")?.parse().ok());
        self.0.fetch_max(kib.unwrap_or(0), Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Heard {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    lines: Vec<String>,
    ended: bool,
}

impl Process {
    /// Starts `command`. Its standard error is read, and also written to `log`.
    ///
    /// # Errors
    /// The program cannot be started, or `log` cannot be written.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        // A group of its own: Ctrl-C on the terminal reaches only the harness, which ends its
        // children in order.
        command.process_group(0).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {name}: {}", command.get_program().display()))?;
        let stderr = child.stderr.take().context("the child's standard error is a pipe")?;
        let pid = Pid::from_child(&child);
        let heard = Arc::new(Heard::default());
        let listener = Arc::clone(&heard);
        let valve = Valve::default();
        let valves = [None, Some(valve.clone())];
        thread::spawn(move || listen(stderr, file, &listener, &valve));
        let (name, log, peak) = (name.to_owned(), log.to_owned(), PeakMemory::default());
        Ok(Self { name, child, pid, exit: None, heard, log, peak, valves })
    }

    /// Counts the child's memory in `peak` from now on. It is read before each signal and each
    /// check for the child's end.
    pub fn counts_in(&mut self, peak: &PeakMemory) {
        self.peak = peak.clone();
    }

    /// The child's name in the harness.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The child's process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file with the child's standard error.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The other ends of the child's standard input and output, if both are pipes. Only the first
    /// call returns them.
    pub fn take_console(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        self.child.stdin.take().zip(self.child.stdout.take())
    }

    /// Writes the child's standard output, which must be a pipe, to `path`.
    ///
    /// # Errors
    /// The file cannot be created, or standard output is no pipe.
    pub fn keep_output(&mut self, path: &Path) -> Result<()> {
        let mut file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut output =
            self.child.stdout.take().context("expected a pipe as standard output, found none")?;
        let valve = Valve::default();
        self.valves[0] = Some(valve.clone());
        thread::spawn(move || {
            let mut piece = [0; 4096];
            loop {
                valve.pass();
                match output.read(&mut piece) {
                    Ok(count) if count > 0 => drop(file.write_all(&piece[..count])),
                    _ => break,
                }
            }
            valve.end();
        });
        Ok(())
    }

    /// Stops reading the child's standard error, and its standard output if that is written to a
    /// file. Both pipes are full when this function returns.
    ///
    /// # Errors
    /// The child has ended, or a pipe is not full after `patience`.
    pub fn leave_unread(&self, patience: Duration) -> Result<()> {
        for (valve, fd) in self.valves.iter().zip(1..) {
            let closed = valve.as_ref().map(|valve| valve.close(self.pid(), fd, patience));
            closed.unwrap_or(Ok(())).with_context(|| format!("{} left unread", self.name))?;
        }
        Ok(())
    }

    /// Reads the child's output again.
    pub fn read_on(&self) {
        self.valves.iter().flatten().for_each(Valve::open);
    }

    /// Sends SIGKILL and waits for the child's end.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        self.signal(Signal::KILL);
        self.wait_exit(Duration::from_secs(30))
    }

    /// Sends `signal`, unless the child is known to have ended.
    pub fn signal(&mut self, signal: Signal) {
        // The process ID belongs to the child only until the child is reaped.
        if self.exit.is_none() {
            self.peak.look(self.pid());
            let _ = kill_process(self.pid, signal);
        }
    }

    /// The child's exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.peak.look(self.pid());
            self.exit = self.child.try_wait().ok().flatten();
        }
        self.exit
    }

    /// Waits for the child's end; `None` after `timeout`.
    pub fn wait_exit(&mut self, timeout: Duration) -> Option<ExitStatus> {
        if self.exited().is_none() {
            self.poll_exit(timeout).ok()?;
        }
        self.exited()
    }

    fn poll_exit(&self, timeout: Duration) -> io::Result<()> {
        let descriptor = pidfd_open(self.pid, PidfdFlags::empty())?;
        let mut wanted = [PollFd::new(&descriptor, PollFlags::IN)];
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        poll(&mut wanted, Some(&timeout))?;
        Ok(())
    }

    /// All lines that the child has printed on standard error.
    pub fn lines(&self) -> Vec<String> {
        self.said().lines.clone()
    }

    /// Waits for a line that contains `text`; `None` after `timeout` or after the child's end.
    pub fn wait_line(&self, text: &str, timeout: Duration) -> Option<String> {
        let deadline = Instant::now() + timeout;
        let mut said = self.said();
        loop {
            if let Some(line) = said.lines.iter().find(|line| line.contains(text)) {
                return Some(line.clone());
            }
            let left = deadline.checked_duration_since(Instant::now()).filter(|_| !said.ended)?;
            said = self.heard.more.wait_timeout(said, left).expect("the listener does not panic").0;
        }
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.heard.said.lock().expect("the listener does not panic")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.read_on();
        if self.exited().is_none() {
            self.kill();
        }
    }
}

fn listen(stderr: ChildStderr, mut file: File, heard: &Heard, valve: &Valve) {
    for line in BufReader::new(stderr).split(b'\n') {
        let Ok(line) = line else { break };
        valve.pass();
        if line.is_empty() {
            continue;
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        // Ignore the error: the file is for people. The tests use the lines in memory.
        let _ = writeln!(file, "{line}");
        heard.said.lock().expect("no holder panics").lines.push(line);
        heard.more.notify_all();
    }
    valve.end();
    heard.said.lock().expect("no holder panics").ended = true;
    heard.more.notify_all();
}

/// A command that runs `program` and, if `setpriv` is installed, kills it when this process ends in
/// any way.
pub fn tied_to_us(program: &Path) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.exists() {
        return Command::new(program);
    }
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// The first words of a command line that creates mount and user namespaces and runs a shell line
/// in them; the program follows. `None` if the machine permits none: the test is then reported as
/// not run.
pub fn in_namespaces(shell: &str) -> Option<Command> {
    let permitted = Command::new("unshare")
        .args(["-Urm", "true"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !permitted {
        kemari_not_tested::not_tested("this machine permits no user namespaces");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-ec", &format!("{shell}; exec \"$@\"")]).arg("sh");
    Some(command)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> (Process, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let mut command = tied_to_us(Path::new("/bin/sh"));
        command.args(["-c", script]);
        (Process::start("shell", command, &dir.path().join("log")).unwrap(), dir)
    }

    #[test]
    fn lines_and_exit_code_are_seen() {
        let (mut process, _dir) = shell("echo one >&2; echo two >&2; exit 3");
        assert_eq!(process.wait_line("tw", LONG).unwrap(), "two");
        assert_eq!(process.wait_exit(LONG).unwrap().code(), Some(3));
        assert_eq!(std::fs::read_to_string(process.log()).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn the_most_memory_is_seen() {
        // The shell stores 32 MiB in a variable, frees it, and stops.
        let (mut process, _dir) = shell(
            "x=$(head -c 33554432 /dev/zero | tr '\\0' x); unset x; echo full >&2; kill -STOP $$",
        );
        let peak = PeakMemory::default();
        process.counts_in(&peak);
        process.wait_line("full", LONG).unwrap();
        assert!(process.exited().is_none());
        assert!((32 << 10..1 << 20).contains(&peak.kib()), "{} KiB", peak.kib());
        process.kill();
    }

    #[test]
    fn a_line_that_never_comes_ends_with_the_child() {
        let (process, _dir) = shell("echo one >&2");
        assert_eq!(process.wait_line("two", LONG), None);
    }

    #[test]
    fn a_stopped_child_can_be_waited_for_and_killed() {
        let (mut process, _dir) = shell("echo up >&2; exec sleep 100");
        process.wait_line("up", LONG).unwrap();
        process.signal(Signal::STOP);
        assert!(process.wait_exit(Duration::from_millis(50)).is_none());
        assert!(process.kill().is_some());
    }

    /// A child whose pipes are not read cannot write another byte. Its output arrives once the
    /// pipes are read again.
    #[test]
    fn what_is_left_unread_waits_and_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = tied_to_us(Path::new("/bin/sh"));
        let script = "echo up; read go; echo out; echo end >&2";
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start("shell", command, &dir.path().join("log")).unwrap();
        let output = dir.path().join("output");
        process.keep_output(&output).unwrap();
        let printed = |end: &str| {
            let begin = Instant::now();
            while !std::fs::read_to_string(&output).unwrap().ends_with(end) {
                assert!(begin.elapsed() < LONG, "what it prints is kept");
                thread::yield_now();
            }
        };
        // The shell must not print on standard error here: to do so it changes its descriptors, and
        // the test opens them.
        printed("up\n");
        process.leave_unread(LONG).unwrap();
        for fd in [1, 2] {
            let path = format!("/proc/{}/fd/{fd}", process.pid());
            let flags = OFlags::WRONLY | OFlags::NONBLOCK;
            let pipe = rustix::fs::open(path, flags, Mode::empty()).unwrap();
            assert_eq!(rustix::io::write(pipe, b"x"), Err(Errno::AGAIN));
        }
        drop(process.child.stdin.take());
        assert!(process.exited().is_none());
        process.read_on();
        process.wait_line("end", LONG).unwrap();
        assert!(process.wait_exit(LONG).is_some());
        assert_eq!(process.lines(), ["end"]);
        printed("out\n");
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let (process, _dir) = shell("echo up >&2; exec sleep 100");
        process.wait_line("up", LONG).unwrap();
        let proc = PathBuf::from(format!("/proc/{}", process.pid()));
        assert!(proc.exists());
        drop(process);
        assert!(!proc.exists());
    }
}
