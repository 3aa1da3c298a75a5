//! Names and titles, which may hold anything, made fit for where they are shown.

/// On one line, and without what a terminal or a parser of XML would take for a command.
pub(in crate::bench) fn clean(text: &str) -> String {
    let fit = |it: char| match it {
        '\u{fffe}' | '\u{ffff}' => ' ',
        it if it.is_control() => ' ',
        it => it,
    };
    text.chars().map(fit).collect::<String>().trim().to_owned()
}

/// As text in Markdown, in a cell of a table too: no markup, no HTML, no `{{#include}}` of mdBook.
pub(in crate::bench) fn markdown(text: &str) -> String {
    let mut escaped = String::new();
    for it in clean(text).chars() {
        match it {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '{' => escaped.push_str("&#123;"),
            '}' => escaped.push_str("&#125;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' | '$' => {
                escaped.extend(['\\', it]);
            }
            // A list, or a line under a heading, if nothing stands before it.
            '-' | '+' | '=' if escaped.is_empty() => escaped.extend(['\\', it]),
            it => escaped.push(it),
        }
    }
    escaped
}
