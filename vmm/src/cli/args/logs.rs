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
        /// Audit log (--audit FILE) of each host that has run the machine: primary, standby, and
        /// each later one.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Judge the remaining records if rotation has removed old ones; do not end with exit code
        /// 3 for that.
        #[arg(long)]
        rotated: bool,
    },
    /// Print one line per record.
    Show {
        /// Audit log (--audit FILE) of a host, or one of the log's files.
        file: PathBuf,
    },
}
