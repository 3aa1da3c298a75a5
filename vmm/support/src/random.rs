//! Unique names and numbers.
//!
//! The operating system's randomness keys them; every process can read it without a file.

use std::hash::{BuildHasher, RandomState};

/// A name of 32 hexadecimal digits.
#[must_use]
pub fn random_id() -> String {
    format!("{:016x}{:016x}", number(), number())
}

/// A random number other than 0, which means "none".
#[must_use]
pub fn random_number() -> u64 {
    number().max(1)
}

fn number() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn none_is_like_another() {
        let ids: BTreeSet<String> = std::iter::repeat_with(random_id).take(1000).collect();
        assert!(ids.len() == 1000 && ids.iter().all(|id| id.len() == 32));
        let many = || std::iter::repeat_with(random_number).take(1000).collect::<BTreeSet<_>>();
        let mut numbers = many();
        // Each thread has its own keys.
        numbers.extend(std::thread::spawn(many).join().unwrap());
        assert!(numbers.len() == 2000 && !numbers.contains(&0));
    }
}
