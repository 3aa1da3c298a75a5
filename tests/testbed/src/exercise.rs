//! Judges the output of a device to which the micro-guest writes numbered lines.
//!
//! At a takeover the standby repeats the bytes that may not have left. The stream may therefore
//! step back once per takeover, to any earlier byte. It must never skip a byte.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::findings::{Finding, Kind};

/// Summary of the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Exercise {
    /// Number of complete lines.
    pub lines: u64,
    /// Number of steps back.
    pub repeated: u64,
}

/// Checks the output in the file `path`, after at most `takeovers` takeovers.
///
/// # Errors
/// The file cannot be read.
pub fn check(path: &Path, takeovers: u64) -> Result<(Exercise, Vec<Finding>)> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(judge(&bytes, takeovers))
}

fn judge(bytes: &[u8], takeovers: u64) -> (Exercise, Vec<Finding>) {
    let expected = expected(bytes.len());
    // All positions in the expected stream at which the next byte may be.
    let mut places = vec![0];
    let mut furthest = 0;
    let mut repeated = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let fits = |place: &usize| expected.get(*place) == Some(byte);
        let mut next: Vec<usize> = places.iter().copied().filter(fits).map(|p| p + 1).collect();
        if next.is_empty() {
            repeated += 1;
            next = (0..furthest).filter(fits).map(|place| place + 1).collect();
        }
        let Some(last) = next.iter().copied().max() else {
            let what = format!(
                "byte {at} of the device's output is {byte:#04x}; expected the guest's numbered lines, unchanged (a \
                 device that prints something else is tested by its contract)"
            );
            return (Exercise::default(), vec![Finding::new(Kind::Corrupt, what)]);
        };
        furthest = furthest.max(last);
        places = next;
    }
    let whole = expected[..furthest].iter().filter(|byte| **byte == b'\n').count() as u64;
    let mut findings = Vec::new();
    if repeated > takeovers {
        let what = format!(
            "the device's output steps back {repeated} times; expected at most one step for each of {takeovers} takeovers: something is missing"
        );
        findings.push(Finding::new(Kind::Lost, what));
    }
    if whole <= takeovers {
        let what = format!("the device printed {whole} lines: the guest did not drive it");
        findings.push(Finding::new(Kind::Behaviour, what));
    }
    (Exercise { lines: whole, repeated }, findings)
}

/// At least `len` bytes of the expected output.
fn expected(len: usize) -> Vec<u8> {
    let mut stream = Vec::with_capacity(len + 32);
    let mut line = 0_u64;
    while stream.len() < len {
        line += 1;
        stream.extend_from_slice(format!("line {line}\n").as_bytes());
    }
    stream
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_stream_is_good() {
        let (seen, findings) = judge(b"line 1\nline 2\nline 3\nli", 1);
        assert_eq!((seen.lines, seen.repeated), (3, 0));
        assert!(findings.is_empty());
    }

    #[test]
    fn a_step_back_at_a_takeover_is_good() {
        for stream in
            [&b"line 1\nline 2\nline 3\nlinline 3\nline 4\n"[..], b"line 1\nline 2\n 2\nline 3\n"]
        {
            let (seen, findings) = judge(stream, 1);
            assert_eq!(seen.repeated, 1, "{findings:?}");
            assert!(findings.is_empty());
            assert!(!judge(stream, 0).1.is_empty());
        }
    }

    #[test]
    fn what_is_missing_is_found() {
        for stream in
            [&b"line 1\nline 3\nline 4\n"[..], b"line 1\nlne 2\nline 3\nline 4\n", b"line 1\n", b""]
        {
            assert!(!judge(stream, 1).1.is_empty(), "{}", String::from_utf8_lossy(stream));
        }
    }
}
