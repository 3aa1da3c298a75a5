//! TLS 1.3 with mutual authentication over one connection, which one thread reads and others write.
//!
//! No thread blocks while it holds the lock `connection`: it reads the socket before it takes the
//! lock and writes the socket after it has released it. A writer holds `outgoing` from encrypting
//! its records to writing them, so that records leave in the order in which they were encrypted.
//! Lock order: `incoming`, `outgoing`, `connection`.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::ParsedCertificate;
use rustls::{ClientConnection, Connection, ServerConnection};

use super::credentials::{Credentials, CredentialsError, server_name};
use super::stream::Stream;

/// Bytes per read of the socket: several records of 16 KiB.
const READ_AT_ONCE: usize = 64 << 10;
/// Upper bound for a whole handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// The TLS state of one connection.
pub(super) struct TlsSession {
    connection: Mutex<Connection>,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Vec<u8>>,
}

/// Bytes from the socket that TLS has not processed yet.
struct Incoming {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

/// Why a connection was not secured.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl TlsSession {
    /// Secures a connection that this side has made to `host`.
    pub(super) fn connect(
        stream: &Stream,
        credentials: &Credentials,
        host: &str,
    ) -> Result<Self, HandshakeError> {
        let name = match credentials.peer_name()? {
            Some(name) => name,
            None => server_name(host)?,
        };
        let connection = ClientConnection::new(credentials.client()?, name)?;
        Self::shake_hands(stream, connection.into())
    }

    /// Secures a connection that the other side has made.
    pub(super) fn accept(
        stream: &Stream,
        credentials: &Credentials,
    ) -> Result<Self, HandshakeError> {
        let connection = ServerConnection::new(credentials.server()?)?;
        let session = Self::shake_hands(stream, connection.into())?;
        if let Some(name) = credentials.peer_name()? {
            session.check_peer(&name)?;
        }
        Ok(session)
    }

    fn shake_hands(stream: &Stream, mut connection: Connection) -> Result<Self, HandshakeError> {
        let deadline = Instant::now() + HANDSHAKE;
        let done = drive(stream, &mut connection, deadline);
        // Send the remaining bytes even after a failure: an alert tells the other side the reason.
        let mut last_words = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut last_words)?;
        }
        let said = stream.write_all_now(&last_words);
        done?;
        said?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok(Self {
            connection: Mutex::new(connection),
            incoming: Mutex::new(Incoming { bytes: vec![0; READ_AT_ONCE], start: 0, end: 0 }),
            outgoing: Mutex::new(Vec::new()),
        })
    }

    fn check_peer(&self, name: &ServerName<'_>) -> Result<(), rustls::Error> {
        let connection = lock(&self.connection);
        let certificate = connection
            .peer_certificates()
            .and_then(|chain| chain.first())
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)
    }

    /// As `read(2)`.
    pub(super) fn read(&self, stream: &Stream, into: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        loop {
            match self.decrypted(stream, &mut incoming, into)? {
                Some(read) => return Ok(read),
                None => incoming.fill(stream)?,
            }
        }
    }

    /// Returns decrypted bytes. Returns `None` when more bytes from the socket are needed.
    fn decrypted(
        &self,
        stream: &Stream,
        incoming: &mut Incoming,
        into: &mut [u8],
    ) -> io::Result<Option<usize>> {
        loop {
            let mut connection = lock(&self.connection);
            match connection.reader().read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done.map(Some),
            }
            if incoming.start == incoming.end {
                return Ok(None);
            }
            let mut waiting = &incoming.bytes[incoming.start..incoming.end];
            incoming.start += connection.read_tls(&mut waiting)?;
            let processed = connection.process_new_packets();
            let answer = connection.wants_write();
            drop(connection);
            if answer {
                // An alert, or the answer to a change of keys.
                self.send(stream, &[])?;
            }
            processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }

    /// As `write(2)`.
    pub(super) fn write(&self, stream: &Stream, from: &[u8]) -> io::Result<usize> {
        self.send(stream, from)
    }

    /// Changes the keys of both directions without ending the connection (RFC 8446, 4.6.3).
    pub(super) fn rotate_keys(&self, stream: &Stream) -> io::Result<()> {
        lock(&self.connection).refresh_traffic_keys().map_err(io::Error::other)?;
        self.send(stream, &[]).map(|_| ())
    }

    fn send(&self, stream: &Stream, from: &[u8]) -> io::Result<usize> {
        let mut records = lock(&self.outgoing);
        records.clear();
        let mut connection = lock(&self.connection);
        let taken = if from.is_empty() { 0 } else { connection.writer().write(from)? };
        while connection.wants_write() {
            connection.write_tls(&mut *records)?;
        }
        drop(connection);
        // The other side cannot use a part of a record: after an error the link is dropped.
        stream.write_all_now(&records)?;
        Ok(taken)
    }
}

impl Incoming {
    fn fill(&mut self, stream: &Stream) -> io::Result<()> {
        let read = stream.read_now(&mut self.bytes)?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        (self.start, self.end) = (0, read);
        Ok(())
    }
}

/// Runs the handshake until both sides are authenticated. A peer that is slow on purpose hits the
/// time limit.
fn drive(
    stream: &Stream,
    connection: &mut Connection,
    deadline: Instant,
) -> Result<(), HandshakeError> {
    let mut records = Vec::new();
    while connection.is_handshaking() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(ErrorKind::TimedOut).into());
        }
        stream.set_read_timeout(Some(left))?;
        stream.set_write_timeout(Some(left))?;
        records.clear();
        while connection.wants_write() {
            connection.write_tls(&mut records)?;
        }
        stream.write_all_now(&records)?;
        if connection.is_handshaking() && connection.wants_read() {
            if connection.read_tls(&mut &*stream)? == 0 {
                return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
            }
            connection.process_new_packets()?;
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked in the middle of a record has left a stream that does not decrypt.
    // That is an error, not wrong data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for TlsSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsSession")
    }
}
