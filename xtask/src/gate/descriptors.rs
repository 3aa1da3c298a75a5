//! The layer `descriptors`: who opens a descriptor, and who is handed one. `io-gate-host` alone does for what a
//! guest can cause to be written; in `vmm` a list of modules does, for the control plane.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proc_macro2::{Span, TokenStream, TokenTree};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Expr, Item, Token, UseTree};

use super::finding::{Finding, Outcome, Place};
use super::rules;
use super::subject::Subject;

/// Beginnings of names by which a descriptor is opened.
const OPENS: &[&str] = &[
    "std::fs::",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os::unix::net::",
    "std::os::linux::net::",
    "std::process::Command",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "std::io::pipe",
    "tempfile::",
    "rustix::fs::",
    "rustix::net::",
    "rustix::io::",
    "rustix::pipe::",
    "rustix::stdio::",
    "nix::",
    "io_uring::",
    "memfd::",
    "kvm_ioctls::Kvm::",
    "vmm_sys_util::sock_ctrl_msg",
    "vmm_sys_util::tempfile",
    "std::os::fd::FromRawFd",
    "std::os::unix::io::FromRawFd",
];
/// Functions of libc by which a descriptor is opened.
const OPENS_LIBC: &[&str] = &[
    "open",
    "open64",
    "openat",
    "openat2",
    "creat",
    "fopen",
    "fdopen",
    "socket",
    "socketpair",
    "pipe",
    "pipe2",
    "dup",
    "dup2",
    "dup3",
    "memfd_create",
    "accept",
    "accept4",
    "shm_open",
    "mkstemp",
    "mkfifo",
    "eventfd",
    "timerfd_create",
    "signalfd",
    "epoll_create",
    "epoll_create1",
    "inotify_init",
    "inotify_init1",
    "userfaultfd",
    "syscall",
    "popen",
    "system",
    "fork",
    "vfork",
    "execv",
    "execve",
    "posix_spawn",
    "link",
    "symlink",
    "rename",
    "unlink",
    "mknod",
    "io_uring_setup",
    "pidfd_open",
    "perf_event_open",
    "fanotify_init",
    "mq_open",
];
/// Beginnings of names of things that are, or show, a descriptor.
const HOLDS: &[&str] = &["std::os::fd::", "std::os::unix::io::", "std::os::linux::io::"];
/// Functions of libc that write to a descriptor or change what is behind it.
const HOLDS_LIBC: &[&str] = &[
    "write",
    "pwrite",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "send",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "sendfile",
    "splice",
    "tee",
    "vmsplice",
    "copy_file_range",
    "fallocate",
    "ftruncate",
    "ioctl",
    "fcntl",
    "connect",
    "bind",
    "printf",
    "dprintf",
    "fwrite",
    "fputs",
    "puts",
    "fputc",
    "putchar",
];
/// Names below `std::fs` that are data, or only look.
const DATA: &[&str] = &[
    "std::fs::Metadata",
    "std::fs::TryLockError",
    "std::fs::FileType",
    "std::fs::Permissions",
    "std::fs::DirEntry",
    "std::fs::metadata",
    "std::fs::symlink_metadata",
    "std::fs::exists",
    "std::fs::canonicalize",
];
/// Types that are a descriptor; what is called on them may open one.
const TYPES: &[&str] = &[
    "std::fs::File",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::os::unix::net::UnixStream",
    "std::os::unix::net::UnixListener",
    "std::os::unix::net::UnixDatagram",
    "tempfile::NamedTempFile",
    "tempfile::TempDir",
];
/// Macros that write to the process's own descriptors.
const PRINTS: &[&str] = &["println", "print", "eprintln", "eprint", "dbg"];
/// Methods that make a descriptor of another, or of a number.
const METHODS: &[&str] =
    &["from_raw_fd", "into_raw_fd", "as_raw_fd", "try_clone_to_owned", "as_fd"];

/// What a place has to do with descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Opens,
    Holds,
}

/// Looks.
pub(crate) fn look(subject: &Subject) -> Result<Outcome> {
    let places = &subject.policy.descriptors;
    let mut needed = vec![(false, false); places.len()];
    let mut findings = Vec::new();
    for directory in &subject.descriptor_sources {
        for file in files(&subject.root.join(directory))? {
            let shown = subject.shown(&file);
            for (kind, what, line, column) in scan_file(&file)? {
                // The longest entry is the one that speaks of this file.
                let entry = places
                    .iter()
                    .enumerate()
                    .filter(|(_, place)| shown.starts_with(&place.path))
                    .max_by_key(|(_, place)| place.path.components().count());
                if let Some((index, place)) = entry {
                    needed[index].0 |= kind == Kind::Opens;
                    needed[index].1 = true;
                    if kind == Kind::Holds || place.opens {
                        continue;
                    }
                }
                let place = Some(Place { file: shown.clone(), line, column });
                let finding = match kind {
                    Kind::Opens => {
                        Finding::new(&rules::OPENS, place, format!("{what} opens a descriptor"))
                    }
                    Kind::Holds => Finding::new(
                        &rules::HOLDS,
                        place,
                        format!("{what} is, shows or uses a descriptor"),
                    ),
                };
                findings.push(finding);
            }
        }
    }
    if subject.whole {
        for (place, (opened, held)) in places.iter().zip(needed) {
            if !held || (place.opens && !opened) {
                let what = format!(
                    "{} does not {}",
                    place.path.display(),
                    if held { "open any" } else { "have to do with any" }
                );
                findings.push(Finding::new(
                    &rules::DESCRIPTORS_STALE,
                    Some(Place::line("gate.toml", 1)),
                    what,
                ));
            }
        }
    }
    Ok(Outcome::Looked(findings))
}

/// All `.rs` files below a directory.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let (mut left, mut found) = (vec![directory.to_owned()], Vec::new());
    while let Some(next) = left.pop() {
        for entry in
            fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

type Seen = (Kind, String, usize, usize);

fn scan_file(file: &Path) -> Result<Vec<Seen>> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let parsed =
        syn::parse_file(&text).with_context(|| format!("cannot parse {}", file.display()))?;
    Ok(scan(&parsed))
}

fn scan(parsed: &syn::File) -> Vec<Seen> {
    let mut scan = Scan::default();
    Imports(&mut scan.names).visit_file(parsed);
    scan.visit_file(parsed);
    scan.seen.dedup();
    scan.seen
}

/// What the names in a file stand for.
struct Imports<'a>(&'a mut BTreeMap<String, String>);

impl Imports<'_> {
    fn add(&mut self, tree: &UseTree, before: &str) {
        let join = |name: &dyn ToString| {
            let name = name.to_string();
            if before.is_empty() { name } else { format!("{before}::{name}") }
        };
        match tree {
            UseTree::Path(path) => self.add(&path.tree, &join(&path.ident)),
            UseTree::Name(name) if name.ident == "self" => {
                let last = before.rsplit("::").next().unwrap_or(before).to_owned();
                self.0.insert(last, before.to_owned());
            }
            UseTree::Name(name) => {
                self.0.insert(name.ident.to_string(), join(&name.ident));
            }
            UseTree::Rename(rename) => {
                let full =
                    if rename.ident == "self" { before.to_owned() } else { join(&rename.ident) };
                self.0.insert(rename.rename.to_string(), full);
            }
            UseTree::Glob(_) => {}
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add(tree, before)),
        }
    }
}

impl<'ast> Visit<'ast> for Imports<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add(&item.tree, "");
    }
}

#[derive(Default)]
struct Scan {
    names: BTreeMap<String, String>,
    seen: Vec<Seen>,
}

impl Scan {
    fn see(&mut self, kind: Kind, what: String, span: Span) {
        let start = span.start();
        self.seen.push((kind, what, start.line, start.column + 1));
    }

    fn path(&mut self, path: &syn::Path) {
        let mut segments = path.segments.iter().map(|segment| segment.ident.to_string());
        let Some(first) = segments.next() else { return };
        let first = self.names.get(&first).cloned().unwrap_or(first);
        let full = segments.fold(first, |full, next| format!("{full}::{next}"));
        if let Some(kind) = kind(&full) {
            self.see(kind, format!("`{full}`"), path.span());
        }
    }

    fn tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(word) if METHODS.contains(&word.to_string().as_str()) => {
                    self.see(Kind::Holds, format!("`{word}`"), word.span());
                }
                _ => {}
            }
        }
    }
}

fn kind(full: &str) -> Option<Kind> {
    let full = full.strip_prefix("::").unwrap_or(full);
    let begins = |list: &[&str]| list.iter().any(|start| full.starts_with(start));
    if begins(DATA) {
        return None;
    }
    if let Some(name) = full.strip_prefix("libc::") {
        let opens = OPENS_LIBC.contains(&name).then_some(Kind::Opens);
        return opens.or_else(|| HOLDS_LIBC.contains(&name).then_some(Kind::Holds));
    }
    if TYPES.contains(&full) || (begins(HOLDS) && !begins(OPENS)) {
        return Some(Kind::Holds);
    }
    begins(OPENS).then_some(Kind::Opens)
}

impl<'ast> Visit<'ast> for Scan {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !super::source::for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        // The import of a whole module of such names hides them from this scan.
        if let Some(glob) = globs(&item.tree, String::new())
            .into_iter()
            .find(|glob| kind(&format!("{glob}::")).is_some())
        {
            self.see(Kind::Opens, format!("`use {glob}::*`"), item.span());
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.path(path);
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if METHODS.iter().any(|name| call.method == name) {
            self.see(Kind::Holds, format!("`.{}()`", call.method), call.method.span());
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let name =
            call.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
        if PRINTS.contains(&name.as_str()) {
            self.see(Kind::Opens, format!("`{name}!`"), call.span());
        }
        match call.parse_body_with(Punctuated::<Expr, Token![,]>::parse_terminated) {
            Ok(arguments) => arguments.iter().for_each(|argument| self.visit_expr(argument)),
            Err(_) => self.tokens(call.tokens.clone()),
        }
    }
}

fn globs(tree: &UseTree, before: String) -> Vec<String> {
    let join = |name: &syn::Ident| {
        if before.is_empty() { name.to_string() } else { format!("{before}::{name}") }
    };
    match tree {
        UseTree::Path(path) => globs(&path.tree, join(&path.ident)),
        UseTree::Glob(_) => vec![before],
        UseTree::Group(group) => {
            group.items.iter().flat_map(|tree| globs(tree, before.clone())).collect()
        }
        UseTree::Name(_) | UseTree::Rename(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> Vec<(Kind, String)> {
        let parsed = syn::parse_file(text).expect("the test's source is valid");
        scan(&parsed).into_iter().map(|(kind, what, _, _)| (kind, what)).collect()
    }

    #[test]
    fn imported_and_renamed_names_are_known() {
        let text = "use std::fs::{self as f, File as Paper}; fn a() { f::write(1, 2); let p: Paper = Paper::open(3); }";
        let expected = [
            (Kind::Opens, "std::fs::write"),
            (Kind::Holds, "std::fs::File"),
            (Kind::Opens, "std::fs::File::open"),
        ];
        assert_eq!(seen(text), expected.map(|(kind, name)| (kind, format!("`{name}`"))));
    }

    #[test]
    fn addresses_constants_and_tests_are_not_descriptors() {
        let text = "use std::net::IpAddr; fn a(a: IpAddr) -> i32 { libc::EINTR }
            #[cfg(test)] mod tests { fn b() { std::fs::write(1, 2); } }";
        assert_eq!(seen(text), []);
    }

    #[test]
    fn a_whole_module_imported_is_seen() {
        assert_eq!(seen("use std::fs::*;"), [(Kind::Opens, "`use std::fs::*`".to_owned())]);
    }

    #[test]
    fn calls_of_libc_and_within_macros_are_seen() {
        let text = "fn a() { assert!(unsafe { libc::write(1, p, 2) } > 0); let s = unsafe { libc::socket(1, 2, 3) }; }";
        let expected = [(Kind::Holds, "`libc::write`"), (Kind::Opens, "`libc::socket`")];
        assert_eq!(seen(text), expected.map(|(kind, name)| (kind, name.to_owned())));
    }
}
