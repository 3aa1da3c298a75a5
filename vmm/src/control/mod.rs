//! The control socket: one JSON request in one line, one JSON answer in one line, for `kemari ctl`.
//!
//! An answer says what happened. A command that takes time is answered when its end is known, or when the client's
//! patience is over; then the answer says how far it is, and the work goes on.

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

/// What an operator may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// What goes on.
    Status,
    /// Protect the virtual machine with the standby at this address.
    Protect {
        /// `HOST:PORT` or `unix:PATH`.
        standby: String,
    },
    /// The operator has decided that the primary goes on without its standby.
    RunAlone,
    /// The operator has decided that the standby takes over.
    TakeOver,
    /// The operator gives up the checkpoint that a standby without an arbiter holds: the primary goes on.
    Discard,
    /// New keys for the link, without ending it.
    RotateKeys,
    /// Distributions of times and sizes begin anew.
    ResetStats,
    /// Press the guest's power button.
    Shutdown,
    /// End the virtual machine as if its plug was pulled.
    PowerOff,
}

/// One line that a client sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What it asks for.
    #[serde(flatten)]
    pub command: Command,
    /// How long it waits for the outcome, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

/// What becomes of a command; an error is a sentence for the operator.
pub type Outcome = Result<Value, String>;

/// How a command is answered.
pub enum Reply {
    /// Its outcome is known.
    Now(Outcome),
    /// It is under way.
    Later(Pending),
}

/// A command that is under way. Both are called by the control socket's thread, which serves everybody: they must not block.
pub struct Pending {
    /// The outcome, once it is known.
    pub look: Box<dyn FnMut() -> Option<Outcome> + Send>,
    /// How far it is, for a client whose patience is over.
    pub so_far: Box<dyn FnMut() -> String + Send>,
}

impl Reply {
    /// The command was carried out at once: this is how things are now.
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

/// What was asked for has happened, and this is the state since.
#[must_use]
pub fn done(state: &str) -> Value {
    serde_json::json!({ "done": true, "state": state })
}

/// Begins commands.
pub type Handler = Arc<dyn Fn(Command) -> Reply + Send + Sync>;

/// A request longer than this is no request.
const MAX_LINE: usize = 64 * 1024;
/// An answer longer than this is no answer.
const MAX_ANSWER: u64 = 16 << 20;
/// How long a client may take to send its request, or to take its answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client waits for an outcome that does not say how long.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(60);

/// Sends one request to the socket at `path` and gives the answer.
///
/// # Errors
/// When nobody answers there, or the answer is an error.
pub fn request(path: &Path, request: &Request) -> Outcome {
    let wait = request.wait_ms.map_or(DEFAULT_WAIT, Duration::from_millis);
    request_within(path, request, &Patience::with(wait))
}

/// As [`request`], of a client whose patience has begun before.
///
/// # Errors
/// As [`request`].
pub fn request_within(path: &Path, request: &Request, patience: &Patience) -> Outcome {
    own_files::check_peer(path).map_err(|error| format!("--control {error}"))?;
    let line = talk(path, request, patience).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
            "no answer from {0}: nobody has answered within {1} s; whoever has it may be stopped or stuck: look at the process \
             (`fuser -v {0}`), or give it longer (--timeout). When it goes on, it may still do what it was asked",
            path.display(),
            patience.all.as_secs()
        ),
        _ => format!(
            "no answer from {}: {error}; is that the --control of a running kemari?",
            path.display()
        ),
    })?;
    let answer: Value = serde_json::from_str(&line)
        .map_err(|error| format!("{} gave no JSON: {error}", path.display()))?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => Err(error.to_owned()),
        None => Ok(answer),
    }
}

fn talk(path: &Path, request: &Request, patience: &Patience) -> io::Result<String> {
    let mut stream = patience.connect(path)?;
    match writeln!(stream, "{}", serde_json::to_string(request)?) {
        // A process that ends has perhaps said so before it went.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    let mut line = String::new();
    let answer = Impatient { stream, patience };
    BufReader::new(answer.take(MAX_ANSWER)).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "it has closed the connection"));
    }
    Ok(line)
}
