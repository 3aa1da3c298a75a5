//! Finds code of the monitor that is not in every build: with it, the program that ships could
//! differ from the checked one.
//!
//! Each word of a file is checked, whatever surrounds it: the arguments of a macro may become code,
//! too.

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::ext::IdentExt;

/// Macros and attributes that test how the program is built.
const CONDITIONS: [&str; 3] = ["cfg", "cfg_attr", "cfg_select"];
/// Macros that read a variable of the environment at compile time.
const VARIABLES: [&str; 2] = ["env", "option_env"];
/// The variables that are the same in every build: the package's name and version.
pub(crate) const FIXED: &str = "CARGO_PKG_";
/// Words of conditions that leave nothing out of what ships.
const PLAIN: [&str; 5] = ["test", "not", "any", "all", "feature"];

/// Finds what depends on how the file is built, in a crate with these cargo features.
pub(super) fn look(tokens: TokenStream, features: &[&str]) -> Vec<(String, Span)> {
    let mut found = Vec::new();
    each_word(tokens, |name, span, next| {
        found.extend(word_breaks(name, next, features).map(|what| (what, span)));
    });
    found
}

/// Visits each word of a file, without `r#`, and the tokens after it within the same brackets.
pub(super) fn each_word(tokens: TokenStream, mut visit: impl FnMut(&str, Span, &[TokenTree])) {
    let mut left = vec![tokens];
    while let Some(tokens) = left.pop() {
        let trees: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, tree) in trees.iter().enumerate() {
            match tree {
                TokenTree::Group(group) => left.push(group.stream()),
                TokenTree::Ident(word) => {
                    visit(&word.unraw().to_string(), word.span(), &trees[at + 1..]);
                }
                _ => {}
            }
        }
    }
}

/// The text of a finding about a word and the tokens after it, if they depend on the build.
fn word_breaks(name: &str, next: &[TokenTree], features: &[&str]) -> Option<String> {
    let called = matches!(next.first(), Some(TokenTree::Punct(mark)) if mark.as_char() == '!');
    let renamed = matches!(next.first(), Some(TokenTree::Ident(word)) if word == "as");
    let arguments = match next.get(usize::from(called)) {
        Some(TokenTree::Group(group)) => Some(group.stream()),
        _ => None,
    };
    if VARIABLES.contains(&name) && called {
        let variable = arguments.map(|tokens| tokens.to_string()).unwrap_or_default();
        let fixed = variable.trim_matches('"').starts_with(FIXED);
        return (!fixed).then(|| format!("`{name}!({variable})`"));
    }
    // `cfg` or `env` alone is no finding: a local variable may be called `cfg`, and std has a
    // module `env`.
    let is_macros = CONDITIONS.contains(&name) || name == VARIABLES[1];
    if (is_macros || name == VARIABLES[0]) && renamed {
        return Some(format!("`{name}` by another name"));
    }
    if name == VARIABLES[1] {
        return Some(format!("`{name}`"));
    }
    let arguments = arguments.filter(|_| CONDITIONS.contains(&name))?;
    let plain = name == CONDITIONS[0] && is_plain(arguments.clone(), features);
    (!plain).then(|| format!("`{name}({arguments})`"))
}

/// Whether a condition tests only for tests and for the crate's own features.
fn is_plain(condition: TokenStream, features: &[&str]) -> bool {
    condition.into_iter().all(|tree| match tree {
        TokenTree::Ident(word) => PLAIN.iter().any(|plain| word == plain),
        TokenTree::Group(group) => is_plain(group.stream(), features),
        TokenTree::Literal(literal) => {
            let text = literal.to_string();
            features.iter().any(|feature| text == format!("\"{feature}\""))
        }
        TokenTree::Punct(_) => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> Vec<String> {
        let tokens = text.parse().expect("the test's source is of words");
        look(tokens, &["etcd"]).into_iter().map(|(what, _)| what).collect()
    }

    #[test]
    fn what_is_in_some_builds_only_is_seen() {
        for text in [
            "#[cfg(debug_assertions)] fn f() {}",
            "#[cfg(not(shipped))] fn f() {}",
            "#[cfg(feature = \"fast\")] fn f() {}",
            "#[cfg(all(test, target_feature = \"avx2\"))] fn f() {}",
            "#[cfg_attr(test, path = \"x.rs\")] mod a;",
            "fn f() { if cfg!(debug_assertions) {} }",
            "fn f() { core::cfg_select! { unix => {} _ => {} } }",
            "m! { #[cfg(unix)] fn f() {} }",
            "const A: bool = option_env!(\"CARGO_PROFILE_RELEASE_OPT_LEVEL\").is_none();",
            "const A: &str = env!(\"OUT_DIR\");",
            "include!(concat!(r#env!(\"OUT_DIR\"), \"/a.rs\"));",
            "use std::cfg as when;",
            "use std::env as variable;",
            "m!(option_env, \"A\");",
        ] {
            assert_eq!(seen(text).len(), 1, "{text}: {:?}", seen(text));
        }
    }

    #[test]
    fn what_is_in_all_of_them_is_not() {
        for text in [
            "#[cfg(test)] mod tests;",
            "#[cfg(not(test))] fn f() {}",
            "#[cfg(all(feature = \"etcd\", not(test)))] fn f() {}",
            "const VERSION: &str = env!(\"CARGO_PKG_VERSION\");",
            "fn f(cfg: Cfg) { std::env::args(); let env = cfg; }",
        ] {
            assert_eq!(seen(text), Vec::<String>::new(), "{text}");
        }
    }
}
