//! `cargo xtask new-device`: writes a device that compiles, passes the contract tests and is in the
//! catalogue, for its author to change.

mod name;
mod panic;
mod proof;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use name::Name;
pub(crate) use proof::prove;

const LIBRARY: &str = "devices/src/lib.rs";
const CATALOGUE: &str = "vmm/machine/src/catalog.rs";
/// New entries of the catalogue go above this line.
const MARK: &str = "    // New devices go above this line.";
const GUIDE: &str = "docs/write-a-device.md";

/// How a device is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// By registers in a window of addresses.
    Mmio,
    /// By virtqueues.
    Virtio,
}

impl Kind {
    fn device(self) -> &'static str {
        match self {
            Self::Mmio => include_str!("templates/mmio.rs"),
            Self::Virtio => include_str!("templates/virtio.rs"),
        }
    }

    fn test(self) -> &'static str {
        match self {
            Self::Mmio => include_str!("templates/mmio_test.rs"),
            Self::Virtio => include_str!("templates/virtio_test.rs"),
        }
    }

    fn entry(self) -> &'static str {
        match self {
            Self::Mmio => "registers",
            Self::Virtio => "virtio",
        }
    }
}

/// What to write.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name of the device, in snake case: `pager`, `rain_gauge`.
    name: String,
    /// How the guest drives it.
    #[arg(long, value_enum)]
    kind: Kind,
    /// Print what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Workspace to write to [default: the workspace of this command].
    #[arg(long, value_name = "DIR", hide = true)]
    workspace: Option<PathBuf>,
}

/// Writes the device, and says what to do next.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let name = Name::parse(&arguments.name)?;
    let root = arguments.workspace.clone().unwrap_or_else(|| crate::build::repository().to_owned());
    let changes = plan(&root, &name, arguments.kind)?;
    for Change { path, new, .. } in &changes {
        let verb = if *new { "writes" } else { "adds a line to" };
        println!("{verb} {}", path.display());
    }
    if arguments.dry_run {
        println!("(--dry-run: nothing was written)");
        return Ok(true);
    }
    for Change { path, text, .. } in &changes {
        let path = root.join(path);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    format(&root, &changes)?;
    println!(
        "\nIt works as it is:\n\
         \x20   cargo test -p kemari-devices --test {name}          # the contract of a device\n\
         \x20   cargo xtask gate                                    # nothing gets past the gate\n\
         \x20   cargo xtask run-pair --device {name} --kill primary --rounds 2     # it survives its host\n\
         Next: make it your own, in devices/src/{name}.rs; \"Make it your own\" in {GUIDE} continues from here."
    );
    Ok(true)
}

/// Runs rustfmt: where a line breaks depends on the length of the name.
fn format(root: &Path, changes: &[Change]) -> Result<()> {
    let files = changes.iter().map(|change| root.join(&change.path));
    let status = Command::new("rustfmt").args(["--edition", "2024"]).args(files).status();
    let formatted = status.context("cannot run rustfmt: `rustup component add rustfmt`")?;
    ensure!(formatted.success(), "rustfmt rejects the new file");
    Ok(())
}

/// A file with its new text.
struct Change {
    path: PathBuf,
    text: String,
    new: bool,
}

fn plan(root: &Path, name: &Name, kind: Kind) -> Result<Vec<Change>> {
    let fill = |template: &str| {
        template.replace("@NAME@", name.module()).replace("@TYPE@", name.type_name())
    };
    let library = read(root, LIBRARY)?;
    let catalogue = read(root, CATALOGUE)?;
    let device = PathBuf::from(format!("devices/src/{name}.rs"));
    let test = PathBuf::from(format!("devices/tests/{name}.rs"));
    for path in [&device, &test, &PathBuf::from(format!("devices/src/{name}"))] {
        ensure!(
            !root.join(path).exists(),
            "{}: expected no file, found one: choose another name, or remove the file",
            path.display()
        );
    }
    ensure!(
        !exports(&library, name.type_name()),
        "{LIBRARY}: expected no `{}`, found one: choose another name",
        name.type_name()
    );
    Ok(vec![
        Change { path: device, text: fill(kind.device()), new: true },
        Change { path: test, text: fill(kind.test()), new: true },
        Change { path: LIBRARY.into(), text: with_module(&library, name)?, new: false },
        Change { path: CATALOGUE.into(), text: with_entry(&catalogue, name, kind)?, new: false },
    ])
}

/// The names of the existing devices.
pub(crate) fn known(root: &Path) -> Result<Vec<String>> {
    let catalogue = read(root, CATALOGUE)?;
    let name = |line: &str| {
        let rest = line.trim().strip_prefix("Entry::")?;
        rest.split('"').nth(1).map(str::to_owned)
    };
    Ok(catalogue.lines().filter_map(name).collect())
}

fn read(root: &Path, path: &str) -> Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
}

/// Whether the library exports something with that name.
fn exports(library: &str, type_name: &str) -> bool {
    library.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == type_name)
}

/// The library's text with the new module, in the sorted place.
fn with_module(library: &str, name: &Name) -> Result<String> {
    let declared = insert_sorted(library, "mod ", &format!("mod {name};"))?;
    insert_sorted(&declared, "pub use ", &format!("pub use {name}::{};", name.type_name()))
}

/// Adds a line among the sorted lines that begin with `prefix`.
fn insert_sorted(text: &str, prefix: &str, line: &str) -> Result<String> {
    let lines: Vec<&str> = text.lines().collect();
    let group: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].starts_with(prefix)).collect();
    let last = *group
        .last()
        .with_context(|| format!("{LIBRARY}: expected `{prefix}` lines, found none"))?;
    let mut at = group.iter().copied().find(|at| lines[*at] > line).unwrap_or(last + 1);
    // An attribute belongs to the line below it.
    while at > 0 && at <= last && lines[at - 1].starts_with("#[") {
        at -= 1;
    }
    let mut lines = lines;
    lines.insert(at, line);
    Ok(lines.join("\n") + "\n")
}

fn with_entry(catalogue: &str, name: &Name, kind: Kind) -> Result<String> {
    let entry =
        format!("    Entry::{}::<devices::{}>(\"{name}\"),\n", kind.entry(), name.type_name());
    let at = catalogue.find(MARK).with_context(|| {
        format!("{CATALOGUE}: expected the line `{}`, found none: put it back", MARK.trim())
    })?;
    let (before, after) = catalogue.split_at(at);
    Ok(format!("{before}{entry}{after}"))
}
