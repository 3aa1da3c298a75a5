//! The subject of the check: a workspace, its packages that every layer checks, and what they may
//! do.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand, Package};

use super::policy::Policy;

/// The target that ships.
pub(crate) const LINUX: &str = "x86_64-unknown-linux-gnu";

/// The subject of the check.
#[derive(Debug)]
pub(crate) struct Subject {
    /// The workspace; shown paths are relative to it.
    pub(crate) root: PathBuf,
    /// The tree that the policy belongs to.
    pub(crate) tree: PathBuf,
    /// The manifest for cargo's `--manifest-path`.
    pub(crate) manifest: PathBuf,
    /// Packages that every layer looks at.
    pub(crate) packages: Vec<String>,
    /// Packages that are compiled by `types` as well.
    pub(crate) compiled: Vec<String>,
    /// The allow-list.
    pub(crate) policy: Policy,
    /// Whether unneeded entries of the policy are findings: only in the tree that the policy was
    /// written for.
    pub(crate) whole: bool,
    /// All packages of the workspace and their dependencies.
    pub(crate) metadata: Metadata,
    /// The directory in which the layers build.
    pub(crate) target: PathBuf,
    /// Flags for every call of cargo.
    pub(crate) cargo_flags: Vec<String>,
    /// Whether cargo compiles incrementally. The first compilation takes half again as long; later
    /// compilations of small changes take half the time.
    pub(crate) incremental: bool,
}

impl Subject {
    /// The tree at `root`, checked as its own `gate.toml` says.
    pub(crate) fn tree(
        root: &Path,
        allow: Option<&Path>,
        cargo_flags: Vec<String>,
    ) -> Result<Self> {
        let mut policy = Policy::read(&root.join("gate.toml"))?;
        if let Some(path) = allow {
            policy.extend(Policy::read(path)?);
        }
        let manifest = root.join("Cargo.toml");
        let metadata = metadata(&manifest, &cargo_flags)?;
        let subjects = policy.gate.clone();
        let subject = Self {
            root: root.to_owned(),
            tree: root.to_owned(),
            manifest,
            packages: subjects.packages,
            compiled: subjects.compiled,
            whole: allow.is_none(),
            target: metadata.target_directory.as_std_path().join("gate"),
            policy,
            metadata,
            cargo_flags,
            incremental: false,
        };
        for name in subject.packages.iter().chain(&subject.compiled) {
            subject.package(name)?;
        }
        Ok(subject)
    }

    /// One package, of any workspace, with the policy of the tree at `tree`.
    pub(crate) fn package_of(
        tree: &Path,
        manifest: &Path,
        name: Option<&str>,
        allow: Option<&Path>,
    ) -> Result<Self> {
        let mut policy = Policy::read(&tree.join("gate.toml"))?;
        let manifest = manifest
            .canonicalize()
            .with_context(|| format!("there is no manifest {}", manifest.display()))?;
        let metadata = metadata(&manifest, &[])?;
        if metadata.workspace_root.as_std_path() != tree {
            // Exceptions are for files of this tree, and another tree may have files of the same
            // names.
            policy.exception.clear();
        }
        if let Some(path) = allow {
            policy.extend(Policy::read(path)?);
        }
        let found = metadata.packages.iter().find(|package| match name {
            Some(name) => package.name == name && metadata.workspace_members.contains(&package.id),
            None => package.manifest_path == manifest,
        });
        let package = found.with_context(|| {
            format!(
                "{} has no package {}",
                manifest.display(),
                name.unwrap_or("of its own: name it by --package")
            )
        })?;
        Ok(Self {
            root: metadata.workspace_root.clone().into_std_path_buf(),
            tree: tree.to_owned(),
            manifest: package.manifest_path.clone().into_std_path_buf(),
            packages: vec![package.name.to_string()],
            compiled: Vec::new(),
            whole: false,
            target: metadata.target_directory.as_std_path().join("gate"),
            policy,
            cargo_flags: Vec::new(),
            incremental: false,
            metadata,
        })
    }

    /// A package of the workspace.
    pub(crate) fn package(&self, name: &str) -> Result<&Package> {
        self.metadata
            .packages
            .iter()
            .find(|package| package.name == name && package.source.is_none())
            .with_context(|| format!("there is no package `{name}` in {}", self.manifest.display()))
    }

    /// The packages that every layer looks at.
    pub(crate) fn checked(&self) -> Result<Vec<&Package>> {
        self.packages.iter().map(|name| self.package(name)).collect()
    }

    /// Whether the policy's own tree is checked, and not a device of another tree.
    pub(crate) fn is_tree(&self) -> bool {
        self.root == self.tree && self.packages == self.policy.gate.packages
    }

    /// Whether a crate that comes from a path is checked like a device: it is a gated package of
    /// the policy's own tree, or a package of the subject.
    pub(crate) fn is_scanned(&self, package: &Package) -> bool {
        let name = package.name.to_string();
        let own = self.policy.gate.packages.contains(&name)
            && package_dir(package).starts_with(&self.tree);
        own || self.packages.contains(&name)
    }

    /// `path` as reports show it.
    pub(crate) fn shown(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        path.strip_prefix(&self.root).unwrap_or(path).to_owned()
    }

    /// `cargo` at the root, without the variables of the caller's environment that change what is
    /// compiled.
    pub(crate) fn cargo(&self, command: &str) -> Command {
        let mut cargo = bare_cargo();
        cargo.env("CARGO_INCREMENTAL", if self.incremental { "1" } else { "0" });
        cargo.current_dir(&self.root).arg(command).args(&self.cargo_flags);
        cargo.arg("--manifest-path").arg(&self.manifest);
        cargo
    }
}

/// The directory of a package.
pub(crate) fn package_dir(package: &Package) -> &Path {
    package.manifest_path.parent().map_or_else(|| Path::new("."), |dir| dir.as_std_path())
}

/// The name that rustc gives the package's library.
pub(crate) fn library_name(package: &Package) -> Result<String> {
    let library = package.targets.iter().find(|target| target.is_lib());
    let library = library.with_context(|| format!("`{}` has no library", package.name))?;
    Ok(library.name.replace('-', "_"))
}

/// `cargo` without the variables of the caller's environment that change what is compiled.
fn bare_cargo() -> Command {
    let mut cargo = xtask_common::build::program();
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "RUSTC_BOOTSTRAP"]
    {
        cargo.env_remove(name);
    }
    cargo
}

fn metadata(manifest: &Path, flags: &[String]) -> Result<Metadata> {
    ensure!(manifest.is_file(), "there is no manifest {}", manifest.display());
    let mut command = MetadataCommand::new();
    // Cargo reads the configuration of the directory in which it runs.
    command.manifest_path(manifest);
    command.current_dir(manifest.parent().unwrap_or_else(|| Path::new(".")));
    command.other_options(flags.to_vec());
    command.exec().with_context(|| format!("cargo cannot read {}", manifest.display()))
}
