//! Reads `gate.toml`: what may be behind the gate, and what its far side may call, each with a
//! reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use xtask_common::given_file;

/// The content of an allow-list, for instance of `gate.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Policy {
    /// The packages that are checked.
    #[serde(default)]
    pub(crate) gate: Subjects,
    /// Crates that may be dependencies of the checked packages.
    #[serde(default)]
    pub(crate) allow: Vec<Allowed>,
    /// Rules of the source scan that a file may break.
    #[serde(default)]
    pub(crate) exception: Vec<Exception>,
    /// Names that reach nothing outside.
    #[serde(default)]
    pub(crate) harmless: Vec<Harmless>,
    /// Foreign types whose drop reaches nothing outside.
    #[serde(default)]
    pub(crate) end: Vec<End>,
    /// Doors of the far side. Other modules may call them only if they are listed.
    #[serde(default)]
    pub(crate) door: Vec<Door>,
    /// The calls that modules of the far side may make.
    #[serde(default)]
    pub(crate) calls: Vec<Calls>,
    /// Crates of the tree that are in the product and not behind the gate.
    #[serde(default)]
    pub(crate) far_side: Vec<FarSide>,
    /// Crates of the registry that are in the product and not behind the gate.
    #[serde(default)]
    pub(crate) product: Vec<Linked>,
}

/// The packages that are checked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Subjects {
    /// The package that ships, with everything linked into it.
    pub(crate) product: Option<String>,
    /// Packages that every layer checks.
    pub(crate) packages: Vec<String>,
    /// Packages that `types` compiles as well: they make the proofs of commitment, and use them.
    #[serde(default)]
    pub(crate) compiled: Vec<String>,
}

/// A crate that may be a dependency of the checked packages.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Allowed {
    /// Its name.
    pub(crate) name: String,
    /// The reason why it may.
    pub(crate) why: String,
    /// `registry`, or `path` for a crate of the tree.
    #[serde(default)]
    pub(crate) source: Source,
    /// Features that may be on.
    #[serde(default)]
    pub(crate) features: Vec<String>,
    /// Whether it has a build script, which a person has read.
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
    /// The text that the finding must contain.
    #[serde(default)]
    pub(crate) about: String,
    /// The reason why it may.
    pub(crate) why: String,
}

/// Names that reach nothing outside.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Harmless {
    /// Crates, modules or items, and everything below them. `C::` is the prefix of names that are
    /// not Rust's.
    pub(crate) names: Vec<String>,
    /// Names below them that are not harmless.
    #[serde(default)]
    pub(crate) except: Vec<String>,
    /// Modules of the far side in which, and below which, they are not harmless.
    #[serde(default)]
    pub(crate) not_in: Vec<String>,
    /// The reason why nothing gets out through them.
    pub(crate) why: String,
}

/// Foreign types whose drop reaches nothing outside, whichever function drops them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct End {
    /// Types, or modules of types.
    pub(crate) types: Vec<String>,
    /// The reason: what their drop does.
    pub(crate) why: String,
}

/// Doors of the far side: functions through which bytes leave the process, or which open a file or
/// a socket. Another module may call them only if it is listed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Door {
    /// Modules or items, and everything below them.
    pub(crate) names: Vec<String>,
    /// The reason: what leaves through them.
    pub(crate) why: String,
}

/// The calls that a module of the far side may make.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Calls {
    /// The module alone; modules below it have entries of their own.
    pub(crate) module: String,
    /// Crates, modules or items, and everything below them.
    pub(crate) may: Vec<String>,
    /// The reason why it may.
    pub(crate) why: String,
}

/// A crate of the tree that is in the product and not behind the gate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct FarSide {
    /// Its name.
    pub(crate) name: String,
    /// The files, or directories of files, that may implement devices.
    #[serde(default)]
    pub(crate) adapters: Vec<PathBuf>,
    /// Its cargo features that are on in what ships.
    #[serde(default)]
    pub(crate) features: Vec<String>,
    /// Its cargo features for tests, which are off in what ships.
    #[serde(default)]
    pub(crate) test_features: Vec<String>,
    /// The reason why it is not behind the gate.
    pub(crate) why: String,
}

/// Crates of the registry that are in the product and not behind the gate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Linked {
    /// Their names.
    pub(crate) crates: Vec<String>,
    /// Crates among them with a build script, which a person has read.
    #[serde(default)]
    pub(crate) build_scripts: Vec<String>,
    /// Crates among them that are procedural macros.
    #[serde(default)]
    pub(crate) macros: Vec<String>,
    /// The names of their libraries, where they differ from the crates' names.
    #[serde(default)]
    pub(crate) libraries: BTreeMap<String, String>,
    /// The reason: the purpose for which they are used.
    pub(crate) why: String,
}

impl Policy {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = given_file::text(path).context("the allow-list")?;
        let policy: Self = toml::from_str(&text)
            .with_context(|| format!("{} is not a valid allow-list", path.display()))?;
        for exception in &policy.exception {
            let known = super::rules::all().any(|rule| rule.id == exception.rule);
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

    /// Adds the entries of another file.
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
