//! Reads the names of compiled functions: the crate, the type and the trait that a function belongs
//! to.

/// A symbol as a readable name: paths without the hashes of crates. Other names are C names.
pub(super) fn demangle(symbol: &str) -> String {
    match rustc_demangle::try_demangle(symbol) {
        Ok(name) => format!("{name:#}"),
        Err(_) => format!("C::{symbol}"),
    }
}

/// The path by which a function is known. For a method it is the path of its type, or of its trait
/// if the type belongs to no crate.
///
/// `<a::B>::c`, `<a::B as d::E>::c` and `<&mut a::B<f::G> as d::E>::c` are of `a::B`;
/// `<[u8] as d::E>::c` is of `d::E`.
pub(super) fn path(name: &str) -> String {
    let Some(inner) = name.strip_prefix('<') else { return plain(name) };
    let (whole, method) = split_closing(inner);
    let (own, of_trait) = match split_as(whole) {
        Some((own, of_trait)) => (own, Some(of_trait)),
        None => (whole, None),
    };
    let owner = type_path(own).or_else(|| of_trait.and_then(type_path));
    match owner {
        Some(owner) => format!("{owner}{}", plain(method)),
        None => format!("core::primitive{}", plain(method)),
    }
}

/// The path of the trait, if the function is a trait's method.
pub(super) fn trait_path(name: &str) -> Option<String> {
    let (whole, method) = split_closing(name.strip_prefix('<')?);
    let (_, of_trait) = split_as(whole)?;
    Some(format!("{}{}", type_path(of_trait)?, plain(method)))
}

/// The path of the item that a type names, without references, pointers and brackets. `None` for a
/// type that belongs to no crate.
fn type_path(text: &str) -> Option<String> {
    let mut text = text.trim();
    loop {
        let shorter = ["&", "*const ", "*mut ", "mut ", "dyn ", "[", "("];
        match shorter.iter().find_map(|start| text.strip_prefix(start)) {
            Some(rest) => text = rest.trim_start(),
            None => break,
        }
    }
    if text.starts_with('<') {
        return Some(path(text));
    }
    let found = plain(text);
    // A function type belongs to no crate.
    let is_path = found.contains("::") && !found.contains('(');
    is_path.then_some(found)
}

/// A path without its type arguments. The text after the path is cut off.
fn plain(text: &str) -> String {
    let (mut depth, mut out) = (0_usize, String::new());
    let mut last = ' ';
    for letter in text.chars() {
        match letter {
            '<' => depth += 1,
            // The arrow of a function's type closes no bracket.
            '>' if last != '-' => depth = depth.saturating_sub(1),
            ' ' | ',' | ';' | ']' | ')' | '+' if depth == 0 => break,
            _ if depth == 0 => out.push(letter),
            _ => {}
        }
        last = letter;
    }
    out.replace("::::", "::").trim_end_matches("::").to_owned()
}

/// The text within the angle bracket that was opened before `text`, and the text after it.
fn split_closing(text: &str) -> (&str, &str) {
    let (mut depth, mut last) = (1_usize, ' ');
    for (at, letter) in text.char_indices() {
        match letter {
            '<' => depth += 1,
            '>' if last != '-' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return (&text[..at], &text[at + 1..]);
        }
        last = letter;
    }
    (text, "")
}

/// Splits `a as b` at an `as` that is not within brackets.
fn split_as(text: &str) -> Option<(&str, &str)> {
    let (mut depth, mut last) = (0_usize, ' ');
    for (at, letter) in text.char_indices() {
        match letter {
            '<' | '(' | '[' => depth += 1,
            '>' if last != '-' => depth = depth.saturating_sub(1),
            ')' | ']' => depth = depth.saturating_sub(1),
            ' ' if depth == 0 && text[at..].starts_with(" as ") => {
                return Some((&text[..at], &text[at + 4..]));
            }
            _ => {}
        }
        last = letter;
    }
    None
}

/// All paths in a name.
pub(super) fn mentioned(name: &str) -> impl Iterator<Item = &str> {
    let is_of_path = |letter: char| letter.is_alphanumeric() || "_:{}#".contains(letter);
    let words = name.split(move |letter| !is_of_path(letter));
    let paths = words.filter(|word| word.contains("::") && !word.starts_with(':'));
    paths.map(|path| path.trim_end_matches(':'))
}

/// Whether a path is `start`, or below it.
pub(super) fn is_below(path: &str, start: &str) -> bool {
    path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_its_types() {
        let paths = [
            ("a::b::c::<d::E>", "a::b::c"),
            ("a::b::{closure#0}", "a::b::{closure#0}"),
            ("<a::B>::c", "a::B::c"),
            ("<a::B<f::G> as d::E>::c::<h::I>", "a::B::c"),
            ("<&mut a::B as d::E>::c", "a::B::c"),
            ("<[u8] as d::E>::c", "d::E::c"),
            (
                "<alloc::boxed::Box<dyn a::B + core::marker::Send> as d::E>::c",
                "alloc::boxed::Box::c",
            ),
            ("<fn(u8) -> a::B as d::E>::c", "d::E::c"),
            ("<dyn a::B<f::G = u8> as d::E>::c", "a::B::c"),
            ("<<a::B as d::E>::F as g::H>::c", "a::B::F::c"),
        ];
        for (name, expected) in paths {
            assert_eq!(path(name), expected, "{name}");
        }
    }

    #[test]
    fn a_method_is_its_traits_as_well() {
        let found =
            trait_path("<alloc::string::String as std::net::ToSocketAddrs>::to_socket_addrs");
        assert_eq!(found.as_deref(), Some("std::net::ToSocketAddrs::to_socket_addrs"));
        assert_eq!(trait_path("<a::B>::c"), None);
        assert_eq!(trait_path("a::b::c"), None);
    }

    #[test]
    fn all_that_a_name_mentions() {
        let name = "core::ptr::drop_in_place::<core::option::Option<&[a::B]>>";
        let expected = ["core::ptr::drop_in_place", "core::option::Option", "a::B"];
        assert_eq!(mentioned(name).collect::<Vec<_>>(), expected);
        let name = "<a::B<c::D> as e::F>::g::{closure#0}";
        assert_eq!(mentioned(name).collect::<Vec<_>>(), ["a::B", "c::D", "e::F"]);
    }

    #[test]
    fn below_is_by_whole_words() {
        assert!(is_below("std::fs::File", "std::fs") && is_below("std::fs", "std::fs"));
        assert!(!is_below("std::fsync", "std::fs"));
    }
}
