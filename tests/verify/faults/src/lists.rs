//! The product's seccomp lists: the system calls that each role may make.

/// A copy of the lists in `vmm/confine/src/seccomp/filter.rs`; a test there compares the two.
const LISTS: &str = include_str!("../lists.txt");

/// Role, name and number of each call on a list, in order.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str, i64)> {
    LISTS.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?, words.next()?, words.next()?.parse().ok()?))
    })
}

/// The calls that any thread may make.
pub(crate) fn numbers() -> Vec<i64> {
    let mut numbers: Vec<i64> = all().map(|(_, _, number)| number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// The number of a call on a list.
pub(crate) fn number(name: &str) -> Option<i64> {
    all().find(|(_, other, _)| *other == name).map(|(_, _, number)| number)
}

/// The name of a call on a list.
pub(crate) fn name(number: i64) -> &'static str {
    all().find(|(_, _, other)| *other == number).map_or("?", |(_, name, _)| name)
}
