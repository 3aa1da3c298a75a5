//! A device that panics on a guest's request. Its fuzz test finds the panic. If the device runs
//! anyway, the primary ends with the reason, the standby takes over and ends the same way, and no
//! host starts the guest again without `--seize`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari_testbed::process::{Process, tied_to_us};

/// Its name.
pub(super) const NAME: &str = "fragile";
/// Indexes an array of 11 entries by a length that the guest chooses. The first text of 11 bytes,
/// `line 10000\n`, comes after 20 s.
const SOUND: &str = "self.count = self.count.wrapping_add(1);";
const FRAGILE: &str = "self.count = self.count.wrapping_add([1; 11][len]);";
/// The device under test follows the console that every machine has.
const GUEST: &str = "virtio_mmio.device=4K@0xd0001000:6 exercise=on";
/// Only failures take that long.
const PATIENCE: Duration = Duration::from_secs(300);

/// Makes a new device fragile.
pub(super) fn put_in(workspace: &Path) -> Result<()> {
    let path = workspace.join(format!("devices/src/{NAME}.rs"));
    let device = fs::read_to_string(&path)?;
    ensure!(device.contains(SOUND), "{}: expected `{SOUND}`, found none", path.display());
    fs::write(&path, device.replace(SOUND, FRAGILE))?;
    Ok(())
}

/// Its fuzz test fails, and prints the place and the seed.
pub(super) fn is_found(test: &mut Command) -> Result<()> {
    let output = test.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let place = format!("panicked at devices/src/{NAME}.rs:");
    ensure!(
        !output.status.success() && said.contains(&place) && said.contains("KEMARI_FUZZ_SEED="),
        "expected a failure with `{place}` and a seed, found {}:\n{said}",
        output.status
    );
    println!("{NAME}: its test finds the panic");
    Ok(())
}

/// Both hosts of a pair end because of the panic, one after the other.
pub(super) fn ends_both(kemari: &Path, kernel: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let bench = Bench { kemari, kernel, dir: dir.path() };
    let mut standby = bench.standby()?;
    let mut primary = bench.run("a", &["--standby", &bench.link()])?;
    primary.wait_line("protected", PATIENCE).context("the pair is not protected")?;
    let first = end_of(&mut primary, 6)?;
    let place = format!("device `{NAME}` panicked at devices/src/{NAME}.rs:");
    said(&first, &[&place, "a defect of the device"])?;
    let second = end_of(&mut standby, 7)?;
    said(&second, &["took over in term 2", &format!("the primary does not go on: {place}")])?;
    said(&second, &[&format!("the {place}"), "on both hosts, in epoch", "Not started again"])?;
    let again = end_of(&mut bench.run("again", &[])?, 2)?;
    said(
        &again,
        &["start with --seize", &format!("won for: the primary does not go on: {place}")],
    )?;
    let audit =
        Command::new(kemari).args(["audit", "show"]).arg(dir.path().join("b.audit")).output()?;
    said(
        &String::from_utf8_lossy(&audit.stdout),
        &["panicked at line", "as it had on the host before"],
    )?;
    println!("{NAME}: both hosts of a pair have ended by it, and say so");
    Ok(())
}

/// A machine without a standby ends as well.
pub(super) fn ends_one(kemari: &Path, kernel: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let bench = Bench { kemari, kernel, dir: dir.path() };
    let text = end_of(&mut bench.run("alone", &[])?, 6)?;
    said(&text, &[&format!("the device `{NAME}` panicked at devices/src/{NAME}.rs:")])?;
    println!("{NAME}: a machine without a standby has ended by it, and reports it");
    Ok(())
}

struct Bench<'a> {
    kemari: &'a Path,
    kernel: &'a Path,
    dir: &'a Path,
}

impl Bench<'_> {
    fn link(&self) -> String {
        format!("unix:{}", self.dir.join("link").display())
    }

    fn standby(&self) -> Result<Process> {
        let standby = self.start("b", &["standby", "--listen", &self.link()])?;
        standby.wait_line("listening on", PATIENCE).context("no standby")?;
        Ok(standby)
    }

    fn run(&self, name: &str, more: &[&str]) -> Result<Process> {
        let kernel = self.kernel.display().to_string();
        let arguments =
            ["run", "--kernel", &kernel, "--cmdline", GUEST, "--memory", "64", "--cpus", "1"];
        self.start(name, &[&arguments, more].concat())
    }

    fn start(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        let path = |file: &str| self.dir.join(file).display().to_string();
        let mut command = tied_to_us(self.kemari);
        command.args(arguments);
        command.args(["--name", NAME, "--serial", "none", "--virtio-console", "none"]);
        command.args(["--device", &format!("{NAME},console=file={}", path("out"))]);
        command.args(["--arbiter", &format!("file:{}", path("arbiter"))]);
        command.args(["--audit", &path(&format!("{name}.audit"))]);
        command.args(["--control", &path(name), "--heartbeat-timeout", "5000"]);
        command.stdin(Stdio::null());
        Process::start(name, command, &self.dir.join(format!("{name}.log")))
    }
}

/// What a process printed until it ended, which must be with this code.
fn end_of(process: &mut Process, code: i32) -> Result<String> {
    let status = process.wait_exit(PATIENCE).with_context(|| {
        format!("{} does not end:\n{}", process.name(), process.lines().join("\n"))
    })?;
    let text = process.lines().join("\n");
    ensure!(
        status.code() == Some(code),
        "{}: expected exit code {code}, found {status}:\n{text}",
        process.name()
    );
    Ok(text)
}

/// All of these words are on one line.
fn said(text: &str, words: &[&str]) -> Result<()> {
    let is_it = |line: &str| words.iter().all(|word| line.contains(word));
    ensure!(text.lines().any(is_it), "expected a line with {words:?}, found:\n{text}");
    Ok(())
}
