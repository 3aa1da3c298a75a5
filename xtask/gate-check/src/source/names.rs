//! Finds the rule that a path breaks: each rule lists its names.

use syn::Path;
use syn::ext::IdentExt;

use super::lints::{ALL, Lint, Names};

/// Names in the code that `derive` writes to compare enums; code written by hand needs an unstable
/// feature to use them.
pub(super) const DERIVED: [&[&str]; 2] =
    [&["core", "intrinsics", "discriminant_value"], &["core", "intrinsics", "unreachable"]];

/// The names of a path, without arguments and `r#`.
pub(super) fn segments(path: &Path) -> Vec<String> {
    path.segments.iter().map(|segment| segment.ident.unraw().to_string()).collect()
}

/// The rule that a path breaks.
pub(super) fn path(segments: &[String]) -> Option<&'static Lint> {
    // Skip these names: `crate::io_gate` and `self::io_gate` are imports of `io_gate`.
    // `crate::host` is a module of the crate itself.
    let relative = |name: &&str| ["crate", "self", "super"].contains(name);
    let names: Vec<&str> = segments.iter().map(String::as_str).skip_while(relative).collect();
    // A name after a type belongs to the type: a variant may be called `Cell`.
    let is_types = |at: usize| at > 0 && names[at - 1].starts_with(char::is_uppercase);
    let stands = |listed: &Names| {
        let listed = |(at, name): (usize, &&str)| listed.anywhere.contains(name) && !is_types(at);
        names.iter().enumerate().any(listed)
    };
    let begins = |listed: &Names| listed.beginnings.iter().any(|start| names.starts_with(start));
    let ends = |listed: &Names| listed.ends.iter().any(|end| names.ends_with(end));
    let find = |breaks: &dyn Fn(&Names) -> bool| ALL.iter().find(|lint| breaks(&lint.names));
    find(&begins).or_else(|| find(&ends)).or_else(|| find(&stands)).copied()
}
