//! The files and environment variables that rustc read to compile a crate (its dep-info). rustc
//! writes the list, so it is complete, whichever macro named a file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};

use super::compile::Compiled;
use super::finding::{Finding, Place};
use super::layer::Layer;
use super::rules;
use super::source::FIXED;
use super::subject::{Subject, library_name, package_dir};

/// The dep-info of a crate.
#[derive(Debug, Default)]
pub(super) struct DepInfo {
    pub(super) files: BTreeSet<PathBuf>,
    pub(super) variables: BTreeSet<String>,
}

impl DepInfo {
    /// The dep-info of a compiled library.
    pub(super) fn of_library(
        subject: &Subject,
        compiled: &Compiled,
        library: &str,
    ) -> Result<Self> {
        let start = format!("lib{library}-");
        let made = compiled.artifacts.iter().find(|path| file_name(path).starts_with(&start));
        let made = made.with_context(|| format!("cargo has compiled no file of `{library}`"))?;
        let name = file_name(made).trim_start_matches("lib").to_owned();
        Self::read(subject, &made.with_file_name(name).with_extension("d"))
    }

    fn read(subject: &Subject, path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::parse(&text, &subject.root))
    }

    fn parse(text: &str, root: &Path) -> Self {
        let sources =
            text.lines().find_map(|line| line.split_once(": ")).map_or("", |(_, files)| files);
        // A blank within a name is escaped by a backslash.
        let names = sources.replace("\\ ", "\0");
        let files =
            names.split_whitespace().map(|name| root.join(name.replace('\0', " "))).collect();
        let variables = text.lines().filter_map(|line| line.strip_prefix("# env-dep:"));
        let name = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
        Self { files, variables: variables.map(name).collect() }
    }
}

/// Finds inputs of the monitor's compilation that no layer checks: files elsewhere, and variables
/// that differ from build to build.
pub(super) fn far_side(
    subject: &Subject,
    compiled: &Compiled,
    program: &str,
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for entry in &subject.policy.far_side {
        let package = subject.package(&entry.name)?;
        let scanned = package_dir(package).join("src");
        let library = library_name(package)?;
        let info = DepInfo::of_library(subject, compiled, &library)?;
        findings.extend(unseen(subject, &library, &info, &scanned));
        if subject.policy.gate.product.as_ref() == Some(&entry.name) {
            let info = of_program(subject, compiled, &library, program)?;
            findings.extend(unseen(subject, program, &info, &scanned));
        }
    }
    Ok(findings)
}

/// The dep-info of the program. It is in the folder of its package's library. The newest file
/// counts, because cargo keeps older ones.
fn of_program(
    subject: &Subject,
    compiled: &Compiled,
    library: &str,
    program: &str,
) -> Result<DepInfo> {
    let start = format!("lib{library}-");
    let beside = compiled.artifacts.iter().find(|path| file_name(path).starts_with(&start));
    let folder = beside.and_then(|path| path.parent());
    let folder = folder.with_context(|| format!("cargo has compiled no file of `{library}`"))?;
    let start = format!("{}-", program.replace('-', "_"));
    let mut found: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    found.retain(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with(&start) && name.ends_with(".d")
    });
    let time = |entry: &fs::DirEntry| entry.metadata().and_then(|data| data.modified()).ok();
    let newest = found.into_iter().max_by_key(time);
    let newest = newest.with_context(|| format!("cargo has compiled no file of `{program}`"))?;
    DepInfo::read(subject, &newest.path())
}

/// The files that rustc has read since `begin`, according to all dep-info in the build directories
/// of the layers.
pub(super) fn read_since(subject: &Subject, begin: SystemTime) -> Result<BTreeSet<PathBuf>> {
    let (mut left, mut read) = (vec![subject.target.clone()], BTreeSet::new());
    while let Some(next) = left.pop() {
        for entry in
            fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))?
        {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                // Incremental state is large, and has no dep-info.
                left.extend((entry.file_name() != "incremental").then_some(path));
            } else if path.extension().is_some_and(|end| end == "d")
                && entry.metadata()?.modified()? >= begin
            {
                // A file that a macro names may have `..` in its path.
                let files = DepInfo::read(subject, &path)?.files.into_iter();
                read.extend(files.map(|file| file.canonicalize().unwrap_or(file)));
            }
        }
    }
    Ok(read)
}

fn unseen(subject: &Subject, name: &str, info: &DepInfo, scanned: &Path) -> Vec<Finding> {
    // Resolve the paths first: `src/../../elsewhere.rs` is not below `src`.
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let scanned = real(scanned);
    let is_scanned = |file: &&PathBuf| {
        let file = real(file);
        file.starts_with(&scanned) && file.extension().is_some_and(|end| end == "rs")
    };
    let files = info.files.iter().filter(|file| !is_scanned(file)).map(|file| {
        let shown = subject.shown(file);
        let what = format!("`{}` is compiled, and no layer checks it", shown.display());
        Finding::new(&rules::FILES, Some(Place::line(shown, 1)), what)
    });
    let variables = info.variables.iter().filter(|variable| !variable.starts_with(FIXED));
    let variables = variables.map(|variable| {
        let what = format!("the crate `{name}` is compiled by the variable `{variable}`");
        Finding::new(&rules::BUILD_DEPENDENT, None, what)
    });
    files.chain(variables).map(|finding| finding.seen_by(Layer::Calls)).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_an_earlier_compilation_read_does_not_count() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut subject = Subject::tree(xtask_common::build::repository(), None, Vec::new())
            .expect("the tree is a subject");
        subject.target = folder.path().to_owned();
        let below = folder.path().join("calls/deps");
        fs::create_dir_all(&below).expect("a folder");
        let write = |name: &str, age: u64| {
            let time = SystemTime::now() - Duration::from_secs(age);
            let text = format!("{name}.rmeta: /t/{name}.rs\n");
            fs::write(below.join(format!("{name}.d")), text).expect("a file");
            let file = fs::File::options().write(true).open(below.join(format!("{name}.d")));
            file.expect("it is there").set_modified(time).expect("a file has a time");
        };
        write("old", 60);
        write("new", 0);
        let begin = SystemTime::now() - Duration::from_secs(30);
        let read = read_since(&subject, begin).expect("they can be read");
        assert_eq!(read, [PathBuf::from("/t/new.rs")].into());
    }

    #[test]
    fn files_and_variables_are_read() {
        let text = "/t/liba-1.rmeta: src/lib.rs src/a\\ b.rs /else/c.rs\n\nsrc/lib.rs:\n\n# env-dep:CARGO_PKG_NAME=a\n# env-dep:SHIPPED\n";
        let info = DepInfo::parse(text, Path::new("/root"));
        let files = ["/else/c.rs", "/root/src/a b.rs", "/root/src/lib.rs"];
        assert_eq!(info.files, files.map(PathBuf::from).into());
        assert_eq!(info.variables, ["CARGO_PKG_NAME", "SHIPPED"].map(str::to_owned).into());
    }
}
