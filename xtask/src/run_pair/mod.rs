//! `cargo xtask run-pair`: one command that builds, runs, breaks and judges a pair.

mod progress;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use kemari_tests::micro::{self, Load, MicroObserver};
use kemari_tests::pair::config::{Kill, PairConfig};
use kemari_tests::pair::report::{RunReport, TABLE_HEAD};
use kemari_tests::pair::{self, Progress, Surroundings};
use kemari_tests::switch::Switch;

use crate::{build, stop};
use progress::Terminal;

/// The guests there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Guest {
    /// The embedded bare-metal guest; takes seconds.
    Micro,
}

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The guest.
    #[arg(long, value_enum, default_value = "micro")]
    guest: Guest,
    /// How to break the pair; several, or `all`, take turns.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "primary",
        value_name = "primary|standby|both-links|pause-primary|all"
    )]
    kill: Vec<String>,
    /// How often.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// What the moments of the kills are drawn from; the same seed, the same moments.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Milliseconds of load before each kill, to which a random time is added.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    load: u64,
    /// vCPUs of the guest.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Memory of the guest in MiB.
    #[arg(long, default_value_t = 64)]
    memory: u64,
    /// Clients that ask at the same time.
    #[arg(long, default_value_t = 4)]
    writers: u32,
    /// Pages that the guest dirties in a second, besides its work.
    #[arg(long, value_name = "PAGES_PER_S", default_value_t = 2000)]
    dirty: u32,
    /// Compare memory and state of both sides at every checkpoint.
    #[arg(long)]
    verify: bool,
    /// Write the report to this file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many times longer to wait for everything than on an ordinary machine.
    #[arg(long, value_name = "FACTOR", default_value_t = 1)]
    slow: u32,
    /// Do not use network namespaces.
    #[arg(long)]
    loopback: bool,
    /// Keep the logs and the disk of a good run too.
    #[arg(long)]
    keep: bool,
    /// Further flags for `kemari run` and `kemari standby`.
    #[arg(last = true)]
    flags: Vec<String>,
}

impl Arguments {
    fn kills(&self) -> Result<Vec<Kill>> {
        if self.kill.iter().any(|kill| kill == "all") {
            return Ok(Kill::ALL.to_vec());
        }
        self.kill
            .iter()
            .map(|kill| kill.parse().map_err(|error| anyhow::anyhow!("--kill: {error}, or all")))
            .collect()
    }

    fn client_load(&self) -> Load {
        let resend = Duration::from_millis(50) * self.slow;
        Load { writers: self.writers, seed: self.seed, dirty: self.dirty, resend }
    }

    fn config(&self, kemari: PathBuf, kernel: PathBuf) -> Result<PairConfig> {
        Ok(PairConfig {
            kemari,
            guest: micro::guest(kernel, self.memory, self.cpus, self.client_load()),
            kills: self.kills()?,
            rounds: self.rounds,
            seed: self.seed,
            load: Duration::from_millis(self.load),
            verify: self.verify,
            slow: self.slow,
            loopback: self.loopback,
            flags: self.flags.clone(),
        })
    }
}

/// Runs a pair; `true` when every promise held.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let stop = stop::flag()?;
    let terminal = Terminal::new();
    check_kvm()?;
    arguments.kills()?;
    terminal.step("building kemari");
    let kemari = build::kemari()?;
    terminal.step("building the micro-guest");
    let Guest::Micro = arguments.guest;
    let config = arguments.config(kemari, build::micro_guest()?)?;
    let dir = tempfile::Builder::new()
        .prefix("kemari-pair-")
        .tempdir()
        .context("cannot make a directory")?;
    let result = run_micro(arguments, &config, dir.path(), &terminal, stop);
    terminal.finish();
    let held = result.as_ref().is_ok_and(RunReport::held);
    if !held || arguments.keep {
        let kept = dir.keep();
        println!("logs, serial lines and the disk are kept in {}", kept.display());
    }
    let report = result?;
    println!("\n{report}");
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(held)
}

fn run_micro(
    arguments: &Arguments,
    config: &PairConfig,
    dir: &Path,
    terminal: &Terminal,
    stop: Arc<AtomicBool>,
) -> Result<RunReport> {
    let image = dir.join("disk.img");
    let disk = File::create(&image).and_then(|disk| disk.set_len(micro::DISK_BYTES));
    disk.with_context(|| format!("cannot make {}", image.display()))?;
    let switch = Switch::new(dir, &["a", "b"]).context("cannot make the switch")?;
    let mut observer = MicroObserver::start(switch.plug_in(), arguments.client_load(), &image)?;
    terminal.line(TABLE_HEAD);
    let surroundings = Surroundings { config, dir, switch: &switch, progress: terminal, stop };
    pair::run(&surroundings, &mut observer)
}

fn check_kvm() -> Result<()> {
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
    std::fs::write(path, text).with_context(|| format!("--json: cannot write {}", path.display()))
}
