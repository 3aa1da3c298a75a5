//! `--serial` and `--virtio-console`: the backend of a console.

use std::path::PathBuf;
use std::str::FromStr;

/// The backend of a console: `stdio`, `file=PATH` or `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleConfig {
    /// This process's standard input and output.
    Stdio,
    /// A file that receives the output; there is no input.
    File(PathBuf),
    /// No backend: the device exists, and its output is discarded.
    None,
}

impl FromStr for ConsoleConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "none" => Ok(Self::None),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(PathBuf::from(path))),
            Some(("file", _)) => Err("expected file=PATH, found no path".to_owned()),
            _ => Err(format!("expected `stdio`, `file=PATH` or `none`, found `{text}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consoles_are_read() {
        assert_eq!("file=/x".parse(), Ok(ConsoleConfig::File("/x".into())));
        assert!("pty".parse::<ConsoleConfig>().is_err_and(|error| error.contains("pty")));
    }
}
