//! The size of the trusted base: the code on which the gate's claim (P5) rests. The report prints
//! it each time, so that a reviewer notices growth.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cargo_metadata::Package;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::policy::{Linked, Source};
use super::source::{Module, files_below, for_tests, modules, parse};
use super::subject::{Subject, package_dir};

/// The amount of code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    crates: usize,
    /// Lines with code on them, without tests.
    lines: usize,
    /// `unsafe` blocks, implementations and blocks of foreign functions.
    unsafes: usize,
}

impl std::ops::AddAssign for Size {
    fn add_assign(&mut self, more: Self) {
        self.crates += more.crates;
        self.lines += more.lines;
        self.unsafes += more.unsafes;
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = |count: usize| if count == 1 { "" } else { "s" };
        let (crates, lines, unsafes) = (self.crates, self.lines, self.unsafes);
        write!(f, "{crates} crate{}, {lines} lines, {unsafes} `unsafe`", s(crates))
    }
}

/// The text of the report.
pub(crate) fn report(subject: &Subject) -> Result<String> {
    let policy = &subject.policy;
    let gated: Vec<&Package> =
        subject.checked()?.into_iter().filter(|of| of.name != "io-gate").collect();
    let product = policy.gate.product.as_ref().and_then(|name| subject.package(name).ok());
    // The product and the crates in its folder are the monitor.
    let monitor = product.map(package_dir);
    let own = policy.far_side.iter().map(|entry| entry.name.as_str()).chain(["io-gate"]);
    let own = own.filter_map(|name| subject.package(name).ok());
    let in_monitor =
        |package: &&Package| monitor.is_some_and(|dir| package_dir(package).starts_with(dir));
    let (monitor, own): (Vec<&Package>, Vec<&Package>) = own.partition(in_monitor);
    let allowed = policy
        .allow
        .iter()
        .filter(|entry| entry.source == Source::Registry && !in_compiler(&entry.why));
    let allowed: Vec<&Package> = allowed
        .filter_map(|entry| {
            subject.metadata.packages.iter().find(|package| package.name == entry.name.as_str())
        })
        .collect();
    let mut said = format!(
        "trusted base\n  devices                {}\n  the gate, far side     {}\n  allowed dependencies   {}\n  the monitor            {}\n  it is built from       {}\n",
        size(&gated)?,
        size(&own)?,
        size(&allowed)?,
        size(&monitor)?,
        linked(&policy.product),
    );
    let parts = [("the gate and its far side", own.as_slice()), ("the monitor", &monitor)];
    let growth = growth(subject, &parts)?;
    said.push_str(&format!("  since the last tag     {growth}\n"));
    Ok(said)
}

/// Counts the listed crates of crates.io that the monitor is built from. The layer `graph` checks
/// that the list is complete.
fn linked(entries: &[Linked]) -> String {
    let count = |names: fn(&Linked) -> &Vec<String>| -> usize {
        entries.iter().map(|entry| names(entry).len()).sum()
    };
    let crates = count(|entry| &entry.crates);
    let scripts = count(|entry| &entry.build_scripts);
    let macros = count(|entry| &entry.macros);
    format!(
        "{crates} further crates of crates.io, {scripts} build scripts, {macros} procedural macros"
    )
}

/// Whether a listed crate runs in the compiler only, and so is not in the product.
fn in_compiler(why: &str) -> bool {
    why.contains("not in the product") || why.contains("writes Serialize")
}

fn size(packages: &[&Package]) -> Result<Size> {
    let mut all = Size::default();
    for package in packages {
        all.crates += 1;
        // A macro may name a module. So a file counts, unless only a `mod` for tests names it.
        let modules = modules(package)?;
        let (tests, shipped): (Vec<_>, Vec<_>) = modules.iter().partition(|module| module.test);
        let is_among = |file: &Path, modules: &[&Module]| modules.iter().any(|of| of.file == file);
        for file in files_below(&package_dir(package).join("src"))? {
            if is_among(&file, &tests) && !is_among(&file, &shipped) {
                continue;
            }
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            all += size_of(&text);
        }
    }
    Ok(all)
}

/// The size of a file. Items for tests do not count.
fn size_of(text: &str) -> Size {
    let tests = Tests::of(text);
    let code = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    let lines = text.lines().zip(1..).filter(|(line, at)| code(line) && !tests.has(*at)).count();
    let unsafes = text.parse::<TokenStream>().map_or(0, |tokens| count_unsafe(tokens, &tests));
    Size { crates: 0, lines, unsafes }
}

/// The lines of items that are compiled for tests only. A file that cannot be parsed has none.
#[derive(Default)]
struct Tests(Vec<RangeInclusive<usize>>);

impl Tests {
    fn of(text: &str) -> Self {
        let mut tests = Self::default();
        if let Ok(parsed) = parse(text) {
            tests.visit_file(&parsed);
        }
        tests
    }

    fn has(&self, line: usize) -> bool {
        self.0.iter().any(|lines| lines.contains(&line))
    }
}

impl<'ast> Visit<'ast> for Tests {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => return,
        };
        if for_tests(attributes) {
            self.0.push(item.span().start().line..=item.span().end().line);
        } else if matches!(item, syn::Item::Mod(_)) {
            visit::visit_item(self, item);
        }
    }
}

/// `unsafe` blocks, implementations, attributes and blocks of foreign functions.
fn count_unsafe(tokens: TokenStream, tests: &Tests) -> usize {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let counted = |(at, tree): (usize, &TokenTree)| match tree {
        _ if tests.has(tree.span().start().line) => 0,
        TokenTree::Group(group) => count_unsafe(group.stream(), tests),
        TokenTree::Ident(word) if word == "unsafe" => {
            usize::from(is_counted_unsafe(&trees[at + 1..]))
        }
        _ => 0,
    };
    trees.iter().enumerate().map(counted).sum()
}

/// Whether an `unsafe` before these tokens counts. An `unsafe fn` counts only where it is called.
fn is_counted_unsafe(next: &[TokenTree]) -> bool {
    let is_block = |tree: Option<&TokenTree>| matches!(tree, Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace);
    match next.first() {
        Some(TokenTree::Group(_)) => true,
        Some(TokenTree::Ident(word)) if word == "extern" => {
            let is_named = matches!(next.get(1), Some(TokenTree::Literal(_)));
            is_block(next.get(1 + usize::from(is_named)))
        }
        Some(TokenTree::Ident(word)) => word == "impl",
        _ => false,
    }
}

/// Growth of the parts of the trusted base that are in this repository, since its last tag.
fn growth(subject: &Subject, parts: &[(&str, &[&Package])]) -> Result<String> {
    // Only tags of this branch count.
    let tags = match git(&subject.root, &["tag", "--list", "--merged", "HEAD"]) {
        Ok(tags) => tags,
        Err(said) => return Ok(format!("not known: {said:#}")),
    };
    if tags.is_empty() {
        return Ok("there is none".to_owned());
    }
    let tag = git(&subject.root, &["describe", "--tags", "--abbrev=0"])?;
    let mut grown = Vec::new();
    for (name, packages) in parts.iter().filter(|(_, packages)| !packages.is_empty()) {
        let (then, now) = (size_at(subject, &tag, packages)?, size(packages)?);
        let more = |now: usize, then: usize| format!("{:+}", now as i64 - then as i64);
        let (lines, unsafes) = (more(now.lines, then.lines), more(now.unsafes, then.unsafes));
        grown.push(format!("{name}: {lines} lines, {unsafes} `unsafe`"));
    }
    Ok(format!("({tag}) {}", grown.join("; ")))
}

/// The size of these packages at a tag.
fn size_at(subject: &Subject, tag: &str, packages: &[&Package]) -> Result<Size> {
    let mut then = Size::default();
    for package in packages {
        // A crate that did not exist at that tag has no files there.
        let source = subject.shown(package_dir(package).join("src"));
        let list = ["ls-tree", "-r", "--name-only", tag, "--", &source.to_string_lossy()];
        for name in git(&subject.root, &list)?.lines().filter(|name| is_counted(name)) {
            // `./` makes the name relative to the tree, which need not be the root of the
            // repository.
            then += size_of(&git(&subject.root, &["show", &format!("{tag}:./{name}")])?);
        }
    }
    Ok(then)
}

fn git(root: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").current_dir(root).args(arguments).output();
    let output = output.context("cannot run git")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git: {}", said.lines().next().unwrap_or_default());
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

fn is_counted(name: &str) -> bool {
    let name = Path::new(name);
    // At an old tag only a file's name shows that the file is for tests: its `mod` is not parsed. A
    // file with such a name that ships counts as growth.
    let is_tests = name.ends_with("tests.rs") || name.iter().any(|folder| folder == "tests");
    name.extension().is_some_and(|end| end == "rs") && !is_tests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_code_and_unsafe_are_counted_without_comments_and_tests() {
        let text = "//! A file.\n\nfn a() {\n    // SAFETY: b\n    unsafe { b() }\n}\nunsafe impl A for B {}\nunsafe fn c() {}\n\n#[cfg(test)]\nmod tests {\n    fn d() { unsafe { e() } }\n}\n";
        assert_eq!(size_of(text), Size { crates: 0, lines: 5, unsafes: 2 });
    }

    /// Only items for tests are left out: the code after them counts.
    #[test]
    fn code_below_a_test_counts() {
        let text = "#[cfg(test)]\nmod nothing {}\n\nfn a() {\n    unsafe { b() }\n}\n#[cfg(not(test))]\nfn c() {}\n";
        assert_eq!(size_of(text), Size { crates: 0, lines: 5, unsafes: 1 });
    }

    #[test]
    fn a_block_of_foreign_functions_counts() {
        let text = "unsafe extern \"C\" {\n    safe fn a();\n}\nunsafe extern {}\nunsafe extern \"C\" fn b() {}\n";
        assert_eq!(size_of(text).unsafes, 2);
    }

    /// A tree with the gate, one crate of the far side and the monitor, in a folder of a
    /// repository.
    fn scratch(root: &Path) {
        let file = |name: &str, text: &str| {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        };
        let package = |name: &str| {
            format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n")
        };
        file(
            "Cargo.toml",
            "[workspace]\nresolver = \"3\"\nmembers = [\"io-gate\", \"host\", \"vmm\"]\n",
        );
        file(
            "gate.toml",
            "[gate]\npackages = [\"io-gate\"]\nproduct = \"vmm\"\n[[far-side]]\nname = \"host\"\nwhy = \"performs\"\n[[far-side]]\nname = \"vmm\"\nwhy = \"is the monitor\"\n",
        );
        file("io-gate/Cargo.toml", &package("io-gate"));
        file("io-gate/src/lib.rs", "fn a() {}\n");
        file("host/Cargo.toml", &package("host"));
        file("host/src/lib.rs", "mod b;\nfn c() {}\nfn d() {}\n");
        file("host/src/b.rs", "fn e() {}\n");
        file("vmm/Cargo.toml", &package("vmm"));
        file("vmm/src/lib.rs", "fn j() {}\n");
    }

    #[test]
    fn what_has_grown_since_the_last_tag_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().canonicalize().expect("it is there").join("tree");
        scratch(&root);
        let grown = || {
            let subject = Subject::tree(&root, None, vec!["--offline".to_owned()]).expect("a tree");
            let said = report(&subject).expect("it is told");
            let (_, grown) = said.split_once("since the last tag     ").expect("it is told");
            grown.trim_end().to_owned()
        };
        let of = |tag: &str, gate: &str, monitor: &str| {
            format!(
                "({tag}) the gate and its far side: {gate} `unsafe`; the monitor: {monitor} `unsafe`"
            )
        };
        assert!(grown().starts_with("not known: git: fatal: not a git repository"), "{}", grown());
        let run = |arguments: &[&str]| {
            let person = ["-c", "user.name=x", "-c", "user.email=x@example.org"];
            git(folder.path(), &[person.as_slice(), arguments].concat()).expect("git does it")
        };
        run(&["init", "--quiet"]);
        run(&["add", "tree/io-gate", "tree/host/src/lib.rs", "tree/vmm"]);
        run(&["commit", "--quiet", "--message", "a"]);
        run(&["checkout", "--quiet", "-b", "other"]);
        run(&["commit", "--quiet", "--allow-empty", "--message", "elsewhere"]);
        run(&["tag", "v0"]);
        run(&["checkout", "--quiet", "-"]);
        assert_eq!(grown(), "there is none");
        run(&["tag", "v1"]);
        // `b.rs` did not exist at the tag: its one line is new. The gate has two new lines, one of
        // them `unsafe`.
        std::fs::write(
            root.join("io-gate/src/lib.rs"),
            "// A note.\nfn a() {}\nfn f() {}\nfn g() { unsafe { h() } }\n",
        )
        .expect("a file");
        assert_eq!(grown(), of("v1", "+3 lines, +1", "+0 lines, +0"));
        let monitor = "fn j() {}\nfn k() { unsafe { l() } }\nfn m() {}\n";
        std::fs::write(root.join("vmm/src/lib.rs"), monitor).expect("a file");
        assert_eq!(grown(), of("v1", "+3 lines, +1", "+2 lines, +1"));
        // A file counts by how it is compiled, and not by its name.
        let b = "mod tests;\nfn e() {}\n#[cfg(test)]\nmod others;\n";
        std::fs::write(root.join("host/src/b.rs"), b).expect("a file");
        std::fs::create_dir(root.join("host/src/b")).expect("a folder");
        for name in ["tests.rs", "others.rs"] {
            std::fs::write(root.join("host/src/b").join(name), "fn i() {}\n").expect("a file");
        }
        assert_eq!(grown(), of("v1", "+5 lines, +1", "+2 lines, +1"));
        std::fs::write(root.join("host/src/b.rs"), "fn e() {}\n").expect("a file");
        std::fs::remove_dir_all(root.join("host/src/b")).expect("it is there");
        run(&["add", "--all"]);
        run(&["commit", "--quiet", "--message", "b"]);
        run(&["tag", "v2"]);
        assert_eq!(grown(), of("v2", "+0 lines, +0", "+0 lines, +0"));
    }
}
