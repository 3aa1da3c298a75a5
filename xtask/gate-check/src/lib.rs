//! `cargo xtask gate`: checks that the gate is the only way out of a device (P5). Several layers
//! check the same crates in different ways; each finding explains its rule and how to do it right.
//!
//! It may depend on `xtask-common`, and on no other crate of this workspace: the crates that it
//! checks are read and compiled, not linked.

mod base;
mod calls;
mod clippy;
mod compile;
mod configuration;
mod dep_info;
mod devices;
mod expanded;
mod finding;
mod graph;
mod layer;
mod policy;
mod report;
mod rules;
mod self_test;
mod source;
mod subject;
mod symbols;
mod types;
mod without_std;
mod witness;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::finding::Outcome;
use self::layer::Layer;
use self::report::Looked;
use self::subject::Subject;
use xtask_common::build;

/// Stack of a layer's thread, in bytes; memory is taken only as it is used.
const STACK: usize = 256 << 20;

/// What to check, and how to say what was found.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Run only this layer. Repeatable.
    #[arg(long, value_name = "NAME")]
    layer: Vec<Layer>,
    /// Run all layers except this one. Repeatable.
    #[arg(long, value_name = "NAME", conflicts_with = "layer")]
    without: Vec<Layer>,
    /// Check this package instead of the packages that gate.toml names.
    #[arg(long, value_name = "NAME")]
    package: Option<String>,
    /// Cargo.toml of the package or of its workspace, if the package is outside of this workspace.
    #[arg(long, value_name = "FILE")]
    manifest_path: Option<PathBuf>,
    /// Use this allow-list as well, in the format of gate.toml.
    #[arg(long, value_name = "FILE")]
    allow: Option<PathBuf>,
    /// Apply each known attack to a scratch copy instead, and check that the layers named in the
    /// attack catch it.
    #[arg(long, conflicts_with_all = ["layer", "package", "manifest_path", "allow", "json", "sarif", "github"])]
    self_test: bool,
    /// Check the crates behind the gate with an independent tool instead (cargo-acl), and check
    /// that it detects some attacks.
    #[arg(long, conflicts_with_all = ["layer", "without", "package", "manifest_path", "allow", "self_test", "json", "sarif", "github"])]
    witness: bool,
    /// With --self-test: apply only attacks whose name contains this. Repeatable.
    #[arg(long, value_name = "NAME", requires = "self_test")]
    attack: Vec<String>,
    /// With --self-test: draw this number of attacks at random, with one for each layer that only
    /// this layer catches.
    #[arg(long, value_name = "COUNT", requires = "self_test", conflicts_with = "attack")]
    sample: Option<usize>,
    /// Seed for --sample.
    #[arg(long, value_name = "NUMBER", requires = "sample", default_value_t = 1)]
    seed: u64,
    /// With --self-test: run all layers on each attack, not only the layers named in it.
    #[arg(long, requires = "self_test")]
    every_layer: bool,
    /// Print all findings as JSON.
    #[arg(long)]
    json: bool,
    /// Write all findings to this file as SARIF 2.1.0.
    #[arg(long, value_name = "FILE")]
    sarif: Option<PathBuf>,
    /// Also print the findings as GitHub annotations.
    #[arg(long)]
    github: bool,
}

/// Runs the compiler, if cargo has started this program in its place: a program that runs layers
/// calls this first in `main`. `None` if it was started in another way.
pub fn run_as_compiler() -> Option<ExitCode> {
    calls::run_as_compiler()
}

/// Runs the command. Returns exit code 0 if nothing was found, 1 if something was found, 2 if a
/// layer could not run.
pub fn run(arguments: &Arguments) -> ExitCode {
    match check(arguments) {
        Ok(Verdict::Passed) => ExitCode::SUCCESS,
        Ok(Verdict::Failed) => ExitCode::FAILURE,
        Ok(Verdict::Unknown) => ExitCode::from(2),
        Err(error) => {
            eprintln!("error: the gate could not be checked: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The chapter of the book about the rules of the source, made from the texts of the rules.
#[must_use]
pub fn chapter_of_rules() -> String {
    source::chapter()
}

/// Checks the tree as `cargo xtask gate` does; `true` when nothing was found.
///
/// # Errors
/// The tree cannot be read.
pub fn tree_passes() -> Result<bool> {
    passes_at(build::repository())
}

/// Checks a copy of the tree; `true` when nothing was found.
///
/// # Errors
/// The copy has no valid `gate.toml`, or cargo cannot read its manifests.
pub fn passes_at(root: &Path) -> Result<bool> {
    let subject = Subject::tree(root, None, vec!["--locked".to_owned()])?;
    let looked = look(&subject, &Layer::ALL);
    print!("{}", report::human(&looked));
    Ok(matches!(verdict(&looked), Verdict::Passed))
}

/// Links the program of a copy of the tree that [`passes_at`] has compiled, without optimization.
/// Returns its path.
///
/// # Errors
/// As [`passes_at`]; or the program does not compile or link.
pub fn program_at(root: &Path) -> Result<PathBuf> {
    calls::runnable(&Subject::tree(root, None, vec!["--locked".to_owned()])?)
}

/// Runs this many of the known attacks, drawn by the seed; `true` when each was caught by the
/// layers that claim it.
///
/// # Errors
/// The scratch copy cannot be made, or an attack does not fit it.
pub fn sample_passes(count: usize, seed: u64) -> Result<bool> {
    self_test::run(&self_test::Run { sample: Some((count, seed)), ..Default::default() })
}

/// Runs an independent tool; `true` when it finds nothing in the tree, and finds the attacks that
/// it can detect.
///
/// # Errors
/// cargo-acl is missing and cannot be built, or it could not run.
pub fn witness_agrees() -> Result<bool> {
    witness::run()
}

/// The result of all layers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    /// A layer could not run, so there is no verdict.
    Unknown,
}

fn check(arguments: &Arguments) -> Result<Verdict> {
    arguments
        .sarif
        .as_deref()
        .map_or(Ok(()), xtask_common::report_file::check)
        .context("--sarif")?;
    let allowed = arguments.allow.as_deref().map(xtask_common::given_file::text);
    allowed.transpose().context("--allow")?;
    if arguments.self_test {
        let passed = self_test::run(&self_test::Run {
            only: &arguments.attack,
            without: &arguments.without,
            every_layer: arguments.every_layer,
            sample: arguments.sample.map(|count| (count, arguments.seed)),
        })?;
        return Ok(if passed { Verdict::Passed } else { Verdict::Failed });
    }
    if arguments.witness {
        return Ok(if witness::run()? { Verdict::Passed } else { Verdict::Failed });
    }
    let begin = Instant::now();
    let layers: Vec<Layer> = Layer::ALL
        .into_iter()
        .filter(|layer| arguments.layer.is_empty() || arguments.layer.contains(layer))
        .filter(|layer| !arguments.without.contains(layer))
        .collect();
    ensure!(
        !layers.is_empty(),
        "--layer and --without together leave no layer to run: remove one of them"
    );
    let subject = subject(arguments)?;
    eprintln!("... checking {} (the first run compiles for minutes)", subject.packages.join(", "));
    let looked = look(&subject, &layers);
    if arguments.json {
        println!("{:#}", report::json(&subject, &looked));
    } else {
        println!("the gate of {} ({})", subject.packages.join(", "), subject.root.display());
        if let Some(path) = &arguments.allow {
            println!("with the further allow-list {}", path.display());
        }
        print!("{}", report::human(&looked));
        if subject.is_tree() {
            print!("\n{}", base::report(&subject)?);
        }
    }
    if arguments.github {
        report::annotations(&looked).iter().for_each(|line| println!("{line}"));
    }
    if let Some(path) = &arguments.sarif {
        report::write_sarif(path, &looked)?;
    }
    let verdict = verdict(&looked);
    if !arguments.json {
        let left: Vec<&str> = Layer::ALL
            .iter()
            .filter(|layer| !layers.contains(layer))
            .map(|layer| layer.name())
            .collect();
        if !left.is_empty() {
            println!("\nNOT CHECKED: {}", left.join(", "));
        }
        let said = match verdict {
            Verdict::Passed if !left.is_empty() => {
                "the layers that ran have found no other way out"
            }
            Verdict::Passed => "the gate is the only way out",
            Verdict::Failed => "there is another way out, or code that looks like one",
            Verdict::Unknown => "a layer could not run: the result is unknown",
        };
        println!("\n{said} ({:.1} s)", begin.elapsed().as_secs_f64());
    }
    Ok(verdict)
}

fn subject(arguments: &Arguments) -> Result<Subject> {
    let root = build::repository();
    let (package, allow) = (arguments.package.as_deref(), arguments.allow.as_deref());
    match (&arguments.manifest_path, package) {
        (Some(manifest), package) => Subject::package_of(root, manifest, package, allow),
        (None, Some(package)) => {
            Subject::package_of(root, &root.join("Cargo.toml"), Some(package), allow)
        }
        (None, None) => Subject::tree(root, allow, vec!["--locked".to_owned()]),
    }
}

/// Runs the layers at the same time; returns their results in the order of the report.
fn look(subject: &Subject, layers: &[Layer]) -> Vec<Looked> {
    std::thread::scope(|scope| {
        let running: Vec<_> = layers
            .iter()
            .map(|&layer| {
                // Use a large stack, because recursive functions walk over deeply nested code.
                let thread = std::thread::Builder::new().stack_size(STACK);
                (layer, thread.spawn_scoped(scope, move || look_once(subject, layer)))
            })
            .collect();
        let broken = |layer, why: String| Looked {
            layer,
            outcome: Outcome::Broken(why),
            time: std::time::Duration::ZERO,
        };
        let ended = |(layer, thread): (Layer, io::Result<ScopedJoinHandle<'_, Looked>>)| {
            let thread = match thread {
                Ok(thread) => thread,
                Err(error) => return broken(layer, format!("no thread for it: {error}")),
            };
            thread.join().unwrap_or_else(|_| broken(layer, "it panicked".to_owned()))
        };
        running.into_iter().map(ended).collect()
    })
}

fn look_once(subject: &Subject, layer: Layer) -> Looked {
    let begin = Instant::now();
    let outcome = match layer {
        Layer::Types => types::look(subject),
        Layer::Graph => graph::look(subject),
        Layer::Bare => without_std::look_bare(subject),
        Layer::LinuxCore => without_std::look_linux(subject),
        Layer::Source => source::look(subject),
        Layer::Expanded => expanded::look(subject),
        Layer::Symbols => symbols::look(subject),
        Layer::Clippy => clippy::look(subject),
        Layer::Devices => devices::look(subject),
        Layer::Calls => calls::look(subject),
    };
    let outcome = outcome.unwrap_or_else(|error| Outcome::Broken(format!("{error:#}")));
    Looked { layer, outcome, time: begin.elapsed() }
}

fn verdict(looked: &[Looked]) -> Verdict {
    let found = looked.iter().any(|looked| !looked.outcome.findings().is_empty());
    let broken = looked.iter().any(|looked| matches!(looked.outcome, Outcome::Broken(_)));
    let missed = looked.iter().any(|looked| matches!(looked.outcome, Outcome::NotReached(_)));
    match (broken, found, missed) {
        (_, true, _) => Verdict::Failed,
        (true, false, _) | (false, false, true) => Verdict::Unknown,
        (false, false, false) => Verdict::Passed,
    }
}
