//! Makes names and titles with any contents safe to show.

/// Makes one line without characters that a terminal or an XML parser would interpret.
pub(crate) fn clean(text: &str) -> String {
    let fit = |it: char| match it {
        '\u{fffe}' | '\u{ffff}' => ' ',
        it if it.is_control() => ' ',
        it => it,
    };
    text.chars().map(fit).collect::<String>().trim().to_owned()
}

/// Escapes text for Markdown, also for a table cell: no markup, no HTML, no `{{#include}}` of
/// mdBook.
pub(crate) fn markdown(text: &str) -> String {
    escape(&clean(text))
}

/// Escapes a paragraph for Markdown like [`markdown`], but keeps code between backquotes. If code
/// has other characters than letters, digits, spaces, `-`, `.` and `/`, all backquotes are escaped.
pub(crate) fn paragraph(text: &str) -> String {
    let text = clean(text);
    let parts: Vec<&str> = text.split('`').collect();
    let is_safe = |code: &&str| {
        !code.is_empty()
            && code.bytes().all(|it| it.is_ascii_alphanumeric() || b" -./".contains(&it))
    };
    if parts.len().is_multiple_of(2) || !parts.iter().skip(1).step_by(2).all(is_safe) {
        return escape(&text);
    }
    let shown = parts.iter().enumerate().map(|(place, part)| match place % 2 {
        0 => escape(part),
        _ => format!("`{part}`"),
    });
    shown.collect()
}

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for it in text.chars() {
        match it {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '{' => escaped.push_str("&#123;"),
            '}' => escaped.push_str("&#125;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' | '$' => {
                escaped.extend(['\\', it]);
            }
            // At the start of a line, these characters begin a list or underline a heading.
            '-' | '+' | '=' if escaped.is_empty() => escaped.extend(['\\', it]),
            it => escaped.push(it),
        }
    }
    escaped
}
