//! Finds the expressions and statements of a source file that can be mutated, with their
//! replacements.
//!
//! All mutants are compiled at once. Each compares its number with the active one at run time: one
//! build serves the whole run.

use std::collections::HashSet;
use std::ops::Range;

use proc_macro2::Span;
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// A mutant: one change of the source.
#[derive(Clone, Debug)]
pub(crate) struct Mutant {
    pub(crate) file: String,
    pub(crate) line: usize,
    /// The enclosing function, with its type.
    pub(crate) function: String,
    /// The original code, in one line.
    pub(crate) code: String,
    /// The replacement.
    pub(crate) becomes: String,
}

impl Mutant {
    /// The mutant's name, which does not depend on the lines above it.
    pub(crate) fn name(&self) -> String {
        format!("{} {}: `{}` {}", self.file, self.function, self.code, self.becomes)
    }
}

/// FNV-1a, a hash that is the same in every release of the compiler.
pub(crate) fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A text that replaces bytes of the source.
#[derive(Debug)]
struct Edit {
    at: usize,
    instead: usize,
    /// Order of the edits at one byte: the outermost opening text comes first, and the innermost
    /// closing text.
    order: (u8, usize),
    text: String,
}

/// Finds all mutants of a file; returns the source with all of them compiled in.
pub(crate) fn mutate(file: &str, source: &str, mutants: &mut Vec<Mutant>) -> syn::Result<String> {
    let syntax = syn::parse_file(source)?;
    let mut finder = Finder {
        file,
        source,
        mutants,
        edits: Vec::new(),
        context: Vec::new(),
        forced: HashSet::new(),
        depth: 0,
        in_body: false,
        is_unit: false,
    };
    finder.visit_file(&syntax);
    let mut edits = finder.edits;
    edits.sort_by_key(|edit| (edit.at, edit.order));
    let (mut text, mut at) = (String::new(), 0);
    for edit in edits {
        text.push_str(&source[at..edit.at]);
        text.push_str(&edit.text);
        at = edit.at + edit.instead;
    }
    text.push_str(&source[at..]);
    Ok(text)
}

struct Finder<'a> {
    file: &'a str,
    source: &'a str,
    mutants: &'a mut Vec<Mutant>,
    edits: Vec<Edit>,
    /// Names of the enclosing types and functions.
    context: Vec<String>,
    /// Conditions that are already mutated.
    forced: HashSet<Range<usize>>,
    depth: usize,
    in_body: bool,
    /// Whether the function returns nothing: its last expression is then a statement.
    is_unit: bool,
}

/// At the same byte, text that closes an expression comes before text that opens the next.
const CLOSE: u8 = 0;
const REPLACE: u8 = 1;
const OPEN: u8 = 2;

impl Finder<'_> {
    fn text(&self, span: Span) -> &str {
        &self.source[span.byte_range()]
    }

    fn add(&mut self, span: Span, becomes: impl Into<String>) -> usize {
        let code: Vec<&str> = self.text(span).split_whitespace().collect();
        let mut code = code.join(" ");
        if code.len() > 90 {
            let end = code
                .char_indices()
                .map(|(at, _)| at)
                .take_while(|at| *at <= 87)
                .last()
                .unwrap_or(0);
            code.truncate(end);
            code.push_str("...");
        }
        self.mutants.push(Mutant {
            file: self.file.to_owned(),
            line: span.start().line,
            function: self.context.join("::"),
            code,
            becomes: becomes.into(),
        });
        self.mutants.len()
    }

    fn wrap(&mut self, span: Span, before: String, after: String) {
        let range = span.byte_range();
        self.depth += 1;
        // Insert this text before visiting the parts, so that the outermost comes first.
        self.edits.push(Edit {
            at: range.start,
            instead: 0,
            order: (OPEN, self.depth),
            text: before,
        });
        self.edits.push(Edit {
            at: range.end,
            instead: 0,
            order: (CLOSE, usize::MAX - self.depth),
            text: after,
        });
    }

    /// Adds two mutants, "always" and "never"; returns the number of the first. The second has the
    /// next number.
    fn always_and_never(&mut self, span: Span) -> usize {
        let always = self.add(span, "is always so");
        self.add(span, "is never so");
        always
    }

    /// Mutates a condition: always true, and never true.
    fn force(&mut self, expr: &syn::Expr) {
        let span = expr.span();
        if !self.forced.insert(span.byte_range()) {
            return;
        }
        let yes = self.always_and_never(span);
        self.wrap(span, format!("crate::mutants::force({yes}, "), ")".to_owned());
    }

    /// Mutates the condition of an `if`, a `while` or a guard, or a part of one.
    fn condition(&mut self, expr: &syn::Expr) {
        match expr {
            syn::Expr::Let(_) => {}
            syn::Expr::Paren(inner) => self.condition(&inner.expr),
            _ if is_deliberate(expr) => {}
            // The visitor mutates these.
            syn::Expr::Binary(binary) if is_boolean(&binary.op) => {}
            syn::Expr::Unary(unary) if matches!(unary.op, syn::UnOp::Not(_)) => {}
            syn::Expr::Macro(one) if one.mac.path.is_ident("matches") => {}
            _ => self.force(expr),
        }
    }

    /// Mutates `matches!(value, A | B)`: always true, never true, and without each pattern.
    fn matches(&mut self, expr: &syn::ExprMacro) {
        let parse = |input: syn::parse::ParseStream<'_>| {
            let value: syn::Expr = input.parse()?;
            input.parse::<syn::Token![,]>()?;
            let pattern = syn::Pat::parse_multi_with_leading_vert(input)?;
            let _: proc_macro2::TokenStream = input.parse()?;
            Ok((value, pattern))
        };
        let Ok((value, pattern)) = syn::parse::Parser::parse2(parse, expr.mac.tokens.clone())
        else {
            return;
        };
        let span = expr.span();
        let yes = self.always_and_never(span);
        let (mut before, mut after) = (format!("crate::mutants::force({yes}, "), String::new());
        if let syn::Pat::Or(cases) = &pattern {
            for case in &cases.cases {
                let (value, case) =
                    (self.text(value.span()).to_owned(), self.text(case.span()).to_owned());
                let number = self.add(span, format!("is not so for {case}"));
                before.push_str("crate::mutants::without(");
                after.insert_str(0, &format!(", {number}, matches!({value}, {case}))"));
            }
        }
        after.push(')');
        self.wrap(span, before, after);
    }

    /// Mutates a comparison: always true, never true, and with its bound moved by one.
    fn compare(&mut self, expr: &syn::ExprBinary) {
        let span = expr.span();
        let yes = self.always_and_never(span);
        let moved = match expr.op {
            syn::BinOp::Lt(_) => "<=",
            syn::BinOp::Le(_) => "<",
            syn::BinOp::Gt(_) => ">=",
            syn::BinOp::Ge(_) => ">",
            _ => return self.wrap(span, format!("crate::mutants::force({yes}, "), ")".to_owned()),
        };
        let op = self.text(expr.op.span()).to_owned();
        let number = self.add(span, format!("compares by {moved}"));
        let range = expr.op.span().byte_range();
        self.wrap(
            span,
            format!("crate::mutants::force({yes}, {{ let (left, right) = (&("),
            format!(")); if crate::mutants::is({number}) {{ left {moved} right }} else {{ left {op} right }} }})"),
        );
        let text = "), &(".to_owned();
        self.edits.push(Edit { at: range.start, instead: range.len(), order: (REPLACE, 0), text });
    }

    fn leave_out(&mut self, span: Span) {
        let number = self.add(span, "is left out");
        let before = format!("if crate::mutants::is({number}) {{}} else {{ ");
        self.wrap(span, before, " }".to_owned());
    }

    /// Mutates the arms of a match statement, which has no value: each arm can be left out.
    fn arms(&mut self, expr: &syn::ExprMatch) {
        for arm in &expr.arms {
            if matches!(
                &*arm.body,
                syn::Expr::MethodCall(_)
                    | syn::Expr::Call(_)
                    | syn::Expr::Assign(_)
                    | syn::Expr::Try(_)
            ) || is_assigning(&arm.body)
            {
                self.leave_out(arm.body.span());
            }
        }
    }

    fn within(&mut self, name: String, visit: impl FnOnce(&mut Self)) {
        self.context.push(name);
        visit(self);
        self.context.pop();
    }

    /// Mutates a function's body. `const` is removed, because the active number is read at run
    /// time.
    fn body(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let gives = match &signature.output {
            syn::ReturnType::Default => "",
            syn::ReturnType::Type(_, gives) => self.text(gives.span()),
        };
        if signature.constness.is_some() && gives != "bool" {
            // A constant may depend on this function.
            return;
        }
        let before = self.mutants.len();
        let unit = matches!(signature.output, syn::ReturnType::Default);
        let outer = (
            std::mem::replace(&mut self.in_body, true),
            std::mem::replace(&mut self.is_unit, unit),
        );
        self.within(signature.ident.to_string(), |finder| {
            if let (true, Some(syn::Stmt::Expr(end, None))) = (unit, block.stmts.last()) {
                match end {
                    syn::Expr::Match(one) => finder.arms(one),
                    syn::Expr::MethodCall(_) | syn::Expr::Call(_) => finder.leave_out(end.span()),
                    _ => {}
                }
            }
            finder.visit_block(block);
        });
        (self.in_body, self.is_unit) = outer;
        if let (Some(token), true) = (&signature.constness, self.mutants.len() > before) {
            let range = token.span.byte_range();
            let text = String::new();
            self.edits.push(Edit {
                at: range.start,
                instead: range.len(),
                order: (REPLACE, 0),
                text,
            });
        }
    }
}

fn is_boolean(op: &syn::BinOp) -> bool {
    use syn::BinOp::{And, Eq, Ge, Gt, Le, Lt, Ne, Or};
    matches!(op, And(_) | Or(_) | Eq(_) | Ne(_) | Lt(_) | Le(_) | Gt(_) | Ge(_))
}

fn is_assigning(expr: &syn::Expr) -> bool {
    use syn::BinOp::{AddAssign, BitOrAssign, SubAssign};
    match expr {
        syn::Expr::Assign(_) => true,
        syn::Expr::Binary(binary) => {
            matches!(binary.op, AddAssign(_) | SubAssign(_) | BitOrAssign(_))
        }
        _ => false,
    }
}

/// Whether the visitor mutates this expression.
fn is_forced(expr: &syn::Expr) -> bool {
    match expr {
        syn::Expr::Paren(inner) => is_forced(&inner.expr),
        syn::Expr::Macro(one) => one.mac.path.is_ident("matches"),
        _ => false,
    }
}

/// Whether this is the switch of a deliberate bug, which is off in the product.
fn is_deliberate(expr: &syn::Expr) -> bool {
    match expr {
        syn::Expr::Macro(one) => is_switch(&one.mac.path),
        syn::Expr::Unary(unary) => is_deliberate(&unary.expr),
        _ => false,
    }
}

fn is_switch(path: &syn::Path) -> bool {
    path.segments.last().is_some_and(|last| last.ident == "deliberate")
}

/// Whether this is always true while deliberate bugs are off: mutating the expressions beside it
/// would change nothing.
fn is_switched_off(expr: &syn::Expr) -> bool {
    matches!(expr, syn::Expr::Unary(unary) if is_deliberate(&unary.expr))
}

/// Whether a condition is true only with a deliberate bug: the code behind it does not run in the
/// product.
fn is_dead(condition: &syn::Expr) -> bool {
    match condition {
        syn::Expr::Macro(one) => is_switch(&one.mac.path),
        syn::Expr::Paren(inner) => is_dead(&inner.expr),
        syn::Expr::Binary(both) if matches!(both.op, syn::BinOp::And(_)) => {
            is_dead(&both.left) || is_dead(&both.right)
        }
        _ => false,
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|one| {
        one.path().is_ident("cfg")
            && one.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        // Texts for people are not tested, and the choice of defaults is free.
        let of = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
        if of.is_some_and(|of| ["Display", "Debug", "Default"].iter().any(|name| of.ident == name))
        {
            return;
        }
        let name = self.text(item.self_ty.span()).to_owned();
        self.within(name, |finder| visit::visit_item_impl(finder, item));
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_for_tests(&item.attrs) {
            self.body(&item.sig, &item.block);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.body(&item.sig, &item.block);
    }

    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}
    fn visit_type(&mut self, _: &'ast syn::Type) {}
    fn visit_generic_argument(&mut self, _: &'ast syn::GenericArgument) {}
    fn visit_pat(&mut self, _: &'ast syn::Pat) {}
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    fn visit_block(&mut self, block: &'ast syn::Block) {
        let last = block.stmts.len().wrapping_sub(1);
        for (at, statement) in block.stmts.iter().enumerate() {
            match statement {
                syn::Stmt::Expr(expr, semi) => {
                    let ends = matches!(
                        expr,
                        syn::Expr::Return(_) | syn::Expr::Break(_) | syn::Expr::Continue(_)
                    );
                    if semi.is_some() && !ends {
                        self.leave_out(statement.span());
                    }
                    if let (syn::Expr::Return(syn::ExprReturn { expr: Some(value), .. }), true) =
                        (expr, self.is_unit)
                    {
                        self.leave_out(value.span());
                    }
                    if let syn::Expr::Match(one) = expr
                        && (at != last || semi.is_some())
                    {
                        self.arms(one);
                    }
                }
                // Assertions are not mutated.
                syn::Stmt::Local(_) | syn::Stmt::Item(_) | syn::Stmt::Macro(_) => {}
            }
        }
        visit::visit_block(self, block);
    }

    /// An initial capacity changes only speed, so it is not mutated.
    fn visit_expr_call(&mut self, expr: &'ast syn::ExprCall) {
        if !self.text(expr.func.span()).ends_with("::with_capacity") {
            visit::visit_expr_call(self, expr);
        }
    }

    fn visit_expr_if(&mut self, expr: &'ast syn::ExprIf) {
        if is_dead(&expr.cond) {
            if let Some((_, otherwise)) = &expr.else_branch {
                self.visit_expr(otherwise);
            }
            return;
        }
        self.condition(&expr.cond);
        visit::visit_expr_if(self, expr);
    }

    fn visit_expr_while(&mut self, expr: &'ast syn::ExprWhile) {
        self.condition(&expr.cond);
        visit::visit_expr_while(self, expr);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if let Some((_, guard)) = &arm.guard {
            if is_dead(guard) {
                return;
            }
            self.condition(guard);
        }
        visit::visit_arm(self, arm);
    }

    fn visit_expr_binary(&mut self, expr: &'ast syn::ExprBinary) {
        use syn::BinOp::{And, Eq, Ge, Gt, Le, Lt, Ne, Or};
        if self.in_body {
            match expr.op {
                Eq(_) | Ne(_) | Lt(_) | Le(_) | Gt(_) | Ge(_) => self.compare(expr),
                And(_) if is_dead(&syn::Expr::Binary(expr.clone())) => return,
                Or(_) if is_switched_off(&expr.left) || is_switched_off(&expr.right) => return,
                And(_) | Or(_) => {
                    self.condition(&expr.left);
                    self.condition(&expr.right);
                }
                _ => {}
            }
        }
        visit::visit_expr_binary(self, expr);
    }

    fn visit_expr_unary(&mut self, expr: &'ast syn::ExprUnary) {
        // The operand is mutated, so the negation need not be.
        let negates = matches!(expr.op, syn::UnOp::Not(_)) && !is_deliberate(&expr.expr);
        if self.in_body && negates && !is_forced(&expr.expr) {
            let span = expr.span();
            let yes = self.always_and_never(span);
            self.wrap(span, format!("crate::mutants::Negated::forced({yes}, "), ")".to_owned());
        }
        visit::visit_expr_unary(self, expr);
    }

    fn visit_expr_macro(&mut self, expr: &'ast syn::ExprMacro) {
        if self.in_body && expr.mac.path.is_ident("matches") {
            self.matches(expr);
        }
    }

    fn visit_expr_closure(&mut self, expr: &'ast syn::ExprClosure) {
        let outer = std::mem::replace(&mut self.is_unit, false);
        visit::visit_expr_closure(self, expr);
        self.is_unit = outer;
    }

    fn visit_expr_repeat(&mut self, expr: &'ast syn::ExprRepeat) {
        self.visit_expr(&expr.expr);
    }

    fn visit_expr_lit(&mut self, expr: &'ast syn::ExprLit) {
        if let (syn::Lit::Int(number), true) = (&expr.lit, self.in_body) {
            let Ok(value) = number.base10_parse::<u64>() else { return };
            let other = format!("{}{}", value + 1, number.suffix());
            let span = expr.span();
            let site = self.add(span, format!("is {other}"));
            self.wrap(
                span,
                format!("(if crate::mutants::is({site}) {{ {other} }} else {{ "),
                " })".to_owned(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn of(source: &str) -> (Vec<String>, String) {
        let mut mutants = Vec::new();
        let text = mutate("file.rs", source, &mut mutants).unwrap();
        syn::parse_file(&text).unwrap();
        (mutants.iter().map(|one| format!("{} {}", one.code, one.becomes)).collect(), text)
    }

    #[test]
    fn conditions_comparisons_numbers_and_statements_are_mutated() {
        let (mutants, text) = of("fn f(a: u8) { if a < 3 && ready() { out.push(a); } }");
        let expected = [
            "ready() is always so",
            "ready() is never so",
            "a < 3 is always so",
            "a < 3 is never so",
            "a < 3 compares by <=",
            "3 is 4",
            "out.push(a); is left out",
        ];
        let (mut found, mut expected) = (mutants, expected.map(str::to_owned).to_vec());
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn each_alternative_of_a_pattern_is_left_out() {
        let (mutants, _) = of("fn f() -> bool { matches!(phase, A | B) }");
        let code = "matches!(phase, A | B)";
        let expected = ["is always so", "is never so", "is not so for A", "is not so for B"];
        assert_eq!(mutants, expected.map(|one| format!("{code} {one}")));
    }

    #[test]
    fn what_is_negated_is_forced_once() {
        let (mutants, text) = of("fn f() -> bool { !matches!(phase, A) && !ready() }");
        let expected = [
            "!ready() is always so",
            "!ready() is never so",
            "matches!(phase, A) is always so",
            "matches!(phase, A) is never so",
        ];
        let mut mutants = mutants;
        mutants.sort();
        assert_eq!(mutants, expected, "{text}");
    }

    #[test]
    fn tests_constants_choices_and_deliberate_faults_are_left_alone() {
        let (mutants, text) = of(
            "const N: u8 = 3; #[cfg(test)] mod tests { fn f() { g(); } } fn f() { if deliberate!(Bug) {} }
             fn h(&self) { if crate::deliberate!(Bug) && self.is(3) { self.g(); } let a = deliberate!(Bug) && self.b == 4; }
             fn i(&self) { if self.is(3) || !deliberate!(Bug) {} }
             impl Default for Options { fn default() -> Self { Self { retries: 3 } } } fn g() -> Vec<u8> { Vec::with_capacity(3) }",
        );
        assert_eq!(mutants, [""; 0]);
        assert!(!text.contains("mutants::"), "{text}");
    }
}
