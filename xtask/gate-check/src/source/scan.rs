//! One walk over the syntax of a file, or of a crate after expansion.

use std::path::PathBuf;

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::ext::IdentExt;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Block, Expr, ExprLit, Field, FnArg, GenericParam, Generics, Item, ItemUse, Lit,
    Macro, Meta, Path as SynPath, Signature, Stmt, Token, TypeParamBound, UseTree, Visibility,
};

use super::files::for_tests;
use super::names;
use crate::finding::{Finding, Place};
use crate::layer::Layer;
use crate::rules::{self, Rule};

/// What is scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A file as its author wrote it.
    Source,
    /// A crate as the compiler sees it. It contains the code that derives write, so some rules are not applied.
    Expanded,
}

/// Rules that apply only to code that an author wrote.
const WRITTEN: [&str; 11] = [
    "source/cfg",
    "source/include",
    "source/path-attribute",
    "source/macro",
    "source/lint-attribute",
    "source/rename",
    "source/crate-attribute",
    "source/logger",
    "source/generic-device",
    "source/message",
    "source/lent-memory",
];
/// The only bounds that a type parameter of a device's type may have: otherwise the parameter brings in its user's code.
const SEALED_BOUNDS: [&str; 1] = ["EffectKind"];
/// Bounds through which no effect can be passed in: a device does not choose the arguments of their methods. `From` and
/// `PartialEq` are not among them: their methods are foreign code and take the guest's bytes.
const PLAIN_BOUNDS: [&str; 14] = [
    "Into",
    "TryInto",
    "AsRef",
    "Copy",
    "Clone",
    "Debug",
    "Display",
    "Eq",
    "Default",
    "Sized",
    "Send",
    "Sync",
    "EffectKind",
    "IntoIterator",
];

/// Lints that may not be weakened to warnings: the gate relies on them.
const WARNINGS_KEPT: [&str; 2] = ["unsafe_code", "disallowed"];
/// Names in the code that `derive` writes to compare enums; code written by hand needs an unstable feature to use them.
const DERIVED: [&[&str]; 2] =
    [&["core", "intrinsics", "discriminant_value"], &["core", "intrinsics", "unreachable"]];

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
    /// A walk over `file`, shown by this name.
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

    /// The attributes that a crate's root must have.
    pub(crate) fn crate_root(&mut self, parsed: &syn::File) {
        let has = |name: &str, inside: &str| {
            parsed.attrs.iter().any(|attribute| {
                attribute.path().is_ident(name)
                    && match &attribute.meta {
                        Meta::List(list) => list.tokens.to_string().contains(inside),
                        _ => inside.is_empty(),
                    }
            })
        };
        if !has("no_std", "") {
            self.report(
                &rules::CRATE_ROOT,
                Span::call_site(),
                "the crate does not say `#![no_std]`",
            );
        }
        if !has("forbid", "unsafe_code") {
            let what = "the crate does not say `#![forbid(unsafe_code)]`";
            self.report(&rules::CRATE_ROOT, Span::call_site(), what);
        }
    }

    fn report(&mut self, rule: &'static Rule, span: Span, what: impl Into<String>) {
        if self.mode == Mode::Expanded && WRITTEN.contains(&rule.id) {
            return;
        }
        let start = span.start();
        let place = Place { file: self.file.clone(), line: start.line, column: start.column + 1 };
        let finding = Finding::new(rule, Some(place), what);
        let finding = match self.mode {
            Mode::Source => finding,
            Mode::Expanded => finding.seen_by(Layer::Expanded),
        };
        self.found.push((self.modules.clone(), self.item.clone(), finding));
    }

    fn names(&mut self, segments: &[String], span: Span) {
        if let Some(rule) = names::path(segments) {
            let what = format!("`{}`", segments.join("::"));
            self.report(rule, span, what);
        }
    }

    /// The names that a `use` brings in.
    fn uses(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &syn::Ident| -> Vec<String> {
            before.iter().cloned().chain([name.unraw().to_string()]).collect()
        };
        match tree {
            UseTree::Path(path) => self.uses(&path.tree, &with(&path.ident)),
            UseTree::Name(name) => self.names(&with(&name.ident), name.ident.span()),
            UseTree::Rename(rename) => {
                let segments = with(&rename.ident);
                self.names(&segments, rename.ident.span());
                let root = |name: &String| names::ROOTS.contains(&name.as_str());
                if segments.len() <= 2 && segments.first().is_some_and(root) && rename.rename != "_"
                {
                    let what = format!("`use {} as {}`", segments.join("::"), rename.rename);
                    self.report(&rules::RENAME, rename.ident.span(), what);
                }
            }
            UseTree::Glob(glob) => {
                let root = |name: &String| names::ROOTS.contains(&name.as_str());
                self.names(before, glob.span());
                if before.first().is_some_and(root) {
                    let what = format!("`use {}::*`", before.join("::"));
                    self.report(&rules::RENAME, glob.span(), what);
                }
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.uses(tree, before)),
        }
    }

    /// Tokens that are no expressions: each word is checked.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut before: Vec<String> = Vec::new();
        for token in tokens {
            match token {
                TokenTree::Group(group) => {
                    before.clear();
                    self.tokens(group.stream());
                }
                TokenTree::Ident(word) => {
                    let name = word.unraw().to_string();
                    match name.as_str() {
                        "unsafe" => self.report(
                            &rules::UNSAFE,
                            word.span(),
                            "`unsafe` in the arguments of a macro",
                        ),
                        "extern" => self.report(
                            &rules::EXTERN_BLOCK,
                            word.span(),
                            "`extern` in the arguments of a macro",
                        ),
                        "static" => self.report(
                            &rules::STATIC,
                            word.span(),
                            "`static` in the arguments of a macro",
                        ),
                        "dyn" => self.report(
                            &rules::DYN,
                            word.span(),
                            "`dyn` in the arguments of a macro",
                        ),
                        _ => {}
                    }
                    before.push(name);
                    self.names(&before.clone(), word.span());
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' => {}
                _ => before.clear(),
            }
        }
    }

    fn generics(&mut self, generics: &Generics, plain_bounds: &[&str], of: &str) {
        for parameter in &generics.params {
            let GenericParam::Type(parameter) = parameter else { continue };
            let in_where = generics.where_clause.iter().flat_map(|clause| &clause.predicates);
            let bounds: Vec<String> = parameter
                .bounds
                .iter()
                .chain(
                    in_where
                        .filter_map(|predicate| {
                            match predicate {
                                syn::WherePredicate::Type(predicate)
                                    if is_ident(&predicate.bounded_ty, &parameter.ident) =>
                                {
                                    Some(&predicate.bounds)
                                }
                                _ => None,
                            }
                            .map(|bounds| bounds.iter())
                        })
                        .flatten(),
                )
                .filter_map(bound)
                .collect();
            let plain = |bound: &String| plain_bounds.contains(&bound.as_str());
            if bounds.is_empty() || !bounds.iter().all(plain) {
                let what = format!("{of} has the type parameter `{}`", parameter.ident);
                self.report(&rules::GENERIC, parameter.span(), what);
            }
        }
    }

    /// A bound on a type that is no parameter can bring in a conversion: `where Vec<u8>: Into<T>`.
    fn conditions(&mut self, generics: &Generics, of: &str) {
        let parameters: Vec<_> = generics.type_params().map(|parameter| &parameter.ident).collect();
        let conditions = generics.where_clause.iter().flat_map(|clause| &clause.predicates);
        for condition in conditions.filter(|_| !parameters.is_empty()) {
            let syn::WherePredicate::Type(condition) = condition else { continue };
            if !parameters.iter().any(|parameter| is_ident(&condition.bounded_ty, parameter)) {
                let what = format!("{of} has a condition on a type that is no parameter");
                self.report(&rules::GENERIC, condition.span(), what);
            }
        }
    }

    /// What others can pass in through a public trait: they implement it, and call its methods with their own types.
    fn contract(&mut self, item: &syn::ItemTrait) {
        let of = format!("the trait `{}`", item.ident);
        self.generics(&item.generics, &PLAIN_BOUNDS, &of);
        self.conditions(&item.generics, &of);
        for item in &item.items {
            match item {
                syn::TraitItem::Fn(method) => self.arguments(&method.sig),
                syn::TraitItem::Type(item) => {
                    let plain = |bound: &String| PLAIN_BOUNDS.contains(&bound.as_str());
                    let bound = item.bounds.iter().filter_map(bound).find(|bound| !plain(bound));
                    if let Some(bound) = bound {
                        let what = format!("the type `{}` of {of} is any `{bound}`", item.ident);
                        self.report(&rules::GENERIC, item.span(), what);
                    }
                }
                _ => {}
            }
        }
    }

    /// An `impl` for all types, which are foreign types.
    fn blanket(&mut self, item: &syn::ItemImpl) {
        let of_all = |parameter: &syn::TypeParam| is_ident(&item.self_ty, &parameter.ident);
        if item.trait_.is_some() && item.generics.type_params().any(of_all) {
            self.generics(&item.generics, &PLAIN_BOUNDS, "an `impl` for all types");
            self.conditions(&item.generics, "an `impl` for all types");
        }
    }

    /// What others can pass in through a public function.
    fn arguments(&mut self, signature: &Signature) {
        let of = format!("the public function `{}`", signature.ident);
        self.generics(&signature.generics, &PLAIN_BOUNDS, &of);
        self.conditions(&signature.generics, &of);
        for argument in &signature.inputs {
            let FnArg::Typed(argument) = argument else { continue };
            let mut finder = ImplTrait::default();
            finder.visit_type(&argument.ty);
            if let Some(bound) = finder.bound {
                self.report(&rules::DYN, argument.span(), format!("{of} takes any `{bound}`"));
            }
        }
    }

    fn signature(&mut self, signature: &Signature) {
        if let Some(word) = &signature.unsafety {
            self.report(&rules::UNSAFE, word.span(), format!("`unsafe fn {}`", signature.ident));
        }
        if let Some(abi) = &signature.abi {
            self.report(
                &rules::EXTERN_BLOCK,
                abi.span(),
                format!("`extern fn {}`", signature.ident),
            );
        }
        if let Some(word) = &signature.asyncness {
            self.report(&rules::DYN, word.span(), format!("`async fn {}`", signature.ident));
        }
    }

    /// What a public type keeps between calls.
    fn kept<'f>(
        &mut self,
        generics: &Generics,
        name: &syn::Ident,
        fields: impl Iterator<Item = &'f Field>,
    ) {
        let of = format!("the public type `{name}`");
        self.generics(generics, &SEALED_BOUNDS, &of);
        for field in fields {
            let mut finder = MutableReference::default();
            finder.visit_type(&field.ty);
            if finder.found {
                self.report(&rules::LENT, field.ty.span(), format!("{of} keeps a `&mut`"));
            }
        }
    }

    /// Checks a panic's message: it must be fixed text, so that it contains nothing of the guest's.
    fn message(&mut self, macro_name: &str, arguments: &[Expr]) {
        let Some((_, first)) = names::MESSAGES.iter().find(|(name, _)| *name == macro_name) else {
            return;
        };
        let mut message = arguments.iter().skip(*first);
        let Some(text) = message.next() else { return };
        let Expr::Lit(ExprLit { lit: Lit::Str(literal), .. }) = text else {
            let what = format!("the message of `{macro_name}!` is not a literal");
            return self.report(&rules::MESSAGE, text.span(), what);
        };
        if message.next().is_some() || has_placeholder(&literal.value()) {
            let what = format!("the message of `{macro_name}!` shows something");
            self.report(&rules::MESSAGE, literal.span(), what);
        }
    }

    fn waits(&mut self, body: &Block, span: Span) {
        let idle = |statement: &Stmt| matches!(statement, Stmt::Expr(Expr::Block(block), _) if block.block.stmts.is_empty());
        if body.stmts.iter().all(idle) {
            self.report(&rules::SPIN, span, "a loop that does nothing but wait");
        }
    }
}

impl<'ast> Visit<'ast> for Scan {
    fn visit_item(&mut self, item: &'ast Item) {
        if for_tests(attributes(item)) {
            return;
        }
        let before = self.item.clone();
        match item {
            Item::Mod(item) => {
                self.modules.push(item.ident.unraw().to_string());
                visit::visit_item_mod(self, item);
                self.modules.pop();
                return;
            }
            Item::Fn(item) => {
                self.item = item.sig.ident.unraw().to_string();
                if matches!(item.vis, Visibility::Public(_)) {
                    self.arguments(&item.sig);
                }
            }
            Item::Struct(item) => {
                self.item = item.ident.unraw().to_string();
                if matches!(item.vis, Visibility::Public(_)) {
                    self.kept(&item.generics, &item.ident, item.fields.iter());
                }
            }
            Item::Enum(item) => {
                self.item = item.ident.unraw().to_string();
                if matches!(item.vis, Visibility::Public(_)) {
                    self.kept(
                        &item.generics,
                        &item.ident,
                        item.variants.iter().flat_map(|variant| &variant.fields),
                    );
                }
            }
            Item::Static(item) => {
                self.report(&rules::STATIC, item.span(), format!("`static {}`", item.ident));
            }
            Item::ExternCrate(item) if item.ident != "alloc" && item.ident != "core" => {
                let listed = self.mode == Mode::Expanded && item.ident.unraw() == "serde";
                if !listed {
                    self.report(
                        &rules::EXTERN_CRATE,
                        item.span(),
                        format!("`extern crate {}`", item.ident),
                    );
                }
            }
            Item::ForeignMod(item) => {
                self.report(&rules::EXTERN_BLOCK, item.span(), "a block of foreign functions")
            }
            Item::Macro(item) if item.ident.is_some() => {
                let name = item.ident.as_ref().map(ToString::to_string).unwrap_or_default();
                self.report(
                    &rules::MACRO,
                    item.span(),
                    format!("the macro `{name}!` is defined here"),
                );
            }
            Item::Impl(item) => {
                self.blanket(item);
                if let Some(word) = &item.unsafety {
                    // What `derive(Clone)` writes for plain types.
                    let derived =
                        item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
                    let derived = self.mode == Mode::Expanded
                        && derived.is_some_and(|name| name.ident == "TrivialClone");
                    if !(derived && item.items.is_empty()) {
                        self.report(&rules::UNSAFE, word.span(), "an `unsafe impl`");
                    }
                }
            }
            Item::Trait(item) => {
                if matches!(item.vis, Visibility::Public(_)) {
                    self.contract(item);
                }
                if let Some(word) = &item.unsafety {
                    self.report(&rules::UNSAFE, word.span(), "an `unsafe trait`");
                }
            }
            Item::Verbatim(tokens) => self.tokens(tokens.clone()),
            _ => {}
        }
        visit::visit_item(self, item);
        self.item = before;
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if for_tests(&item.attrs) {
            return;
        }
        let before = std::mem::replace(&mut self.item, item.sig.ident.unraw().to_string());
        if matches!(item.vis, Visibility::Public(_)) {
            self.arguments(&item.sig);
        }
        visit::visit_impl_item_fn(self, item);
        self.item = before;
    }

    fn visit_signature(&mut self, signature: &'ast Signature) {
        self.signature(signature);
        visit::visit_signature(self, signature);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        let name = attribute
            .path()
            .segments
            .last()
            .map(|segment| segment.ident.unraw().to_string())
            .unwrap_or_default();
        let listed = names::ATTRIBUTES.iter().find(|(listed, _)| *listed == name);
        if let Some((_, rule)) = listed {
            self.report(rule, attribute.span(), format!("`#[{}]`", shown(attribute)));
        } else if name == "warn" && WARNINGS_KEPT.iter().any(|kept| shown(attribute).contains(kept))
        {
            self.report(
                &rules::LINT_ATTRIBUTE,
                attribute.span(),
                format!("`#[{}]`", shown(attribute)),
            );
        } else if name == "cfg" && !for_tests(std::slice::from_ref(attribute)) {
            self.report(&rules::CFG, attribute.span(), format!("`#[{}]`", shown(attribute)));
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.uses(&item.tree, &[]);
        visit::visit_item_use(self, item);
    }

    fn visit_path(&mut self, path: &'ast SynPath) {
        let segments: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.unraw().to_string()).collect();
        let names: Vec<&str> = segments.iter().map(String::as_str).collect();
        if !(self.mode == Mode::Expanded && DERIVED.contains(&names.as_slice())) {
            self.names(&segments, path.span());
        }
        // A marker is a type, not a value: a function in it is never called.
        if names.last() != Some(&"PhantomData") {
            visit::visit_path(self, path);
        }
    }

    fn visit_expr_unsafe(&mut self, expression: &'ast syn::ExprUnsafe) {
        if !(self.mode == Mode::Expanded && derived(&expression.block)) {
            self.report(&rules::UNSAFE, expression.unsafe_token.span, "an `unsafe` block");
        }
        visit::visit_expr_unsafe(self, expression);
    }

    fn visit_expr_async(&mut self, expression: &'ast syn::ExprAsync) {
        self.report(&rules::DYN, expression.span(), "an `async` block");
        visit::visit_expr_async(self, expression);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        let literal = |value: &Expr| matches!(value, Expr::Lit(_));
        if ["expect", "expect_err"].iter().any(|name| call.method == name)
            && !call.args.iter().all(literal)
        {
            let what = format!("the message of `.{}()` is not a literal", call.method);
            self.report(&rules::MESSAGE, call.span(), what);
        }
        if ["spin_loop", "set_logger"].iter().any(|name| call.method == name) {
            self.report(&rules::SPIN, call.span(), format!("`.{}()`", call.method));
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_loop(&mut self, expression: &'ast syn::ExprLoop) {
        self.waits(&expression.body, expression.span());
        visit::visit_expr_loop(self, expression);
    }

    fn visit_expr_while(&mut self, expression: &'ast syn::ExprWhile) {
        // A condition that takes an item, for instance from a queue, ends.
        let mut calls = MethodCall::default();
        calls.visit_expr(&expression.cond);
        if !calls.found {
            self.waits(&expression.body, expression.span());
        }
        visit::visit_expr_while(self, expression);
    }

    fn visit_expr_raw_addr(&mut self, expression: &'ast syn::ExprRawAddr) {
        self.report(&rules::POINTER, expression.span(), "a raw pointer is taken");
        visit::visit_expr_raw_addr(self, expression);
    }

    fn visit_type_ptr(&mut self, pointer: &'ast syn::TypePtr) {
        self.report(&rules::POINTER, pointer.span(), "a raw pointer");
        visit::visit_type_ptr(self, pointer);
    }

    fn visit_type_trait_object(&mut self, object: &'ast syn::TypeTraitObject) {
        let bound = object.bounds.iter().find_map(bound).unwrap_or_default();
        // What `derive(Debug)` writes for a struct of many fields.
        if !(self.mode == Mode::Expanded && bound == "Debug") {
            self.report(&rules::DYN, object.span(), format!("`dyn {bound}`"));
        }
        visit::visit_type_trait_object(self, object);
    }

    fn visit_type_bare_fn(&mut self, pointer: &'ast syn::TypeBareFn) {
        self.report(&rules::DYN, pointer.span(), "a function pointer");
        visit::visit_type_bare_fn(self, pointer);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        let name = call
            .path
            .segments
            .last()
            .map(|segment| segment.ident.unraw().to_string())
            .unwrap_or_default();
        if let Some((_, rule)) = names::MACROS.iter().find(|(listed, _)| *listed == name) {
            self.report(rule, call.span(), format!("`{name}!`"));
        }
        // The body of a definition is checked where it is expanded.
        if name != "macro_rules" {
            match call.parse_body_with(Punctuated::<Expr, Token![,]>::parse_terminated) {
                Ok(arguments) => {
                    let arguments: Vec<Expr> = arguments.into_iter().collect();
                    self.message(&name, &arguments);
                    arguments.iter().for_each(|argument| self.visit_expr(argument));
                }
                Err(_) => {
                    if names::MESSAGES.iter().any(|(listed, _)| *listed == name) {
                        let what = format!("the arguments of `{name}!` are more than a message");
                        self.report(&rules::MESSAGE, call.span(), what);
                    }
                    self.tokens(call.tokens.clone());
                }
            }
        }
        visit::visit_macro(self, call);
    }
}

/// The first `impl Trait` in a type whose bound is not plain.
#[derive(Default)]
struct ImplTrait {
    bound: Option<String>,
}

impl<'ast> Visit<'ast> for ImplTrait {
    fn visit_type_impl_trait(&mut self, found: &'ast syn::TypeImplTrait) {
        let plain = |bound: &String| PLAIN_BOUNDS.contains(&bound.as_str());
        self.bound = self
            .bound
            .take()
            .or_else(|| found.bounds.iter().filter_map(bound).find(|bound| !plain(bound)));
        visit::visit_type_impl_trait(self, found);
    }
}

/// Whether there is a `&mut` in a type.
#[derive(Default)]
struct MutableReference {
    found: bool,
}

impl<'ast> Visit<'ast> for MutableReference {
    fn visit_type_reference(&mut self, reference: &'ast syn::TypeReference) {
        self.found |= reference.mutability.is_some();
        visit::visit_type_reference(self, reference);
    }
}

/// Whether a method is called in an expression.
#[derive(Default)]
struct MethodCall {
    found: bool,
}

impl<'ast> Visit<'ast> for MethodCall {
    fn visit_expr_method_call(&mut self, _call: &'ast syn::ExprMethodCall) {
        self.found = true;
    }
}

/// Whether a format string shows anything.
fn has_placeholder(text: &str) -> bool {
    text.replace("{{", "").contains('{')
}

/// Whether a block is the one that `derive(PartialEq)` writes: `::core::intrinsics::unreachable()` alone.
fn derived(block: &Block) -> bool {
    let [Stmt::Expr(Expr::Call(call), None)] = block.stmts.as_slice() else { return false };
    let Expr::Path(path) = &*call.func else { return false };
    let names: Vec<String> =
        path.path.segments.iter().map(|segment| segment.ident.unraw().to_string()).collect();
    path.path.leading_colon.is_some() && names == DERIVED[1] && call.args.is_empty()
}

fn bound(bound: &TypeParamBound) -> Option<String> {
    match bound {
        TypeParamBound::Trait(bound) => {
            bound.path.segments.last().map(|segment| segment.ident.unraw().to_string())
        }
        _ => None,
    }
}

fn is_ident(ty: &syn::Type, ident: &syn::Ident) -> bool {
    matches!(ty, syn::Type::Path(path) if path.path.is_ident(ident))
}

fn shown(attribute: &Attribute) -> String {
    let name = attribute
        .path()
        .segments
        .iter()
        .map(|segment| segment.ident.unraw().to_string())
        .collect::<Vec<_>>()
        .join("::");
    match &attribute.meta {
        Meta::Path(_) => name,
        Meta::List(list) => format!("{name}({})", list.tokens),
        Meta::NameValue(_) => format!("{name} = ..."),
    }
}

fn attributes(item: &Item) -> &[Attribute] {
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
