//! `cargo xtask certs`: writes credentials for trials of `--tls`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use kemari_testbed::certs;

/// What to write.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Output directory: each host gets a directory of its own in it, to be copied to that host for
    /// `--tls`.
    dir: PathBuf,
    /// A host, by all its names and addresses: `NAME[,NAME]...`. Give once for each host.
    #[arg(long = "host", value_name = "NAMES", required = true)]
    hosts: Vec<Names>,
}

/// The names and addresses of one host.
#[derive(Debug, Clone)]
struct Names(Vec<String>);

impl FromStr for Names {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<String> = text.split(',').map(str::to_owned).collect();
        let checked = names.iter().try_for_each(|name| certs::check_name(name));
        checked.map(|()| Self(names)).map_err(|error| error.to_string())
    }
}

/// Writes the credentials, and prints how to use them.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let hosts: Vec<Vec<String>> = arguments.hosts.iter().map(|names| names.0.clone()).collect();
    for dir in certs::write_set(&arguments.dir, &hosts)? {
        println!("{}: for `--tls` on that host", dir.display());
    }
    println!(
        "These are for trials. The authority's key was not kept, so no more certificates can be issued. \
         docs/security.md says what to do in production."
    );
    Ok(true)
}
