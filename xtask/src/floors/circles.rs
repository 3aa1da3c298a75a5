//! Finds circles among the modules of a crate: each module of a circle uses all others of it,
//! directly or through further modules.
//!
//! The search reads the paths `crate::`, `super::` and `self::` from the tokens of each file,
//! within macros too. It follows each path through `use` to the file that has the item. A module
//! may use its own submodules, and they may use it. Code for tests is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A module's path within its crate; the crate itself is empty.
type Module = Vec<String>;

/// Each module, and those that it uses.
type Edges<'f> = BTreeMap<&'f Module, BTreeSet<Module>>;

/// One file of a crate.
#[derive(Default)]
struct File {
    /// What the file names, as paths from the crate.
    paths: Vec<Module>,
    /// What `use` brings in, by the name here; private ones too, since subfiles can name them.
    uses: BTreeMap<String, Module>,
    /// Modules in files of their own, without those for tests.
    children: Vec<String>,
}

/// The circles of the crate whose first file is `root`.
pub(super) fn circles(root: &Path) -> BTreeSet<BTreeSet<String>> {
    let files = files(root);
    closed(&edges(&files))
}

/// The circles of its folders: each module stands for itself and all below it, among the modules of
/// the same parent.
pub(super) fn folder_circles(root: &Path) -> BTreeSet<BTreeSet<String>> {
    let files = files(root);
    let mut folders = BTreeMap::<Module, BTreeSet<Module>>::new();
    for (from, used) in edges(&files) {
        for to in used {
            let same = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
            folders.entry(to[..=same].to_vec()).or_default();
            folders.entry(from[..=same].to_vec()).or_default().insert(to[..=same].to_vec());
        }
    }
    closed(&folders.iter().map(|(from, used)| (from, used.clone())).collect())
}

fn files(root: &Path) -> BTreeMap<Module, File> {
    let mut files = BTreeMap::new();
    read(root, root.parent().expect("a file is in a folder"), Vec::new(), &mut files);
    files
}

fn edges(files: &BTreeMap<Module, File>) -> Edges<'_> {
    files.iter().map(|(from, file)| (from, used(files, from, file))).collect()
}

/// The sets of modules each of which reaches all of its set.
fn closed(edges: &Edges<'_>) -> BTreeSet<BTreeSet<String>> {
    let reached: BTreeMap<_, _> = edges.keys().map(|from| (*from, reach(edges, from))).collect();
    let circle = |module: &&Module| -> BTreeSet<String> {
        let back = reached[module].iter().filter(|other| reached[*other].contains(*module));
        back.map(|other| other.join("::")).collect()
    };
    reached.keys().map(circle).filter(|circle| !circle.is_empty()).collect()
}

/// The modules that a file uses, without those above it and its own subfiles.
fn used(files: &BTreeMap<Module, File>, from: &Module, file: &File) -> BTreeSet<Module> {
    let homes = file.paths.iter().map(|path| home(files, path, 0));
    homes.filter(|to| !from.starts_with(to) && !to.starts_with(from)).collect()
}

/// Reads a file and those of its modules.
fn read(path: &Path, folder: &Path, module: Module, files: &mut BTreeMap<Module, File>) {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let tokens: TokenStream =
        text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut file = File::default();
    Reader { file: &mut file, module: &module }.items(tokens, &mut module.clone());
    for child in &file.children {
        let (flat, nested) =
            (folder.join(format!("{child}.rs")), folder.join(child).join("mod.rs"));
        let path: PathBuf = if flat.exists() { flat } else { nested };
        let below = [module.as_slice(), std::slice::from_ref(child)].concat();
        read(&path, &folder.join(child), below, files);
    }
    files.insert(module, file);
}

/// The module in which the item at `path` is.
fn home(files: &BTreeMap<Module, File>, path: &[String], depth: usize) -> Module {
    const LONGEST_CHAIN: usize = 16;
    let known = (0..=path.len()).rev().find(|len| files.contains_key(&path[..*len]));
    let module = &path[..known.unwrap_or(0)];
    let used = path.get(module.len()).and_then(|name| files.get(module)?.uses.get(name));
    match used {
        Some(target) if depth < LONGEST_CHAIN => home(files, target, depth + 1),
        _ => module.to_vec(),
    }
}

/// All modules that `from` uses, directly or through others.
fn reach<'e>(edges: &'e Edges<'_>, from: &'e Module) -> BTreeSet<&'e Module> {
    let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(module) = left.pop() {
        left.extend(edges[module].iter().filter(|to| seen.insert(*to)));
    }
    seen
}

/// Reads the tokens of one file.
struct Reader<'a> {
    file: &'a mut File,
    module: &'a Module,
}

impl Reader<'_> {
    /// `at` is the module of these tokens: the file's, or one that is written within it.
    fn items(&mut self, tokens: TokenStream, at: &mut Module) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut i = 0;
        while i < tokens.len() {
            let word = word(&tokens, i);
            let after_path = i >= 2 && is_colons(&tokens, i - 2);
            match word.as_deref() {
                _ if is_test(&tokens, i) => i = end_of_item(&tokens, i),
                Some("mod") => i = self.module(&tokens, i, at),
                Some("use") => i = self.tree(&tokens, i + 1, Vec::new(), at, true),
                Some("crate" | "super" | "self") if !after_path && is_colons(&tokens, i + 1) => {
                    i = self.tree(&tokens, i, Vec::new(), at, false);
                }
                _ => {
                    if let TokenTree::Group(group) = &tokens[i] {
                        self.items(group.stream(), at);
                    }
                    i += 1;
                }
            }
        }
    }

    /// `mod name;` or `mod name { ... }`; returns where the next item begins.
    fn module(&mut self, tokens: &[TokenTree], i: usize, at: &mut Module) -> usize {
        let Some(name) = word(tokens, i + 1) else { return i + 1 };
        match tokens.get(i + 2) {
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                at.push(name);
                self.items(group.stream(), at);
                at.pop();
            }
            _ => self.file.children.push(name),
        }
        i + 3
    }

    /// A path or a tree of paths from token `i` on, below `before`; returns where it ends.
    fn tree(
        &mut self,
        tokens: &[TokenTree],
        mut i: usize,
        before: Module,
        at: &Module,
        is_use: bool,
    ) -> usize {
        let mut path = before;
        loop {
            match tokens.get(i) {
                Some(TokenTree::Group(group))
                    if group.delimiter() == Delimiter::Brace && is_use =>
                {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    let mut j = 0;
                    while j < inner.len() {
                        j = self.tree(&inner, j, path.clone(), at, true) + 1;
                    }
                    return i + 1;
                }
                Some(TokenTree::Ident(ident)) => {
                    path.push(ident.to_string());
                    i += 1;
                }
                _ => break,
            }
            if !is_colons(tokens, i) {
                break;
            }
            i += 2;
        }
        let renamed = word(tokens, i).is_some_and(|word| word == "as" && is_use);
        let name = if renamed { word(tokens, i + 1) } else { path.last().cloned() };
        if renamed {
            i += 2;
        }
        if let Some(target) = self.absolute(&path, at) {
            if let (true, Some(name)) = (is_use && at == self.module, name) {
                self.file.uses.insert(name, target.clone());
            }
            self.file.paths.push(target);
        }
        i
    }

    /// A path from the crate; `None` for another crate's.
    fn absolute(&self, path: &[String], at: &Module) -> Option<Module> {
        let mut base = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => at.clone(),
            first => {
                let own = self.file.children.iter().any(|child| child == first);
                return own.then(|| [at.as_slice(), path].concat());
            }
        };
        for part in path {
            match part.as_str() {
                "crate" | "self" => {}
                "super" => drop(base.pop()),
                name => base.push(name.to_owned()),
            }
        }
        Some(base)
    }
}

fn word(tokens: &[TokenTree], i: usize) -> Option<String> {
    match tokens.get(i)? {
        TokenTree::Ident(ident) => Some(ident.to_string()),
        _ => None,
    }
}

fn is_punct(tokens: &[TokenTree], i: usize, char: char) -> bool {
    matches!(tokens.get(i), Some(TokenTree::Punct(punct)) if punct.as_char() == char)
}

fn is_colons(tokens: &[TokenTree], i: usize) -> bool {
    is_punct(tokens, i, ':') && is_punct(tokens, i + 1, ':')
}

/// Whether `#[cfg(test)]` begins here.
fn is_test(tokens: &[TokenTree], i: usize) -> bool {
    let text = |token: &TokenTree| token.to_string().replace(' ', "");
    is_punct(tokens, i, '#') && tokens.get(i + 1).is_some_and(|token| text(token) == "[cfg(test)]")
}

/// Where the item ends that begins with the attribute at `i`.
fn end_of_item(tokens: &[TokenTree], i: usize) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        _ => false,
    };
    let length = tokens[i..].iter().position(ends);
    length.map_or(tokens.len(), |length| i + length + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A crate with these files.
    fn crate_of(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    /// The circles of a crate with these files.
    fn circles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let found = circles(&crate_of(files).path().join("lib.rs"));
        found.into_iter().map(|circle| circle.into_iter().collect()).collect()
    }

    #[test]
    fn a_circle_is_found_through_a_third_file_a_macro_and_a_use() {
        let found = circles_of(&[
            ("lib.rs", "mod a; mod b; mod c; mod d; pub use c::Item as Other;"),
            ("a.rs", "use crate::b::{self, Thing};"),
            ("b/mod.rs", "fn f() { assert!(crate::Other::new().is_new()); }"),
            ("c.rs", "pub struct Item; use super::a;"),
            ("d.rs", "use crate::a;"),
        ]);
        assert_eq!(found, [["a", "b", "c"]]);
    }

    #[test]
    fn a_subfile_and_code_for_tests_make_no_circle() {
        let found = circles_of(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "mod part; use crate::b; use part::P; pub struct A;"),
            ("a/part.rs", "use super::A; pub struct P;"),
            ("b.rs", "#[cfg(test)] mod tests { use crate::a::A; } #[cfg(test)] use crate::a::B;"),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn two_folders_make_a_circle_through_different_files() {
        let dir = crate_of(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "mod high; mod low;"),
            ("a/high.rs", "use super::low; use crate::b;"),
            ("a/low.rs", ""),
            ("b.rs", "use crate::a::low;"),
        ]);
        let root = dir.path().join("lib.rs");
        assert!(circles(&root).is_empty());
        let expected = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        assert_eq!(folder_circles(&root), BTreeSet::from([expected]));
    }
}
