//! `cargo xtask run-pair`: one command that builds, runs, breaks and judges a pair.

mod again;
mod arguments;
#[cfg(test)]
mod boot_tests;
mod interactive;
mod lab;
mod linux;
mod micro;
mod progress;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use kemari_testbed::pair::Progress;
use kemari_testbed::pair::config::PairConfig;
use kemari_testbed::pair::report::RunReport;

use crate::guest::{KernelChoice, LinuxGuest, Preparation};
use crate::lab::LabImages;
use crate::{build, report_file, stop};
pub(crate) use again::starts_at_once;
pub(crate) use arguments::{Arguments, Guest, NetModel};
pub(crate) use progress::Terminal;

/// The flags of a command line.
pub(crate) fn parse(flags: &str) -> Result<Arguments> {
    #[derive(Debug, Parser)]
    struct RunPair {
        #[command(flatten)]
        arguments: Arguments,
    }
    let words = std::iter::once("run-pair").chain(flags.split_whitespace());
    Ok(RunPair::try_parse_from(words)?.arguments)
}

/// Runs a pair; `true` when every promise held.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let stop = stop::flag()?;
    // In the lab no spinner is drawn: the program outside shows what this one prints.
    let terminal = Terminal::new(arguments.prebuilt.is_none());
    arguments.check()?;
    match (arguments.guest, &arguments.prebuilt) {
        (Guest::Micro, _) if arguments.interactive => {
            let config = micro_config(arguments, &terminal)?;
            terminal.line(
                "the micro-guest prints to its console and reads no keys from it; a Debian that you can log in to: --guest linux",
            );
            play(&terminal, |dir| interactive::run(&config, dir, &terminal, stop))
        }
        (Guest::Micro, _) => Ok(micro(arguments, &terminal, stop)?.held()),
        (Guest::Linux, Some(prebuilt)) => {
            check_kvm()?;
            let files = linux::Files::prebuilt(prebuilt);
            let work = |dir: &Path| linux::run(arguments, &files, dir, &terminal, stop);
            Ok(in_directory(arguments, &terminal, work)?.held())
        }
        (Guest::Linux, None) => run_linux(arguments, &terminal, stop),
    }
}

/// Runs a pair with the micro-guest; prints and returns the report.
pub(crate) fn micro_pair(arguments: &Arguments) -> Result<RunReport> {
    micro(arguments, &Terminal::new(true), stop::flag()?)
}

fn micro(arguments: &Arguments, terminal: &Terminal, stop: stop::Flag) -> Result<RunReport> {
    let config = micro_config(arguments, terminal)?;
    in_directory(arguments, terminal, |dir| micro::run(arguments, &config, dir, terminal, stop))
}

fn micro_config(arguments: &Arguments, terminal: &Terminal) -> Result<PairConfig> {
    check_kvm()?;
    let built = terminal.aside("building kemari and the micro-guest", || -> Result<_> {
        let kemari = arguments.kemari.clone().map_or_else(build::kemari, Ok)?;
        Ok((kemari, build::micro_guest()?))
    });
    let (kemari, guest) = built?;
    arguments.micro_config(kemari, guest)
}

/// Directly on `/dev/kvm` where that can run a stock kernel, else in the nested lab.
fn run_linux(arguments: &Arguments, terminal: &Terminal, stop: stop::Flag) -> Result<bool> {
    let kemari = terminal.aside("building kemari", build::kemari)?;
    let probe = crate::guest::probe_host(&kemari)?;
    let direct = probe.kvm == crate::guest::HostKvm::Full && !arguments.lab;
    ensure!(
        direct || !arguments.interactive,
        "--interactive with --guest linux needs a /dev/kvm that runs stock kernels, and here is none ({}); \
         --guest micro works",
        probe.reason
    );
    let what =
        "preparing a Debian guest: kernel, initramfs, root file system (minutes, the first time)";
    let prepare = || prepare_linux(terminal, arguments.net_model, !direct);
    let (guest, lab) = terminal.aside(what, prepare)?;
    if let Some(images) = lab {
        terminal.line(&format!("guest: Debian in the nested lab ({})", probe.reason));
        return lab::run(arguments, &images, &guest, terminal, stop);
    }
    terminal.line(&format!("guest: Debian on this machine's /dev/kvm ({})", probe.reason));
    let files = linux::Files::cached(kemari, &guest);
    if arguments.interactive {
        return play(terminal, |dir| linux::play(arguments, &files, dir, terminal, stop));
    }
    let work = |dir: &Path| linux::run(arguments, &files, dir, terminal, stop);
    Ok(in_directory(arguments, terminal, work)?.held())
}

/// Prepares the guest, and the nested lab's images if it is to run there. The lock on the cache ends with this
/// function, so another run need not wait for all of this one.
fn prepare_linux(
    terminal: &Terminal,
    model: NetModel,
    in_lab: bool,
) -> Result<(LinuxGuest, Option<LabImages>)> {
    let say = |line: &str| terminal.line(line);
    let preparation = Preparation::begin(&say)?;
    // The cloud kernel only has drivers for clouds.
    let kernel = match model {
        NetModel::Virtio => KernelChoice::Cloud,
        NetModel::E1000 => KernelChoice::Generic,
    };
    let guest = preparation.linux_guest(kernel)?;
    let lab = in_lab.then(|| LabImages::prepare(&preparation, &guest)).transpose()?;
    Ok((guest, lab))
}

/// Runs `work` interactively in a directory of its own, which is removed at the end in any case.
fn play(terminal: &Terminal, work: impl FnOnce(&Path) -> Result<()>) -> Result<bool> {
    let dir = tempfile::Builder::new().prefix("kemari-pair-").tempdir();
    let dir = dir.context("cannot make a directory for the run; TMPDIR names another place")?;
    terminal.finish();
    work(dir.path()).map(|()| true)
}

/// Runs `work` in a directory of its own, which stays when something broke; prints the report.
fn in_directory(
    arguments: &Arguments,
    terminal: &Terminal,
    work: impl FnOnce(&Path) -> Result<RunReport>,
) -> Result<RunReport> {
    let dir = tempfile::Builder::new().prefix("kemari-pair-").tempdir();
    let dir = dir.context("cannot make a directory for the run; TMPDIR names another place")?;
    let result = work(dir.path());
    terminal.finish();
    let held = result.as_ref().is_ok_and(RunReport::held);
    // After Ctrl-C nothing is kept.
    let interrupted = stop::flag()?.load(Ordering::SeqCst);
    if arguments.keep || !held && !interrupted {
        println!("logs, serial lines and the disk are kept in {}", dir.keep().display());
    }
    let report = result?;
    println!("\n{report}");
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(report)
}

/// Whether `/dev/kvm` can be used; an error says what to do about it.
pub(crate) fn check_kvm() -> Result<()> {
    let path = Path::new("/dev/kvm");
    ensure!(
        path.exists(),
        "there is no /dev/kvm: load the module (`modprobe kvm-intel` or `kvm-amd`) and enable virtualization in the \
         firmware, or, in a virtual machine, nested virtualization"
    );
    File::options().read(true).write(true).open(path).context(
        "no permission to use /dev/kvm: add yourself to its group (`sudo usermod -aG kvm $USER`, then log in again)",
    )?;
    Ok(())
}

fn write_json(path: &Path, report: &RunReport) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    report_file::write(path, text).context("--json")
}
