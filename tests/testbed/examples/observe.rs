//! Observes a micro-guest that a person started: `observe DIR DISK SECONDS`. The guest's network is
//! the socket `DIR/a.net` (QEMU's `-netdev stream`, kemari's `--net stream=`); the guest's command
//! line contains `ip=10.0.2.15`.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari_testbed::client::{Client, ClientConfig};
use kemari_testbed::disk::DiskLog;
use kemari_testbed::packet::Host;
use kemari_testbed::switch::Switch;
use kemari_workload::Op;

const PATIENCE: Duration = Duration::from_secs(8);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, dir, disk, seconds] = arguments.as_slice() else {
        anyhow::bail!("expected: observe DIR DISK SECONDS");
    };
    let switch = Switch::new(Path::new(dir), &["a"])?;
    let own = Host { mac: [2, 0, 0, 0, 0, 0xc1], ip: Ipv4Addr::new(10, 0, 2, 2) };
    let config = ClientConfig {
        own,
        guest: Ipv4Addr::new(10, 0, 2, 15),
        writers: 4,
        seed: 1,
        resend: Duration::from_millis(50),
    };
    let client = Client::start(switch.plug_in(), config);
    ensure!(
        client.wait_operations(1, PATIENCE),
        "expected an answer of the guest within {PATIENCE:?}, found none"
    );
    client.next_window();
    client.wait_operations(u64::MAX, Duration::from_secs(seconds.parse()?));
    let window = client.next_window();
    let verified = client.ask(Op::Verify, PATIENCE).context("no answer to Verify")?;
    ensure!(client.hold(PATIENCE), "requests stay unanswered: {:?}", client.outstanding());
    client.check_complete();
    let mut log = DiskLog::open(Path::new(disk))?;
    let findings = client.with_history(|history| log.check_all(history))?;
    println!("{verified:?}");
    println!(
        "{} operations, {} resent, {} surplus answers, longest gap {:?}, p50 {} us, p99 {} us",
        window.operations,
        window.resent,
        window.surplus_answers,
        window.longest_gap,
        window.latency.value_at_quantile(0.5),
        window.latency.value_at_quantile(0.99),
    );
    println!("{} frames; disk: {findings:?}", switch.take_capture().len());
    let violations = client.take_findings();
    violations.iter().for_each(|violation| println!("{violation}"));
    client.ask(Op::PowerOff, PATIENCE);
    ensure!(violations.is_empty() && findings.findings.is_empty(), "not every promise held");
    Ok(())
}
