//! Rules about text for people: the messages of panics, and the log.

use syn::spanned::Spanned;
use syn::{Expr, ExprLit, Lit, Macro};

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;
use crate::source::scan::Scan;

pub(crate) static MESSAGE: Lint = Lint {
    rule: Rule {
        id: "source/message",
        layer: Layer::Source,
        why: "A message is text for the operators of the machine: with the guest's bytes in it, it is a way out that the \
              gate does not hold.",
        instead: "Use fixed text in a panic, without placeholders: its location is printed anyway. Report facts for the \
                  operator with `io_gate::note`; send the guest's data as an effect.",
    },
    forbids: "A panic, an assertion or an `expect` whose message is more than fixed text.",
    example: "fn refuse(frame: &[u8]) { panic!(\"bad frame {frame:?}\"); }",
    is_written: true,
    names: Names::NONE,
};

pub(crate) static LOGGER: Lint = Lint {
    rule: Rule {
        id: "source/logger",
        layer: Layer::Source,
        why: "The gate does not hold the log: with the guest's bytes in it, it is a way out. As an object, the logger may \
              be any installed code.",
        instead: "Use `io_gate::note`: fixed text, and numbers.",
    },
    forbids: "The crate `log`.",
    example: "fn refuse(frame: &[u8]) { log::warn!(\"bad frame {frame:?}\"); }",
    is_written: true,
    names: Names { beginnings: &[&["log"]], ..Names::NONE },
};

/// Macros that panic with a message, and the position of the message among their arguments.
const MESSAGES: &[(&str, usize)] = &[
    ("panic", 0),
    ("unreachable", 0),
    ("todo", 0),
    ("unimplemented", 0),
    ("assert", 1),
    ("debug_assert", 1),
    ("assert_eq", 2),
    ("assert_ne", 2),
    ("debug_assert_eq", 2),
    ("debug_assert_ne", 2),
];

/// Checks a panic's message: it must be fixed text, so that it contains nothing of the guest's.
pub(in crate::source) fn call(scan: &mut Scan, macro_name: &str, arguments: &[Expr]) {
    let Some((_, first)) = MESSAGES.iter().find(|(name, _)| *name == macro_name) else { return };
    let mut message = arguments.iter().skip(*first);
    let Some(text) = message.next() else { return };
    let Expr::Lit(ExprLit { lit: Lit::Str(literal), .. }) = text else {
        let what = format!("the message of `{macro_name}!` is not a literal");
        return scan.report(&MESSAGE, text.span(), what);
    };
    if message.next().is_some() || has_placeholder(&literal.value()) {
        let what = format!("the message of `{macro_name}!` shows something");
        scan.report(&MESSAGE, literal.span(), what);
    }
}

/// Reports a panic whose arguments are no expressions.
pub(in crate::source) fn unread(scan: &mut Scan, macro_name: &str, call: &Macro) {
    if MESSAGES.iter().any(|(listed, _)| *listed == macro_name) {
        let what = format!("the arguments of `{macro_name}!` are more than a message");
        scan.report(&MESSAGE, call.span(), what);
    }
}

/// Checks a call of `expect`, whose message must be a literal, and of `set_logger`.
pub(in crate::source) fn method(scan: &mut Scan, call: &syn::ExprMethodCall) {
    let literal = |value: &Expr| matches!(value, Expr::Lit(_));
    let is_expect = ["expect", "expect_err"].iter().any(|name| call.method == name);
    if is_expect && !call.args.iter().all(literal) {
        let what = format!("the message of `.{}()` is not a literal", call.method);
        scan.report(&MESSAGE, call.span(), what);
    }
    if call.method == "set_logger" {
        scan.report(&LOGGER, call.span(), "`.set_logger()`");
    }
}

/// Whether a format string shows anything.
fn has_placeholder(text: &str) -> bool {
    text.replace("{{", "").contains('{')
}
