//! Opens the arbiter of the command line.

use std::sync::Arc;

use super::{CliError, PairArgs};
use kemari_arbiter::{Arbiter, ArbiterSpec, FileArbiter};
use kemari_support::identity::holder_name;

/// Opens the arbiter for the virtual machine `name`.
pub(super) fn open(
    args: &PairArgs,
    name: &str,
    role: &str,
) -> Result<Option<Arc<dyn Arbiter>>, CliError> {
    match &args.arbiter.spec {
        ArbiterSpec::None => Ok(None),
        ArbiterSpec::File(dir) => {
            let arbiter = FileArbiter::open(dir, name, holder_name(role))
                .map_err(|error| CliError::usage(error.to_string()))?;
            Ok(Some(Arc::new(arbiter)))
        }
        ArbiterSpec::Etcd(members) => etcd(args, members, name, role).map(Some),
    }
}

#[cfg(not(feature = "etcd"))]
fn etcd(_: &PairArgs, _: &[String], _: &str, _: &str) -> Result<Arc<dyn Arbiter>, CliError> {
    Err(CliError::usage(
        "--arbiter etcd: this `kemari` was built without it; build it with the feature `etcd`, which is on by default"
            .to_owned(),
    ))
}

#[cfg(feature = "etcd")]
fn etcd(
    args: &PairArgs,
    members: &[String],
    name: &str,
    role: &str,
) -> Result<Arc<dyn Arbiter>, CliError> {
    use kemari_arbiter::{EtcdArbiter, EtcdOptions};

    let access = &args.arbiter;
    if access.ca.is_none() && !args.security.insecure_plain_tcp {
        check_loopback(members)?;
    }
    let options = EtcdOptions {
        endpoints: members.to_vec(),
        ca: access.ca.clone(),
        identity: access.cert.clone().zip(access.key.clone()),
        user: user(access)?,
        lease: std::time::Duration::from_millis(access.lease),
    };
    let arbiter = EtcdArbiter::open(options, name, holder_name(role))
        .map_err(|error| CliError::usage(error.to_string()))?;
    Ok(Arc::new(arbiter))
}

/// P2: TLS is required beyond loopback: a peer that can change etcd's answers decides which side
/// runs the guest.
#[cfg(feature = "etcd")]
fn check_loopback(members: &[String]) -> Result<(), CliError> {
    use std::net::IpAddr;

    let is_loopback = |member: &String| {
        let host = member.rsplit_once(':').map_or(member.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    match members.iter().find(|member| !is_loopback(member)) {
        None => Ok(()),
        Some(member) => Err(CliError::usage(format!(
            "etcd at {member}: expected TLS to an address that is not loopback, found no --arbiter-ca: give it, or pass \
             --insecure-plain-tcp if the network is private"
        ))),
    }
}

#[cfg(feature = "etcd")]
fn user(access: &super::args::ArbiterArgs) -> Result<Option<(String, String)>, CliError> {
    /// The password is in an environment variable, because every process of the host can read the
    /// command line.
    const VARIABLE: &str = "KEMARI_ARBITER_PASSWORD";
    let Some(name) = &access.user else { return Ok(None) };
    let password = match &access.password_file {
        Some(path) => kemari_support::given_file::read_text(path)
            .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
            .map_err(|error| {
                CliError::usage(format!(
                    "--arbiter-password-file: expected a readable file at {}, found: {error}",
                    path.display()
                ))
            })?,
        None => std::env::var(VARIABLE).map_err(|_| {
            CliError::usage(format!(
                "--arbiter-user {name}: expected its password, found none: give --arbiter-password-file or set {VARIABLE}"
            ))
        })?,
    };
    Ok(Some((name.clone(), password)))
}
