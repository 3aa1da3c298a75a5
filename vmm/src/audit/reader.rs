//! Reads logs: the files of each run in their order, the records up to the first that is not whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::files::parse_suffix;
use super::format::{Entry, Event, FormatError, HEADER_LEN, Header, RECORD_LEN};

/// The log of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// What people call it: the path that its files' names begin with.
    pub name: String,
    /// Of its first file.
    pub header: Header,
    /// What is whole, from the beginning or from what rotation has left.
    pub entries: Vec<Entry>,
    /// Why there is, or was, more than can be read; none: it is complete, or was cut off at its end.
    pub hole: Option<String>,
}

impl Log {
    /// Whether the process ended in good order, its log with it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.entries.last().is_some_and(|entry| entry.event == Event::Ended)
    }
}

/// What was named cannot be read as a log.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system says no.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// What it says.
        source: std::io::Error,
    },
    /// Not a log.
    #[error("{path}: {source}")]
    Format {
        /// Which.
        path: String,
        /// What is wrong.
        source: FormatError,
    },
    /// There is no file of that name.
    #[error(
        "expected the files of an audit log, {0}.<run>.<number>, found none: give the path that was given to --audit"
    )]
    None(String),
    /// Files of different logs are mixed.
    #[error("{0}: expected the next file of the log before it, found another's")]
    Mixed(String),
}

/// Reads every log whose files' names begin with `base`; or the one file that it names.
///
/// # Errors
/// When there is none, or one cannot be read as such.
pub fn read(base: &Path) -> Result<Vec<Log>, ReadError> {
    if base.is_file() {
        return read_run(base.display().to_string(), vec![base.to_owned()])
            .map(|log| log.into_iter().collect());
    }
    let mut runs: BTreeMap<u32, Vec<PathBuf>> = BTreeMap::new();
    for (run, path) in files_of(base)? {
        runs.entry(run).or_default().push(path);
    }
    let mut logs = Vec::new();
    for (run, files) in runs {
        logs.extend(read_run(format!("{}.{run}", base.display()), files)?);
    }
    if logs.is_empty() {
        return Err(ReadError::None(base.display().to_string()));
    }
    Ok(logs)
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

/// One file.
struct Part {
    path: PathBuf,
    header: Header,
    bytes: Vec<u8>,
}

fn read_run(name: String, files: Vec<PathBuf>) -> Result<Option<Log>, ReadError> {
    let mut parts = Vec::new();
    for path in files {
        let bytes = fs::read(&path).map_err(unreadable(&path))?;
        // Made, and never begun; or its host lost power as it was.
        let Some((header, records)) = bytes.split_first_chunk::<HEADER_LEN>() else { continue };
        let header = Header::decode(header)
            .map_err(|source| ReadError::Format { path: path.display().to_string(), source })?;
        let bytes = records.to_vec();
        parts.push(Part { path, header, bytes });
    }
    parts.sort_by_key(|part| part.header.number);
    join(name, &parts)
}

fn join(name: String, parts: &[Part]) -> Result<Option<Log>, ReadError> {
    let Some(first) = parts.first() else { return Ok(None) };
    let header = first.header.clone();
    let mut log = Log { name, header, entries: Vec::new(), hole: None };
    if log.header.number > 0 {
        let what = "its beginning was rotated away: give --audit more of size or keep";
        log.hole = Some(what.to_owned());
    }
    for (index, part) in parts.iter().enumerate() {
        let path = part.path.display();
        if (&part.header.holder, part.header.monotonic)
            != (&log.header.holder, log.header.monotonic)
        {
            return Err(ReadError::Mixed(path.to_string()));
        }
        let last = index + 1 == parts.len();
        if let Err(hole) = log.take(&part.bytes, last) {
            log.hole = log.hole.or(Some(format!("{hole} ({path})")));
            break;
        }
    }
    Ok(Some(log))
}

impl Log {
    /// Takes the records of one file; why it cannot take all. The end of the last file may be torn: the process, or its
    /// host, died as it wrote.
    fn take(&mut self, bytes: &[u8], last: bool) -> Result<(), String> {
        let (records, rest) = bytes.as_chunks::<RECORD_LEN>();
        for (index, record) in records.iter().enumerate() {
            let entry = match Entry::decode(record) {
                Ok(entry) => entry,
                Err(_) if last && !any_whole(&records[index..]) => return Ok(()),
                Err(error) => return Err(format!("record {}: {error}", self.next())),
            };
            let expected = self.next();
            if entry.sequence != expected && !(self.entries.is_empty() && self.hole.is_some()) {
                let found = entry.sequence;
                return Err(format!("expected record {expected}, found record {found}"));
            }
            self.entries.push(entry);
            if let Event::Dropped { count } = entry.event {
                return Err(format!(
                    "{count} records were dropped as the writer could not keep up"
                ));
            }
        }
        if !rest.is_empty() && !last {
            return Err("a file that others follow ends within a record".to_owned());
        }
        Ok(())
    }

    fn next(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.sequence + 1)
    }
}

fn any_whole(records: &[[u8; RECORD_LEN]]) -> bool {
    records.iter().any(|record| Entry::decode(record).is_ok())
}
