//! The layer `devices`: checks where devices are implemented. Every crate of the product that can
//! name the gate is either checked by all layers, or is on the list with a reason. A crate on the
//! list implements devices only in its listed places.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Package, PackageId};
use proc_macro2::{Span, TokenStream, TokenTree};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::finding::{Finding, Outcome, Place};
use super::layer::Layer;
use super::policy::FarSide;
use super::rules::{self, Rule};
use super::source::{self, files_below};
use super::subject::{Subject, library_name, package_dir};

/// Traits that make a type a device: the two contracts, and the traits that an adapter takes.
const TRAITS: [&str; 4] = ["Device", "RegisterDevice", "Foreign", "Keep"];
/// Prefixes of their names in compiled code.
const CONTRACTS: [&str; 2] = ["io_gate::", "io_gate_host::adapter::"];
/// The crate that has the contracts.
const GATE: &str = "io-gate";

/// Runs the layer.
pub(crate) fn look(subject: &Subject) -> Result<Outcome> {
    // A device outside of this tree has no product.
    let Some(product) = &subject.policy.gate.product else {
        return Ok(Outcome::Looked(Vec::new()));
    };
    if !subject.is_tree() {
        return Ok(Outcome::Looked(Vec::new()));
    }
    let graph = Graph::of(subject, product)?;
    let mut findings = Vec::new();
    for package in graph.who_know(GATE) {
        let name = package.name.as_str();
        let listed = subject.policy.far_side.iter().find(|entry| entry.name == name);
        if subject.packages.iter().any(|gated| gated == name) {
            findings.extend(scan(subject, package, None)?);
        } else if let Some(listed) = listed {
            findings.extend(scan(subject, package, Some(listed))?);
        } else {
            let what = format!("`{name}` can name the gate, and no layer checks it");
            findings.push(Finding::new(
                &rules::DEVICES_UNSEEN,
                Some(manifest(subject, package)),
                what,
            ));
        }
    }
    let in_product: BTreeSet<&str> =
        graph.packages.values().map(|package| package.name.as_str()).collect();
    for entry in subject.policy.far_side.iter().filter(|entry| !in_product.contains(&*entry.name)) {
        let what = format!("`{}` is not in the product", entry.name);
        findings.push(Finding::new(&rules::DEVICES_STALE, Some(Place::line("gate.toml", 1)), what));
    }
    Ok(Outcome::Looked(findings))
}

/// The crates that are linked into the product.
struct Graph<'s> {
    packages: BTreeMap<&'s PackageId, &'s Package>,
    /// The dependencies of each crate.
    edges: BTreeMap<&'s PackageId, Vec<&'s PackageId>>,
}

impl<'s> Graph<'s> {
    fn of(subject: &'s Subject, product: &str) -> Result<Self> {
        let resolve = subject.metadata.resolve.as_ref().context("cargo metadata has no graph")?;
        let all: BTreeMap<_, _> =
            subject.metadata.packages.iter().map(|package| (&package.id, package)).collect();
        let mut graph = Self { packages: BTreeMap::new(), edges: BTreeMap::new() };
        let mut left = VecDeque::from([&subject.package(product)?.id]);
        while let Some(id) = left.pop_front() {
            let node = resolve.nodes.iter().find(|node| node.id == *id);
            let node = node.with_context(|| format!("cargo metadata does not know {id}"))?;
            let linked = node.deps.iter().filter(|dependency| {
                dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
            });
            let next: Vec<_> = linked.map(|dependency| &dependency.pkg).collect();
            left.extend(next.iter().copied().filter(|id| !graph.packages.contains_key(*id)));
            graph.packages.insert(id, all[id]);
            graph.edges.insert(id, next);
        }
        Ok(graph)
    }

    /// The crates that depend on a crate of this name, directly or not: a crate may re-export what
    /// it depends on.
    fn who_know(&self, name: &str) -> Vec<&'s Package> {
        let named = |id: &&PackageId| self.packages[*id].name == name;
        let mut known: BTreeSet<&PackageId> = self.packages.keys().copied().filter(named).collect();
        loop {
            let more: Vec<_> = self
                .edges
                .iter()
                .filter(|(id, next)| {
                    !known.contains(*id) && next.iter().any(|id| known.contains(id))
                })
                .map(|(id, _)| *id)
                .collect();
            if more.is_empty() {
                let known = known.into_iter().map(|id| self.packages[id]);
                return known.filter(|package| package.name != name).collect();
            }
            known.extend(more);
        }
    }
}

fn manifest(subject: &Subject, package: &Package) -> Place {
    Place::line(subject.shown(&package.manifest_path), 1)
}

/// Checks all files of a crate. `far` says where devices may be implemented; in a gated crate they
/// may be anywhere.
fn scan(subject: &Subject, package: &Package, far: Option<&FarSide>) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in files_below(&package_dir(package).join("src"))? {
        let shown = subject.shown(&file);
        let free = far.is_none_or(|far| far.adapters.iter().any(|place| shown.starts_with(place)));
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let seen = match scan_text(&text) {
            Ok(seen) => seen,
            Err((line, said)) => {
                let place = Place::line(shown, line);
                findings.push(Finding::new(&rules::DEVICES_UNREADABLE, Some(place), said));
                continue;
            }
        };
        for (rule, what, span) in seen {
            if !(free && std::ptr::eq(rule, &rules::DEVICES_IMPLEMENTED)) {
                let start = span.start();
                let place =
                    Place { file: shown.clone(), line: start.line, column: start.column + 1 };
                findings.push(Finding::new(rule, Some(place), what));
            }
        }
    }
    Ok(findings)
}

/// Checks a method in the compiled code. `stands` is the module of its `impl`, `of_trait` the path
/// of the trait method that it implements. Finds a device that is implemented where that is not
/// allowed, even if a macro wrote it.
pub(super) fn compiled(subject: &Subject, stands: &str, of_trait: &str) -> Result<Option<Finding>> {
    let mut names = of_trait.rsplit("::").skip(1);
    let name = names.next().unwrap_or_default();
    let contract =
        TRAITS.contains(&name) && CONTRACTS.iter().any(|start| of_trait.starts_with(start));
    if !contract || may_implement(subject, stands)? {
        return Ok(None);
    }
    let what = format!("`{name}` is implemented in `{stands}`, by the compiled code");
    Ok(Some(Finding::new(&rules::DEVICES_IMPLEMENTED, None, what).seen_by(Layer::Calls)))
}

/// Whether a module of the compiled code is in a gated crate, or among the adapters.
fn may_implement(subject: &Subject, stands: &str) -> Result<bool> {
    let is_below = |start: &str| {
        stands.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    for package in subject.checked()? {
        if is_below(&library_name(package)?) {
            return Ok(true);
        }
    }
    for entry in &subject.policy.far_side {
        let package = subject.package(&entry.name)?;
        let source = subject.shown(package_dir(package).join("src"));
        for adapters in &entry.adapters {
            let Ok(place) = adapters.strip_prefix(&source) else { continue };
            let modules = place.with_extension("");
            let modules = modules.iter().map(|name| format!("::{}", name.to_string_lossy()));
            if is_below(&(library_name(package)? + &modules.collect::<String>())) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

type Seen = (&'static Rule, String, Span);

/// The implementations and hiding places in a file. The error has the line that cannot be read, and
/// the reason.
fn scan_text(text: &str) -> Result<Vec<Seen>, (usize, String)> {
    let parsed = source::parse(text)?;
    let mut scan = Scan::default();
    scan.visit_file(&parsed);
    Ok(scan.0)
}

#[derive(Default)]
struct Scan(Vec<Seen>);

impl Scan {
    /// Checks a macro's tokens, which may become any code. Finds `Device for`, and `impl $name
    /// for`, whose name the macro's caller gives.
    fn tokens(&mut self, tokens: TokenStream) {
        let trees: Vec<TokenTree> = tokens.into_iter().collect();
        for (index, tree) in trees.iter().enumerate() {
            match tree {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(word) if is(word, "for") => self.for_in_tokens(&trees[..index]),
                _ => {}
            }
        }
    }

    fn for_in_tokens(&mut self, before: &[TokenTree]) {
        let Some(TokenTree::Ident(name)) = before.last() else { return };
        let given = matches!(before.iter().rev().nth(1), Some(TokenTree::Punct(sign)) if sign.as_char() == '$');
        let implements =
            before.iter().any(|tree| matches!(tree, TokenTree::Ident(word) if is(word, "impl")));
        if TRAITS.iter().any(|listed| is(name, listed)) || (given && implements) {
            let what = format!("a macro implements `{name}`");
            self.0.push((&rules::DEVICES_IMPLEMENTED, what, name.span()));
        }
    }
}

fn is(word: &proc_macro2::Ident, name: &str) -> bool {
    word.unraw() == name
}

impl<'ast> Visit<'ast> for Scan {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if let syn::Item::Mod(module) = item
            && super::source::for_tests(&module.attrs)
        {
            return;
        }
        visit::visit_item(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let last = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
        if let Some(name) = last.filter(|last| TRAITS.iter().any(|listed| is(&last.ident, listed)))
        {
            let what = format!("`{}` is implemented here", name.ident);
            self.0.push((&rules::DEVICES_IMPLEMENTED, what, name.span()));
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_use_rename(&mut self, rename: &'ast syn::UseRename) {
        if TRAITS.iter().any(|listed| is(&rename.ident, listed)) && rename.rename != "_" {
            let what = format!("`{}` is called `{}`", rename.ident, rename.rename);
            self.0.push((&rules::DEVICES_HIDDEN, what, rename.span()));
        }
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if attribute.path().is_ident("path") {
            let what = "a module in a file elsewhere".to_owned();
            self.0.push((&rules::DEVICES_HIDDEN, what, attribute.span()));
        }
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
        if call.path.segments.last().is_some_and(|last| is(&last.ident, "include")) {
            let what = "code from a file elsewhere".to_owned();
            self.0.push((&rules::DEVICES_HIDDEN, what, call.span()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> Vec<&'static str> {
        let parsed = syn::parse_file(text).expect("the test's source is valid");
        let mut scan = Scan::default();
        scan.visit_file(&parsed);
        scan.0.into_iter().map(|(rule, ..)| rule.id).collect()
    }

    #[test]
    fn whatever_implements_a_device_is_seen() {
        for text in [
            "impl Device for A {}",
            "impl io_gate::RegisterDevice for A {}",
            "impl<T> self::x::Device for Box<T> {}",
            "fn f() { impl Device for A {} }",
            "impl r#Device for A {}",
            "macro_rules! m { () => { impl Device for A {} } }",
            "macro_rules! m { ($t:path) => { impl $t for A {} } }",
            "make! { impl Foreign for A {} }",
        ] {
            assert_eq!(seen(text), ["devices/implemented"], "{text}");
        }
        assert_eq!(seen("use io_gate::{Gate, Device as Gadget};"), ["devices/hidden"]);
        assert_eq!(seen("include!(\"elsewhere.rs\");"), ["devices/hidden"]);
        assert_eq!(seen("#[path = \"../elsewhere.rs\"] mod a;"), ["devices/hidden"]);
    }

    /// rustc compiles more brackets within each other than this tool reads.
    #[test]
    fn what_cannot_be_read_is_told() {
        let deep = format!("const A: () = {}{};", "(".repeat(140), ")".repeat(140));
        let (line, said) = scan_text(&deep).expect_err("it is too deep");
        assert_eq!((line, said.as_str()), (1, "more than 128 brackets within each other"));
    }

    #[test]
    fn what_only_uses_devices_is_not() {
        for text in [
            "use io_gate::Device as _; fn f(device: &dyn Device) {}",
            "impl DeviceMmio for A {} impl Clone for Device {}",
            "#[cfg(test)] mod tests { impl Device for A {} }",
            "fn f() { for device in devices { log::info!(\"{device} for {x}\"); } }",
        ] {
            assert_eq!(seen(text), Vec::<&str>::new(), "{text}");
        }
    }
}
