//! `kemari audit`.

use std::path::PathBuf;

use clap::Args;

const EXAMPLES: &str = "\
Example:
  kemari audit verify host-a.audit host-b.audit";

/// `kemari audit`
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct AuditArgs {
    /// The command.
    #[command(subcommand)]
    pub command: AuditCommand,
}

/// The commands.
#[derive(Debug, clap::Subcommand)]
pub enum AuditCommand {
    /// Prove P1 (nothing leaves before its checkpoint is acknowledged) and P2 (only one side
    /// performs effects).
    ///
    /// Exit codes: 0 proved, 1 broken, 2 not a log, 3 incomplete.
    Verify {
        /// The --audit of each host that has run the machine: primary, standby, and each later one.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Accept that rotation has removed old records: judge the rest, without exit code 3 for
        /// them.
        #[arg(long)]
        rotated: bool,
    },
    /// Print one line per record.
    Show {
        /// The --audit of a host, or one of its files.
        file: PathBuf,
    },
}
