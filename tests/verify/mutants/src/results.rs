//! Stores verdicts in a file, so that an interrupted run continues where it was.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

/// The verdicts of one judge, by the mutant's number, each with the judge's message if it finds the
/// mutant.
pub(crate) struct Results {
    known: HashMap<usize, Option<String>>,
    file: File,
}

impl Results {
    /// Opens the file with this key, or creates it.
    pub(crate) fn open(folder: &Path, key: &str) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join(key);
        let text = if path.exists() { fs::read_to_string(&path)? } else { String::new() };
        // Ignore an incomplete line.
        let known = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        if !text.is_empty() && !text.ends_with('\n') {
            writeln!(file)?;
        }
        Ok(Self { known, file })
    }

    pub(crate) fn of(&self, number: usize) -> Option<&Option<String>> {
        self.known.get(&number)
    }

    pub(crate) fn add(&mut self, number: usize, found: Option<String>) -> Result<()> {
        let line = serde_json::to_string(&(number, &found))?;
        writeln!(self.file, "{line}").context("cannot keep the results")?;
        self.known.insert(number, found);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn results_are_there_again_but_for_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::open(folder.path(), "key").unwrap();
        results.add(3, Some("a test".to_owned())).unwrap();
        results.add(4, None).unwrap();
        write!(results.file, "[5,nu").unwrap();
        let mut again = Results::open(folder.path(), "key").unwrap();
        assert_eq!(again.of(3), Some(&Some("a test".to_owned())));
        assert_eq!((again.of(4), again.of(5)), (Some(&None), None));
        again.add(5, None).unwrap();
        assert_eq!(Results::open(folder.path(), "key").unwrap().of(5), Some(&None));
        assert_eq!(Results::open(folder.path(), "other").unwrap().of(3), None);
    }
}
