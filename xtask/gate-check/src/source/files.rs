//! Finds the files that a crate is made of, and the other files of its package.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::{Package, TargetKind};
use syn::ext::IdentExt;
use syn::{Attribute, Item};

/// Directories of a package that are not part of its library.
const ASIDE: [&str; 4] = ["tests", "benches", "examples", "target"];

/// A file of a crate.
#[derive(Debug)]
pub(crate) struct Module {
    /// The file.
    pub(crate) file: PathBuf,
    /// Its path within the crate; empty for the root.
    pub(crate) path: Vec<String>,
    /// Whether it is compiled for tests only.
    pub(crate) test: bool,
}

/// The files that a package's library is made of, its root first.
pub(crate) fn modules(package: &Package) -> Result<Vec<Module>> {
    let library = |kind: &TargetKind| {
        !matches!(
            kind,
            TargetKind::CustomBuild | TargetKind::Test | TargetKind::Bench | TargetKind::Example
        )
    };
    let mut found = Vec::new();
    for target in &package.targets {
        if target.kind.iter().any(library) {
            let root = target.src_path.clone().into_std_path_buf();
            let directory = root.parent().unwrap_or_else(|| Path::new(".")).to_owned();
            walk(Module { file: root, path: Vec::new(), test: false }, &directory, &mut found)?;
        }
    }
    Ok(found)
}

/// All `.rs` files below a directory. Symbolic links are not followed, because they may form a
/// loop.
pub(crate) fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let (mut left, mut found) = (vec![directory.to_owned()], Vec::new());
    while let Some(next) = left.pop() {
        for entry in
            fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))?
        {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            } else if entry.path().extension().is_some_and(|end| end == "rs") {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// `.rs` files of the package that belong to none of its modules, including the build script.
pub(crate) fn unreached(directory: &Path, modules: &[Module]) -> Result<Vec<PathBuf>> {
    let (mut left, mut found) = (vec![directory.to_owned()], Vec::new());
    while let Some(next) = left.pop() {
        for entry in
            fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))?
        {
            let entry = entry?;
            // Symbolic links are not followed: a loop would never end.
            let is_directory = entry.file_type()?.is_dir();
            let path = entry.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let aside = next == directory && ASIDE.contains(&&*name);
            // A package within this one is checked by itself, or is not behind the gate.
            if is_directory && !aside && !path.join("Cargo.toml").is_file() {
                left.push(path);
            } else if path.extension().is_some_and(|end| end == "rs")
                && !modules.iter().any(|module| module.file == path)
            {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether an item is compiled for tests only.
pub(crate) fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

fn walk(module: Module, directory: &Path, found: &mut Vec<Module>) -> Result<()> {
    let text = fs::read_to_string(&module.file)
        .with_context(|| format!("cannot read {}", module.file.display()))?;
    let (path, test) = (module.path.clone(), module.test);
    found.push(module);
    // The scan reports files that cannot be parsed.
    let Ok(parsed) = super::parse(&text) else { return Ok(()) };
    items(&parsed.items, directory, &path, test, found)
}

fn items(
    items: &[Item],
    directory: &Path,
    path: &[String],
    test: bool,
    found: &mut Vec<Module>,
) -> Result<()> {
    for item in items {
        let Item::Mod(item) = item else { continue };
        let name = item.ident.unraw().to_string();
        let path: Vec<String> = path.iter().cloned().chain([name.clone()]).collect();
        let test = test || for_tests(&item.attrs);
        let below = directory.join(&name);
        if let Some((_, content)) = &item.content {
            self::items(content, &below, &path, test, found)?;
            continue;
        }
        let places = [directory.join(format!("{name}.rs")), below.join("mod.rs")];
        // A module in neither place has a `#[path]`, which the scan reports.
        if let Some(file) = places.into_iter().find(|file| file.is_file()) {
            walk(Module { file, path, test }, &below, found)?;
        }
    }
    Ok(())
}
