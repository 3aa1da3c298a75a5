//! The command line: the flags of every command, and the configurations made from them.
//!
//! Each group of flags under one heading of the help is one struct. A flag's doc comment is its
//! help: `-h` prints the first paragraph, `--help` all of it.

mod control;
mod disk;
mod logs;
mod machine;
mod measure;
mod pair;
mod run;
mod standby;

use clap::Parser;

pub use self::control::{CtlArgs, CtlCommand};
pub use self::disk::{DiskArgs, DiskCommand, DiskFiles};
pub use self::logs::{AuditArgs, AuditCommand};
pub use self::machine::GuestDevices;
pub use self::measure::ProbeArgs;
#[cfg(feature = "etcd")]
pub(super) use self::pair::ArbiterArgs;
pub use self::pair::PairArgs;
pub(super) use self::pair::{OperationArgs, ReplicationArgs, SecurityArgs};
pub use self::run::RunArgs;
pub use self::standby::StandbyArgs;

const EXAMPLES: &str = "\
Examples:
  kemari run --kernel vmlinuz --disk path=web.raw --net tap=tap0 --standby host-b:7000 --tls /etc/kemari/tls --arbiter file:/mnt/arbiter
  kemari standby --listen host-b:7000 --disk path=web.raw --net tap=tap0 --tls /etc/kemari/tls --arbiter file:/mnt/arbiter
  kemari ctl --control /run/web.sock status
  kemari audit verify host-a.audit host-b.audit
  kemari disk info web.raw
  kemari probe

`kemari COMMAND --help` describes each flag.";

/// A KVM virtual machine monitor whose guests survive the death of their host.
#[derive(Debug, Parser)]
#[command(name = "kemari", version, about, max_term_width = 110, after_help = EXAMPLES)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Subcommand,
}

/// The commands.
#[derive(Debug, clap::Subcommand)]
pub enum Subcommand {
    /// Run a virtual machine, protected by a standby if there is one.
    Run(Box<RunArgs>),
    /// Wait for a primary, keep its last checkpoint, and take over when it dies.
    Standby(Box<StandbyArgs>),
    /// Query or control a running `kemari`.
    Ctl(CtlArgs),
    /// Verify or print audit logs.
    Audit(AuditArgs),
    /// Make or look at the files of an own disk.
    Disk(DiskArgs),
    /// Report what this host's KVM can run.
    Probe(ProbeArgs),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_machine_is_read() {
        let line = "kemari run --kernel k --cmdline -x=1 --memory 64 --cpus 2 --disk path=d --net stream=s --rng --serial none";
        let Subcommand::Run(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            unreachable!("it is a run")
        };
        let machine = args.machine();
        assert_eq!((machine.memory, machine.cpus, machine.rng), (64 << 20, 2, true));
        assert_eq!(machine.boot.unwrap().cmdline, "-x=1");
        assert_eq!((machine.disks.len(), machine.nets.len()), (1, 1));
        assert_eq!(args.pair.replication.epoch_interval, 25);
    }

    /// Each flag is under a heading: a flat list of forty is not readable.
    #[test]
    fn every_flag_of_a_machine_is_in_a_group() {
        for command in Cli::command().get_subcommands() {
            if !["run", "standby"].contains(&command.get_name()) {
                continue;
            }
            let flags = command.get_arguments().filter(|flag| !flag.is_hide_set());
            let loose: Vec<_> = flags
                .filter(|flag| flag.get_help_heading().is_none())
                .map(|flag| flag.get_id().to_string())
                .filter(|id| id != "help")
                .collect();
            assert!(loose.is_empty(), "{}: {loose:?}", command.get_name());
        }
    }
}
