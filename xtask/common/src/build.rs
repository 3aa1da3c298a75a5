//! Builds the programs that the other commands run: the `kemari` binary and the micro-guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The micro-guest's target, without an operating system.
pub const BARE_TARGET: &str = "x86_64-unknown-none";

/// The path of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this crate is two directories below the repository")
}

/// Cargo's build directory.
pub fn target_dir() -> PathBuf {
    let default = || repository().join("target");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(default, PathBuf::from)
}

/// A `cargo` command in the repository, with the environment of the caller's shell.
pub fn cargo() -> Command {
    let mut cargo = program();
    cargo.current_dir(repository());
    cargo
}

/// A `cargo` command in any directory. Variables that an outer `cargo run` sets are not passed on.
/// Otherwise build scripts that read them (`ring`'s reads CARGO_MANIFEST_DIR) run again each time
/// the inner and the outer cargo alternate, and everything that depends on them is compiled again.
pub fn program() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_outer_cargo) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Whether cargo sets this variable to describe itself to the programs that it runs.
fn is_of_outer_cargo(name: &str) -> bool {
    const PREFIXES: [&str; 3] = ["CARGO_BIN_", "CARGO_MANIFEST_", "CARGO_PKG_"];
    const NAMES: [&str; 4] =
        ["CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "CARGO_TARGET_TMPDIR", "OUT_DIR"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&name)
}

/// Runs `command`, with its output on the terminal.
///
/// # Errors
/// The command cannot be started, or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let what = words.join(" ");
    let status = command.status().with_context(|| format!("cannot start `{what}`"))?;
    ensure!(status.success(), "`{what}` failed ({status})");
    Ok(())
}

/// Builds the release of `kemari` and returns its path.
///
/// # Errors
/// The build fails.
pub fn kemari() -> Result<PathBuf> {
    run(cargo().args(["build", "--release", "--package", "kemari-vmm", "--bin", "kemari"]))?;
    Ok(target_dir().join("release/kemari"))
}

/// Builds `kemari` statically linked, for the nested lab; returns its path.
///
/// # Errors
/// The build fails.
pub fn static_kemari() -> Result<PathBuf> {
    static_program("kemari-vmm", "kemari")
}

/// Builds this program statically linked, for the nested lab; returns its path.
///
/// # Errors
/// The build fails.
pub fn static_xtask() -> Result<PathBuf> {
    static_program("xtask", "xtask")
}

fn static_program(package: &str, program: &str) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let mut build = cargo();
    build.args(["build", "--release", "--target", TARGET, "--package", package, "--bin", program]);
    run(build.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    Ok(target_dir().join(TARGET).join("release").join(program))
}

/// Checks that a program exists that is to run instead of a built one.
///
/// # Errors
/// The file does not exist.
pub fn check_program(path: &Path) -> Result<()> {
    ensure!(path.is_file(), "--kemari: expected a program, found no {}", path.display());
    Ok(())
}

/// Builds the micro-guest and returns its path.
///
/// # Errors
/// The bare target cannot be installed, or the build fails.
pub fn micro_guest() -> Result<PathBuf> {
    ensure_bare_target()?;
    let dir = target_dir().join("micro-guest");
    // Run cargo in this directory, where it finds the micro-guest's own configuration.
    let source = repository().join("tests/guests/micro");
    let mut build = cargo();
    build.current_dir(source).args(["build", "--release", "--target", BARE_TARGET]);
    run(build.arg("--target-dir").arg(&dir))?;
    Ok(dir.join(BARE_TARGET).join("release/micro-guest"))
}

/// Installs the bare target, which the micro-guest and the check of `devices` need.
///
/// # Errors
/// rustc cannot be run, or rustup cannot install the target.
pub fn ensure_bare_target() -> Result<()> {
    let installed = Command::new("rustc")
        .current_dir(repository())
        .args(["--print", "target-libdir", "--target", BARE_TARGET])
        .output()
        .context("cannot run rustc")?;
    let libraries = String::from_utf8_lossy(&installed.stdout);
    if Path::new(libraries.trim()).is_dir() {
        return Ok(());
    }
    eprintln!("installing the Rust target {BARE_TARGET}");
    let added =
        run(Command::new("rustup").current_dir(repository()).args(["target", "add", BARE_TARGET]));
    if let Err(error) = added {
        bail!(
            "{error:#}; the micro-guest needs this target: run `rustup target add {BARE_TARGET}`, or install your \
             distribution's package of Rust's standard library for it"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails if the inner cargo inherits the variables with which the outer cargo describes this
    /// program: each run then compiles `ring`, and everything that depends on it, again.
    #[test]
    fn what_an_outer_cargo_says_is_not_passed_on() {
        let said = "CARGO_MANIFEST_DIR";
        assert!(std::env::var_os(said).is_some(), "no cargo runs this test: it shows nothing");
        let cargo = program();
        assert!(cargo.get_envs().any(|(name, value)| name == said && value.is_none()));
    }
}
