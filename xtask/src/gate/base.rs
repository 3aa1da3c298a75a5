//! The trusted base: how much code the claim rests on. Printed each time, so that a reviewer sees it grow.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cargo_metadata::Package;
use proc_macro2::{TokenStream, TokenTree};

use super::policy::Source;
use super::source::files_below;
use super::subject::{Subject, package_dir};

/// How much there is of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    crates: usize,
    /// Lines with code on them, without tests.
    lines: usize,
    /// `unsafe` blocks and implementations.
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

/// What the report says of it.
pub(crate) fn report(subject: &Subject) -> Result<String> {
    let policy = &subject.policy;
    let gated: Vec<&Package> =
        subject.checked()?.into_iter().filter(|of| of.name != "io-gate").collect();
    let own =
        policy.far_side.iter().filter(|entry| policy.gate.product.as_ref() != Some(&entry.name));
    let own = own.map(|entry| entry.name.as_str()).chain(["io-gate"]);
    let own: Vec<&Package> = own.filter_map(|name| subject.package(name).ok()).collect();
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
        "trusted base\n  devices                {}\n  the gate, far side     {}\n  allowed dependencies   {}\n",
        size(&gated)?,
        size(&own)?,
        size(&allowed)?
    );
    said.push_str(&format!("  since the last tag     {}\n", growth(subject, &own)?));
    Ok(said)
}

/// A crate that runs in the compiler is not in the product.
fn in_compiler(why: &str) -> bool {
    why.contains("not in the product") || why.contains("writes Serialize")
}

fn size(packages: &[&Package]) -> Result<Size> {
    let mut all = Size::default();
    for package in packages {
        all.crates += 1;
        for file in files_below(&package_dir(package).join("src"))? {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            if !file.ends_with("tests.rs") {
                all += size_of(&text);
            }
        }
    }
    Ok(all)
}

/// Tests stand at the end of a file.
fn size_of(text: &str) -> Size {
    let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    let unsafes = text.parse::<TokenStream>().map_or(0, count_unsafe);
    Size { crates: 0, lines: text.lines().filter(code).count(), unsafes }
}

fn count_unsafe(tokens: TokenStream) -> usize {
    let mut count = 0;
    let mut before = false;
    for token in tokens {
        if let TokenTree::Group(group) = &token {
            count += usize::from(before) + count_unsafe(group.stream());
        }
        let implements = matches!(&token, TokenTree::Ident(word) if before && word == "impl");
        count += usize::from(implements);
        before = matches!(&token, TokenTree::Ident(word) if word == "unsafe");
    }
    count
}

/// How the gate and its far side have grown since the last tag of the repository.
fn growth(subject: &Subject, own: &[&Package]) -> Result<String> {
    let git = |arguments: &[&str]| -> Result<Option<String>> {
        let output = Command::new("git").current_dir(&subject.root).args(arguments).output();
        let Ok(output) = output else { return Ok(None) };
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        Ok(output.status.success().then_some(text))
    };
    let Some(tag) = git(&["describe", "--tags", "--abbrev=0"])? else {
        return Ok("there is none".to_owned());
    };
    let mut then = Size::default();
    for package in own {
        then.crates += 1;
        let source = subject.shown(package_dir(package).join("src"));
        let listed = git(&["ls-tree", "-r", "--name-only", &tag, "--", &source.to_string_lossy()])?;
        for name in listed.unwrap_or_default().lines().filter(|name| is_counted(name)) {
            let text = git(&["show", &format!("{tag}:{name}")])?;
            then += size_of(&text.with_context(|| format!("git cannot show {name} of {tag}"))?);
        }
    }
    let now = size(own)?;
    ensure!(now.crates == then.crates, "the crates are counted alike");
    let more = |now: usize, then: usize| format!("{:+}", now as i64 - then as i64);
    Ok(format!(
        "({tag}) the gate and its far side: {} lines, {} `unsafe`",
        more(now.lines, then.lines),
        more(now.unsafes, then.unsafes)
    ))
}

fn is_counted(name: &str) -> bool {
    let name = Path::new(name);
    name.extension().is_some_and(|end| end == "rs") && !name.ends_with("tests.rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_code_and_unsafe_are_counted_without_comments_and_tests() {
        let text = "//! A file.\n\nfn a() {\n    // SAFETY: b\n    unsafe { b() }\n}\nunsafe impl A for B {}\nunsafe fn c() {}\n\n#[cfg(test)]\nmod tests {\n    fn d() { unsafe { e() } }\n}\n";
        assert_eq!(size_of(text), Size { crates: 0, lines: 5, unsafes: 2 });
    }
}
