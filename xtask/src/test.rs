//! `cargo xtask test`: runs every test, from unit tests to pairs of real processes and a stock
//! Debian guest.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use clap::Args;

use crate::{bench, build, faults, gate, guest, new_device, run_pair, sim, stop, torture};

/// Which tests.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Run only the steps whose name contains this.
    #[arg(value_name = "NAME")]
    only: Option<String>,
    /// Leave out the stock Debian guest, and print a warning at the end.
    #[arg(long)]
    skip_linux: bool,
}

/// One step of the tests.
struct Step {
    name: &'static str,
    run: fn() -> Result<bool>,
    /// Whether the step needs the stock Debian guest.
    linux: bool,
}

/// The steps, from cheap to expensive: an early failure costs little.
const STEPS: &[Step] = &[
    Step { name: "unit, property and process tests", run: workspace, linux: false },
    Step { name: "gate: the gate is the only way out of a device", run: gate, linux: false },
    Step { name: "gate: a sample of the known attacks is caught", run: attacks, linux: false },
    Step { name: "gate: an independent witness agrees", run: witness, linux: false },
    Step { name: "model: commit and takeover, exhaustively", run: model, linux: false },
    Step { name: "simulation: a fixed set of seeds", run: sim_fixed, linux: false },
    Step { name: "simulation: fresh seeds", run: sim_fresh, linux: false },
    Step { name: "new-device: one of each kind", run: new_device::prove, linux: false },
    Step { name: "simulation: deliberate bugs are found", run: sim_bugs, linux: false },
    Step { name: "simulation: a sample of mutants is found", run: sim_mutants, linux: false },
    Step { name: "simulation: the drivers, a fixed set of seeds", run: sim_drivers, linux: false },
    Step {
        name: "run-pair: a second run starts at once",
        run: run_pair::starts_at_once,
        linux: false,
    },
    Step { name: "pair: every kill, one vCPU, audited", run: pair_one, linux: false },
    Step {
        name: "pair: every kill, two vCPUs, every checkpoint compared",
        run: pair_two,
        linux: false,
    },
    Step { name: "pair: over loopback, without namespaces", run: pair_loopback, linux: false },
    Step { name: "torture: real faults from a seed", run: torture_pairs, linux: false },
    Step { name: "faults: a fixed list, each in one system call", run: fixed_faults, linux: false },
    Step { name: "bench: every part measures, however fast", run: bench::prove, linux: false },
    Step { name: "Debian: the nested lab, a login at the serial console", run: lab, linux: true },
    Step { name: "Debian: every kill, one vCPU", run: debian_one, linux: true },
    Step { name: "Debian: two vCPUs", run: debian_two, linux: true },
    Step { name: "Debian: its own driver for an e1000", run: debian_e1000, linux: true },
];

/// Runs the tests; `true` if all passed.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let begin = Instant::now();
    let named = |step: &Step| arguments.only.as_ref().is_none_or(|only| step.name.contains(only));
    let wanted = |step: &&Step| named(step) && !(step.linux && arguments.skip_linux);
    let steps: Vec<&Step> = STEPS.iter().filter(wanted).collect();
    ensure!(!steps.is_empty(), "no step's name contains this text; the steps are: {}", names());
    prepare()?;
    let (mut failed, mut times) = (Vec::new(), Vec::new());
    for step in &steps {
        println!("\n=== {}", step.name);
        let begun = Instant::now();
        let passed = (step.run)().unwrap_or_else(|error| {
            println!("error: {error:#}");
            false
        });
        let time = begun.elapsed();
        println!("=== {}: {} in {}", step.name, verdict(passed), seconds(time));
        times.push((step.name, time));
        ensure!(!stop::flag()?.load(Ordering::SeqCst), "interrupted");
        if !passed {
            failed.push(step.name);
        }
    }
    println!();
    for (name, time) in times {
        println!("{:>12}  {name}", seconds(time));
    }
    if arguments.skip_linux {
        println!("\nNOT TESTED: the stock Debian guest, as --skip-linux asked for");
    }
    let (count, time) = (steps.len(), seconds(begin.elapsed()));
    match failed.as_slice() {
        [] => println!("\nall tests passed: {count} steps in {time}"),
        _ => {
            println!("\n{} of {count} steps FAILED in {time}: {}", failed.len(), failed.join("; "))
        }
    }
    Ok(failed.is_empty())
}

/// Programs that the tests run, each with its Debian package. The preparation of the stock Debian
/// guest installs the programs for that guest.
const PROGRAMS: &[(&str, &str)] = &[
    ("/usr/bin/etcd", "etcd-server"),
    ("/usr/bin/etcdctl", "etcd-client"),
    ("/usr/bin/git", "git"),
    ("/usr/bin/iasl", "acpica-tools"),
    ("/usr/bin/mount", "mount"),
    ("/usr/bin/unshare", "util-linux"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/sbin/mke2fs", "e2fsprogs"),
];

/// Installs missing programs, or says what to install: no test is skipped.
fn prepare() -> Result<()> {
    guest::ensure_programs(PROGRAMS, &|line| println!("{line}"))?;
    build::ensure_bare_target()
}

/// The list of steps for `--help`.
pub(crate) fn steps() -> String {
    let line = |step: &Step| {
        let guest = if step.linux { " (left out by --skip-linux)" } else { "" };
        format!("\n  {}{guest}", step.name)
    };
    format!("Steps, in this order:{}", STEPS.iter().map(line).collect::<String>())
}

fn names() -> String {
    STEPS.iter().map(|step| step.name).collect::<Vec<_>>().join("; ")
}

const fn verdict(passed: bool) -> &'static str {
    if passed { "passed" } else { "FAILED" }
}

fn seconds(time: Duration) -> String {
    format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

fn workspace() -> Result<bool> {
    run_pair::check_kvm()?;
    build::micro_guest()?;
    // Compile first: this takes minutes and shows its progress. Then run without a line for each of
    // a thousand tests.
    let test = ["test", "--workspace", "--locked", "--no-fail-fast"];
    build::run(build::cargo().args(test).arg("--no-run"))?;
    build::run(build::cargo().args(test).arg("--quiet"))?;
    Ok(true)
}

fn gate() -> Result<bool> {
    gate::tree_passes()
}

/// Applies a different sample each day; `cargo xtask gate --self-test` applies all attacks.
fn attacks() -> Result<bool> {
    let days = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() / (24 * 60 * 60);
    gate::sample_passes(50, days)
}

fn witness() -> Result<bool> {
    gate::witness_agrees()
}

fn model() -> Result<bool> {
    sim::run_with(["--model"])
}

fn sim_fixed() -> Result<bool> {
    sim::run_with(["--first", "1", "--seeds", "10000"])
}

fn sim_fresh() -> Result<bool> {
    sim::run_with(["--seeds", "10000"])
}

fn sim_bugs() -> Result<bool> {
    sim::run_with(["--bugs", "--rounds", "1"])
}

/// The unit tests judge the mutants; the simulation is built only for mutants that they do not
/// find.
fn sim_mutants() -> Result<bool> {
    sim::run_with(["--mutants", "--sample", "150", "--seed", "1"])
}

fn sim_drivers() -> Result<bool> {
    sim::run_with(["--drivers", "--seeds", "60", "--every-kind"])
}

fn pair_one() -> Result<bool> {
    pair("--kill all --rounds 8 --seed 1 --audit")
}

fn pair_two() -> Result<bool> {
    pair("--kill all --rounds 8 --seed 2 --cpus 2 --verify")
}

fn pair_loopback() -> Result<bool> {
    pair("--kill all --rounds 4 --seed 3 --loopback")
}

fn torture_pairs() -> Result<bool> {
    torture::run_with("--minutes 2 --seed 1 --rounds 20")
}

fn fixed_faults() -> Result<bool> {
    let list = build::repository().join("tests/verify/faults/fixed.txt");
    faults::run_with(["--cells", &list.display().to_string()])
}

fn lab() -> Result<bool> {
    let tests =
        ["test", "--quiet", "--locked", "--package", "kemari-testbed", "--package", "xtask-bench"];
    let ignored = ["--", "--ignored", "--test-threads", "1"];
    build::run(build::cargo().args(tests).args(ignored))?;
    let guest = guest::Preparation::begin(&|line| println!("{line}"))?
        .linux_guest(guest::KernelChoice::Cloud)?;
    let test = ["test", "--quiet", "--locked", "--package", "kemari-machine", "--test", "boot"];
    let mut test_image = build::cargo();
    test_image.args(test).arg("stock_bzimage_loads").env("KEMARI_TEST_BZIMAGE", guest.vmlinuz);
    build::run(&mut test_image)?;
    Ok(true)
}

fn debian_one() -> Result<bool> {
    pair("--guest linux --kill all --rounds 4 --seed 4")
}

fn debian_two() -> Result<bool> {
    pair("--guest linux --kill primary --rounds 1 --seed 5 --cpus 2")
}

fn debian_e1000() -> Result<bool> {
    pair("--guest linux --net-model e1000 --kill primary --rounds 2 --seed 6")
}

/// Runs `run-pair` with these flags, as from the command line.
fn pair(flags: &str) -> Result<bool> {
    println!("cargo xtask run-pair {flags}");
    run_pair::run(&run_pair::parse(flags)?)
}
