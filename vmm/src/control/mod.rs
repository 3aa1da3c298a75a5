//! The control socket for `kemari ctl`: a request is one line of JSON, and so is its answer.
//!
//! An answer gives the outcome of a command. A command that takes time is answered when its outcome
//! is known, or when the client's time-out has passed. In the second case the answer says how far
//! the command is, and the command continues.

mod patience;
mod server;

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use io_gate_host::own_files;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::patience::Impatient;
pub use self::patience::Patience;
pub(crate) use server::most_clients;
pub use server::{ControlPlace, ControlSocket};

/// A command from an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// Returns the status.
    Status,
    /// Protects the virtual machine with the standby at this address.
    Protect {
        /// `HOST:PORT` or `unix:PATH`.
        standby: String,
    },
    /// Lets the primary continue without its standby, by the operator's decision.
    RunAlone,
    /// Makes the standby take over, by the operator's decision.
    TakeOver,
    /// Makes a standby without an arbiter drop its checkpoint, so that the primary continues.
    Discard,
    /// Changes the link's keys without ending the link.
    RotateKeys,
    /// Resets the distributions of times and sizes.
    ResetStats,
    /// Presses the guest's power button.
    Shutdown,
    /// Ends the virtual machine at once, like a power cut.
    PowerOff,
}

/// A request: one line from a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The command.
    #[serde(flatten)]
    pub command: Command,
    /// How long the client waits for the outcome, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

/// The outcome of a command. An error is a sentence for the operator.
pub type Outcome = Result<Value, String>;

/// The reply to a command.
pub enum Reply {
    /// The outcome is known.
    Now(Outcome),
    /// The command is under way.
    Later(Pending),
}

/// A command that is under way. The one thread of the control socket calls both functions for all
/// clients: they must not block.
pub struct Pending {
    /// Returns the outcome when it is known.
    pub look: Box<dyn FnMut() -> Option<Outcome> + Send>,
    /// Says how far the command is, for a client whose time-out has passed.
    pub so_far: Box<dyn FnMut() -> String + Send>,
}

impl Reply {
    /// The command is done; `state` is the state after it.
    #[must_use]
    pub fn done(state: &str) -> Self {
        Self::Now(Ok(done(state)))
    }

    /// The command was refused.
    #[must_use]
    pub fn refused(why: impl Into<String>) -> Self {
        Self::Now(Err(why.into()))
    }

    /// The command is under way.
    #[must_use]
    pub fn later(
        look: impl FnMut() -> Option<Outcome> + Send + 'static,
        so_far: impl FnMut() -> String + Send + 'static,
    ) -> Self {
        Self::Later(Pending { look: Box::new(look), so_far: Box::new(so_far) })
    }
}

/// The outcome of a command that has succeeded, with the state after it.
#[must_use]
pub fn done(state: &str) -> Value {
    serde_json::json!({ "done": true, "state": state })
}

/// Starts a command, and returns its reply.
pub type Handler = Arc<dyn Fn(Command) -> Reply + Send + Sync>;

/// Upper bound of a request's length in bytes.
const MAX_LINE: usize = 64 * 1024;
/// Upper bound of an answer's length in bytes.
const MAX_ANSWER: u64 = 16 << 20;
/// Time limit for a client to send its request, and to read its answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client waits for an outcome if its request gives no time.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(60);

/// Sends one request to the socket at `path` and returns the answer.
///
/// # Errors
/// When nothing answers there, or the answer is an error.
pub fn request(path: &Path, request: &Request) -> Outcome {
    let wait = request.wait_ms.map_or(DEFAULT_WAIT, Duration::from_millis);
    request_within(path, request, &Patience::with(wait))
}

/// As [`request`], with a time-out that has already started.
///
/// # Errors
/// As [`request`].
pub fn request_within(path: &Path, request: &Request, patience: &Patience) -> Outcome {
    own_files::check_peer(path).map_err(|error| format!("--control {error}"))?;
    let line = talk(path, request, patience).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
            "no answer from {0} within {1} s: its process may be stopped or stuck; look at the process (`fuser -v \
            {0}`), or wait longer (--timeout). The command may still be carried out later",
            path.display(),
            patience.all.as_secs()
        ),
        _ => format!(
            "no answer from {}: {error}; check that this is the --control of a running kemari",
            path.display()
        ),
    })?;
    let answer: Value = serde_json::from_str(&line).map_err(|error| {
        format!("{} expected an answer in JSON, found: {error}", path.display())
    })?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => Err(error.to_owned()),
        None => Ok(answer),
    }
}

fn talk(path: &Path, request: &Request, patience: &Patience) -> io::Result<String> {
    let mut stream = patience.connect(path)?;
    match writeln!(stream, "{}", serde_json::to_string(request)?) {
        // A process that ends may have sent an answer before it closed the socket.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    let mut line = String::new();
    let answer = Impatient { stream, patience };
    BufReader::new(answer.take(MAX_ANSWER)).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "it closed the connection"));
    }
    Ok(line)
}
