//! A client of QEMU's machine protocol (QMP, `docs/interop/qmp-spec.rst` of QEMU), in which each
//! line is a JSON object.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use xtask_common::stop;

/// The longest time until an interruption is noticed.
const TICK: Duration = Duration::from_millis(100);
/// The longest duration of a command: no command here waits for the guest.
const PATIENCE: Duration = Duration::from_secs(20);

/// A message that QEMU sends without a command.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    /// The event's name: `STOP`.
    pub(super) name: String,
    /// The time of the event since 1970.
    pub(super) at: Duration,
    /// The event's data.
    pub(super) data: Value,
}

impl Event {
    /// Whether a migration has reached `status`.
    pub(super) fn is_migration(&self, status: &str) -> bool {
        self.name == "MIGRATION" && self.data["status"] == status
    }
}

/// A line of QEMU's output.
#[derive(Debug, PartialEq)]
enum Message {
    /// The first line of a session.
    Greeting,
    /// The result of a successful command.
    Return(Value),
    /// The error of a failed command.
    Error(String),
    /// An event.
    Event(Event),
}

impl Message {
    fn parse(line: &[u8]) -> Result<Self> {
        let shown = || String::from_utf8_lossy(line).into_owned();
        let mut value: Value = serde_json::from_slice(line)
            .with_context(|| format!("expected JSON from QEMU, found {:?}", shown()))?;
        if let Some(name) = value["event"].as_str() {
            let at = timestamp(&value["timestamp"])
                .with_context(|| format!("an event without a time: {}", shown()))?;
            return Ok(Self::Event(Event {
                name: name.to_owned(),
                at,
                data: value["data"].take(),
            }));
        }
        if let Some(reason) = value["error"]["desc"].as_str() {
            return Ok(Self::Error(reason.to_owned()));
        }
        if let Some(result) = value.get_mut("return") {
            return Ok(Self::Return(result.take()));
        }
        if value.get("QMP").is_some() {
            return Ok(Self::Greeting);
        }
        bail!("expected a greeting, an answer or an event from QEMU, found {}", shown())
    }
}

fn timestamp(value: &Value) -> Option<Duration> {
    let micros = u32::try_from(value["microseconds"].as_u64()?).ok()?;
    Some(Duration::new(value["seconds"].as_u64()?, micros.checked_mul(1000)?))
}

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
    /// The part of a line that has arrived so far.
    partial: Vec<u8>,
    /// Events that no caller has taken yet.
    events: VecDeque<Event>,
    stop: stop::Flag,
}

impl Qmp {
    /// Starts a session on `socket`.
    ///
    /// # Errors
    /// The other end does not speak the protocol.
    pub(super) fn open(socket: UnixStream, stop: stop::Flag) -> Result<Self> {
        let reader = BufReader::new(socket);
        let mut qmp = Self { reader, partial: Vec::new(), events: VecDeque::new(), stop };
        let deadline = Instant::now() + PATIENCE;
        match qmp
            .read(deadline)?
            .context("expected QEMU's greeting, found the end of its output")?
        {
            Message::Greeting => {}
            other => bail!("expected QEMU's greeting, found {other:?}"),
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes `command` in QEMU; returns its result.
    ///
    /// # Errors
    /// QEMU refuses, or does not answer.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        let told = self.reader.get_mut().write_all(line.as_bytes());
        told.with_context(|| format!("cannot send `{command}` to QEMU"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.read(deadline).with_context(|| format!("QEMU, `{command}`"))?;
            match message.with_context(|| format!("QEMU does not answer to `{command}`"))? {
                Message::Return(result) => return Ok(result),
                Message::Error(reason) => bail!("QEMU refuses `{command}`: {reason}"),
                Message::Event(event) => self.events.push_back(event),
                Message::Greeting => bail!("QEMU greets twice"),
            }
        }
    }

    /// Waits for an event that is `wanted`, and drops earlier events. `None` if no such event
    /// arrives within `timeout`.
    ///
    /// # Errors
    /// QEMU ends, or the run must stop.
    pub(super) fn wait(
        &mut self,
        timeout: Duration,
        mut wanted: impl FnMut(&Event) -> bool,
    ) -> Result<Option<Event>> {
        let deadline = Instant::now() + timeout;
        while let Some(event) = self.next_event(deadline)? {
            if wanted(&event) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Drops all events so far.
    ///
    /// # Errors
    /// As for [`Self::wait`].
    pub(super) fn forget(&mut self) -> Result<()> {
        self.wait(Duration::ZERO, |_| false).map(drop)
    }

    /// The next event, if one arrives before `deadline`.
    fn next_event(&mut self, deadline: Instant) -> Result<Option<Event>> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        match self.read(deadline)? {
            None => Ok(None),
            Some(Message::Event(event)) => Ok(Some(event)),
            Some(other) => bail!("QEMU answers without a question: {other:?}"),
        }
    }

    /// The next message, if one arrives before `deadline`.
    fn read(&mut self, deadline: Instant) -> Result<Option<Message>> {
        loop {
            if self.stop.load(Ordering::SeqCst) {
                bail!("interrupted");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // A time-out of zero would mean no time-out.
            let tick = left.clamp(Duration::from_millis(1), TICK);
            self.reader.get_ref().set_read_timeout(Some(tick)).context("QEMU's monitor")?;
            match self.reader.read_until(b'\n', &mut self.partial) {
                Ok(_) if self.partial.last() == Some(&b'\n') => {
                    let message = Message::parse(&self.partial);
                    self.partial.clear();
                    return message.map(Some);
                }
                Ok(_) => bail!("QEMU closed its monitor"),
                // The part of the line that has arrived stays in the buffer.
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    bail!("QEMU closed its monitor")
                }
                Err(error) => return Err(error).context("QEMU's monitor"),
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}"#;
    const STOPPED: &str =
        r#"{"timestamp": {"seconds": 1795459017, "microseconds": 905356}, "event": "STOP"}"#;

    /// A peer that sends the greeting, and then one line of `answers` after each line of ours.
    fn conversation(answers: &[&str]) -> (Result<Qmp>, std::thread::JoinHandle<Vec<String>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let answers: Vec<String> = answers.iter().map(|&line| line.to_owned()).collect();
        let other_end = std::thread::spawn(move || {
            let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            let mut theirs = theirs;
            writeln!(theirs, "{GREETING}\r").unwrap();
            let mut heard = Vec::new();
            for answer in answers {
                heard.push(lines.next().unwrap().unwrap());
                // Send the line in two pieces, as a socket may deliver it.
                let (start, end) = answer.split_at(answer.len() / 2);
                theirs.write_all(start.as_bytes()).unwrap();
                std::thread::yield_now();
                writeln!(theirs, "{end}\r").unwrap();
            }
            heard
        });
        (Qmp::open(ours, stop::Flag::default()), other_end)
    }

    #[test]
    fn reads_each_kind_of_line() {
        let parse = |line: &str| Message::parse(line.as_bytes()).unwrap();
        assert_eq!(parse(GREETING), Message::Greeting);
        assert_eq!(parse(r#"{"return": {"a": 1}}"#), Message::Return(json!({ "a": 1 })));
        let refused = r#"{"error": {"class": "GenericError", "desc": "no such thing"}}"#;
        assert_eq!(parse(refused), Message::Error("no such thing".to_owned()));
        let Message::Event(event) = parse(STOPPED) else { panic!("an event") };
        assert_eq!((event.name.as_str(), event.data), ("STOP", Value::Null));
        assert_eq!(event.at, Duration::from_micros(1_795_459_017_905_356));
    }

    #[test]
    fn refuses_what_is_none_of_them() {
        for line in ["", "text", "{}", "[1]", r#"{"event": "STOP"}"#] {
            assert!(Message::parse(line.as_bytes()).is_err(), "{line:?}");
        }
    }

    #[test]
    fn a_migration_event_is_told_by_its_status() {
        let line = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION", "data": {"status": "completed"}}"#;
        let Ok(Message::Event(event)) = Message::parse(line.as_bytes()) else { panic!("an event") };
        assert!(event.is_migration("completed"));
        assert!(!event.is_migration("active"));
    }

    #[test]
    fn answers_are_told_from_events_and_refusals_from_answers() {
        let ready = r#"{"return": {}}"#;
        let answer = format!("{STOPPED}\n{}", r#"{"return": 7}"#);
        let refusal = r#"{"error": {"class": "GenericError", "desc": "not now"}}"#;
        let (qmp, other_end) = conversation(&[ready, &answer, refusal]);
        let mut qmp = qmp.unwrap();
        assert_eq!(qmp.execute("first", json!({ "x": 1 })).unwrap(), json!(7));
        let refused = qmp.execute("second", json!({})).unwrap_err();
        assert!(refused.to_string().contains("not now"), "{refused}");
        let event = qmp.wait(Duration::ZERO, |event| event.name == "STOP").unwrap().unwrap();
        assert_eq!(event.at.subsec_micros(), 905_356);
        let heard = other_end.join().unwrap();
        assert_eq!(heard[1], r#"{"arguments":{"x":1},"execute":"first"}"#);
    }

    #[test]
    fn silence_and_the_end_are_told_apart() {
        let (qmp, other_end) = conversation(&[r#"{"return": {}}"#, r#"{"return": {}}"#]);
        let mut qmp = qmp.unwrap();
        assert_eq!(qmp.wait(Duration::from_millis(20), |_| true).unwrap(), None);
        qmp.execute("last", json!({})).unwrap();
        other_end.join().unwrap();
        let ended = qmp.wait(Duration::from_secs(20), |_| true).unwrap_err();
        assert!(ended.to_string().contains("closed"), "{ended}");
    }

    #[test]
    fn a_run_that_is_to_end_does_not_wait() {
        let (qmp, other_end) = conversation(&[r#"{"return": {}}"#]);
        let mut qmp = qmp.unwrap();
        qmp.stop.store(true, Ordering::SeqCst);
        assert!(qmp.wait(Duration::from_secs(3600), |_| true).is_err());
        other_end.join().unwrap();
    }
}
