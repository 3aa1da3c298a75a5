//! The rule against loops that wait.

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::Visit;
use syn::{Block, Expr, Stmt};

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;
use crate::source::scan::Scan;

pub(crate) static SPIN: Lint = Lint {
    rule: Rule {
        id: "source/spin",
        layer: Layer::Source,
        why: "A device that waits blocks the machine, and waits for an input that is not recorded.",
        instead: "Return `Pending` or `Held`: the gate calls the device again when there is work.",
    },
    forbids: "A loop with an empty body, and `spin_loop`. A loop whose condition calls a method is free: it takes items from a queue.",
    example: "fn transmit(&mut self) { while !is_ready(self.port) {} }",
    is_written: false,
    names: Names { ends: &[&["spin_loop"]], ..Names::NONE },
};

pub(in crate::source) fn method(scan: &mut Scan, call: &syn::ExprMethodCall) {
    if call.method == "spin_loop" {
        scan.report(&SPIN, call.span(), "`.spin_loop()`");
    }
}

pub(in crate::source) fn of_loop(scan: &mut Scan, expression: &syn::ExprLoop) {
    body(scan, &expression.body, expression.span());
}

pub(in crate::source) fn of_while(scan: &mut Scan, expression: &syn::ExprWhile) {
    // A loop ends if its condition takes an item, for instance from a queue.
    let mut calls = MethodCall::default();
    calls.visit_expr(&expression.cond);
    if !calls.found {
        body(scan, &expression.body, expression.span());
    }
}

fn body(scan: &mut Scan, body: &Block, span: Span) {
    let idle = |statement: &Stmt| matches!(statement, Stmt::Expr(Expr::Block(block), _) if block.block.stmts.is_empty());
    if body.stmts.iter().all(idle) {
        scan.report(&SPIN, span, "a loop that does nothing but wait");
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
