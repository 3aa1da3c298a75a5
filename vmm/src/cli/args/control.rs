//! `kemari ctl`.

use std::path::PathBuf;

use clap::Args;
use kemari_replication::link::LinkAddr;
use kemari_support::values::{Unit, numbers};

const EXAMPLES: &str = "\
Examples:
  kemari ctl --control /run/web.sock status
  kemari ctl --control /run/web.sock protect host-b:7000
  kemari ctl --control /run/web.sock --timeout 120 shutdown";

/// `kemari ctl`
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CtlArgs {
    /// Control socket of a running `kemari` (its --control).
    // The former name, for scripts of earlier versions.
    #[arg(long, alias = "socket", value_name = "SOCKET")]
    pub control: PathBuf,
    /// Wait this long for the outcome of a command, in seconds. The command continues afterwards.
    /// 0: do not wait.
    ///
    /// With 0 the answer says `"done": false`. The connection closes 5 seconds after the time-out.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60, allow_negative_numbers = true, value_parser = numbers::<u64>(0..=86_400, Unit::Seconds))]
    pub timeout: u64,
    /// Print one line of JSON, also on a terminal.
    #[arg(long, global = true)]
    pub json: bool,
    /// The command.
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// Checks a standby's address in the client: a relative path would be relative to the other
/// process's directory.
fn address_of_a_standby(text: &str) -> Result<String, String> {
    text.parse::<LinkAddr>().map(|_| text.to_owned())
}

/// The commands. Exit code 0: done; the answer is JSON: one line, or on a terminal one line per
/// field. Exit code 1: refused, failed, or not done in time.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum CtlCommand {
    /// Show the status.
    Status,
    /// Protect the machine with the standby at this address. Answers when the machine is protected,
    /// or why it is not.
    ///
    /// Replaces a standby that is joining. Keeps trying to reach a standby that does not answer,
    /// until `run-alone`.
    Protect {
        /// HOST:PORT or unix:PATH
        #[arg(value_parser = address_of_a_standby)]
        addr: String,
    },
    /// Continue without the standby. Answers when the machine runs alone.
    ///
    /// Without an arbiter, only the operator can decide this.
    RunAlone,
    /// Make the standby take over. Answers when the guest runs there.
    ///
    /// Without an arbiter, this needs a primary that cannot be reached: first make sure that it is
    /// dead.
    TakeOver,
    /// Discard the checkpoint of a standby that waits for an operator. The primary continues.
    Discard,
    /// Change the keys of the link without ending it. Each new connection reads the certificates
    /// again.
    RotateKeys,
    /// Clear the distributions of times and sizes in `status`.
    ResetStats,
    /// Press the ACPI power button of the guest. Answers when the machine is off, or says that the
    /// guest does not react.
    Shutdown,
    /// Cut the power. The guest gets no warning and loses data that it has not written. A standby
    /// ends and discards its checkpoint.
    PowerOff,
}
