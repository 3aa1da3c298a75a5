//! The control socket: one JSON request a line, one JSON answer a line, for `kemari ctl`.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use io_gate_host::own_files::{self, OwnName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::seccomp::{self, Role};

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
    /// New keys for the link, without ending it.
    RotateKeys,
    /// Distributions of times and sizes begin anew.
    ResetStats,
    /// End the virtual machine in an orderly way.
    PowerOff,
}

/// Answers commands; an error is a sentence for the operator.
pub type Handler = Arc<dyn Fn(Command) -> Result<Value, String> + Send + Sync>;

/// A request longer than this is no request.
const MAX_LINE: u64 = 64 * 1024;
/// A client that falls silent in the middle of a request is given up.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// The socket and who answers on it. One process changes roles (a standby takes over), so the
/// handler can be replaced.
pub struct ControlSocket {
    _name: OwnName,
    handler: Arc<Mutex<Handler>>,
}

impl ControlSocket {
    /// Listens at `path` and answers in a thread of its own.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(path: &Path, handler: Handler) -> Result<Self, String> {
        let (listener, name) = own_files::bind(path, |path| UnixListener::bind(path))
            .map_err(|error| format!("--control {error}"))?;
        let handler = Arc::new(Mutex::new(handler));
        let shared = handler.clone();
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                seccomp::enter(Role::Control, &[]);
                serve(&listener, &shared);
            })
            .map_err(|error| format!("cannot start the control thread: {error}"))?;
        Ok(Self { _name: name, handler })
    }

    /// From now on `handler` answers.
    pub fn replace_handler(&self, handler: Handler) {
        *self.handler.lock().unwrap_or_else(PoisonError::into_inner) = handler;
    }
}

fn serve(listener: &UnixListener, handler: &Mutex<Handler>) {
    for client in listener.incoming() {
        let answered = client.and_then(|client| answer(&client, handler));
        if let Err(error) = answered {
            log::debug!("control client: {error}");
        }
    }
}

fn answer(client: &UnixStream, handler: &Mutex<Handler>) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    client.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let mut line = String::new();
    io::Read::take(BufReader::new(client), MAX_LINE).read_line(&mut line)?;
    let current = handler.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let answer = match serde_json::from_str::<Command>(&line) {
        Ok(command) => current(command),
        Err(error) => {
            Err(format!("expected a JSON command such as {{\"command\":\"status\"}}: {error}"))
        }
    };
    let answer = answer.unwrap_or_else(|error| json!({ "error": error }));
    let mut out = client;
    writeln!(out, "{answer}")
}

/// Sends one command to the socket at `path` and gives the answer.
///
/// # Errors
/// When nobody answers there, or the answer is an error.
pub fn request(path: &Path, command: &Command) -> Result<Value, String> {
    let talk = || -> io::Result<String> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
        writeln!(stream, "{}", serde_json::to_string(command)?)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    };
    let line = talk().map_err(|error| {
        format!(
            "no answer from {}: {error}; is that the --control of a running kemari?",
            path.display()
        )
    })?;
    let answer: Value = serde_json::from_str(&line)
        .map_err(|error| format!("{} gave no JSON: {error}", path.display()))?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => Err(error.to_owned()),
        None => Ok(answer),
    }
}
