//! `cargo xtask gate --self-test`: applies every known attack to a scratch copy of the tree; the
//! layers that claim the attack must catch it. A layer is needed only if some attack gets through
//! without it. All layers therefore check the attacks that one layer alone claims to catch, and the
//! attacks that are said to pass.

mod alive;
mod attack;
mod sample;
mod scratch;
mod start;
mod verdict;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};

pub(super) use self::attack::Attack;
use self::attack::{Catcher, Test};
pub(super) use self::scratch::Scratch;
use self::scratch::Tree;
use self::verdict::{AttackResult, Wrong, judge, let_through};
use super::finding::{Finding, Outcome};
use super::layer::Layer;
use super::report;
use super::subject::{LINUX, Subject, package_dir};
use xtask_common::build;

/// Maximum number of findings of a catcher that are printed for a wrong result.
const SHOWN: usize = 6;

/// The attacks to run, and the layers that check them.
#[derive(Debug, Default)]
pub(crate) struct Run<'r> {
    /// Attacks whose name contains one of these; all attacks if empty.
    pub(crate) only: &'r [String],
    /// Layers to leave out.
    pub(crate) without: &'r [Layer],
    /// Whether all layers check each attack, and not just the layers that claim it.
    pub(crate) every_layer: bool,
    /// The number of attacks to draw, and the seed that chooses them; `None` for all attacks.
    pub(crate) sample: Option<(usize, u64)>,
}

/// Runs attacks; `true` when all results are as claimed.
pub(crate) fn run(run: &Run<'_>) -> Result<bool> {
    let Run { only, without, .. } = *run;
    let begin = Instant::now();
    let mut attacks = Attack::all(&build::repository().join("xtask/gate-check/attacks"))?;
    let all = attacks.len();
    attacks.retain(|attack| only.is_empty() || only.iter().any(|only| attack.name.contains(only)));
    ensure!(
        !attacks.is_empty(),
        "--attack: expected a part of the name of a directory of xtask/gate-check/attacks, found `{}`",
        only.join("`, `")
    );
    let subject = Subject::tree(build::repository(), None, vec!["--locked".to_owned()])?;
    let mut copy = TestCopy::new(&subject)?;
    copy.clean(without)?;
    println!("the clean copy passes ({:.0} s)\n", begin.elapsed().as_secs_f64());
    if let Some((count, seed)) = run.sample {
        attacks = sample::draw(attacks, count, seed);
        println!("{} of {all} attacks, drawn with the seed {seed}", attacks.len());
    }
    // Attacks that change the same crates run one after the other, so that other crates are not
    // compiled again.
    attacks.sort_by_cached_key(|attack| copy.crates(attack));
    let (mut judged, mut failed) = (Vec::new(), 0);
    for attack in attacks {
        let begun = Instant::now();
        let result = copy.run_attack(&attack, run);
        let wrong = judge(&attack, &result, None);
        failed += usize::from(!wrong.is_empty());
        say(&attack, &result, &wrong, begun.elapsed().as_secs_f64());
        judged.push((attack, result));
    }
    let needed = if only.is_empty() && without.is_empty() {
        layers_are_needed(&judged)
    } else {
        println!(
            "\nNOT SHOWN: that every layer is needed, which takes attacks of every layer and all layers"
        );
        true
    };
    let (count, time) = (judged.len(), begin.elapsed().as_secs_f64());
    match failed {
        0 => println!("\n{count} attacks, all as claimed, in {time:.0} s"),
        _ => println!("\n{failed} of {count} attacks did NOT go as claimed, in {time:.0} s"),
    }
    Ok(failed == 0 && needed)
}

/// Prints for each layer the attacks that would pass without it. Returns whether every layer is
/// needed.
fn layers_are_needed(judged: &[(Attack, AttackResult)]) -> bool {
    println!("\nwithout one layer the self-test fails, since these attacks would pass:");
    let mut all = true;
    for layer in Layer::ALL {
        let through = let_through(judged, layer);
        if through.is_empty() {
            println!("  {layer:<12} NOTHING: no attack shows that this layer is needed");
            all = false;
        } else {
            println!("  {layer:<12} {}", through.join(", "));
        }
    }
    all
}

fn say(attack: &Attack, result: &AttackResult, wrong: &[Wrong], seconds: f64) {
    let caught: Vec<String> = result.caught.keys().map(ToString::to_string).collect();
    let by = match (&attack.not_claimed, caught.is_empty()) {
        (Some(reason), true) => format!("passes, as the documentation says: {reason}"),
        (_, true) => "PASSES".to_owned(),
        (_, false) => format!("caught by {}", caught.join(", ")),
    };
    println!("{:<34} {seconds:>5.1} s  {by}", attack.name);
    for wrong in wrong {
        match wrong {
            Wrong::Passes => println!("    WRONG: no layer catches it: {}", attack.title),
            Wrong::Other(what) => println!("    WRONG: {what}"),
        }
    }
    if !wrong.is_empty() {
        for (catcher, said) in &result.caught {
            for said in said.iter().take(SHOWN) {
                let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
                println!("      {catcher}: {}", first.chars().take(300).collect::<String>());
            }
            if said.len() > SHOWN {
                println!("      {catcher}: ... and {} more", said.len() - SHOWN);
            }
        }
    }
}

/// The scratch copy, and its build directory.
struct TestCopy {
    scratch: Scratch,
    target: PathBuf,
}

impl TestCopy {
    fn new(subject: &Subject) -> Result<Self> {
        let here = subject.target.join("self-test");
        let scratch = Scratch::new(subject, here.join("tree"))?;
        Ok(Self { scratch, target: here.join("build") })
    }

    fn subject(&self) -> Result<Subject> {
        let mut subject = Subject::tree(&self.scratch.root, None, self.scratch.flags())?;
        subject.target.clone_from(&self.target);
        Ok(subject)
    }

    /// The directories of crates that an attack changes.
    fn crates(&self, attack: &Attack) -> BTreeSet<PathBuf> {
        let Ok(tree) = attack.apply(&self.scratch.clean, &self.scratch.registry) else {
            return BTreeSet::new();
        };
        let directory = |path: &Path| {
            let within = |above: &&Path| tree.contains_key(&above.join("Cargo.toml"));
            path.ancestors().skip(1).find(within).map(Path::to_owned)
        };
        self.scratch.changed(&tree).filter_map(directory).collect()
    }

    /// Checks the copy without an attack: if it has findings, no attack can be judged.
    fn clean(&mut self, without: &[Layer]) -> Result<()> {
        let clean = self.scratch.clean.clone();
        self.scratch.write(&clean)?;
        let mut subject = self.subject()?;
        subject.incremental = true;
        let looked = super::look(&subject, &left(without));
        let passed = looked
            .iter()
            .all(|looked| matches!(&looked.outcome, Outcome::Looked(found) if found.is_empty()));
        if !passed {
            print!("{}", report::human(&looked));
            bail!("the copy has findings without an attack");
        }
        Ok(())
    }

    fn run_attack(&mut self, attack: &Attack, run: &Run<'_>) -> AttackResult {
        let mut result = AttackResult::default();
        if let Err(error) = self.try_attack(attack, run, &mut result) {
            result.broken.push(format!("{error:#}"));
        }
        result
    }

    fn try_attack(
        &mut self,
        attack: &Attack,
        run: &Run<'_>,
        result: &mut AttackResult,
    ) -> Result<()> {
        let begin = SystemTime::now();
        let tree = attack.apply(&self.scratch.clean, &self.scratch.registry)?;
        let mut subject = self.attacked(&tree)?;
        // Compile incrementally, because most attacks change one or two files. A new release of a
        // dependency, however, makes cargo compile everything above it from the start.
        subject.incremental = attack.releases.is_empty();
        let changed: Vec<&Path> = self.scratch.changed(&tree).collect();
        let unseen = unseen(&subject, &changed)?;
        // A manifest names no code that could move, and cargo reports what is wrong with a
        // manifest.
        let is_code_changed =
            changed.iter().any(|path| path.extension().is_some_and(|end| end == "rs"));
        let mut layers = left(run.without);
        layers.retain(|layer| !unseen.contains(layer));
        if !(run.every_layer || attack.is_for_all()) {
            layers.retain(|layer| attack.caught_by.contains(&Catcher::Layer(*layer)));
        }
        look(&subject, &layers, result);
        self.try_counts_and_start(attack, &subject, result)?;
        let mut ran = layers.iter().copied().map(Catcher::Layer).chain(attack.at_run_time());
        let is_shown = !is_code_changed || ran.any(Catcher::shows_life);
        if attack.hides_code() || !is_shown {
            if attack.hides_code() {
                let incremental = subject.incremental;
                subject = self.attacked(&attack.uncover(tree)?)?;
                subject.incremental = incremental;
            }
            let says = |said| format!("it is stale, since it does not compile: {said}");
            result.broken.extend(alive::error(&subject, unseen)?.map(says));
        }
        if !result.caught.contains_key(&Catcher::Layer(Layer::Types)) {
            result.broken.extend(alive::idle(attack, &subject, begin)?);
        }
        Ok(())
    }

    /// Writes this tree into the scratch copy.
    fn attacked(&mut self, tree: &Tree) -> Result<Subject> {
        self.scratch.write(tree)?;
        self.scratch.forget_lock();
        self.subject()
    }

    /// Runs the attack's own test, and starts the product with its device.
    fn try_counts_and_start(
        &self,
        attack: &Attack,
        subject: &Subject,
        result: &mut AttackResult,
    ) -> Result<()> {
        if let Some(test) = &attack.test
            && let Some(said) = self.counted(test)?
        {
            result.caught.insert(Catcher::Counts, vec![said]);
        }
        if let Some(device) = &attack.start
            && let Some(said) = start::with(subject, device)?
        {
            result.caught.insert(Catcher::Start, vec![said]);
        }
        Ok(())
    }

    /// The output of the attack's own test, if the test failed: the gate stopped the attack.
    fn counted(&self, test: &Test) -> Result<Option<String>> {
        let built = self.test(test, &["--no-run"])?;
        let said = String::from_utf8_lossy(&built.stderr);
        ensure!(built.status.success(), "its test cannot be built: {}", said.trim());
        let ran = self.test(test, &[])?;
        let said = [ran.stdout, ran.stderr].concat();
        Ok((!ran.status.success()).then(|| String::from_utf8_lossy(&said).into_owned()))
    }

    fn test(&self, test: &Test, more: &[&str]) -> Result<std::process::Output> {
        let mut cargo = xtask_common::build::program();
        cargo.current_dir(&self.scratch.root).env_remove("RUSTFLAGS");
        cargo.arg("test").args(self.scratch.flags());
        cargo.args(["--quiet", "--target", LINUX, "--package", &test.package]);
        cargo.args(["--test", &test.name]).args(more);
        cargo.arg("--target-dir").arg(Path::new(&self.target).join("check"));
        cargo.output().context("cannot run cargo test")
    }
}

/// Runs the layers on the attacked tree, and adds their findings to the result.
fn look(subject: &Subject, layers: &[Layer], result: &mut AttackResult) {
    let mut not_reached = Vec::new();
    for looked in super::look(subject, layers) {
        let catcher = Catcher::Layer(looked.layer);
        match looked.outcome {
            Outcome::Looked(found) if found.is_empty() => {}
            Outcome::Looked(found) if catcher.is_compiler() => {
                // Leave out the reason and the remedy: they are the same for all errors.
                let said = found.iter().map(|found| format!("{}: {}", found.rule, found.what));
                result.caught.insert(catcher, said.collect());
            }
            Outcome::Looked(found) => {
                result.caught.insert(catcher, found.iter().map(Finding::text).collect());
            }
            Outcome::NotReached(why) => not_reached.push((looked.layer, why)),
            Outcome::Broken(why) => {
                result.broken.push(format!("`{}` could not run: {why}", looked.layer))
            }
        }
    }
    // The layer `types` reports code that does not compile, but it does not read the monitor. An
    // attack that no longer fits the tree must not count as one that passes.
    if !result.caught.contains_key(&Catcher::Layer(Layer::Types)) {
        let says =
            |(layer, why)| format!("`{layer}` cannot look at code that does not compile: {why}");
        result.broken.extend(not_reached.into_iter().map(says));
    }
}

/// The layers that read none of the changed files. Skipping them saves compilations, which take
/// most of the time.
fn unseen(subject: &Subject, changed: &[&Path]) -> Result<&'static [Layer]> {
    let directory = |name: &str| Ok(subject.shown(package_dir(subject.package(name)?)));
    let far_side = subject.policy.far_side.iter().map(|entry| directory(&entry.name));
    let far_side = far_side.collect::<Result<Vec<_>>>()?;
    // The layer `calls` looks at the far side's own crates only, which have no code of devices.
    if !changed.iter().any(|path| far_side.iter().any(|directory| path.starts_with(directory))) {
        return Ok(&[Layer::Calls]);
    }
    // No crate depends on the product, so its code is in no other crate.
    let product = subject.policy.gate.product.as_deref().map(directory).transpose()?;
    let is_code = |path: &&Path| {
        path.extension().is_some_and(|end| end == "rs")
            && product.as_ref().is_some_and(|directory| path.starts_with(directory))
    };
    if changed.iter().all(is_code) {
        return Ok(&[
            Layer::Types,
            Layer::Bare,
            Layer::LinuxCore,
            Layer::Expanded,
            Layer::Symbols,
            Layer::Clippy,
        ]);
    }
    Ok(&[])
}

fn left(without: &[Layer]) -> Vec<Layer> {
    Layer::ALL.into_iter().filter(|layer| !without.contains(layer)).collect()
}
