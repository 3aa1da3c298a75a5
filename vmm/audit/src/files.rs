//! The files of one log: all opened once, before anything else runs, then written in rotation.
//!
//! The thread that writes them opens none: it empties the oldest file and continues there. Files of
//! an earlier run stay untouched.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kemari_support::values::{self, Part, Unit};

use super::entry::Entry;
use super::format::{HEADER_LEN, Header, RECORD_LEN};

/// Maximum number of records per system call.
const AT_ONCE: usize = 4096;
const DEFAULT_SIZE: u64 = 64 << 20;
const DEFAULT_KEEP: u32 = 4;
const FORM: &str = "FILE[,size=64MiB][,keep=4] (size: 16KiB to 1024GiB each; keep: 2 to 64 files)";

/// `FILE[,size=64MiB][,keep=4]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditSpec {
    /// The prefix of the files' names.
    pub base: PathBuf,
    /// Upper bound of each file's size, in bytes.
    pub size: u64,
    /// Number of files.
    pub keep: u32,
}

impl AuditSpec {
    /// The first file of the first run.
    #[must_use]
    pub fn first(&self) -> PathBuf {
        path(&self.base, 1, 0)
    }
}

impl FromStr for AuditSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = values::list(text, FORM)?.into_iter();
        let base = parts.next().map(|part| part.to_string()).unwrap_or_default();
        if base.ends_with('/') {
            return Err(format!("`{base}`: expected the name of a file; {FORM}"));
        }
        let mut spec = Self { base: base.into(), size: DEFAULT_SIZE, keep: DEFAULT_KEEP };
        for part in parts {
            match part.key.as_str() {
                "size" => spec.size = parse_size(&part)?,
                "keep" => {
                    let keep = part.number(2..=64, Unit::Count("a number of files"))?;
                    spec.keep = u32::try_from(keep).unwrap_or(DEFAULT_KEEP);
                }
                _ => return Err(values::unknown(&part, FORM)),
            }
        }
        Ok(spec)
    }
}

fn parse_size(part: &Part) -> Result<u64, String> {
    let text = part.value.as_deref().unwrap_or_default();
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let size = units.iter().find_map(|(unit, shift)| {
        let number = text.strip_suffix(unit).filter(|number| !number.starts_with('+'))?;
        number.parse::<u64>().ok()?.checked_mul(1 << shift)
    });
    let size = size.filter(|size| ((16 << 10)..=(1 << 40)).contains(size));
    size.ok_or_else(|| part.wrong("a size with its unit, for instance 64MiB (16KiB to 1024GiB)"))
}

/// The files of a log cannot be created.
#[derive(Debug, thiserror::Error)]
#[error(
    "--audit: cannot {what} {path}: {source}; expected a name in an existing, writable directory"
)]
pub struct AuditError {
    pub(super) what: &'static str,
    pub(super) path: String,
    pub(super) source: io::Error,
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuditError + use<> {
    let path = path.display().to_string();
    move |source| AuditError { what, path, source }
}

/// The path of file `number` of a run.
pub(super) fn path(base: &Path, run: u32, number: u32) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(format!(".{run}.{number}"));
    PathBuf::from(name)
}

/// The run and the number in a file name's suffix; `None`: not a file of a log.
pub(super) fn parse_suffix(suffix: &str) -> Option<(u32, u32)> {
    let (run, number) = suffix.strip_prefix('.')?.split_once('.')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(run) && digits(number)).then_some(())?;
    run.parse().ok().zip(number.parse().ok())
}

/// The files of one run.
pub(super) struct Files {
    files: Vec<File>,
    paths: Vec<PathBuf>,
    size: u64,
    header: Header,
    /// The index of the file to write, and the offset in it.
    current: usize,
    at: u64,
    bytes: Vec<u8>,
}

impl Files {
    /// Creates the files of the next run and starts the first one.
    pub(super) fn create(spec: &AuditSpec, header: Header) -> Result<Self, AuditError> {
        let (run, first) = Self::next_run(&spec.base)?;
        let (mut files, mut paths) = (vec![first], vec![path(&spec.base, run, 0)]);
        for number in 1..spec.keep {
            let path = path(&spec.base, run, number);
            files.push(create(&path).map_err(at("create", &path))?);
            paths.push(path);
        }
        let mut made =
            Self { files, paths, size: spec.size, header, current: 0, at: 0, bytes: Vec::new() };
        made.begin().map_err(at("write", &spec.base))?;
        Ok(made)
    }

    fn next_run(base: &Path) -> Result<(u32, File), AuditError> {
        let mut run = 1;
        loop {
            let path = path(base, run, 0);
            match create(&path) {
                Ok(file) => return Ok((run, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && run < u32::MAX => {
                    run += 1;
                }
                Err(error) => return Err(at("create", &path)(error)),
            }
        }
    }

    fn begin(&mut self) -> io::Result<()> {
        let file = &self.files[self.current];
        file.set_len(0)?;
        file.write_all_at(&self.header.encode(), 0)?;
        self.at = HEADER_LEN as u64;
        Ok(())
    }

    /// Appends records. After a failure, the next call overwrites the part that was written.
    pub(super) fn append(&mut self, mut entries: &[Entry]) -> io::Result<()> {
        while !entries.is_empty() {
            let room = self.size.saturating_sub(self.at) as usize / RECORD_LEN;
            if room == 0 {
                self.rotate()?;
                continue;
            }
            let (now, later) = entries.split_at(room.min(entries.len()).min(AT_ONCE));
            self.bytes.clear();
            now.iter().for_each(|entry| self.bytes.extend(entry.encode()));
            self.files[self.current].write_all_at(&self.bytes, self.at)?;
            self.at += self.bytes.len() as u64;
            now.iter().for_each(|entry| self.header.before.take(entry));
            entries = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let (before, number) = (self.current, self.header.number);
        self.current = (self.current + 1) % self.files.len();
        self.header.number += 1;
        let begun = self.begin();
        if begun.is_err() {
            // The next records retry the rotation.
            (self.current, self.header.number) = (before, number);
            self.at = self.size;
        }
        begun
    }

    /// The paths of the files, with open handles. At its end, the process removes the files that
    /// were never started. Until then, the handles keep their inode numbers from being reused.
    pub(super) fn names(&self) -> io::Result<Vec<(PathBuf, File)>> {
        let files = self.paths.iter().zip(&self.files);
        files.map(|(path, file)| Ok((path.clone(), file.try_clone()?))).collect()
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}
