//! Without protection: one client sends requests to the same guest, under `kemari run` and under
//! QEMU.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari_testbed::micro;
use kemari_testbed::process::Process;
use kemari_testbed::switch::Switch;
use kemari_workload::Op;

use super::client::{Client, Exchange};
use super::figures::Samples;
use super::kemari::Kemari;
use super::machine::{Machine, Spec};
use crate::data::{Group, Row, Unit};

/// The number of clients that ask at the same time.
const TOGETHER: usize = 16;
/// A time that is not measured, for first touches of memory and other events that happen only once.
const WARM_UP: Duration = Duration::from_millis(50);
/// The contents of a disk write, without its header.
const PAYLOAD: [u8; 64] = [0x5a; 64];

/// A kind of request.
struct Work {
    name: &'static str,
    op: Op<'static>,
    /// The number of ids that ask at the same time.
    ids: usize,
    /// Whether the row reports the rate instead of the latency.
    rate: bool,
}

const WORKS: [Work; 5] = [
    Work { name: "request, one at a time", op: Op::Ping, ids: 1, rate: false },
    Work { name: "requests, one at a time", op: Op::Ping, ids: 1, rate: true },
    Work { name: "requests, 16 at a time", op: Op::Ping, ids: TOGETHER, rate: true },
    Work {
        name: "write to disk",
        op: Op::Append { payload: &PAYLOAD, flush: false },
        ids: 1,
        rate: false,
    },
    Work {
        name: "write to disk with flush",
        op: Op::Append { payload: &PAYLOAD, flush: true },
        ids: 1,
        rate: false,
    },
];

/// The monitors, in the order in which they are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Monitor {
    Qemu,
    Kemari,
}

impl Monitor {
    const ALL: [Self; 2] = [Self::Qemu, Self::Kemari];

    const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "QEMU",
            Self::Kemari => "kemari run",
        }
    }
}

/// A running monitor, which ends when this value is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "held for its end")]
enum Running {
    Qemu(Machine),
    Kemari(Process),
}

/// The samples of each kind of work under one monitor.
type Found = [Samples; WORKS.len()];

/// Sends requests to the guest under each monitor in turn, in `rounds` rounds, for `time` with each
/// kind of work.
///
/// # Errors
/// A monitor cannot be started, or the guest does not answer.
pub(super) fn measure(kemari: Kemari<'_>, rounds: u32, time: Duration) -> Result<Group> {
    let mut found: [Found; 2] = Default::default();
    for round in 0..rounds {
        for (monitor, samples) in Monitor::ALL.into_iter().zip(&mut found) {
            let name = format!("plain-{round}-{monitor:?}");
            let one = visit(kemari, monitor, &name, time);
            let one = one.with_context(|| format!("the guest under {}", monitor.name()))?;
            samples.iter_mut().zip(one).for_each(|(all, one)| all.extend(one));
        }
    }
    Ok(group(kemari.model.version, &found))
}

fn visit(kemari: Kemari<'_>, monitor: Monitor, name: &str, time: Duration) -> Result<Found> {
    let model = kemari.model;
    let switch = Switch::new(model.dir, &[name]).context("cannot start the switch")?;
    let mut client = Client::new(&switch, TOGETHER, model.stop.clone());
    let disk = model.dir.join(format!("{name}.img"));
    let image = File::create(&disk).and_then(|image| image.set_len(micro::DISK_BYTES));
    image.with_context(|| format!("cannot make {}", disk.display()))?;
    let network = switch.socket(0);
    let _running = match monitor {
        Monitor::Kemari => Running::Kemari(kemari.run(name, network, &disk)?),
        Monitor::Qemu => {
            let disk = Some(disk.as_path());
            let spec = Spec { name: name.to_owned(), network, disk, incoming: false };
            Running::Qemu(model.start(&spec)?)
        }
    };
    client.find_guest()?;
    let mut found = Found::default();
    for (work, samples) in WORKS.iter().zip(&mut found) {
        client.exchange(work.ids, work.op, WARM_UP)?;
        let exchange = client.exchange(work.ids, work.op, time)?;
        ensure!(exchange.latency.count() > 0, "{}: no answer within {time:?}", work.name);
        *samples = work.samples(exchange);
    }
    Ok(found)
}

impl Work {
    fn samples(&self, exchange: Exchange) -> Samples {
        match self.rate {
            true => [exchange.rate()].into_iter().collect(),
            false => exchange.latency,
        }
    }

    const fn unit(&self) -> Unit {
        if self.rate { Unit::PerSecond } else { Unit::Microseconds }
    }
}

fn group(version: &str, found: &[Found; 2]) -> Group {
    let rows = WORKS.iter().enumerate().flat_map(|(place, work)| {
        let row = |monitor: Monitor| {
            found[monitor as usize][place]
                .row(format!("{}: {}", work.name, monitor.name()), work.unit())
        };
        let (qemu, kemari) = (row(Monitor::Qemu), row(Monitor::Kemari));
        let kemari = kemari.map(|ours| compared(ours, qemu.as_ref()));
        [qemu, kemari].into_iter().flatten().collect::<Vec<_>>()
    });
    Group {
        name: "peer-plain".to_owned(),
        title: "Peer: QEMU without protection".to_owned(),
        how: format!(
            "The same guest with a disk, a network card and one vCPU under each monitor in turn ({version}, microvm, and \
             `kemari run`), both connected to the same user-space switch, without protection, with the same client. \
             Disks are raw files of this machine with cache=writeback."
        ),
        rows: rows.collect(),
        curves: Vec::new(),
    }
}

fn compared(ours: Row, qemu: Option<&Row>) -> Row {
    match qemu {
        Some(qemu) => ours.limit(qemu.value, "QEMU in the same run"),
        None => ours,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn our_figures_stand_beside_qemus() {
        let samples = |value: f64| std::array::from_fn(|_| Samples::from_iter([value]));
        let group = group("QEMU", &[samples(100.0), samples(50.0)]);
        assert_eq!(group.rows.len(), 2 * WORKS.len());
        let ours = group.rows.iter().find(|row| row.name == "write to disk: kemari run").unwrap();
        assert_eq!((ours.value, ours.ratio()), (50.0, Some(0.5)));
        let names: std::collections::BTreeSet<_> = group.rows.iter().map(|row| &row.name).collect();
        assert_eq!(names.len(), group.rows.len());
    }

    #[test]
    fn a_rate_is_of_answers_and_time() {
        let latency = Samples::from_iter([10.0, 20.0, 30.0]);
        let exchange = Exchange { took: Duration::from_millis(500), latency };
        assert_eq!(exchange.rate(), 6.0);
        let rate = WORKS[1].samples(exchange).spread().unwrap();
        assert_eq!((rate.count, rate.p50), (1, 6.0));
    }
}
