//! `cargo xtask sim --drivers --defects`: defects that the product once had, put back into a copy of the tree, each to be found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kemari_flags::drivers::Arguments;
use serde::Deserialize;

use crate::build;

/// Worlds of one search, at most.
const WORLDS: u64 = 4000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    defect: Vec<Defect>,
}

/// See `tests/drivers/defects.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Defect {
    name: String,
    title: String,
    edit: Vec<Edit>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    file: PathBuf,
    find: String,
    replace: String,
}

/// Looks for each in some rounds; `true` when all were found.
pub(super) fn run(arguments: &Arguments) -> Result<bool> {
    let tree = build::target_dir().join("defects/tree");
    let list = build::repository().join("tests/drivers/defects.toml");
    let list: List = toml::from_str(&fs::read_to_string(list)?)?;
    copy(&tree)?;
    for defect in &list.defect {
        for edit in &defect.edit {
            apply(&tree, defect, edit).with_context(|| format!("defect {}", defect.name))?;
        }
    }
    let built = tree.join("../built");
    let mut cargo = build::cargo();
    cargo.args(["build", "--quiet", "--release", "--locked", "--package", "kemari-drivers"]);
    cargo.args(["--features", "world", "--target-dir"]).arg(&built);
    build::run(cargo.current_dir(&tree))?;
    let program = built.join("release/kemari-drivers");
    let mut all = true;
    for defect in &list.defect {
        let mut seeds = Vec::new();
        for round in 0..arguments.rounds {
            seeds.extend(search(&program, defect, arguments, round)?);
        }
        seeds.sort_unstable();
        let found = seeds.len() as u64 == arguments.rounds;
        all &= found;
        match seeds.get(seeds.len() / 2).filter(|_| found) {
            Some(median) => println!("{:<17} {median:>6} worlds  {}", defect.name, defect.title),
            None => println!("{:<17} NOT FOUND      {}", defect.name, defect.title),
        }
    }
    Ok(all)
}

/// How many worlds it took to find it, if it was found.
fn search(
    program: &Path,
    defect: &Defect,
    arguments: &Arguments,
    round: u64,
) -> Result<Option<u64>> {
    let first = arguments.first + round * WORLDS;
    let said = Command::new(program)
        .args(["--until-broken", "--seeds", &WORLDS.to_string(), "--first", &first.to_string()])
        .args(["--jobs", &arguments.jobs.to_string()])
        .env("KEMARI_DEFECT", &defect.name)
        .output()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let line = text.lines().last().context("the search said nothing")?;
    let worlds = line.split(' ').next().and_then(|word| word.parse().ok());
    let worlds: u64 = worlds.with_context(|| format!("expected a number of worlds: {line}"))?;
    Ok((!said.status.success()).then_some(worlds))
}

/// All of the tree that git knows.
fn copy(tree: &Path) -> Result<()> {
    let listed = Command::new("git")
        .current_dir(build::repository())
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .output()
        .context("git, which lists the files of the tree")?;
    ensure!(listed.status.success(), "expected a git work tree, found none");
    for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
        // One that was removed, and not committed, is listed.
        let Ok(bytes) = fs::read(build::repository().join(name)) else { continue };
        write(&tree.join(name), &bytes)?;
    }
    Ok(())
}

fn apply(tree: &Path, defect: &Defect, edit: &Edit) -> Result<()> {
    let path = tree.join(&edit.file);
    let text = fs::read_to_string(&path)?;
    let count = text.matches(&edit.find).count();
    ensure!(
        count == 1,
        "{}: expected `{}` once, found it {count} times",
        path.display(),
        edit.find
    );
    let chosen = format!(
        "{{ extern crate std; std::env::var(\"KEMARI_DEFECT\").is_ok_and(|name| name == {:?}) }}",
        defect.name
    );
    write(&path, text.replace(&edit.find, &edit.replace.replace("defect!", &chosen)).as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, bytes).with_context(|| path.display().to_string())
}
