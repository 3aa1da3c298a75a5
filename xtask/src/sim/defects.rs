//! `cargo xtask sim --drivers --defects`: puts former defects of the product back into a copy of
//! the tree. The simulation must find each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kemari_flags::drivers::Arguments;
use serde::Deserialize;

use crate::{build, run_pair};

/// The largest number of worlds in one search.
const WORLDS: u64 = 4000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    defect: Vec<Defect>,
}

impl List {
    fn read() -> Result<Self> {
        let path = build::repository().join("tests/verify/drivers/defects.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))
    }

    fn names(&self) -> String {
        self.defect.iter().map(|defect| &*defect.name).collect::<Vec<_>>().join(", ")
    }
}

/// An entry of `tests/verify/drivers/defects.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Defect {
    name: String,
    title: String,
    /// The kind of worlds in which the search runs.
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

/// Searches for each defect in a number of rounds; `true` if all were found.
pub(super) fn run(arguments: &Arguments) -> Result<bool> {
    let tree = build::target_dir().join("defects/tree");
    let list = List::read()?;
    let wanted = |defect: &&Defect| {
        arguments.only.as_ref().is_none_or(|only| defect.name.contains(only.as_str()))
    };
    let chosen: Vec<&Defect> = list.defect.iter().filter(wanted).collect();
    ensure!(
        !chosen.is_empty(),
        "--only: no defect's name contains this text; the defects are: {}",
        list.names()
    );
    // Without KVM no world can start: every world breaks, and every defect seems to be found.
    run_pair::check_kvm()?;
    copy(&tree, &list)?;
    let built = tree.join("../built");
    let mut cargo = build::cargo();
    super::for_drivers(&mut cargo, "build", &built);
    build::run(cargo.current_dir(&tree))?;
    let program = built.join("release/kemari-drivers");
    let mut all = true;
    for defect in chosen {
        let (mut seeds, mut whys) = (Vec::new(), Vec::new());
        for round in 0..arguments.rounds {
            if let Some((worlds, why)) = search(&program, defect, arguments, round)? {
                seeds.push(worlds);
                whys.push(why);
            }
        }
        seeds.sort_unstable();
        let found = seeds.len() as u64 == arguments.rounds;
        all &= found;
        match seeds.get(seeds.len() / 2).filter(|_| found) {
            Some(median) => println!(
                "{:<17} {median:>6} worlds of `{}` ({seeds:?})  {}; first seen as: {}",
                defect.name, defect.story, defect.title, whys[0]
            ),
            None => println!("{:<17} NOT FOUND      {}", defect.name, defect.title),
        }
    }
    Ok(all)
}

/// The number of worlds until the search found the defect, and how the defect showed; `None` if it
/// was not found.
fn search(
    program: &Path,
    defect: &Defect,
    arguments: &Arguments,
    round: u64,
) -> Result<Option<(u64, String)>> {
    let first = arguments.first + round * WORLDS;
    let said = Command::new(program)
        .args(["--until-broken", "--seeds", &WORLDS.to_string(), "--first", &first.to_string()])
        .args(["--jobs", &arguments.jobs.to_string(), "--story", &defect.story])
        .env("KEMARI_DEFECT", &defect.name)
        .output()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let line = text.lines().last().context("the search printed nothing")?;
    let worlds = line.split(' ').next().and_then(|word| word.parse().ok());
    let worlds: u64 =
        worlds.with_context(|| format!("expected a number of worlds, found: {line}"))?;
    if said.status.success() {
        return Ok(None);
    }
    let broken = text.lines().find_map(|line| line.strip_prefix("seed ")?.split_once(": "));
    let (seed, why) =
        broken.with_context(|| format!("expected a seed that breaks a promise, found: {text}"))?;
    let why = why.strip_prefix("BROKEN ").unwrap_or(why);
    Ok(is_sound(program, defect, seed)?.then(|| (worlds, why.to_owned())))
}

/// Whether the same world keeps every promise without the defect. Otherwise the search has found
/// something else.
fn is_sound(program: &Path, defect: &Defect, seed: &str) -> Result<bool> {
    let said = Command::new(program)
        .args(["--seeds", "1", "--first", seed, "--story", &defect.story])
        .env_remove("KEMARI_DEFECT")
        .output()?;
    if !said.status.success() {
        let text = String::from_utf8_lossy(&said.stdout);
        println!("{}: this world also breaks without the defect:\n{text}", defect.name);
    }
    Ok(said.status.success())
}

/// Copies all files that git lists, with the defects applied.
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
        // Git still lists a file that was removed without a commit.
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

/// Writes a file only if its contents differ, because cargo would compile it again.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use clap::ValueEnum;
    use kemari_flags::drivers::Story;

    use super::*;

    /// A search for each change takes too long, so this test only checks that the defects can still
    /// be applied.
    #[test]
    fn each_defect_can_be_put_into_the_tree_as_it_is_beside_all_others() {
        let list = List::read().unwrap();
        assert!(!list.defect.is_empty());
        let mut texts: BTreeMap<&Path, String> = BTreeMap::new();
        for defect in &list.defect {
            assert!(Story::from_str(&defect.story, false).is_ok(), "{}", defect.story);
            assert!(!defect.edit.is_empty(), "{}: no edit", defect.name);
            for edit in &defect.edit {
                let path = build::repository().join(&edit.file);
                let text =
                    texts.remove(&*edit.file).unwrap_or_else(|| fs::read_to_string(path).unwrap());
                let text = apply(text, defect, edit)
                    .unwrap_or_else(|error| panic!("defect {}: {error:#}", defect.name));
                texts.insert(&edit.file, text);
            }
        }
        let mut names: Vec<&str> = list.defect.iter().map(|defect| &*defect.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), list.defect.len(), "two defects have one name");
    }

    #[test]
    fn an_edit_that_fits_nowhere_or_twice_is_refused() {
        let text = "[[defect]]\nname = 'a'\ntitle = 't'\nstory = 'any'\nedit = [{ file = 'f', find = 'x', replace = 'if defect! {}' }]";
        let list: List = toml::from_str(text).unwrap();
        let apply = |text: &str| apply(text.to_owned(), &list.defect[0], &list.defect[0].edit[0]);
        assert!(apply("y").unwrap_err().to_string().contains("found it 0 times"));
        assert!(apply("xx").unwrap_err().to_string().contains("found it 2 times"));
        assert!(apply("x").unwrap().contains("KEMARI_DEFECT"));
    }
}
