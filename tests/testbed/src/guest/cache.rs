//! The cache of prepared artefacts: outside the source tree, written atomically, verified at each
//! use.
//!
//! An artefact is a directory `NAME-KEY`; the key is a hash of its inputs. It is built under a
//! temporary name and then renamed, so no process sees an incomplete one. Its manifest lists the
//! inputs, and the size, modification time and sha256 of each file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "manifest.json";
const UNFINISHED: &str = ".unfinished-";

/// The inputs of an artefact: names with versions, or names with hashes.
pub(crate) type Inputs = BTreeMap<String, String>;

/// The directory for prepared artefacts: `$KEMARI_CACHE`, else `$XDG_CACHE_HOME/kemari`, else
/// `~/.cache/kemari`.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let dir = set("KEMARI_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("kemari")))
        .or_else(|| set("HOME").map(|d| d.join(".cache/kemari")))
        .context(
            "no directory for prepared guests: set KEMARI_CACHE to a directory, or set HOME",
        )?;
    std::path::absolute(&dir).with_context(|| {
        format!("cannot make {} an absolute path for the cache directory", dir.display())
    })
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    name: String,
    inputs: Inputs,
    files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct FileRecord {
    size: u64,
    modified_ns: i128,
    sha256: String,
}

/// An opened cache. It holds the lock of the cache: other processes wait.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens or creates the cache, and removes the leftovers of an interrupted preparation.
    pub(crate) fn open(dir: &Path, say: &dyn Fn(&str)) -> Result<Self> {
        let make = || {
            format!(
                "cannot use {} as a cache; set KEMARI_CACHE to another directory",
                dir.display()
            )
        };
        fs::create_dir_all(dir).with_context(make)?;
        check_own(dir)?;
        let lock = File::options().write(true).create(true).truncate(false).open(dir.join("lock"));
        let lock = lock.with_context(make)?;
        if lock.try_lock().is_err() {
            say(&format!("waiting for another process that prepares guests in {}", dir.display()));
            lock.lock().with_context(make)?;
        }
        for entry in fs::read_dir(dir).with_context(make)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_dir_all(entry.path()).with_context(make)?;
            }
        }
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// The cache's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the artefact made from `inputs`; builds it if it is missing, damaged, or made from
    /// other inputs.
    ///
    /// `build` fills the given directory. Older artefacts of the same name are removed afterwards.
    pub(crate) fn artefact(
        &self,
        name: &str,
        inputs: &Inputs,
        say: &dyn Fn(&str),
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let place = self.dir.join(format!("{name}-{}", key(name, inputs)));
        match verify(&place, inputs) {
            Ok(()) => return Ok(place),
            Err(_) if !place.exists() => {}
            Err(why) => {
                say(&format!("{name}: the cached copy is not usable ({why:#}); rebuilding"))
            }
        }
        let started = std::time::Instant::now();
        say(&format!("{name}: preparing"));
        let unfinished = self.dir.join(format!("{UNFINISHED}{name}"));
        fs::create_dir(&unfinished)
            .with_context(|| format!("cannot create {}", unfinished.display()))?;
        build(&unfinished).with_context(|| format!("cannot prepare {name}"))?;
        write_manifest(&unfinished, name, inputs)?;
        self.remove_all_of(name)?;
        fs::rename(&unfinished, &place)
            .with_context(|| format!("cannot create {}", place.display()))?;
        say(&format!("{name}: prepared in {:.1} s", started.elapsed().as_secs_f64()));
        Ok(place)
    }

    fn remove_all_of(&self, name: &str) -> Result<()> {
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let found = entry.file_name().to_string_lossy().into_owned();
            // The key has no hyphen, so `kernel` does not remove `kernel-modules`.
            if found.rsplit_once('-').is_some_and(|(n, _)| n == name) {
                fs::remove_dir_all(entry.path())
                    .with_context(|| format!("cannot remove {}", entry.path().display()))?;
            }
        }
        Ok(())
    }
}

/// Refuses a directory that is neither empty nor a cache: the cache removes old contents. A cache
/// contains our lock, which is an empty file.
fn check_own(dir: &Path) -> Result<()> {
    let lock = fs::symlink_metadata(dir.join("lock"));
    if lock.is_ok_and(|lock| lock.is_file() && lock.len() == 0) {
        return Ok(());
    }
    let first = fs::read_dir(dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .flatten()
        .next();
    match first {
        None => Ok(()),
        Some(found) => bail!(
            "{}: expected an empty directory or a cache of prepared guests, found `{}` in it; nothing was changed: \
             set KEMARI_CACHE to another directory",
            dir.display(),
            found.file_name().display()
        ),
    }
}

fn key(name: &str, inputs: &Inputs) -> String {
    let mut hash = Sha256::new();
    hash.update(name);
    for (input, value) in inputs {
        hash.update(format!("\0{input}\0{value}"));
    }
    hex(&hash.finalize())[..16].to_owned()
}

fn write_manifest(dir: &Path, name: &str, inputs: &Inputs) -> Result<()> {
    let mut files = BTreeMap::new();
    list(dir, dir, &mut files)?;
    let manifest = Manifest { name: name.to_owned(), inputs: inputs.clone(), files };
    fs::write(dir.join(MANIFEST), serde_json::to_vec_pretty(&manifest)?)?;
    Ok(())
}

fn list(root: &Path, dir: &Path, files: &mut BTreeMap<String, FileRecord>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            list(root, &path, files)?;
        } else if meta.is_file() {
            let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
            files.insert(name, record(&path, &meta)?);
        }
    }
    Ok(())
}

fn record(path: &Path, meta: &fs::Metadata) -> Result<FileRecord> {
    Ok(FileRecord { size: meta.len(), modified_ns: modified_ns(meta), sha256: sha256_file(path)? })
}

fn modified_ns(meta: &fs::Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

/// Checks an artefact against its manifest: size and time of each file, and its sha256 if the time
/// differs.
fn verify(place: &Path, inputs: &Inputs) -> Result<()> {
    let text = fs::read(place.join(MANIFEST)).context("no manifest")?;
    let manifest: Manifest = serde_json::from_slice(&text).context("manifest unreadable")?;
    if manifest.inputs != *inputs {
        bail!("made from other inputs");
    }
    for (name, expected) in &manifest.files {
        let path = place.join(name);
        let meta = fs::symlink_metadata(&path).with_context(|| format!("{name} is missing"))?;
        if meta.len() != expected.size {
            bail!("{name}: expected {} bytes, found {}", expected.size, meta.len());
        }
        if modified_ns(&meta) != expected.modified_ns {
            let found = sha256_file(&path)?;
            if found != expected.sha256 {
                bail!("{name}: expected sha256 {}, found {found}", expected.sha256);
            }
        }
    }
    Ok(())
}

/// The sha256 of a file, in hexadecimal.
pub(crate) fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n =
            file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

/// The sha256 of a text, in hexadecimal.
pub(crate) fn sha256_text(text: &str) -> String {
    hex(&Sha256::digest(text))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::cell::Cell;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("kemari-cache-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    fn build_counted(cache: &Cache, input: &str, built: &Cell<u32>) -> PathBuf {
        let inputs = Inputs::from([("input".into(), input.into())]);
        let build = |dir: &Path| {
            built.set(built.get() + 1);
            Ok(fs::write(dir.join("file"), input)?)
        };
        cache.artefact("thing", &inputs, &|_| {}, build).unwrap()
    }

    #[test]
    fn builds_once_and_again_when_inputs_change_or_content_is_damaged() {
        let dir = scratch("rebuild");
        let cache = Cache::open(&dir, &|_| {}).unwrap();
        let built = Cell::new(0);
        let first = build_counted(&cache, "one", &built);
        assert_eq!(build_counted(&cache, "one", &built), first);
        assert_eq!(built.get(), 1);

        let second = build_counted(&cache, "two", &built);
        assert_eq!(built.get(), 2);
        assert!(!first.exists(), "the artefact of the old inputs is removed");

        fs::write(second.join("file"), "owt").unwrap();
        build_counted(&cache, "two", &built);
        assert_eq!(built.get(), 3, "same size, other content: found by sha256");
        assert_eq!(fs::read_to_string(second.join("file")).unwrap(), "two");

        fs::write(second.join("file"), "two").unwrap();
        build_counted(&cache, "two", &built);
        assert_eq!(built.get(), 3, "same content, other time: still good");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_directory_of_another_user_is_no_cache() {
        let dir = scratch("other");
        fs::create_dir_all(dir.join("thing-1")).unwrap();
        let refusal = Cache::open(&dir, &|_| {}).unwrap_err().to_string();
        assert!(refusal.contains("found `thing-1`"), "{refusal}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_failed_build_leaves_nothing_that_is_used() {
        let dir = scratch("failed");
        let cache = Cache::open(&dir, &|_| {}).unwrap();
        let inputs = Inputs::new();
        let broken = |d: &Path| {
            fs::write(d.join("file"), "half")?;
            bail!("no space")
        };
        assert!(cache.artefact("thing", &inputs, &|_| {}, broken).is_err());
        drop(cache);
        let cache = Cache::open(&dir, &|_| {}).unwrap();
        let names: Vec<_> = fs::read_dir(cache.dir()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "only the lock file: {names:?}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
