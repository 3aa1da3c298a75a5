//! The rule against `unsafe`.

use syn::spanned::Spanned;
use syn::{Block, Expr, Signature, Stmt};

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;
use crate::source::names::{DERIVED, segments};
use crate::source::scan::{Mode, Scan};

pub(crate) static UNSAFE: Lint = Lint {
    rule: Rule {
        id: "source/unsafe",
        layer: Layer::Source,
        why: "`unsafe` bypasses every other rule: it allows any pointer, a system call, a forged token.",
        instead: "There is always a safe way in a device: guest memory through `Chain`, effects through tokens. What needs `unsafe` belongs in `io-gate-host`.",
    },
    forbids: "`unsafe` blocks, functions, traits and implementations, in the arguments of macros too.",
    example: "fn forge() -> Token { unsafe { core::mem::transmute(1_u64) } }",
    is_written: false,
    names: Names::NONE,
};

pub(in crate::source) fn signature(scan: &mut Scan, signature: &Signature) {
    if let Some(word) = &signature.unsafety {
        scan.report(&UNSAFE, word.span(), format!("`unsafe fn {}`", signature.ident));
    }
}

pub(in crate::source) fn of_trait(scan: &mut Scan, item: &syn::ItemTrait) {
    if let Some(word) = &item.unsafety {
        scan.report(&UNSAFE, word.span(), "an `unsafe trait`");
    }
}

pub(in crate::source) fn of_impl(scan: &mut Scan, item: &syn::ItemImpl) {
    let Some(word) = &item.unsafety else { return };
    // `derive(Clone)` writes such an `impl` for plain types.
    let of_trait = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
    let is_derived = scan.mode() == Mode::Expanded
        && of_trait.is_some_and(|name| name.ident == "TrivialClone")
        && item.items.is_empty();
    if !is_derived {
        scan.report(&UNSAFE, word.span(), "an `unsafe impl`");
    }
}

pub(in crate::source) fn block(scan: &mut Scan, expression: &syn::ExprUnsafe) {
    if !(scan.mode() == Mode::Expanded && is_derived(&expression.block)) {
        scan.report(&UNSAFE, expression.unsafe_token.span, "an `unsafe` block");
    }
}

/// Whether a block is the one that `derive(PartialEq)` writes: `::core::intrinsics::unreachable()`
/// alone.
fn is_derived(block: &Block) -> bool {
    let [Stmt::Expr(Expr::Call(call), None)] = block.stmts.as_slice() else { return false };
    let Expr::Path(path) = &*call.func else { return false };
    path.path.leading_colon.is_some() && segments(&path.path) == DERIVED[1] && call.args.is_empty()
}
