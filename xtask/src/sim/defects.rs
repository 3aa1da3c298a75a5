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
    /// The kind of worlds that it is looked for in.
    story: String,
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
    copy(&tree, &list)?;
    let built = tree.join("../built");
    let mut cargo = build::cargo();
    super::for_drivers(&mut cargo, "build", &built);
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
            Some(median) => println!(
                "{:<17} {median:>6} worlds of `{}` ({seeds:?})  {}",
                defect.name, defect.story, defect.title
            ),
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
        .args(["--jobs", &arguments.jobs.to_string(), "--story", &defect.story])
        .env("KEMARI_DEFECT", &defect.name)
        .output()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let line = text.lines().last().context("the search said nothing")?;
    let worlds = line.split(' ').next().and_then(|word| word.parse().ok());
    let worlds: u64 = worlds.with_context(|| format!("expected a number of worlds: {line}"))?;
    Ok((!said.status.success()).then_some(worlds))
}

/// All of the tree that git knows, with the defects.
fn copy(tree: &Path, list: &List) -> Result<()> {
    let listed = Command::new("git")
        .current_dir(build::repository())
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .output()
        .context("git, which lists the files of the tree")?;
    ensure!(listed.status.success(), "expected a git work tree, found none");
    let edits = || list.defect.iter().flat_map(|of| of.edit.iter().map(move |edit| (of, edit)));
    let mut applied = 0;
    for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
        // One that was removed, and not committed, is listed.
        let Ok(mut bytes) = fs::read(build::repository().join(name)) else { continue };
        for (defect, edit) in edits().filter(|(_, edit)| edit.file == Path::new(name)) {
            let text = apply(String::from_utf8(bytes)?, defect, edit);
            bytes = text.with_context(|| format!("defect {}", defect.name))?.into_bytes();
            applied += 1;
        }
        write(&tree.join(name), &bytes)?;
    }
    let count = edits().count();
    ensure!(applied == count, "expected the files of {count} edits, found those of {applied}");
    Ok(())
}

fn apply(text: String, defect: &Defect, edit: &Edit) -> Result<String> {
    let count = text.matches(&edit.find).count();
    ensure!(
        count == 1,
        "{}: expected `{}` once, found it {count} times",
        edit.file.display(),
        edit.find
    );
    let chosen = format!(
        "{{ #[allow(unused_extern_crates)] extern crate std; std::env::var(\"KEMARI_DEFECT\").is_ok_and(|name| name == {:?}) }}",
        defect.name
    );
    Ok(text.replace(&edit.find, &edit.replace.replace("defect!", &chosen)))
}

/// A file that is as it should be is left alone: cargo would compile it again.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, bytes).with_context(|| path.display().to_string())
}
