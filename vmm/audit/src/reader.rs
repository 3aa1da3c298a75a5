//! Reads logs: finds the files of each run, puts them in order, and reads their records up to the
//! first incomplete one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use kemari_support::given_file;

use super::entry::{Entry, Event};
use super::files::parse_suffix;
use super::format::{FormatError, HEADER_LEN, Header, RECORD_LEN};

/// The log of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The prefix of its files' names, for messages.
    pub name: String,
    /// The header of its first file.
    pub header: Header,
    /// The complete records; the first is the oldest that rotation has kept.
    pub entries: Vec<Entry>,
    /// Why no further record can be read; `None`: the log is complete, or only its end is cut off.
    pub hole: Option<String>,
}

impl Log {
    /// Whether rotation has removed the beginning of the log.
    #[must_use]
    pub fn is_rotated(&self) -> bool {
        self.header.number > 0
    }

    /// Whether the process ended in good order and completed its log.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.entries.last().is_some_and(|entry| entry.event == Event::Ended)
    }
}

/// The named files cannot be read as a log.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A system call failed.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The path.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not part of a log.
    #[error("{path}: {source}")]
    Format {
        /// The path.
        path: String,
        /// The error in the file.
        source: FormatError,
    },
    /// No file has this name.
    #[error(
        "expected the files of an audit log, {0}.<run>.<number>, found none: name the path that was given to --audit"
    )]
    None(String),
    /// The file has no records.
    #[error(
        "{0}: expected an audit log, found a file shorter than its header: no record was written to it"
    )]
    Empty(String),
    /// The files belong to different logs.
    #[error("{0}: expected the next file of the same log, found a file of another log")]
    Mixed(String),
    /// Two files have the same number, but different content.
    #[error(
        "{0} and {1}: expected two copies of one file of a log, found two that differ: name only the original from \
         the host"
    )]
    Differ(String, String),
}

/// Reads every log whose files' names begin with `base`, or the one file named `base`.
///
/// # Errors
/// When there is no log, or one of them cannot be read.
pub fn read(base: &Path) -> Result<Vec<Log>, ReadError> {
    read_all(&[base]).map(|(logs, _)| logs)
}

/// Does what [`read`] does, for several names. A file with several names, links or copies is read
/// once: counted twice, its terms would count as won twice. Returns a note for each duplicate.
///
/// # Errors
/// Those of [`read`]; also when two copies of one file differ.
pub fn read_all(bases: &[impl AsRef<Path>]) -> Result<(Vec<Log>, Vec<String>), ReadError> {
    let (mut runs, mut twice): (Vec<Run>, Vec<String>) = (Vec::new(), Vec::new());
    for base in bases {
        for (name, parts) in runs_of(base.as_ref())? {
            let first = &parts[0].0;
            let at = runs.iter().position(|run| is_same_log(&run.parts[0].0, first));
            let at = at.unwrap_or_else(|| {
                runs.push(Run { name, parts: Vec::new() });
                runs.len() - 1
            });
            for part in parts {
                twice.extend(runs[at].add(part)?);
            }
        }
    }
    let logs: Result<_, _> = runs.into_iter().map(Run::join).collect();
    Ok((logs?, twice))
}

/// A file of a log, with its header.
type Part = (Header, PathBuf);

/// The files of one process.
struct Run {
    name: String,
    parts: Vec<Part>,
}

/// Whether two headers belong to files of one process.
fn is_same_log(one: &Header, other: &Header) -> bool {
    let key = |header: &Header| (header.vm.clone(), header.holder.clone(), header.monotonic);
    key(one) == key(other)
}

impl Run {
    /// Adds a file; returns a note if the run has this file already. Keeps the longer one of two
    /// copies.
    fn add(&mut self, part: Part) -> Result<Option<String>, ReadError> {
        let Some(old) = self.parts.iter_mut().find(|old| old.0.number == part.0.number) else {
            self.parts.push(part);
            return Ok(None);
        };
        let said = match old.1 == part.1 {
            true => format!("{}, named twice", old.1.display()),
            false => format!("{}, the same file as {}", old.1.display(), part.1.display()),
        };
        let (before, now) = (bytes_of(&old.1)?, bytes_of(&part.1)?);
        let records = before.len().min(now.len()).saturating_sub(HEADER_LEN) / RECORD_LEN;
        let common = HEADER_LEN + records * RECORD_LEN;
        if before[..common] != now[..common] {
            let path = |path: &Path| path.display().to_string();
            return Err(ReadError::Differ(path(&old.1), path(&part.1)));
        }
        if now.len() > before.len() {
            *old = part;
        }
        Ok(Some(said))
    }

    fn join(mut self) -> Result<Log, ReadError> {
        self.parts.sort_by_key(|(header, _)| header.number);
        join(self.name, &self.parts)
    }
}

/// The runs whose files have this prefix, each with at least one file.
fn runs_of(base: &Path) -> Result<Vec<(String, Vec<Part>)>, ReadError> {
    let name = base.display().to_string();
    if base.is_file() {
        // Ignore a file without a header: it was created and never started.
        let parts = parts_of(vec![base.to_owned()])?;
        return if parts.is_empty() {
            Err(ReadError::Empty(name))
        } else {
            Ok(vec![(name, parts)])
        };
    }
    let mut runs: BTreeMap<u32, Vec<PathBuf>> = BTreeMap::new();
    for (run, path) in files_of(base)? {
        runs.entry(run).or_default().push(path);
    }
    let mut found = Vec::new();
    for (run, mut files) in runs {
        files.sort();
        let parts = parts_of(files)?;
        if !parts.is_empty() {
            found.push((format!("{name}.{run}"), parts));
        }
    }
    if found.is_empty() { Err(ReadError::None(name)) } else { Ok(found) }
}

fn files_of(base: &Path) -> Result<Vec<(u32, PathBuf)>, ReadError> {
    let dir = base.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = base.file_name().unwrap_or_default().to_string_lossy();
    let listing = fs::read_dir(dir).map_err(unreadable(dir))?;
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(unreadable(dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let suffix = name.strip_prefix(&*prefix).and_then(parse_suffix);
        found.extend(suffix.map(|(run, _)| (run, entry.path())));
    }
    Ok(found)
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> ReadError + use<> {
    let path = path.display().to_string();
    move |source| ReadError::Read { path: path.clone(), source }
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    let read = given_file::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(unreadable(path))
}

/// Reads the headers of these files; skips files that were never started.
fn parts_of(files: Vec<PathBuf>) -> Result<Vec<Part>, ReadError> {
    let mut parts: Vec<Part> = Vec::new();
    for path in files {
        let mut file = given_file::open(&path).map_err(unreadable(&path))?;
        let mut bytes = [0; HEADER_LEN];
        match file.read_exact(&mut bytes) {
            Ok(()) => {}
            // The file was never started, or its host lost power at that moment.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => continue,
            Err(error) => return Err(unreadable(&path)(error)),
        }
        let header = Header::decode(&bytes)
            .map_err(|source| ReadError::Format { path: path.display().to_string(), source })?;
        if parts.first().is_some_and(|(first, _)| !is_same_log(first, &header)) {
            return Err(ReadError::Mixed(path.display().to_string()));
        }
        parts.push((header, path));
    }
    Ok(parts)
}

/// Reads the files of one log, given in order.
fn join(name: String, parts: &[Part]) -> Result<Log, ReadError> {
    let mut log = Log { name, header: parts[0].0.clone(), entries: Vec::new(), hole: None };
    for (index, (_, path)) in parts.iter().enumerate() {
        let bytes = bytes_of(path)?;
        let last = index + 1 == parts.len();
        if let Err(hole) = log.take(bytes.get(HEADER_LEN..).unwrap_or_default(), last) {
            log.hole = Some(format!("{hole} ({})", path.display()));
            break;
        }
    }
    Ok(log)
}

impl Log {
    /// Appends the records of one file; returns why if it cannot append all. The end of the last
    /// file may be torn: the process or its host died during a write.
    fn take(&mut self, bytes: &[u8], last: bool) -> Result<(), String> {
        let (records, rest) = bytes.as_chunks::<RECORD_LEN>();
        for (index, record) in records.iter().enumerate() {
            let entry = match Entry::decode(record) {
                Ok(entry) => entry,
                Err(_) if last && !any_whole(&records[index..]) => return Ok(()),
                Err(error) => return Err(format!("record {}: {error}", self.next())),
            };
            let expected = self.next();
            if entry.sequence != expected {
                let found = entry.sequence;
                return Err(format!("expected record {expected}, found record {found}"));
            }
            self.entries.push(entry);
            if let Event::Dropped { count } = entry.event {
                return Err(format!(
                    "{count} records were dropped, as the writer could not keep up"
                ));
            }
        }
        if !rest.is_empty() && !last {
            return Err("a file ends within a record, although later files follow it".to_owned());
        }
        Ok(())
    }

    fn next(&self) -> u64 {
        self.entries.last().map_or(self.header.before.next, |entry| entry.sequence + 1)
    }
}

fn any_whole(records: &[[u8; RECORD_LEN]]) -> bool {
    records.iter().any(|record| Entry::decode(record).is_ok())
}
