//! One walk over the syntax of a file, or of a crate after expansion. It hands each piece of syntax
//! to the rules (`lints`) that are about it.

use std::path::PathBuf;

use proc_macro2::Span;
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Field, Generics, Item, Meta, Path as SynPath, Signature, Visibility};

use super::files::for_tests;
use super::lints::{
    Lint, attributes, extern_crate, far_side, foreign, generics, lent, macros, messages, objects,
    pointers, statics, unsafe_code, waits,
};
use super::names::{self, DERIVED, segments};
use crate::finding::{Finding, Place};
use crate::layer::Layer;

/// The code that is scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A file as its author wrote it.
    Source,
    /// A crate as the compiler sees it. It contains the code that derives write, so some rules are
    /// not applied.
    Expanded,
}

/// A walk.
#[derive(Debug)]
pub(crate) struct Scan {
    mode: Mode,
    file: PathBuf,
    /// The enclosing modules, for code after expansion.
    modules: Vec<String>,
    /// The innermost function or type.
    item: String,
    found: Vec<(Vec<String>, String, Finding)>,
}

impl Scan {
    /// A walk over a file. Findings show it as `file`.
    pub(crate) fn new(mode: Mode, file: PathBuf) -> Self {
        Self { mode, file, modules: Vec::new(), item: String::new(), found: Vec::new() }
    }

    /// Walks, and returns the findings.
    pub(crate) fn run(self, parsed: &syn::File) -> Vec<Finding> {
        self.run_within(parsed).into_iter().map(|(_, _, finding)| finding).collect()
    }

    /// Walks, and returns the findings with their enclosing modules and item.
    pub(crate) fn run_within(mut self, parsed: &syn::File) -> Vec<(Vec<String>, String, Finding)> {
        self.visit_file(parsed);
        self.found
    }

    /// Checks that a crate's root has the attributes that it must have.
    pub(crate) fn crate_root(&mut self, parsed: &syn::File) {
        attributes::crate_root(self, parsed);
    }

    pub(super) const fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn report(&mut self, lint: &'static Lint, span: Span, what: impl Into<String>) {
        if self.mode == Mode::Expanded && lint.is_written {
            return;
        }
        let start = span.start();
        let place = Place { file: self.file.clone(), line: start.line, column: start.column + 1 };
        let finding = Finding::new(&lint.rule, Some(place), what);
        let finding = match self.mode {
            Mode::Source => finding,
            Mode::Expanded => finding.seen_by(Layer::Expanded),
        };
        self.found.push((self.modules.clone(), self.item.clone(), finding));
    }

    /// Reports a path that breaks a rule by its names.
    pub(super) fn names(&mut self, segments: &[String], span: Span) {
        if let Some(lint) = names::path(segments) {
            self.report(lint, span, format!("`{}`", segments.join("::")));
        }
    }

    /// Checks what others can pass in through a public function.
    fn public_function(&mut self, signature: &Signature) {
        generics::function(self, signature);
        objects::arguments(self, signature);
    }

    /// Checks what a public type keeps between calls.
    fn public_type<'f>(
        &mut self,
        name: &syn::Ident,
        generics: &Generics,
        fields: impl Iterator<Item = &'f Field>,
    ) {
        generics::kept(self, generics, name);
        fields.for_each(|field| lent::field(self, name, field));
    }

    /// Checks what is in the item itself, and notes its name.
    fn enter(&mut self, item: &Item) {
        let is_public = |visibility: &Visibility| matches!(visibility, Visibility::Public(_));
        match item {
            Item::Fn(item) => {
                self.item = item.sig.ident.unraw().to_string();
                if is_public(&item.vis) {
                    self.public_function(&item.sig);
                }
            }
            Item::Struct(item) => {
                self.item = item.ident.unraw().to_string();
                if is_public(&item.vis) {
                    self.public_type(&item.ident, &item.generics, item.fields.iter());
                }
            }
            Item::Enum(item) => {
                self.item = item.ident.unraw().to_string();
                if is_public(&item.vis) {
                    let fields = item.variants.iter().flat_map(|variant| &variant.fields);
                    self.public_type(&item.ident, &item.generics, fields);
                }
            }
            Item::Static(item) => statics::item(self, item),
            Item::ExternCrate(item) => extern_crate::item(self, item),
            Item::ForeignMod(item) => foreign::block(self, item),
            Item::Macro(item) => macros::item(self, item),
            Item::Impl(item) => {
                generics::blanket(self, item);
                unsafe_code::of_impl(self, item);
            }
            Item::Trait(item) => {
                if is_public(&item.vis) {
                    generics::contract(self, item);
                }
                unsafe_code::of_trait(self, item);
            }
            Item::Verbatim(tokens) => macros::tokens(self, tokens.clone()),
            _ => {}
        }
    }
}

impl<'ast> Visit<'ast> for Scan {
    fn visit_item(&mut self, item: &'ast Item) {
        if for_tests(attributes_of(item)) {
            return;
        }
        if let Item::Mod(item) = item {
            self.modules.push(item.ident.unraw().to_string());
            visit::visit_item_mod(self, item);
            self.modules.pop();
            return;
        }
        let before = self.item.clone();
        self.enter(item);
        visit::visit_item(self, item);
        self.item = before;
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if for_tests(&item.attrs) {
            return;
        }
        let before = std::mem::replace(&mut self.item, item.sig.ident.unraw().to_string());
        if matches!(item.vis, Visibility::Public(_)) {
            self.public_function(&item.sig);
        }
        visit::visit_impl_item_fn(self, item);
        self.item = before;
    }

    fn visit_signature(&mut self, signature: &'ast Signature) {
        unsafe_code::signature(self, signature);
        foreign::signature(self, signature);
        objects::signature(self, signature);
        visit::visit_signature(self, signature);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        attributes::attribute(self, attribute);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        far_side::uses(self, &item.tree, &[]);
        visit::visit_item_use(self, item);
    }

    fn visit_path(&mut self, path: &'ast SynPath) {
        let segments = segments(path);
        let is_derived = self.mode == Mode::Expanded && DERIVED.iter().any(|of| segments == *of);
        if !is_derived {
            self.names(&segments, path.span());
        }
        // A marker is a type, not a value: a function in it is never called.
        if segments.last().is_none_or(|name| name != "PhantomData") {
            visit::visit_path(self, path);
        }
    }

    fn visit_expr_unsafe(&mut self, expression: &'ast syn::ExprUnsafe) {
        unsafe_code::block(self, expression);
        visit::visit_expr_unsafe(self, expression);
    }

    fn visit_expr_async(&mut self, expression: &'ast syn::ExprAsync) {
        objects::async_block(self, expression);
        visit::visit_expr_async(self, expression);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        messages::method(self, call);
        waits::method(self, call);
        visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_loop(&mut self, expression: &'ast syn::ExprLoop) {
        waits::of_loop(self, expression);
        visit::visit_expr_loop(self, expression);
    }

    fn visit_expr_while(&mut self, expression: &'ast syn::ExprWhile) {
        waits::of_while(self, expression);
        visit::visit_expr_while(self, expression);
    }

    fn visit_expr_raw_addr(&mut self, expression: &'ast syn::ExprRawAddr) {
        pointers::taken(self, expression);
        visit::visit_expr_raw_addr(self, expression);
    }

    fn visit_type_ptr(&mut self, pointer: &'ast syn::TypePtr) {
        pointers::named(self, pointer);
        visit::visit_type_ptr(self, pointer);
    }

    fn visit_type_trait_object(&mut self, object: &'ast syn::TypeTraitObject) {
        objects::of_trait(self, object);
        visit::visit_type_trait_object(self, object);
    }

    fn visit_type_bare_fn(&mut self, pointer: &'ast syn::TypeBareFn) {
        objects::function_pointer(self, pointer);
        visit::visit_type_bare_fn(self, pointer);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        macros::call(self, call);
        visit::visit_macro(self, call);
    }
}

/// The last name of a path.
pub(super) fn last_name(path: &SynPath) -> String {
    path.segments.last().map(|segment| segment.ident.unraw().to_string()).unwrap_or_default()
}

/// An attribute as findings show it.
pub(super) fn shown(attribute: &Attribute) -> String {
    let name = segments(attribute.path()).join("::");
    match &attribute.meta {
        Meta::Path(_) => name,
        Meta::List(list) => format!("{name}({})", list.tokens),
        Meta::NameValue(_) => format!("{name} = ..."),
    }
}

fn attributes_of(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
