//! The layer `calls`: checks in the compiled code which modules of the far side call functions that
//! reach the outside. Aliases and macros hide nothing, because compiled code names each function
//! that it calls or puts into a table.
//!
//! A foreign function is known by its path: a module of std, another crate, or `C::` for libc. Only
//! the modules that gate.toml lists may call a function that is not listed as harmless, or a door
//! of another module. A function belongs to the module that contains its code, whatever its type
//! is. Code that drops a foreign value counts as called by the function that drops it. The product
//! is compiled as it ships, but not optimized, so that no function is inlined into its caller.

mod code;
mod name;
mod place;
mod wrapper;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use self::code::{Code, Named, Node};
use self::name::{demangle, is_below, mentioned, path, trait_path};
pub(crate) use self::wrapper::run_as_compiler;
use super::compile::{self, Compiled};
use super::dep_info;
use super::finding::{Finding, Outcome, Place};
use super::policy::Policy;
use super::rules;
use super::subject::{LINUX, Subject, library_name};

/// Runs the layer.
pub(crate) fn look(subject: &Subject) -> Result<Outcome> {
    // A device outside of this tree has no product.
    let (Some(product), true) = (&subject.policy.gate.product, subject.is_tree()) else {
        return Ok(Outcome::Looked(Vec::new()));
    };
    let (program, object) = program(subject, product)?;
    let compiled = compile_product(subject, product, &program, &object)?;
    if let Some(said) = compiled.errors.first() {
        return Ok(Outcome::NotReached(compile::words(said)));
    }
    let mut unseen = dep_info::far_side(subject, &compiled, &program)?;
    let (mut own, mut code) = (vec![program.replace('-', "_")], Code::default());
    code.read_object(&object)?;
    for entry in &subject.policy.far_side {
        let library = library_name(subject.package(&entry.name)?)?;
        code.read_library(made(&compiled, &library)?)?;
        own.push(library);
    }
    unseen.extend(devices(subject, &code)?);
    let uses = uses(&code, &Rules { own: &own, policy: &subject.policy });
    let section =
        |rule, name| Finding::new(rule, None, format!("the far side has a section `{name}`"));
    let early = code.constructors.iter().map(|name| section(&rules::CALLS_EARLY, name));
    let unusual = code.unusual.iter().map(|name| section(&rules::CALLS_SECTION, name));
    let exported = code.exported.iter().map(|name| {
        Finding::new(&rules::CALLS_EXPORTED, None, format!("the far side exports `{name}`"))
    });
    let found = unseen.into_iter().chain(early).chain(unusual).chain(exported);
    let found = found.chain(judge(subject, &uses));
    Ok(Outcome::Looked(found.collect()))
}

/// Finds devices that are implemented where gate.toml does not allow it.
fn devices(subject: &Subject, code: &Code) -> Result<BTreeSet<Finding>> {
    let mut found = BTreeSet::new();
    for node in &code.nodes {
        let name = demangle(&node.symbol);
        if let Some(of_trait) = trait_path(&name) {
            // The place of the `impl` counts, whatever the type is.
            let stands = place::module(&node.symbol).unwrap_or_default();
            found.extend(super::devices::compiled(subject, &stands, &of_trait)?);
        }
    }
    Ok(found)
}

/// The name of the product's program, and the path of its object file.
fn program(subject: &Subject, product: &str) -> Result<(String, PathBuf)> {
    let package = subject.package(product)?;
    let programs: Vec<_> = package.targets.iter().filter(|target| target.is_bin()).collect();
    ensure!(programs.len() == 1, "expected one program in `{product}`, found {}", programs.len());
    let object = subject.target.join("calls").join(format!("{}.o", programs[0].name));
    Ok((programs[0].name.clone(), object))
}

/// Compiles the product as this layer does.
pub(crate) fn compile(subject: &Subject) -> Result<Compiled> {
    let product = product(subject)?;
    let (program, object) = program(subject, product)?;
    compile_product(subject, product, &program, &object)
}

fn product(subject: &Subject) -> Result<&str> {
    subject.policy.gate.product.as_deref().context("gate.toml names no product")
}

fn compile_product(
    subject: &Subject,
    product: &str,
    program: &str,
    object: &Path,
) -> Result<Compiled> {
    let mut cargo = cargo(subject, product, program)?;
    cargo.args(["--message-format", "json", "--quiet", "--"]);
    // Do not link: nothing runs the program, and linking it with all uncalled code takes as long as
    // compiling it.
    let obj = format!("--emit=obj={}", object.display());
    compile::run_as_given(cargo.arg(obj).arg("-Clinker=true"))
}

/// A cargo command that compiles the product as this layer does.
fn cargo(subject: &Subject, product: &str, program: &str) -> Result<Command> {
    let target = subject.target.join("calls");
    fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    let mut cargo = subject.cargo("rustc");
    // Use v0 mangling: its names contain types.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Csymbol-mangling-version=v0");
    wrapper::keep_uncalled_code(&mut cargo)?;
    cargo.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0").env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    // With `--target`, the flags do not apply to build scripts and procedural macros.
    cargo.args(["--release", "--target", LINUX, "--package", product, "--bin", program]);
    cargo.arg("--target-dir").arg(target);
    Ok(cargo)
}

/// Compiles the product as this layer does, and links it so that it can run. The libraries that the
/// layer has compiled are used again.
pub(crate) fn runnable(subject: &Subject) -> Result<PathBuf> {
    let product = product(subject)?;
    let (program, object) = program(subject, product)?;
    let said = cargo(subject, product, &program)?.arg("--quiet").output();
    let said = said.context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "the product cannot be built: {}", text.trim());
    Ok(object.with_file_name(LINUX).join("release").join(program))
}

/// The compiled library of this name.
fn made<'c>(compiled: &'c Compiled, library: &str) -> Result<&'c Path> {
    let is_its = |path: &&PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let rest = file.strip_prefix("lib").and_then(|file| file.strip_prefix(library));
        rest.is_some_and(|rest| rest.ends_with(".rlib") && rest.starts_with(['-', '.']))
    };
    let made: Vec<&PathBuf> = compiled.artifacts.iter().filter(is_its).collect();
    ensure!(made.len() == 1, "expected one compiled library `{library}`, found {made:?}");
    Ok(made[0])
}

/// A function of the far side, and a name that it uses.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    /// The module that contains the function's code.
    module: String,
    /// The function.
    user: String,
    /// The name that it uses.
    used: String,
}

/// The facts that a symbol's name gives about a function or a piece of data.
struct Known {
    /// The path by which it is called; empty for a constant that the compiler named.
    path: String,
    /// The module that contains its code; empty for code that is not Rust's.
    module: String,
    /// The trait method that it implements, if any.
    of_trait: Option<String>,
}

impl Known {
    fn of(symbol: &str) -> Self {
        if symbol.is_empty() || symbol.starts_with('.') {
            return Self { path: String::new(), module: String::new(), of_trait: None };
        }
        let name = demangle(symbol);
        let module = place::module(symbol).unwrap_or_default();
        Self { path: path(&name), module, of_trait: trait_path(&name) }
    }
}

/// Whether a path is in core or alloc, which reach nothing outside.
fn is_languages(path: &str) -> bool {
    is_below(path, "core") || is_below(path, "alloc")
}

/// The rules of gate.toml, as questions about one function.
struct Rules<'p> {
    own: &'p [String],
    policy: &'p Policy,
}

impl Rules<'_> {
    fn is_own(&self, path: &str) -> bool {
        self.own.iter().any(|name| is_below(path, name))
    }

    fn is_harmless(&self, path: &str) -> bool {
        let is_below = |names: &[String]| names.iter().any(|name| is_below(path, name));
        let mut entries = self.policy.harmless.iter();
        entries.any(|entry| is_below(&entry.names) && !is_below(&entry.except))
    }

    /// The path for which a foreign function is not harmless: its own, its trait's, or its
    /// module's. `None` if it is harmless. Traits count, because `str` has a method that looks it
    /// up as a host name, and `Arc<File>` has one that writes to the file.
    fn harmful(&self, known: &Known, named: &Named) -> Option<String> {
        let Known { path, module, of_trait } = known;
        if path.is_empty() {
            return None;
        }
        // An instruction that reaches the kernel counts whatever the function's name is.
        if !named.instructions.is_empty() {
            return Some(path.clone());
        }
        let passes = |path: &str| self.is_own(path) || self.is_harmless(path);
        if !named.is_here {
            return self.unseen(known, &demangle(&named.symbol), passes);
        }
        // The calls of a generic instance of core or alloc are followed, whatever its types are.
        if is_languages(module) {
            return None;
        }
        [path].into_iter().chain(of_trait).find(|path| !passes(path)).cloned()
    }

    /// The same for a function that another crate has compiled, of which only the name is
    /// available.
    fn unseen(&self, known: &Known, whole: &str, passes: impl Fn(&str) -> bool) -> Option<String> {
        let Known { path, module, of_trait } = known;
        let is_languages = is_languages(module);
        let name = [path].into_iter().chain(of_trait).find(|path| !passes(path));
        if let Some(name) = name.filter(|_| !is_languages) {
            return Some(name.clone());
        }
        // The name of an instance lists all types whose functions it may call: its own type and
        // trait, and those of its arguments.
        let is_own = |other: &str| {
            is_below(path, other) || of_trait.as_ref().is_some_and(|name| is_below(name, other))
        };
        let others_pass = mentioned(whole).all(|other| is_own(other) || passes(other));
        if !others_pass && !self.ends_quietly(whole) {
            return Some(whole.to_owned());
        }
        // Check the module too, unless the function's name includes it, as it usually does.
        let mut names = [path].into_iter().chain(of_trait);
        let is_said = module.is_empty() || names.any(|name| is_below(name, module));
        (!is_said && !passes(module)).then(|| format!("{module}::{whole}"))
    }

    /// Whether an instance only moves and drops values: each path in its name is of core, alloc or
    /// the far side, or a type whose drop is listed.
    fn ends_quietly(&self, instance: &str) -> bool {
        let is_in = |path: &str, names: &[String]| names.iter().any(|name| is_below(path, name));
        let is_known = |path: &str| self.policy.end.iter().any(|entry| is_in(path, &entry.types));
        mentioned(instance).all(|path| is_languages(path) || self.is_own(path) || is_known(path))
    }

    fn is_door(&self, known: &Known) -> bool {
        let is_below =
            |start: &String| is_below(&known.path, start) || is_below(&known.module, start);
        self.policy.door.iter().flat_map(|entry| &entry.names).any(is_below)
    }

    /// Whether a name that is harmless elsewhere is not harmless in this module.
    fn is_barred(&self, module: &str, path: &str) -> bool {
        let entries = self.policy.harmless.iter();
        let mut here =
            entries.filter(|entry| entry.not_in.iter().any(|start| is_below(module, start)));
        here.any(|entry| entry.names.iter().any(|name| is_below(path, name)))
    }
}

/// Whether a function is a generic instance for this closure: a door has passed the closure to it.
fn is_given(function: &str, closure: &str) -> bool {
    let closure = demangle(closure);
    closure.ends_with('}') && demangle(function).contains(&closure)
}

fn uses(code: &Code, rules: &Rules<'_>) -> BTreeSet<Use> {
    let known: Vec<Known> = code.nodes.iter().map(|node| Known::of(&node.symbol)).collect();
    let is_own: Vec<bool> = known.iter().map(|known| rules.is_own(&known.module)).collect();
    let foreign =
        |node: Node| (!is_own[node]).then(|| rules.harmful(&known[node], &code.nodes[node]));
    let harmful: Vec<Option<String>> =
        (0..known.len()).map(|node| foreign(node).flatten()).collect();
    let is_door: Vec<bool> =
        (0..known.len()).map(|node| is_own[node] && rules.is_door(&known[node])).collect();
    let mut found = BTreeSet::new();
    for user in (0..code.nodes.len()).filter(|node| is_own[*node]) {
        let (module, path) = (&known[user].module, &known[user].path);
        let mut told = |used: &str| {
            found.insert(Use {
                module: module.to_owned(),
                user: path.clone(),
                used: used.to_owned(),
            });
        };
        for instruction in &code.nodes[user].instructions {
            told(&format!("instruction {instruction}"));
        }
        // Instances of foreign generic functions are compiled into our crates: their calls count as
        // calls of their caller. The same holds for code that drops values of foreign types.
        let mut left: Vec<Node> = code.nodes[user].uses.iter().copied().collect();
        let mut seen = BTreeSet::new();
        while let Some(next) = left.pop() {
            if !seen.insert(next) {
                continue;
            }
            match &harmful[next] {
                Some(used) => told(used),
                None if is_own[next] => {
                    let is_given = || is_given(&code.nodes[user].symbol, &code.nodes[next].symbol);
                    if is_door[next] && known[next].module != *module && !is_given() {
                        told(&known[next].path);
                    }
                }
                None if rules.is_barred(module, &known[next].path) => told(&known[next].path),
                None => left.extend(&code.nodes[next].uses),
            }
        }
    }
    found
}

fn judge(subject: &Subject, uses: &BTreeSet<Use>) -> Vec<Finding> {
    let entries = &subject.policy.calls;
    let mut needed = BTreeSet::new();
    let mut findings = Vec::new();
    for Use { module, user, used } in uses {
        let entry = entries.iter().position(|entry| entry.module == *module);
        let allowed = entry.and_then(|index| {
            let may = entries[index].may.iter().position(|name| is_below(used, name));
            may.map(|may| (index, may))
        });
        match allowed {
            Some(allowed) => drop(needed.insert(allowed)),
            None => {
                let what = format!("`{user}` of the module `{module}` calls `{used}`");
                findings.push(Finding::new(&rules::CALLS, None, what));
            }
        }
    }
    if subject.whole {
        for (index, entry) in entries.iter().enumerate() {
            let unused = entry.may.iter().enumerate();
            let unused = unused.filter(|(may, _)| !needed.contains(&(index, *may)));
            findings.extend(unused.map(|(_, name)| {
                let what = format!("`{}` does not call `{name}`", entry.module);
                Finding::new(&rules::CALLS_STALE, Some(Place::line("gate.toml", 1)), what)
            }));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a::run::<b::door::{closure#0}>` may call the closure, `a::other` may not.
    #[test]
    fn a_closure_may_be_called_by_what_it_is_given_to() {
        let closure = "_RNCNvCs4Q2Qx8jI5j6_1b4door0C1a";
        assert!(is_given("_RINvC1a3runNCNvCs4Q2Qx8jI5j6_1b4door0E", closure));
        assert!(!is_given("_RNvC1a5other", closure));
        assert!(!is_given("_RINvC1a3runNtC1b4doorE", "_RNtC1b4door"));
    }
}
