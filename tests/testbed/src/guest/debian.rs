//! The Debian archive that guests are made from: a fixed release, from the mirror that this machine
//! uses.
//!
//! The package lists are kept in the cache. The machine's own package sources stay unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::cache::{Cache, Inputs};
use super::command::{output, run};

/// The Debian release of the guests.
pub(crate) const SUITE: &str = "bookworm";
/// The suite with a newer QEMU.
pub(crate) const BACKPORTS: &str = "bookworm-backports";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Age after which the lists are refreshed, so that guests get security updates.
const LISTS_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The file with apt's answer about the watched packages.
const VERSIONS: &str = "versions";
/// The packages whose versions decide whether a cached artefact is current.
const WATCHED: &[&str] = &[
    "linux-image-cloud-amd64",
    "linux-image-amd64",
    "busybox-static",
    "redis-server",
    "libc6",
    "iproute2",
    "util-linux",
];

/// Access to the archive's package lists and packages.
#[derive(Debug)]
pub(crate) struct Archive {
    dir: PathBuf,
    mirror: String,
    versions: BTreeMap<String, String>,
}

impl Archive {
    /// Opens the package lists in the cache, and refreshes them if they are missing or old.
    pub(crate) fn open(cache: &Cache, say: &dyn Fn(&str)) -> Result<Self> {
        super::ensure_packages(&["apt", "debian-archive-keyring"], say)?;
        let mut archive = Self {
            dir: cache.dir().join("apt"),
            mirror: find_mirror(say)?,
            versions: BTreeMap::new(),
        };
        archive.refresh_lists(say)?;
        archive.versions = archive.read_versions()?;
        Ok(archive)
    }

    /// The lines of a `sources.list` for the release and its security updates.
    pub(crate) fn sources(&self) -> Vec<String> {
        let line = |uri: &str, suite: &str| format!("deb [signed-by={KEYRING}] {uri} {suite} main");
        let mut lines = vec![line(&self.mirror, SUITE)];
        if let Some(security) = repository("Debian-Security") {
            lines.push(line(&security, &format!("{SUITE}-security")));
        }
        lines
    }

    /// The version of a package that the archive offers now: an input of artefacts.
    pub(crate) fn version(&self, package: &str) -> Result<String> {
        self.versions.get(package).cloned().with_context(|| {
            format!(
                "the archive at {} offers no {package} in {SUITE}; remove {} to read its lists again",
                self.mirror,
                self.dir.display()
            )
        })
    }

    /// The versions of several packages, as inputs of an artefact.
    pub(crate) fn inputs(&self, packages: &[&str]) -> Result<Inputs> {
        packages.iter().map(|p| Ok(((*p).to_owned(), self.version(p)?))).collect()
    }

    /// The packages that a package depends on.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = output(self.apt("apt-cache").args(["depends", package]))?;
        let names = text.lines().filter_map(|l| l.trim().strip_prefix("Depends: "));
        Ok(names.map(str::to_owned).collect())
    }

    /// Downloads packages and unpacks them into `into`. Nothing is installed.
    ///
    /// A package is `name` or `name/suite`, as for `apt-get download`.
    pub(crate) fn unpack(&self, packages: &[&str], into: &Path) -> Result<()> {
        super::ensure_packages(&["dpkg"], &|_| {})?;
        let debs = self.dir.join("debs");
        if debs.exists() {
            fs::remove_dir_all(&debs)?;
        }
        fs::create_dir_all(&debs)?;
        fs::create_dir_all(into)?;
        // apt checks each file against the signed lists.
        run(self.apt("apt-get").current_dir(&debs).args(["-qq", "download"]).args(packages))?;
        for deb in fs::read_dir(&debs)?.flatten() {
            run(Command::new("dpkg-deb").arg("-x").arg(deb.path()).arg(into))?;
        }
        fs::remove_dir_all(&debs)?;
        Ok(())
    }

    fn refresh_lists(&self, say: &dyn Fn(&str)) -> Result<()> {
        let stamp = self.dir.join("refreshed");
        let mut sources = self.sources();
        sources.push(format!("deb [signed-by={KEYRING}] {} {BACKPORTS} main", self.mirror));
        let sources = sources.join("\n") + "\n";
        let current = format!("{sources}# {}\n", WATCHED.join(" "));
        let known = fs::read_to_string(&stamp).is_ok_and(|s| s == current);
        let age = fs::metadata(&stamp).and_then(|m| m.modified()).ok();
        let age = age.and_then(|t| SystemTime::now().duration_since(t).ok());
        if known && age.is_some_and(|a| a < LISTS_AGE) {
            return Ok(());
        }
        say(&format!("reading the package lists of Debian {SUITE}"));
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.dir.join(part))?;
        }
        if let Err(why) = fs::remove_file(self.dir.join(VERSIONS))
            && why.kind() != ErrorKind::NotFound
        {
            return Err(why).context("cannot remove the old package versions");
        }
        // An empty status file: packages installed on this machine must not affect what goes into a
        // guest.
        fs::write(self.dir.join("status"), "")?;
        fs::write(self.dir.join("sources.list"), &sources)?;
        match run(self.apt("apt-get").args(["-qq", "update"])) {
            Ok(()) => {}
            Err(why) if known => say(&format!("continuing with the existing lists: {why:#}")),
            Err(why) => {
                return Err(why)
                    .context("cannot read Debian's package lists (network needed once)");
            }
        }
        Ok(fs::write(&stamp, &current)?)
    }

    /// The versions that the lists offer. Asking apt takes a second, so the answer is cached until
    /// the lists are refreshed.
    fn read_versions(&self) -> Result<BTreeMap<String, String>> {
        let kept = self.dir.join(VERSIONS);
        let text = match fs::read_to_string(&kept) {
            Ok(text) => text,
            Err(_) => {
                let text = output(self.apt("apt-cache").arg("policy").args(WATCHED))?;
                fs::write(&kept, &text)?;
                text
            }
        };
        Ok(parse_policy(&text))
    }

    /// A command that runs an apt program with the lists in the cache only.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, value: &Path| {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        };
        option("Dir::Etc::sourcelist", &self.dir.join("sources.list"));
        option("Dir::Etc::sourceparts", Path::new("/dev/null"));
        option("Dir::State::lists", &self.dir.join("lists"));
        option("Dir::State::status", &self.dir.join("status"));
        option("Dir::Cache", &self.dir.join("cache"));
        option("Dir::Cache::pkgcache", Path::new("pkgcache.bin"));
        option("Dir::Cache::srcpkgcache", Path::new("srcpkgcache.bin"));
        option("APT::Sandbox::User", Path::new("root"));
        option("APT::Architecture", Path::new("amd64"));
        command.env("LC_ALL", "C");
        command
    }
}

/// The mirror that this machine's apt uses for Debian; `KEMARI_DEBIAN_MIRROR` names another.
fn find_mirror(say: &dyn Fn(&str)) -> Result<String> {
    if let Ok(mirror) = std::env::var("KEMARI_DEBIAN_MIRROR") {
        return Ok(mirror);
    }
    if let Some(mirror) = repository("Debian") {
        return Ok(mirror);
    }
    // Without package lists, apt cannot tell which of its sources is Debian.
    super::packages::update_lists(say)?;
    match repository("Debian") {
        Some(mirror) => Ok(mirror),
        None => bail!(
            "apt on this machine knows no Debian archive (`apt-get indextargets` shows none); run \
             `apt-get update`, or set KEMARI_DEBIAN_MIRROR to the URL of a Debian mirror"
        ),
    }
}

/// The URI of the repository with this label, among those that this machine's apt uses.
fn repository(label: &str) -> Option<String> {
    let format = "$(LABEL)|$(REPO_URI)";
    let text = output(Command::new("apt-get").args(["indextargets", "--format", format])).ok()?;
    text.lines()
        .filter_map(|line| line.split_once('|'))
        .find(|(found, _)| *found == label)
        .map(|(_, address)| address.to_owned())
}

/// The candidate versions in the answer of `apt-cache policy`.
fn parse_policy(text: &str) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    let mut package = "";
    for line in text.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|n| !n.starts_with(' ')) {
            package = name;
        } else if let Some(version) = line.trim().strip_prefix("Candidate: ")
            && version != "(none)"
        {
            versions.insert(package.to_owned(), version.to_owned());
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_candidates() {
        let text = "libc6:\n  Installed: (none)\n  Candidate: 2.36-9\n  Version table:\n     2.36-9 500\n\
                    nonesuch:\n  Installed: (none)\n  Candidate: (none)\n";
        let versions = parse_policy(text);
        assert_eq!(versions.get("libc6").map(String::as_str), Some("2.36-9"));
        assert_eq!(versions.len(), 1);
    }
}
