//! Finds code of the monitor that sets its own linker name or section.
//!
//! Checks each word of a file, as [`super::builds`] does.

use proc_macro2::{Span, TokenStream};

const WORDS: [&str; 5] = ["no_mangle", "export_name", "link_name", "link_section", "linkage"];

/// Finds the words that set such a name or section.
pub(super) fn look(tokens: TokenStream) -> Vec<(String, Span)> {
    let mut found = Vec::new();
    super::builds::each_word(tokens, |name, span, _| {
        if WORDS.contains(&name) {
            found.push((format!("`{name}`"), span));
        }
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gives_a_name_to_the_linker_is_seen() {
        for (text, count) in [
            ("#[unsafe(no_mangle)] extern \"C\" fn sched_yield() {}", 1),
            ("#[export_name = \"read\"] fn f() {}", 1),
            ("m! { #[r#link_section = \".x\"] static A: u8 = 0; }", 1),
            ("fn mangle(linkages: u8) {}", 0),
        ] {
            let tokens = text.parse().expect("the test's source is of words");
            assert_eq!(look(tokens).len(), count, "{text}");
        }
    }
}
