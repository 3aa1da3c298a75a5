//! The layer `calls`: which module of the far side calls what reaches outside, by the compiled code. Whatever name it is called
//! by, and whatever macro wrote it: a function that is called, or put into a table, is named there.
//!
//! Everything outside of the far side's own crates belongs to a family of names: a module of std, another crate, or libc's
//! functions. What is not listed as harmless may be called in the listed modules only. Compiled as it ships, but not optimized:
//! so no function has been dissolved in its caller.

mod code;
mod name;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use self::code::{Code, Node};
use self::name::{demangle, is_below, path, trait_path};
use super::compile::{self, Compiled};
use super::dep_info;
use super::finding::{Finding, Outcome, Place};
use super::policy::Harmless;
use super::rules;
use super::subject::{Subject, library_name};

/// Looks.
pub(crate) fn look(subject: &Subject) -> Result<Outcome> {
    // A device that lives elsewhere has no product.
    let (Some(product), true) = (&subject.policy.gate.product, subject.is_tree()) else {
        return Ok(Outcome::Looked(Vec::new()));
    };
    let (program, object) = program(subject, product)?;
    let compiled = compile(subject, product, &program, &object)?;
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
    let uses = uses(&code, &own, &subject.policy.harmless);
    let early = code.constructors.iter().map(|section| {
        Finding::new(&rules::CALLS_EARLY, None, format!("the far side has a section `{section}`"))
    });
    Ok(Outcome::Looked(unseen.into_iter().chain(early).chain(judge(subject, &uses)).collect()))
}

/// Devices that are implemented where none may be.
fn devices(subject: &Subject, code: &Code) -> Result<BTreeSet<Finding>> {
    let mut found = BTreeSet::new();
    for node in &code.nodes {
        let name = demangle(&node.symbol);
        if let Some(of_trait) = trait_path(&name) {
            found.extend(super::devices::compiled(subject, &path(&name), &of_trait)?);
        }
    }
    Ok(found)
}

/// The product's program, and where its own code is to be put.
fn program(subject: &Subject, product: &str) -> Result<(String, PathBuf)> {
    let package = subject.package(product)?;
    let programs: Vec<_> = package.targets.iter().filter(|target| target.is_bin()).collect();
    ensure!(programs.len() == 1, "expected one program in `{product}`, found {}", programs.len());
    let object = subject.target.join("calls").join(format!("{}.o", programs[0].name));
    Ok((programs[0].name.clone(), object))
}

fn compile(subject: &Subject, product: &str, program: &str, object: &Path) -> Result<Compiled> {
    let target = subject.target.join("calls");
    fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    let mut cargo = subject.cargo("rustc");
    // Names of functions with their types in them; and code is there even if nobody calls it yet.
    let flags = ["-Csymbol-mangling-version=v0", "-Clink-dead-code"];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    cargo.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0").env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    cargo.args(["--release", "--package", product, "--bin", program, "--target-dir"]).arg(target);
    cargo.args(["--message-format", "json", "--quiet", "--"]);
    compile::run_as_given(cargo.arg(format!("--emit=obj={}", object.display())))
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

/// Who uses what of others, by their paths.
type Uses = BTreeSet<(String, String)>;

fn uses(code: &Code, own: &[String], harmless: &[Harmless]) -> Uses {
    let paths: Vec<String> = code.nodes.iter().map(|node| known_as(&node.symbol)).collect();
    let is_own = |node: Node| own.iter().any(|name| is_below(&paths[node], name));
    let names: Vec<&String> = harmless.iter().flat_map(|entry| &entry.names).collect();
    let is_named = |path: &str| names.iter().any(|name| is_below(path, name));
    let is_harmless = |node: Node| {
        let is_named = is_named(&paths[node]) || paths[node].is_empty();
        // What reaches the kernel by itself does so by whatever name.
        is_named && code.nodes[node].instructions.is_empty()
    };
    // A harmless type may have a method of a trait that is not: a text that is looked up as a name of a host.
    let trait_of = |node: Node| {
        let of_trait = trait_path(&demangle(&code.nodes[node].symbol));
        of_trait.filter(|path| !is_named(path) && !own.iter().any(|name| is_below(path, name)))
    };
    let mut found = Uses::new();
    for user in (0..code.nodes.len()).filter(|node| is_own(*node)) {
        let mut told = |what: String| found.insert((paths[user].clone(), what));
        for instruction in &code.nodes[user].instructions {
            told(format!("instruction {instruction}"));
        }
        // Instances of others' generic functions are in our crates: what they use, their user does.
        let mut left: Vec<Node> = code.nodes[user].uses.iter().copied().collect();
        let mut seen = BTreeSet::new();
        while let Some(next) = left.pop() {
            // What a value's end does began where it was made.
            let ends = is_below(&paths[next], "core::ptr::drop_in_place");
            if is_own(next) || ends || !seen.insert(next) {
                continue;
            }
            match (is_harmless(next), trait_of(next)) {
                (true, None) => left.extend(&code.nodes[next].uses),
                (true, Some(of_trait)) => drop(told(of_trait)),
                (false, _) => drop(told(paths[next].clone())),
            }
        }
    }
    found
}

/// The path of a symbol; empty for a constant, which the compiler has named.
fn known_as(symbol: &str) -> String {
    match symbol.is_empty() || symbol.starts_with('.') {
        true => String::new(),
        false => path(&demangle(symbol)),
    }
}

fn judge(subject: &Subject, uses: &Uses) -> Vec<Finding> {
    let entries = &subject.policy.calls;
    let mut needed = BTreeSet::new();
    let mut findings = Vec::new();
    for (user, used) in uses {
        // The longest entry is the one that speaks of this module.
        let entry = entries.iter().enumerate().filter(|(_, entry)| is_below(user, &entry.module));
        let entry = entry.max_by_key(|(_, entry)| entry.module.len());
        let allowed = entry.and_then(|(index, entry)| {
            let may = entry.may.iter().position(|name| is_below(used, name));
            may.map(|may| (index, may))
        });
        match allowed {
            Some(allowed) => drop(needed.insert(allowed)),
            None => {
                findings.push(Finding::new(&rules::CALLS, None, format!("`{user}` calls `{used}`")))
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
