//! The rule against macros that a crate defines, and checks of the tokens that a crate passes to
//! macros.

use proc_macro2::{TokenStream, TokenTree};
use syn::ext::IdentExt;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::Visit;
use syn::{Expr, Macro, Token};

use super::{ALL, Lint, Names, foreign, messages, objects, statics, unsafe_code};
use crate::layer::Layer;
use crate::rules::Rule;
use crate::source::scan::{Scan, last_name};

pub(crate) static MACRO: Lint = Lint {
    rule: Rule {
        id: "source/macro",
        layer: Layer::Source,
        why: "A local macro hides the code that runs behind a call.",
        instead: "Write a function, or a generic one.",
    },
    forbids: "`macro_rules!`, `#[macro_use]` and `#[macro_export]`.",
    example: "macro_rules! transmit { ($frame:expr) => { send($frame) } }",
    is_written: true,
    names: Names { attributes: &["macro_use", "macro_export"], ..Names::NONE },
};

/// Checks a definition.
pub(in crate::source) fn item(scan: &mut Scan, item: &syn::ItemMacro) {
    if let Some(name) = &item.ident {
        scan.report(&MACRO, item.span(), format!("the macro `{name}!` is defined here"));
    }
}

/// Checks a call: its name, and its arguments as expressions, or else as words.
pub(in crate::source) fn call(scan: &mut Scan, call: &Macro) {
    let name = last_name(&call.path);
    if let Some(lint) = ALL.iter().find(|lint| lint.names.macros.contains(&name.as_str())) {
        scan.report(lint, call.span(), format!("`{name}!`"));
    }
    // The body of a definition is checked where it is expanded.
    if name == "macro_rules" {
        return;
    }
    match call.parse_body_with(Punctuated::<Expr, Token![,]>::parse_terminated) {
        Ok(arguments) => {
            let arguments: Vec<Expr> = arguments.into_iter().collect();
            messages::call(scan, &name, &arguments);
            arguments.iter().for_each(|argument| scan.visit_expr(argument));
        }
        Err(_) => {
            messages::unread(scan, &name, call);
            tokens(scan, call.tokens.clone());
        }
    }
}

/// Words that break a rule anywhere in the arguments of a macro.
const WORDS: [(&str, &Lint); 4] = [
    ("unsafe", &unsafe_code::UNSAFE),
    ("extern", &foreign::EXTERN_BLOCK),
    ("static", &statics::STATIC),
    ("dyn", &objects::DYN),
];

/// Checks each word of tokens that are no expressions.
pub(in crate::source) fn tokens(scan: &mut Scan, stream: TokenStream) {
    let mut before: Vec<String> = Vec::new();
    for token in stream {
        match token {
            TokenTree::Group(group) => {
                before.clear();
                tokens(scan, group.stream());
            }
            TokenTree::Ident(word) => {
                let name = word.unraw().to_string();
                if let Some((_, lint)) = WORDS.iter().find(|(listed, _)| *listed == name) {
                    let what = format!("`{name}` in the arguments of a macro");
                    scan.report(lint, word.span(), what);
                }
                before.push(name);
                scan.names(&before, word.span());
            }
            TokenTree::Punct(mark) if mark.as_char() == ':' => {}
            _ => before.clear(),
        }
    }
}
