//! Debian packages that must be installed on this machine.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use super::command::{output, run};

/// Makes sure that packages are installed: as root by installing what is missing, otherwise by saying what to run.
pub(crate) fn ensure_packages(wanted: &[&str], say: &dyn Fn(&str)) -> Result<()> {
    let missing = missing(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root()? {
        bail!(
            "these Debian packages are needed and not installed: {list}\n\
             install them with: sudo apt-get update && sudo apt-get install --no-install-recommends {list}"
        );
    }
    update_lists(say)?;
    say(&format!("installing packages: {list}"));
    run(apt_get().args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing))
        .with_context(|| format!("installing the Debian packages {list}"))
}

/// Whether this process may install packages.
pub(crate) fn is_root() -> Result<bool> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}

fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    if !Path::new("/usr/bin/dpkg-query").exists() {
        bail!(
            "the Linux guest is made from Debian packages, and this machine has no dpkg; \
             use a Debian machine or container, or the micro-guest (`--guest micro`)"
        );
    }
    // dpkg-query fails when it does not know one of the names, and prints the others all the same.
    let known = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status} ${Package}\n"])
        .args(wanted)
        .output()
        .context("cannot start `dpkg-query`")?;
    let known = String::from_utf8_lossy(&known.stdout).into_owned();
    let installed: BTreeSet<&str> =
        known.lines().filter_map(|l| l.strip_prefix("installed ")).collect();
    Ok(wanted.iter().copied().filter(|p| !installed.contains(p)).collect())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// `apt-get update`, at most once in the life of this process, if it is permitted.
pub(super) fn update_lists(say: &dyn Fn(&str)) -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_none() && is_root()? {
        say("reading this machine's package lists (apt-get update)");
        run(apt_get().args(["update", "-qq"])).context("reading this machine's package lists")?;
        let _ = DONE.set(());
    }
    Ok(())
}
