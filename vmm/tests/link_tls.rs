//! The encrypted link: which peers are accepted, which are refused, and which keys may change
//! during a session.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use kemari_replication::link::{
    Credentials, Link, LinkAddr, LinkError, LinkListener, LinkSecurity,
};
use kemari_testbed::certs::Authority;

const TIMEOUT: Duration = Duration::from_secs(10);

struct Hosts {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Hosts {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new("test").unwrap();
        let hosts = Self { dir, authority };
        hosts.issue("primary", &["primary.test", "127.0.0.1"]);
        hosts.issue("standby", &["standby.test", "127.0.0.1"]);
        hosts
    }

    fn path(&self, host: &str) -> PathBuf {
        self.dir.path().join(host)
    }

    fn issue(&self, host: &str, names: &[&str]) {
        issue(&self.authority, &self.path(host), names);
    }

    fn listen(&self) -> (LinkListener, LinkAddr) {
        listen(&tls(&self.path("standby"), None))
    }
}

fn issue(authority: &Authority, dir: &Path, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    authority.issue(dir, &names).unwrap();
}

fn tls(dir: &Path, peer: Option<&str>) -> LinkSecurity {
    LinkSecurity { tls: Some(Credentials::open(dir, peer).unwrap()), allow_plain: false }
}

/// Listens on a port that was free a moment before.
fn listen(security: &LinkSecurity) -> (LinkListener, LinkAddr) {
    loop {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let addr = LinkAddr::Tcp(format!("127.0.0.1:{port}"));
        if let Ok(listener) = addr.listen(security.clone()) {
            return (listener, addr);
        }
    }
}

/// The results of one attempt at both ends.
fn meet(
    listener: &LinkListener,
    addr: &LinkAddr,
    security: &LinkSecurity,
) -> (Result<Link, LinkError>, Result<Link, LinkError>) {
    thread::scope(|scope| {
        let there = scope.spawn(|| listener.accept().unwrap().admit());
        let here = addr.connect(TIMEOUT, security);
        (here, there.join().unwrap())
    })
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

#[test]
fn both_directions_carry_megabytes_at_once_while_keys_change() {
    let hosts = Hosts::new();
    let (listener, addr) = hosts.listen();
    let (here, there) = meet(&listener, &addr, &tls(&hosts.path("primary"), None));
    let (here, there) = (here.unwrap(), there.unwrap());
    assert!(here.is_secured() && there.is_secured());
    const LEN: usize = 5 << 20;
    thread::scope(|scope| {
        for (link, seed) in [(&here, 1u8), (&there, 2)] {
            let (mut out, mut input) = (link.try_clone().unwrap(), link.try_clone().unwrap());
            scope.spawn(move || {
                for part in pattern(LEN, seed).chunks(700_001) {
                    out.write_all(part).unwrap();
                    out.rotate_keys().unwrap();
                }
            });
            scope.spawn(move || {
                let mut got = vec![0; LEN];
                input.read_exact(&mut got).unwrap();
                assert!(got == pattern(LEN, 3 - seed), "what came is not what was sent");
            });
        }
    });
}

#[test]
fn a_reader_sees_the_end_of_the_link() {
    let hosts = Hosts::new();
    let (listener, addr) = hosts.listen();
    let (here, there) = meet(&listener, &addr, &tls(&hosts.path("primary"), None));
    let (mut here, there) = (here.unwrap(), there.unwrap());
    thread::scope(|scope| {
        let reader = scope.spawn(move || here.read(&mut [0; 16]));
        there.shutdown();
        let end = reader.join().unwrap();
        assert!(end.is_err() || end.is_ok_and(|read| read == 0));
    });
}

#[test]
fn a_certificate_of_another_authority_is_refused_by_both_sides() {
    let hosts = Hosts::new();
    let (listener, addr) = hosts.listen();
    let stranger = Authority::new("somebody else's").unwrap();
    issue(&stranger, &hosts.path("stranger"), &["primary.test"]);
    let (here, there) = meet(&listener, &addr, &tls(&hosts.path("stranger"), None));
    let error = here.unwrap_err().to_string();
    assert!(error.contains("certificate") && error.contains("--tls"), "{error}");
    there.unwrap_err();

    // The peer trusts our authority, and has no certificate from it.
    fs::copy(hosts.path("standby").join("ca.pem"), hosts.path("stranger").join("ca.pem")).unwrap();
    let (here, there) = meet(&listener, &addr, &tls(&hosts.path("stranger"), None));
    there.unwrap_err();
    // With TLS 1.3, the client ends its handshake before the server has verified its certificate.
    if let Ok(mut here) = here {
        here.read(&mut [0; 1]).unwrap_err();
    }
}

#[test]
fn a_standby_with_another_name_in_its_certificate_is_refused() {
    let hosts = Hosts::new();
    hosts.issue("standby", &["another.test"]);
    let (listener, addr) = hosts.listen();
    let (here, _) = meet(&listener, &addr, &tls(&hosts.path("primary"), None));
    let error = here.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1"), "{error}");
    // With a server name given, the certificate need not contain the address.
    let (here, there) = meet(&listener, &addr, &tls(&hosts.path("primary"), Some("another.test")));
    here.unwrap();
    there.unwrap();
}

#[test]
fn a_standby_can_ask_for_one_primary() {
    let hosts = Hosts::new();
    let (listener, addr) = listen(&tls(&hosts.path("standby"), Some("primary.test")));
    let (_, there) = meet(&listener, &addr, &tls(&hosts.path("primary"), None));
    there.unwrap();
    hosts.issue("other", &["other.test"]);
    let (_, there) = meet(&listener, &addr, &tls(&hosts.path("other"), None));
    there.unwrap_err();
}

#[test]
fn plain_bytes_and_silence_are_refused() {
    let hosts = Hosts::new();
    let (listener, addr) = hosts.listen();
    let LinkAddr::Tcp(to) = &addr else { unreachable!() };
    thread::scope(|scope| {
        let there = scope.spawn(|| listener.accept().unwrap().admit());
        let mut plain = TcpStream::connect(to).unwrap();
        plain.write_all(&pattern(4096, 9)).unwrap();
        let error = there.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("not TLS"), "{error}");
    });
    thread::scope(|scope| {
        let there = scope.spawn(|| listener.accept().unwrap().admit());
        let mut silent = TcpStream::connect(to).unwrap();
        // The handshake's deadline ends the connection, which the peer sees.
        assert_eq!(silent.read(&mut [0; 1]).unwrap_or(0), 0);
        let error = there.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("no answer in time"), "{error}");
    });
}

#[test]
fn a_plain_primary_does_not_reach_a_standby_with_tls() {
    let hosts = Hosts::new();
    let (listener, addr) = hosts.listen();
    thread::scope(|scope| {
        let there = scope.spawn(|| listener.accept().unwrap().admit());
        let mut here = addr.connect(TIMEOUT, &LinkSecurity::default()).unwrap();
        here.write_all(&pattern(64, 0)).unwrap();
        there.join().unwrap().unwrap_err();
    });
}

#[test]
fn renewed_certificates_are_used_by_the_next_connection() {
    let hosts = Hosts::new();
    let (listener, addr) = hosts.listen();
    let security = tls(&hosts.path("primary"), None);
    let (here, there) = meet(&listener, &addr, &security);
    let (mut here, mut there) = (here.unwrap(), there.unwrap());

    // All keys are replaced while both ends run: a new authority, new certificates.
    let renewed = Authority::new("renewed").unwrap();
    for host in ["primary", "standby"] {
        issue(&renewed, &hosts.path(host), &["127.0.0.1"]);
    }
    let (again, admitted) = meet(&listener, &addr, &security);
    again.unwrap();
    admitted.unwrap();
    // The existing connection continues.
    here.write_all(b"still here").unwrap();
    let mut got = [0; 10];
    there.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still here");
}

#[test]
fn unusable_files_are_found_at_once() {
    let hosts = Hosts::new();
    let dir = hosts.path("primary");
    let open = |dir: &Path| Credentials::open(dir, None).unwrap_err().to_string();
    fs::copy(hosts.path("standby").join("key.pem"), dir.join("key.pem")).unwrap();
    assert!(open(&dir).contains("belong together"));
    fs::write(dir.join("key.pem"), "no key").unwrap();
    assert!(open(&dir).contains("private key"));
    fs::remove_file(dir.join("ca.pem")).unwrap();
    fs::remove_file(dir.join("cert.pem")).unwrap();
    assert!(open(&dir).contains("cert.pem"));
    let name = Credentials::open(&hosts.path("standby"), Some("no name")).unwrap_err();
    assert!(name.to_string().contains("no name"));
}
