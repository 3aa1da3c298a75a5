//! A real etcd server as arbiter, in its own directory. Tests stop, kill and restart it.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::ports::free_address;
use crate::process::{Process, tied_to_us};

/// Time limit for the start of a server.
const PATIENCE: Duration = Duration::from_secs(60);
/// Number of attempts with other ports: another program may take a free port before the server
/// does.
const PORTS_TRIED: u32 = 5;

/// TLS files. etcd serves with them, and accepts only clients whose certificate is from the same
/// authority.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// The server's key.
    pub key: PathBuf,
}

/// One etcd server. Dropping it ends the server.
#[derive(Debug)]
pub struct Etcd {
    dir: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    tls: Option<ServerTls>,
    starts: u32,
    /// The command that enters the server's network namespace; empty if the server runs in ours.
    prefix: Vec<String>,
    process: Option<Process>,
}

impl Etcd {
    /// Starts a server on the loopback interface, with its data below `dir`.
    ///
    /// # Errors
    /// etcd is not installed, or does not start.
    pub fn start(dir: &Path, tls: Option<ServerTls>) -> Result<Self> {
        Self::start_at(dir, tls, Ipv4Addr::LOCALHOST, Vec::new())
    }

    /// As [`start`](Self::start), at an address in the network namespace that `prefix` enters.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_at(
        dir: &Path,
        tls: Option<ServerTls>,
        address: Ipv4Addr,
        prefix: Vec<String>,
    ) -> Result<Self> {
        ensure!(is_installed(), MISSING);
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for _ in 0..PORTS_TRIED {
            let mut etcd = Self {
                dir: dir.to_owned(),
                client: SocketAddr::from((address, free_address()?.port())),
                peer: free_address()?,
                tls: tls.clone(),
                starts: 0,
                prefix: prefix.clone(),
                process: None,
            };
            if etcd.restart().is_ok() {
                return Ok(etcd);
            }
            let _ = std::fs::remove_dir_all(etcd.data());
        }
        bail!("etcd does not start; see {}", dir.display())
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Starts the server again with its data, and waits until it serves.
    ///
    /// # Errors
    /// The server does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.starts += 1;
        let process = Process::start("etcd", self.command()?, &self.log())?;
        self.process = Some(process);
        self.wait_serving()
    }

    fn log(&self) -> PathBuf {
        self.dir.join(format!("etcd-{}.log", self.starts))
    }

    fn command(&self) -> Result<Command> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://{}", self.client);
        let told = format!("{scheme}://127.0.0.1:{}", self.client.port());
        let peer = format!("http://{}", self.peer);
        let mut command = match self.prefix.split_first() {
            Some((program, arguments)) => {
                let mut command = tied_to_us(Path::new(program));
                command.args(arguments).arg(PROGRAM);
                command
            }
            None => tied_to_us(Path::new(PROGRAM)),
        };
        let data = self.data();
        std::fs::create_dir_all(&data)?;
        command
            .args(["--name", "arbiter", "--data-dir"])
            .arg(&data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &told])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("arbiter={peer}")]);
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&tls.ca);
            command.arg("--cert-file").arg(&tls.certificate).arg("--key-file").arg(&tls.key);
        }
        let output = File::create(self.dir.join(format!("etcd-{}.out", self.starts)))?;
        command.stdin(Stdio::null()).stdout(output);
        Ok(command)
    }

    /// Waits for the log line that etcd 3.4 and later write when they serve.
    fn wait_serving(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let process = self.process.as_mut().context("it was just started")?;
            if let Some(status) = process.exited() {
                let said = process.lines().join("\n");
                bail!("etcd has ended ({status}):\n{said}");
            }
            let ready = process.lines().iter().any(|line| line.contains("ready to serve client"));
            if ready && self.connects() {
                return Ok(());
            }
            // Poll: another program's start gives no event to wait for.
            thread::sleep(Duration::from_millis(10));
        }
        bail!("etcd does not serve within {PATIENCE:?}; see {}", self.log().display())
    }

    /// Whether the server accepts a connection. A server in another namespace is unreachable from
    /// here: its log line must suffice.
    fn connects(&self) -> bool {
        !self.prefix.is_empty()
            || TcpStream::connect_timeout(&self.client, Duration::from_secs(1)).is_ok()
    }

    /// Kills the server; its data stays.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Stops the server with SIGSTOP: connections stay open, and no request is answered.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
    }

    /// Resumes the server.
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    fn signal(&mut self, signal: Signal) {
        if let Some(process) = &mut self.process {
            process.signal(signal);
        }
    }

    /// The address for clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.client
    }
}

/// The path in Debian's package `etcd-server`.
const PROGRAM: &str = "/usr/bin/etcd";
/// The error where etcd is not installed.
pub const MISSING: &str =
    "expected etcd's server at /usr/bin/etcd, found none; install it: apt-get install etcd-server";

/// Whether etcd is installed.
#[must_use]
pub fn is_installed() -> bool {
    Path::new(PROGRAM).exists()
}
