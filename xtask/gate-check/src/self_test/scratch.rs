//! The scratch copy that attacks are applied to: the crates behind the gate and around it, with all
//! their dependencies taken from a directory, so that a dependency can be attacked too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cargo_metadata::{MetadataCommand, Package};
use sha2::{Digest, Sha256};

use crate::subject::{Subject, package_dir};

/// Files by their path from the root.
pub(crate) type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Files of the root that are copied.
const ROOT_FILES: [&str; 3] = ["gate.toml", "Cargo.lock", "rust-toolchain.toml"];

/// A scratch copy.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Its directory.
    pub(crate) root: PathBuf,
    /// Its files without an attack.
    pub(crate) clean: Tree,
    /// The unpacked sources of dependencies, by name.
    pub(crate) registry: BTreeMap<String, PathBuf>,
    /// The files that the copy contains now.
    written: Tree,
}

impl Scratch {
    /// A copy of the subject's tree in a directory of its own.
    pub(crate) fn new(subject: &Subject, root: PathBuf) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(&root)
                .with_context(|| format!("cannot remove {}", root.display()))?;
        }
        let packages = packages(subject)?;
        let mut clean = Tree::new();
        let mut members = Vec::new();
        for package in &packages {
            let directory = package_dir(package);
            read(directory, &subject.root, &mut clean)?;
            members.push(format!("\"{}\"", subject.shown(directory).display()));
        }
        for name in ROOT_FILES {
            let path = subject.root.join(name);
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            clean.insert(name.into(), bytes);
        }
        let manifest = fs::read_to_string(subject.root.join("Cargo.toml"))?;
        clean.insert("Cargo.toml".into(), with_members(&manifest, &members)?.into_bytes());
        let registry = vendor(subject, &root.join("vendor"))?;
        let mut scratch = Self { root, clean, registry, written: Tree::new() };
        scratch.lock()?;
        Ok(scratch)
    }

    /// Flags that make cargo take dependencies from `vendor/`. They are not in a configuration
    /// file, because the check refuses a tree with such a file.
    pub(crate) fn flags(&self) -> Vec<String> {
        let directory = format!("source.vendored.directory={:?}", self.root.join("vendor"));
        let replace = "source.crates-io.replace-with=\"vendored\"".to_owned();
        ["--offline".to_owned(), "--config".to_owned(), replace, "--config".to_owned(), directory]
            .to_vec()
    }

    /// Makes the copy contain exactly this tree. Unchanged files are not touched, so cargo does not
    /// compile them again.
    pub(crate) fn write(&mut self, tree: &Tree) -> Result<()> {
        let gone: Vec<PathBuf> =
            self.written.keys().filter(|path| !tree.contains_key(*path)).cloned().collect();
        for path in gone {
            fs::remove_file(self.root.join(&path))?;
            // Cargo reads every directory of vendor/ and fails at an empty one.
            let mut parent = path.parent();
            while let Some(directory) = parent.filter(|directory| !directory.as_os_str().is_empty())
            {
                if fs::remove_dir(self.root.join(directory)).is_err() {
                    break;
                }
                parent = directory.parent();
            }
            self.written.remove(&path);
        }
        for (path, bytes) in tree {
            if self.written.get(path) != Some(bytes) {
                let to = self.root.join(path);
                fs::create_dir_all(to.parent().unwrap_or(&self.root))?;
                fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
                self.written.insert(path.clone(), bytes.clone());
            }
        }
        Ok(())
    }

    /// The files in which `tree` differs from the clean copy.
    pub(crate) fn changed<'t>(&'t self, tree: &'t Tree) -> impl Iterator<Item = &'t Path> {
        let written = tree.iter().filter(|(path, text)| self.clean.get(*path) != Some(text));
        let gone = self.clean.keys().filter(|path| !tree.contains_key(*path));
        written.map(|(path, _)| path).chain(gone).map(PathBuf::as_path)
    }

    /// Makes the next call of `write` write Cargo.lock, because an attack may have made cargo
    /// change it.
    pub(crate) fn forget_lock(&mut self) {
        self.written.insert("Cargo.lock".into(), Vec::new());
    }

    /// Lets cargo remove the packages from Cargo.lock that the smaller set of members does not
    /// need.
    fn lock(&mut self) -> Result<()> {
        let tree = self.clean.clone();
        self.write(&tree)?;
        let mut command = MetadataCommand::new();
        command.manifest_path(self.root.join("Cargo.toml")).current_dir(&self.root);
        command.other_options(self.flags());
        command.exec().context("the scratch copy is no workspace")?;
        let lock = fs::read(self.root.join("Cargo.lock"))?;
        self.written.insert("Cargo.lock".into(), lock.clone());
        self.clean.insert("Cargo.lock".into(), lock);
        Ok(())
    }
}

/// Reads the files below a directory, by their path from `root`.
pub(crate) fn read(directory: &Path, root: &Path, into: &mut Tree) -> Result<()> {
    for entry in
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?
    {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            if name != "target" && name != ".git" {
                read(&path, root, into)?;
            }
        } else if let Ok(shown) = path.strip_prefix(root) {
            into.insert(shown.to_owned(), fs::read(&path)?);
        }
    }
    Ok(())
}

/// Makes `vendor/NAME` a new release of a dependency, which Cargo.lock names.
pub(crate) fn release(tree: &mut Tree, name: &str, source: &Path, attack: &str) -> Result<()> {
    let mut files = Tree::new();
    read(source, source, &mut files)?;
    let manifest = files.get_mut(Path::new("Cargo.toml")).context("it has no manifest")?;
    let text = String::from_utf8(manifest.clone())?;
    let table: toml::Table = toml::from_str(&text)?;
    let version = table["package"]["version"].as_str().context("it has no version")?.to_owned();
    let digest = Sha256::digest(attack);
    // Each attack gets a version of its own: cargo considers a release that it has compiled as
    // unchanged. The version's numbers stay, because crates of one family compare them.
    let newer = format!("{version}+{}", u16::from_be_bytes([digest[0], digest[1]]));
    *manifest = text
        .replacen(&format!("version = \"{version}\""), &format!("version = \"{newer}\""), 1)
        .into_bytes();
    let checksum: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    files.insert(".cargo-checksum.json".into(), vendored(&checksum).into_bytes());
    for (path, bytes) in files {
        tree.insert(Path::new("vendor").join(name).join(path), bytes);
    }
    let lock = tree.get(Path::new("Cargo.lock")).context("there is no Cargo.lock")?;
    let lock = String::from_utf8(lock.clone())?;
    let begin = format!("name = \"{name}\"\nversion = \"{version}\"\n");
    let at = lock.find(&begin).with_context(|| format!("Cargo.lock has no {name} {version}"))?;
    let (before, rest) = lock.split_at(at);
    let old = rest.split("checksum = \"").nth(1).and_then(|rest| rest.split('"').next());
    let old = old.context("Cargo.lock has no checksum")?.to_owned();
    let rest = rest.replacen(&version, &newer, 1).replacen(&old, &checksum, 1);
    tree.insert("Cargo.lock".into(), format!("{before}{rest}").into_bytes());
    Ok(())
}

fn vendored(checksum: &str) -> String {
    format!("{{\"files\":{{}},\"package\":\"{checksum}\"}}")
}

/// The checked and compiled packages, the product, and the packages of the tree that they need,
/// dev-dependencies included.
fn packages(subject: &Subject) -> Result<Vec<&Package>> {
    let product = subject.policy.gate.product.iter();
    let mut names: Vec<String> =
        subject.packages.iter().chain(&subject.compiled).chain(product).cloned().collect();
    let (mut seen, mut packages) = (BTreeSet::new(), Vec::new());
    while let Some(name) = names.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let package = subject.package(&name)?;
        let of_the_tree =
            package.dependencies.iter().filter(|dependency| dependency.path.is_some());
        names.extend(of_the_tree.map(|dependency| dependency.name.clone()));
        packages.push(package);
    }
    Ok(packages)
}

fn with_members(manifest: &str, members: &[String]) -> Result<String> {
    let begin = manifest.find("\nmembers = [").context("Cargo.toml has no list of members")?;
    let end =
        manifest[begin..].find(']').context("Cargo.toml has no end of the list of members")?;
    let (before, after) = (&manifest[..begin], &manifest[begin + end + 1..]);
    Ok(format!("{before}\nmembers = [{}]{after}", members.join(", ")))
}

/// Makes a directory with links to the unpacked sources of all dependencies. Returns the sources by
/// name.
fn vendor(subject: &Subject, directory: &Path) -> Result<BTreeMap<String, PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Lock {
        package: Vec<BTreeMap<String, toml::Value>>,
    }
    let lock: Lock = toml::from_str(&fs::read_to_string(subject.root.join("Cargo.lock"))?)?;
    let checksum = |package: &Package| {
        let fits = |locked: &&BTreeMap<String, toml::Value>| {
            locked["name"].as_str() == Some(package.name.as_str())
                && locked["version"].as_str() == Some(package.version.to_string().as_str())
        };
        lock.package.iter().find(fits)?.get("checksum")?.as_str().map(str::to_owned)
    };
    let mut registry = BTreeMap::new();
    for package in subject.metadata.packages.iter().filter(|package| package.source.is_some()) {
        let source = package_dir(package);
        let link = directory.join(format!("{}-{}", package.name, package.version));
        fs::create_dir_all(&link)?;
        for entry in
            fs::read_dir(source).with_context(|| format!("cannot read {}", source.display()))?
        {
            let entry = entry?;
            if entry.file_name() != ".cargo-checksum.json" {
                symlink(entry.path(), link.join(entry.file_name()))?;
            }
        }
        let checksum =
            checksum(package).with_context(|| format!("{} has no checksum", package.name))?;
        fs::write(link.join(".cargo-checksum.json"), vendored(&checksum))?;
        registry.insert(package.name.to_string(), source.to_owned());
    }
    ensure!(!registry.is_empty(), "found no dependencies");
    Ok(registry)
}
