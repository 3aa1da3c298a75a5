//! `cargo xtask run-pair`: one command that builds, runs, breaks and judges a pair. This module is
//! its command line; [`kemari_testbed::run_pair`] makes the runs.

mod again;
mod arguments;
mod lab;

use anyhow::{Result, ensure};
use clap::Parser;
use kemari_testbed::guest::{KernelChoice, LinuxGuest, Preparation};
use kemari_testbed::kvm::{self, HostKvm};
use kemari_testbed::lab::LabImages;
use kemari_testbed::pair::Progress;
use kemari_testbed::pair::config::PairConfig;
use kemari_testbed::pair::report::RunReport;
use kemari_testbed::run_pair::{LinuxFiles, Run};
use kemari_testbed::terminal::Terminal;

use crate::{build, stop};
pub(crate) use again::starts_at_once;
pub(crate) use arguments::{Arguments, Guest, NetModel};
pub(crate) use kemari_testbed::kvm::check as check_kvm;

/// Parses the flags of a command line.
pub(crate) fn parse(flags: &str) -> Result<Arguments> {
    #[derive(Debug, Parser)]
    struct RunPair {
        #[command(flatten)]
        arguments: Arguments,
    }
    let words = std::iter::once("run-pair").chain(flags.split_whitespace());
    Ok(RunPair::try_parse_from(words)?.arguments)
}

/// Runs a pair; `true` if every promise held.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    // The lab draws no spinner: the program outside shows what this one prints.
    let terminal = Terminal::new(arguments.prebuilt.is_none());
    let run = new_run(arguments, &terminal)?;
    arguments.check()?;
    match (arguments.guest, &arguments.prebuilt) {
        (Guest::Micro, _) if arguments.interactive => {
            let config = micro_config(arguments, &terminal)?;
            terminal.line(
                "the micro-guest prints to its console and reads no keys; for a Debian with a login, add --guest \
                 linux",
            );
            run.play_micro(&config).map(|()| true)
        }
        (Guest::Micro, _) => Ok(micro(arguments, &run)?.held()),
        (Guest::Linux, Some(prebuilt)) => {
            kvm::check()?;
            let files = LinuxFiles::prebuilt(prebuilt);
            let config = arguments.linux_config(&files)?;
            Ok(run.linux(&files, &config, arguments.writers)?.held())
        }
        (Guest::Linux, None) => run_linux(arguments, &run),
    }
}

fn new_run<'a>(arguments: &'a Arguments, terminal: &'a Terminal) -> Result<Run<'a>> {
    let (stop, json) = (stop::flag()?, arguments.json.as_deref());
    Ok(Run { terminal, stop, keep: arguments.keep, json })
}

/// Runs a pair with the micro-guest; prints and returns the report.
pub(crate) fn micro_pair(arguments: &Arguments) -> Result<RunReport> {
    let terminal = Terminal::new(true);
    micro(arguments, &new_run(arguments, &terminal)?)
}

fn micro(arguments: &Arguments, run: &Run<'_>) -> Result<RunReport> {
    let config = micro_config(arguments, run.terminal)?;
    run.micro(&config, arguments.micro_load())
}

fn micro_config(arguments: &Arguments, terminal: &Terminal) -> Result<PairConfig> {
    kvm::check()?;
    let built = terminal.aside("building kemari and the micro-guest", || -> Result<_> {
        let kemari = arguments.kemari.clone().map_or_else(build::kemari, Ok)?;
        Ok((kemari, build::micro_guest()?))
    });
    let (kemari, guest) = built?;
    arguments.micro_config(kemari, guest)
}

/// Runs the stock guest directly on `/dev/kvm` where that is possible, else in the nested lab.
fn run_linux(arguments: &Arguments, run: &Run<'_>) -> Result<bool> {
    let terminal = run.terminal;
    let kemari = terminal.aside("building kemari", build::kemari)?;
    let probe = kvm::probe_host(&kemari)?;
    let direct = probe.kvm == HostKvm::Full && !arguments.lab;
    ensure!(
        direct || !arguments.interactive,
        "--interactive with --guest linux: expected a /dev/kvm that runs stock kernels, found none ({}); use --guest \
         micro",
        probe.reason
    );
    let what =
        "preparing a Debian guest: kernel, initramfs, root file system (minutes, the first time)";
    let prepare = || prepare_linux(terminal, arguments.net_model, !direct);
    let (guest, lab) = terminal.aside(what, prepare)?;
    if let Some(images) = lab {
        terminal.line(&format!("guest: Debian in the nested lab ({})", probe.reason));
        return lab::run(arguments, &images, &guest, run);
    }
    terminal.line(&format!("guest: Debian on this machine's /dev/kvm ({})", probe.reason));
    let files = LinuxFiles::cached(kemari, &guest);
    let mut config = arguments.linux_config(&files)?;
    if arguments.interactive {
        config.guest.boots_protected = true;
        return run.play_linux(&files, &config).map(|()| true);
    }
    Ok(run.linux(&files, &config, arguments.writers)?.held())
}

/// Prepares the guest, and the nested lab's images if the guest runs there. The lock on the cache
/// is released at the end of this function, so another run need not wait for this whole run.
fn prepare_linux(
    terminal: &Terminal,
    model: NetModel,
    in_lab: bool,
) -> Result<(LinuxGuest, Option<LabImages>)> {
    let say = |line: &str| terminal.line(line);
    let preparation = Preparation::begin(&say)?;
    // The cloud kernel has drivers only for clouds.
    let kernel = match model {
        NetModel::Virtio => KernelChoice::Cloud,
        NetModel::E1000 => KernelChoice::Generic,
    };
    let guest = preparation.linux_guest(kernel)?;
    let lab = in_lab.then(|| LabImages::prepare(&preparation, &guest)).transpose()?;
    Ok((guest, lab))
}
