//! An attack: what it changes, which catchers must catch it, and what the finding must say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Deserialize;

use super::scratch::{self, Tree};
use crate::layer::Layer;

/// What can catch an attack: a layer of the check, the gate's counts at run time, or the start of
/// the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Catcher {
    /// A layer of the check.
    Layer(Layer),
    /// An assertion of the gate at run time.
    Counts,
    /// The product, when it starts with the device.
    Start,
}

impl Catcher {
    /// Whether it catches by errors of the compiler alone.
    pub(super) fn is_compiler(self) -> bool {
        [Layer::Types, Layer::Bare, Layer::LinuxCore].map(Self::Layer).contains(&self)
    }

    /// Whether its result shows that the attack's code compiles, or fails to compile in the claimed
    /// way. Only a layer that compiles whole crates with std shows this: without std, one error
    /// hides all others.
    pub(super) fn shows_life(self) -> bool {
        match self {
            Self::Counts | Self::Start => true,
            Self::Layer(layer) => layer.compiles_with_std(),
        }
    }
}

impl TryFrom<String> for Catcher {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "counts" => Ok(Self::Counts),
            "start" => Ok(Self::Start),
            _ => Layer::from_str(&name, false).map(Self::Layer),
        }
    }
}

impl fmt::Display for Catcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(layer) => layer.fmt(f),
            Self::Counts => f.pad("counts"),
            Self::Start => f.pad("start"),
        }
    }
}

/// `attack.toml`; `xtask/gate-check/attacks/README.md` says what each field means.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attack {
    /// Its directory's name.
    #[serde(skip)]
    pub(crate) name: String,
    /// Its directory.
    #[serde(skip)]
    directory: PathBuf,
    pub(crate) title: String,
    #[serde(default)]
    pub(crate) caught_by: Vec<Catcher>,
    says: Option<Says>,
    #[serde(default)]
    pub(crate) only: bool,
    pub(crate) not_claimed: Option<String>,
    #[serde(default)]
    pub(crate) releases: Vec<String>,
    #[serde(default)]
    edit: Vec<Edit>,
    #[serde(default)]
    append: Vec<Append>,
    /// Edits that uncover the code which the attack hides from the compiler.
    #[serde(default)]
    to_compile: Vec<Edit>,
    /// Why no layer compiles the files that it adds.
    pub(crate) not_compiled: Option<String>,
    pub(crate) test: Option<Test>,
    /// The name of its device in the catalogue, with which the product is started.
    pub(crate) start: Option<String>,
}

/// The texts that the catchers must say.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Says {
    /// Each of them says this.
    All(String),
    /// What each of them says.
    Each(BTreeMap<Catcher, Words>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Several(Vec<String>),
}

impl Words {
    fn texts(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Several(texts) => texts,
        }
    }

    fn are_said(&self) -> bool {
        !self.texts().is_empty() && self.texts().iter().all(|text| !text.is_empty())
    }
}

impl Says {
    fn fits(&self, caught_by: &[Catcher]) -> bool {
        match self {
            Self::All(words) => !words.is_empty(),
            Self::Each(words) => {
                words.values().all(Words::are_said)
                    && words.keys().eq(&BTreeSet::from_iter(caught_by.iter().copied()))
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    file: PathBuf,
    find: String,
    replace: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Append {
    file: PathBuf,
    text: String,
}

/// A test that passes when the attack succeeds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Test {
    pub(crate) package: String,
    pub(crate) name: String,
}

impl Attack {
    /// All attacks below a directory, by name.
    pub(crate) fn all(directory: &Path) -> Result<Vec<Self>> {
        let mut attacks = Vec::new();
        for entry in fs::read_dir(directory)
            .with_context(|| format!("cannot read {}", directory.display()))?
        {
            let directory = entry?.path();
            if directory.is_dir() {
                attacks.push(Self::read(&directory)?);
            }
        }
        attacks.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(attacks)
    }

    fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("attack.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut attack: Self =
            toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
        attack.name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        attack.directory = directory.to_owned();
        let claimed = !attack.caught_by.is_empty() && attack.says.is_some();
        ensure!(
            claimed != attack.not_claimed.is_some(),
            "{}: expected `caught_by` and `says`, or `not_claimed`",
            path.display()
        );
        ensure!(
            attack.says.as_ref().is_none_or(|says| says.fits(&attack.caught_by)),
            "{}: `says` is one text, or a text for each name in `caught_by`",
            path.display()
        );
        ensure!(
            !attack.only || attack.caught_by.len() == 1,
            "{}: `only` is for one layer",
            path.display()
        );
        let counted = attack.caught_by.contains(&Catcher::Counts);
        ensure!(attack.test.is_some() || !counted, "{}: `counts` needs a [test]", path.display());
        let started = attack.caught_by.contains(&Catcher::Start);
        ensure!(attack.start.is_some() || !started, "{}: `start` needs a device", path.display());
        Ok(attack)
    }

    /// Whether the attack makes a claim about all layers: that all of them, or all but one, let it
    /// through.
    pub(crate) const fn is_for_all(&self) -> bool {
        self.only || self.not_claimed.is_some()
    }

    /// The texts that a catcher in `caught_by` must say, all of them.
    pub(super) fn says(&self, catcher: Catcher) -> &[String] {
        match &self.says {
            Some(Says::All(words)) => std::slice::from_ref(words),
            Some(Says::Each(words)) => words.get(&catcher).map_or(&[], Words::texts),
            None => &[],
        }
    }

    /// Whether the attack hides code from the compiler.
    pub(super) const fn hides_code(&self) -> bool {
        !self.to_compile.is_empty()
    }

    /// The catchers that try the attack at run time: `counts` if it has a test, `start` if it has a
    /// device to start.
    pub(super) fn at_run_time(&self) -> impl Iterator<Item = Catcher> {
        let counts = self.test.as_ref().map(|_| Catcher::Counts);
        counts.into_iter().chain(self.start.as_ref().map(|_| Catcher::Start))
    }

    /// The attacked tree, with nothing that hides code from the compiler.
    pub(super) fn uncover(&self, mut attacked: Tree) -> Result<Tree> {
        self.edit(&mut attacked, &self.to_compile)?;
        Ok(attacked)
    }

    /// The tree with the attack in it. `registry` maps names of dependencies to their unpacked
    /// sources.
    pub(crate) fn apply(&self, clean: &Tree, registry: &BTreeMap<String, PathBuf>) -> Result<Tree> {
        let mut tree = clean.clone();
        for name in &self.releases {
            let source =
                registry.get(name).with_context(|| format!("nothing depends on `{name}`"))?;
            scratch::release(&mut tree, name, source, &self.name)
                .with_context(|| format!("{}: a release of `{name}`", self.name))?;
        }
        let overlay = self.directory.join("overlay");
        if overlay.is_dir() {
            scratch::read(&overlay, &overlay, &mut tree)?;
        }
        self.edit(&mut tree, &self.edit)?;
        for append in &self.append {
            let text = self.text(&tree, &append.file)? + "\n" + &append.text + "\n";
            tree.insert(append.file.clone(), text.into_bytes());
        }
        Ok(tree)
    }

    /// The source files that it adds, or replaces as a whole.
    pub(crate) fn added(&self) -> Result<Vec<PathBuf>> {
        let (overlay, mut files) = (self.directory.join("overlay"), Tree::new());
        if overlay.is_dir() {
            scratch::read(&overlay, &overlay, &mut files)?;
        }
        Ok(files
            .into_keys()
            .filter(|file| file.extension().is_some_and(|end| end == "rs"))
            .collect())
    }

    fn edit(&self, tree: &mut Tree, edits: &[Edit]) -> Result<()> {
        for edit in edits {
            let text = self.text(tree, &edit.file)?;
            let times = text.matches(&edit.find).count();
            if times != 1 {
                let (file, find) = (edit.file.display(), &edit.find);
                bail!("{}: expected `{find}` once in {file}, found it {times} times", self.name);
            }
            tree.insert(edit.file.clone(), text.replace(&edit.find, &edit.replace).into_bytes());
        }
        Ok(())
    }

    fn text(&self, tree: &Tree, file: &Path) -> Result<String> {
        let bytes = tree
            .get(file)
            .with_context(|| format!("{}: there is no {}", self.name, file.display()))?;
        Ok(String::from_utf8(bytes.clone())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_catchers_say_is_one_text_or_a_text_for_each() {
        let both = [Catcher::Counts, Catcher::Start];
        let fits = |text: &str| {
            let attack: Attack = toml::from_str(&format!("title = \"t\"\n{text}")).expect("valid");
            attack.says.expect("it says something").fits(&both)
        };
        assert!(fits("says = \"a\""));
        assert!(fits("says = { start = \"a\", counts = [\"b\", \"c\"] }"));
        for wrong in
            ["says = \"\"", "says = { start = \"a\" }", "says = { start = \"a\", counts = \"\" }"]
        {
            assert!(!fits(wrong), "{wrong}");
        }
        assert!(!fits("says = { start = \"a\", counts = \"b\", types = \"c\" }"));
    }
}
