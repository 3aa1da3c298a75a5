//! `--memory`: the size of guest memory, and the file that may hold it.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use kemari_support::values::{self, Unit};

/// `MIB[,file=PATH,share=on]`; `size=MIB` may replace the first part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Size in bytes.
    pub size: u64,
    /// The file that holds guest memory; `None`: anonymous memory.
    pub file: Option<PathBuf>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { size: 512 << 20, file: None }
    }
}

const MEMORY_FORM: &str = "MIB[,file=PATH,share=on]";
const MEMORY_MIB: RangeInclusive<u64> = 2..=1 << 24;

impl FromStr for MemoryConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut memory, mut shared) = (Self::default(), false);
        for (index, part) in values::list(text, MEMORY_FORM)?.into_iter().enumerate() {
            match (part.key.as_str(), &part.value) {
                (mib, None) if index == 0 => {
                    memory.size = values::number(mib, &MEMORY_MIB, Unit::Mebibytes)? << 20;
                }
                ("size", Some(_)) => {
                    memory.size = part.number(MEMORY_MIB, Unit::Mebibytes)? << 20;
                }
                ("file", Some(_)) => memory.file = Some(part.text()?.into()),
                ("share" | "shared", _) => shared = part.switch()?,
                _ => return Err(values::unknown(&part, MEMORY_FORM)),
            }
        }
        if shared != memory.file.is_some() {
            // A private mapping is not offered: guest writes would not reach the file, but changes
            // of the file could reach the guest.
            return Err(format!(
                "expected file=PATH and share=on together, found one of them; {MEMORY_FORM}"
            ));
        }
        Ok(memory)
    }
}
