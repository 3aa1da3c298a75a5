//! `gate.toml`: what may be behind the gate, and what may be called on its far side, each with a reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use xtask_common::given_file;

/// What is allowed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Policy {
    /// What is checked.
    #[serde(default)]
    pub(crate) gate: Subjects,
    /// Crates that may be in the closure.
    #[serde(default)]
    pub(crate) allow: Vec<Allowed>,
    /// Rules of the source scan that a file may break.
    #[serde(default)]
    pub(crate) exception: Vec<Exception>,
    /// Names that reach nothing outside, whoever calls them.
    #[serde(default)]
    pub(crate) harmless: Vec<Harmless>,
    /// Types of others whose values end without a word.
    #[serde(default)]
    pub(crate) end: Vec<End>,
    /// Functions of the far side's own by which something leaves it.
    #[serde(default)]
    pub(crate) door: Vec<Door>,
    /// What modules of the far side may call.
    #[serde(default)]
    pub(crate) calls: Vec<Calls>,
    /// Crates of the tree that are in the product, and not behind the gate.
    #[serde(default)]
    pub(crate) far_side: Vec<FarSide>,
    /// Crates of the registry that are in the product, and not behind the gate.
    #[serde(default)]
    pub(crate) product: Vec<Linked>,
}

/// What is checked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Subjects {
    /// What ships: everything that is linked into it counts.
    pub(crate) product: Option<String>,
    /// Packages that every layer looks at.
    pub(crate) packages: Vec<String>,
    /// Packages that are compiled by `types` as well: they hold the proofs, and spend them.
    #[serde(default)]
    pub(crate) compiled: Vec<String>,
}

/// A crate that may be in the closure.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Allowed {
    /// Its name.
    pub(crate) name: String,
    /// Why it may.
    pub(crate) why: String,
    /// `registry`, or `path` for a crate of the tree.
    #[serde(default)]
    pub(crate) source: Source,
    /// Features that may be on.
    #[serde(default)]
    pub(crate) features: Vec<String>,
    /// Whether it has a build script, which was looked at.
    #[serde(default)]
    pub(crate) build_script: bool,
    /// Whether it is a procedural macro.
    #[serde(default)]
    pub(crate) proc_macro: bool,
}

/// Where a crate comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// crates.io, with a checksum.
    #[default]
    Registry,
    /// The tree itself.
    Path,
}

/// A rule of the source scan that a file may break.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Exception {
    /// The rule.
    pub(crate) rule: String,
    /// The file, relative to the workspace; for `expanded` its module's file.
    pub(crate) file: PathBuf,
    /// What the finding has to contain.
    #[serde(default)]
    pub(crate) about: String,
    /// Why it may.
    pub(crate) why: String,
}

/// Names that reach nothing outside.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Harmless {
    /// Crates, modules or items; what is below them, too. `C::` begins the name of what is not written in Rust.
    pub(crate) names: Vec<String>,
    /// What is below them, and is not harmless.
    #[serde(default)]
    pub(crate) except: Vec<String>,
    /// Modules of the far side in which they are not harmless, nor below those.
    #[serde(default)]
    pub(crate) not_in: Vec<String>,
    /// Why nothing gets out by them.
    pub(crate) why: String,
}

/// Types of others whose values end without a word, whoever has them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct End {
    /// Types, or modules of types.
    pub(crate) types: Vec<String>,
    /// What they do at their end.
    pub(crate) why: String,
}

/// Functions of the far side's own by which something leaves it: another module calls them only where it is listed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Door {
    /// Modules or items; what is below them, too.
    pub(crate) names: Vec<String>,
    /// What leaves by them.
    pub(crate) why: String,
}

/// What a module of the far side may call.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Calls {
    /// The module, and no other: what is below it has entries of its own.
    pub(crate) module: String,
    /// Crates, modules or items; what is below them, too.
    pub(crate) may: Vec<String>,
    /// Why it may.
    pub(crate) why: String,
}

/// A crate of the tree that is in the product, and not behind the gate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct FarSide {
    /// Its name.
    pub(crate) name: String,
    /// The files, or directories of files, in which it implements devices.
    #[serde(default)]
    pub(crate) adapters: Vec<PathBuf>,
    /// Its cargo features: on in what ships.
    #[serde(default)]
    pub(crate) features: Vec<String>,
    /// Those that are for tests: off in what ships.
    #[serde(default)]
    pub(crate) test_features: Vec<String>,
    /// Why it is not behind the gate.
    pub(crate) why: String,
}

/// Crates of the registry that are in the product, and not behind the gate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Linked {
    /// Their names.
    pub(crate) crates: Vec<String>,
    /// Those of them that have a build script, which was read.
    #[serde(default)]
    pub(crate) build_scripts: Vec<String>,
    /// Those of them that are procedural macros.
    #[serde(default)]
    pub(crate) macros: Vec<String>,
    /// The names of their libraries, where they are not those of the crates.
    #[serde(default)]
    pub(crate) libraries: BTreeMap<String, String>,
    /// What they are there for.
    pub(crate) why: String,
}

impl Policy {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = given_file::text(path).context("the allow-list")?;
        let policy: Self = toml::from_str(&text)
            .with_context(|| format!("{} is not a valid allow-list", path.display()))?;
        for exception in &policy.exception {
            let known = super::rules::ALL.iter().any(|rule| rule.id == exception.rule);
            ensure!(known, "{}: there is no rule `{}`", path.display(), exception.rule);
        }
        let allowed = policy.allow.iter().map(|entry| (entry.name.clone(), &entry.why));
        let excepted =
            policy.exception.iter().map(|entry| (entry.file.display().to_string(), &entry.why));
        let calls = policy.calls.iter().map(|entry| (entry.module.clone(), &entry.why));
        let harmless = policy.harmless.iter().map(|entry| (entry.names.join(", "), &entry.why));
        let doors = policy.door.iter().map(|entry| (entry.names.join(", "), &entry.why));
        let ends = policy.end.iter().map(|entry| (entry.types.join(", "), &entry.why));
        let far = policy.far_side.iter().map(|entry| (entry.name.clone(), &entry.why));
        let linked = policy.product.iter().map(|entry| (entry.crates.join(", "), &entry.why));
        let calls = calls.chain(harmless).chain(doors).chain(ends);
        for (name, why) in allowed.chain(excepted).chain(calls).chain(far).chain(linked) {
            ensure!(!why.trim().is_empty(), "{}: `{name}` has no reason", path.display());
        }
        Ok(policy)
    }

    /// Adds what another file allows.
    pub(crate) fn extend(&mut self, other: Self) {
        self.allow.extend(other.allow);
        self.exception.extend(other.exception);
        self.calls.extend(other.calls);
        self.harmless.extend(other.harmless);
        self.product.extend(other.product);
        self.end.extend(other.end);
        self.door.extend(other.door);
    }
}
