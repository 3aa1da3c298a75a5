//! The `etcd:` arbiter against a real etcd server: killed, restarted, silent, slow, compacted, with
//! TLS and users, and with many claimants.
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use io_gate::host::Term;
use io_gate_host::{Fence, Permission};
use kemari_arbiter::{Arbiter, ArbiterError, EtcdArbiter, EtcdOptions, Verdict};
use kemari_testbed::etcd::{Etcd, ServerTls};
use kemari_testbed::network::Relay;
use tempfile::TempDir;

/// A request waits for half of the lease: an etcd on a busy machine answers within that time.
const LEASE: Duration = Duration::from_secs(4);
/// Upper bound for an event that must happen, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    etcd: Etcd,
    dir: TempDir,
}

fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(dir.path(), None).unwrap();
    Server { etcd, dir }
}

fn options(address: SocketAddr) -> EtcdOptions {
    EtcdOptions {
        endpoints: vec![address.to_string()],
        ca: None,
        identity: None,
        user: None,
        lease: LEASE,
    }
}

fn open(options: EtcdOptions, holder: &str) -> Result<EtcdArbiter, ArbiterError> {
    EtcdArbiter::open(options, "vm", holder.to_owned())
}

fn arbiter(address: SocketAddr, holder: &str) -> EtcdArbiter {
    open(options(address), holder).unwrap()
}

/// Waits until the fence gives this answer; returns how long that took.
fn wait_for(fence: &dyn Fence, wanted: Permission) -> Duration {
    let begun = Instant::now();
    while fence.ask() != wanted {
        assert!(begun.elapsed() < PATIENCE, "{wanted:?} does not come: {}", fence.reason());
        fence.wait(Duration::from_millis(5));
    }
    begun.elapsed()
}

/// The moment of the fence's last grant before it gave another answer. The clock is read before the
/// fence is asked: a busy machine makes the result earlier, never later.
fn last_yes(fence: &dyn Fence, begun: Instant) -> Duration {
    let mut last = Duration::ZERO;
    loop {
        let now = begun.elapsed();
        assert!(now < PATIENCE, "it says yes without end");
        match fence.ask() {
            Permission::Granted => last = now,
            _ => return last,
        }
        fence.wait(Duration::from_millis(5));
    }
}

/// Repeats the claim until the arbiter answers.
fn claim(arbiter: &dyn Arbiter, term: u64) -> Verdict {
    let begun = Instant::now();
    loop {
        match arbiter.claim(Term(term), "a test") {
            Ok(verdict) => return verdict,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
    }
}

#[test]
fn p2_one_of_many_claimants_wins_each_term() {
    let server = server();
    arbiter(server.etcd.address(), "first").begin(false).unwrap();
    let arbiters: Vec<EtcdArbiter> =
        (0..4).map(|i| arbiter(server.etcd.address(), &format!("h{i}"))).collect();
    for term in 2..60 {
        let barrier = Barrier::new(arbiters.len());
        let winners: Vec<usize> = std::thread::scope(|scope| {
            let claims: Vec<_> = arbiters
                .iter()
                .map(|arbiter| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        claim(arbiter, term) == Verdict::Granted
                    })
                })
                .collect();
            let answers = claims.into_iter().map(|claim| claim.join().unwrap());
            answers.enumerate().filter_map(|(i, won)| won.then_some(i)).collect()
        });
        assert_eq!(winners.len(), 1, "term {term} was won by {winners:?}");
    }
}

#[test]
fn p2_a_winner_waits_for_the_former_lease_and_the_former_holder_stops_before() {
    let server = server();
    let a = arbiter(server.etcd.address(), "a");
    assert_eq!(a.begin(false).unwrap(), Term(1));
    let (a_fence, b) = (a.fence(), arbiter(server.etcd.address(), "b"));
    wait_for(&*a_fence, Permission::Granted);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let b_fence = b.fence();
    std::thread::scope(|scope| {
        // Ask b before a: two grants then mean that a may still perform after b may.
        let watcher = scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                let b_may = b_fence.ask() == Permission::Granted;
                let a_may = a_fence.ask() == Permission::Granted;
                assert!(!(a_may && b_may), "two may perform");
            }
        });
        assert_eq!(claim(&b, 2), Verdict::Granted);
        wait_for(&*b.fence(), Permission::Granted);
        wait_for(&*a_fence, Permission::Lost);
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        watcher.join().unwrap();
    });
    assert!(a_fence.reason().contains("held by b"), "{}", a_fence.reason());
    assert!(matches!(claim(&a, 2), Verdict::Denied(record) if record.holder == "b"));
}

#[test]
fn the_holder_goes_on_without_a_gap_when_it_wins_the_next_term_itself() {
    let server = server();
    // The lease cannot expire while this machine is busy.
    let lease = PATIENCE;
    let a = open(EtcdOptions { lease, ..options(server.etcd.address()) }, "a").unwrap();
    a.begin(false).unwrap();
    let fence = a.fence();
    for term in 2..20 {
        assert_eq!(claim(&a, term), Verdict::Granted);
        assert_eq!(fence.ask(), Permission::Granted);
    }
}

#[test]
fn p2_without_etcd_the_lease_ends_and_with_it_again_it_goes_on() {
    let mut server = server();
    let a = arbiter(server.etcd.address(), "a");
    a.begin(false).unwrap();
    let fence = a.fence();
    for round in 0..3 {
        wait_for(&*fence, Permission::Granted);
        // A kill breaks the connections; a stopped etcd keeps them and does not answer.
        let kill = round != 1;
        let begun = Instant::now();
        if kill {
            server.etcd.kill()
        } else {
            server.etcd.pause()
        }
        assert!(last_yes(&*fence, begun) < LEASE, "the lease outlives its length");
        assert_eq!(fence.ask(), Permission::Unknown);
        assert!(fence.reason().starts_with("etcd at 127.0.0.1:"), "{}", fence.reason());
        assert!(matches!(a.claim(Term(2), "a test"), Err(ArbiterError::Etcd { .. })));
        if kill { server.etcd.restart().unwrap() } else { server.etcd.resume() }
    }
    wait_for(&*fence, Permission::Granted);
}

/// P2: the answer to a claim is lost, and no other claimant can win the term before the claimant
/// asks again.
#[test]
fn a_claim_whose_answer_is_lost_is_found_to_be_won() {
    let server = server();
    arbiter(server.etcd.address(), "a").begin(false).unwrap();
    let relay = Relay::to(server.etcd.address()).unwrap();
    let b = arbiter(relay.address(), "b");
    // Longer than a request may take, and shorter than the test.
    relay.set_delay(LEASE);
    assert!(matches!(b.claim(Term(2), "a test"), Err(ArbiterError::Etcd { .. })));
    relay.set_delay(Duration::ZERO);
    assert_eq!(claim(&b, 2), Verdict::Granted);
    let c = arbiter(server.etcd.address(), "c");
    assert!(matches!(claim(&c, 2), Verdict::Denied(record) if record.holder == "b"));
    wait_for(&*b.fence(), Permission::Granted);
}

#[test]
fn p2_a_partitioned_holder_stops_before_another_may_perform() {
    let server = server();
    let relay = Relay::to(server.etcd.address()).unwrap();
    let a = arbiter(relay.address(), "a");
    a.begin(false).unwrap();
    let (a_fence, b) = (a.fence(), arbiter(server.etcd.address(), "b"));
    wait_for(&*a_fence, Permission::Granted);
    relay.set_cut(true);
    assert_eq!(claim(&b, 2), Verdict::Granted);
    let b_fence = b.fence();
    let begun = Instant::now();
    while b_fence.ask() != Permission::Granted {
        assert!(begun.elapsed() < PATIENCE, "{}", b_fence.reason());
        b_fence.wait(Duration::from_millis(1));
    }
    assert_eq!(a_fence.ask(), Permission::Unknown, "a cannot know, and may not");
    relay.set_cut(false);
    wait_for(&*a_fence, Permission::Lost);
}

#[test]
fn a_slow_etcd_is_slow_and_one_that_is_too_slow_holds_effects() {
    let server = server();
    let relay = Relay::to(server.etcd.address()).unwrap();
    let a = arbiter(relay.address(), "a");
    a.begin(false).unwrap();
    let fence = a.fence();
    wait_for(&*fence, Permission::Granted);
    // A round trip takes a quarter of the lease: renewals come late, but before the lease expires.
    relay.set_delay(LEASE / 8);
    let begun = Instant::now();
    while begun.elapsed() < LEASE * 3 {
        assert_ne!(fence.ask(), Permission::Lost);
        fence.wait(Duration::from_millis(5));
    }
    wait_for(&*fence, Permission::Granted);
    relay.set_delay(LEASE);
    wait_for(&*fence, Permission::Unknown);
    relay.set_delay(Duration::ZERO);
    wait_for(&*fence, Permission::Granted);
}

#[test]
fn compaction_changes_nothing() {
    let server = server();
    let (a, b) = (arbiter(server.etcd.address(), "a"), arbiter(server.etcd.address(), "b"));
    a.begin(false).unwrap();
    wait_for(&*a.fence(), Permission::Granted);
    let address = server.etcd.address();
    let answer = etcdctl(address, &["get", "/kemari/vm/term", "--write-out", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let revision = answer["header"]["revision"].as_u64().unwrap().to_string();
    etcdctl(address, &["compact", "--physical", &revision]);
    assert_eq!(claim(&b, 2), Verdict::Granted);
    wait_for(&*b.fence(), Permission::Granted);
    wait_for(&*a.fence(), Permission::Lost);
}

#[test]
fn a_fresh_start_respects_the_holder_unless_it_seizes_or_the_machine_has_ended() {
    let server = server();
    let (a, b) = (arbiter(server.etcd.address(), "a"), arbiter(server.etcd.address(), "b"));
    a.begin(false).unwrap();
    let refusal = b.begin(false).unwrap_err().to_string();
    assert!(refusal.contains("held by a") && refusal.contains("--seize"), "{refusal}");
    assert_eq!(b.begin(true).unwrap(), Term(2));
    wait_for(&*b.fence(), Permission::Granted);
    assert_ne!(a.fence().ask(), Permission::Granted, "whoever seizes waits for the lease as well");
    b.end(Term(2)).unwrap();
    assert_eq!(b.fence().ask(), Permission::Lost);
    let c = arbiter(server.etcd.address(), "c");
    assert!(matches!(claim(&c, 3), Verdict::Denied(_)), "nobody brings back what has ended");
    assert_eq!(c.begin(false).unwrap(), Term(3));
    wait_for(&*c.fence(), Permission::Granted);
}

#[test]
fn p2_an_etcd_that_never_heard_of_the_machine_grants_nothing_and_one_set_back_holds() {
    let here = server();
    let mut there = server();
    arbiter(here.etcd.address(), "a").begin(false).unwrap();
    let b = arbiter(there.etcd.address(), "b");
    let refusal = b.claim(Term(2), "suspicion").unwrap_err().to_string();
    assert!(refusal.contains("expected term 1") && refusal.contains("found nothing"), "{refusal}");
    // The cluster's data is lost: no machine performs until the data is back.
    assert_eq!(b.begin(false).unwrap(), Term(1));
    wait_for(&*b.fence(), Permission::Granted);
    there.etcd.kill();
    std::fs::remove_dir_all(there.dir.path().join("data")).unwrap();
    there.etcd.restart().unwrap();
    wait_for(&*b.fence(), Permission::Unknown);
    let begun = Instant::now();
    while !b.fence().reason().contains("expected term 1 of virtual machine `vm`") {
        assert!(begun.elapsed() < PATIENCE, "{}", b.fence().reason());
        b.fence().wait(Duration::from_millis(5));
    }
}

/// P2: a restored backup has the holder's record and lacks its last lease renewals. Terms that
/// other machines have won since may be missing as well.
#[test]
fn p2_a_holder_whose_beats_are_undone_by_a_restored_backup_performs_nothing() {
    let mut server = server();
    let (data, backup) = (server.dir.path().join("data"), server.dir.path().join("backup"));
    let a = arbiter(server.etcd.address(), "a");
    a.begin(false).unwrap();
    wait_for(&*a.fence(), Permission::Granted);
    let copy = |from: &Path, to: &Path| {
        let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(status.success());
    };
    server.etcd.kill();
    copy(&data, &backup);
    server.etcd.restart().unwrap();
    // After the former lease has expired, the fence's grants rest on renewals that the backup does
    // not have.
    let restarted = Instant::now();
    while restarted.elapsed() < LEASE || a.fence().ask() != Permission::Granted {
        assert!(restarted.elapsed() < PATIENCE, "{}", a.fence().reason());
        a.fence().wait(Duration::from_millis(5));
    }
    server.etcd.kill();
    std::fs::remove_dir_all(&data).unwrap();
    copy(&backup, &data);
    server.etcd.restart().unwrap();
    let begun = Instant::now();
    while !a.fence().reason().contains("data went back") {
        assert!(begun.elapsed() < PATIENCE, "{}", a.fence().reason());
        a.fence().wait(Duration::from_millis(5));
    }
    wait_for(&*a.fence(), Permission::Unknown);
    assert!(a.claim(Term(2), "suspicion").is_err());
    assert_eq!(a.fence().ask(), Permission::Unknown);
}

/// P2: two clusters are two arbiters, and equal term numbers of the two are different terms.
#[test]
fn p2_another_etcd_is_told_from_the_one_that_the_other_side_asks() {
    let (here, there) = (server(), server());
    let (a, stranger) =
        (arbiter(here.etcd.address(), "a"), arbiter(there.etcd.address(), "stranger"));
    a.begin(false).unwrap();
    stranger.begin(false).unwrap();
    let (same, other) = (arbiter(here.etcd.address(), "b"), arbiter(there.etcd.address(), "b"));
    let view = a.mark().unwrap();
    let found = same.read_marks().unwrap();
    assert_eq!((&view.id, &view.mark), (&found.id, &found.mark));
    let found = other.read_marks().unwrap();
    assert!(view.id != found.id && view.mark != found.mark, "{view}, {found}");
    other.follow(Term(1), "a");
    let refusal = other.claim(Term(2), "silence").unwrap_err().to_string();
    assert!(refusal.contains("to belong to a, found: term 1 is held by stranger"), "{refusal}");
    same.follow(Term(1), "a");
    assert_eq!(claim(&same, 2), Verdict::Granted);
}

/// P2: two clusters may have the same number and the same keys: `etcdctl make-mirror` between two
/// clusters with the default names copies the identity and the mark.
#[test]
fn p2_a_mirror_of_the_etcd_is_told_by_what_the_primary_finds() {
    let mut here = server();
    arbiter(here.etcd.address(), "earlier").mark().unwrap();
    here.etcd.kill();
    let dir = tempfile::tempdir().unwrap();
    let data = here.dir.path().join("data");
    assert!(Command::new("cp").arg("-a").arg(data).arg(dir.path()).status().unwrap().success());
    here.etcd.restart().unwrap();
    let there = Etcd::start(dir.path(), None).unwrap();
    let primary = arbiter(here.etcd.address(), "primary");
    let view = primary.mark().unwrap();
    etcdctl(there.address(), &["put", "/kemari/vm/mark", &view.mark]);
    let left = arbiter(there.address(), "standby").counter_mark().unwrap();
    assert_eq!((&view.id, &view.mark), (&left.id, &left.mark), "by its own words it fits");
    assert_ne!(primary.read_marks().unwrap().counter_mark, left.counter_mark);
    let left = arbiter(here.etcd.address(), "standby").counter_mark().unwrap();
    assert_eq!((&view.id, &view.mark), (&left.id, &left.mark));
    assert_eq!(primary.read_marks().unwrap().counter_mark, left.counter_mark);
}

#[test]
fn a_member_that_is_dead_is_passed_over_within_the_lease() {
    let server = server();
    let dead = Relay::to(server.etcd.address()).unwrap();
    let endpoints = vec![dead.address().to_string(), server.etcd.address().to_string()];
    let a = open(EtcdOptions { endpoints, ..options(server.etcd.address()) }, "a").unwrap();
    a.begin(false).unwrap();
    let fence = a.fence();
    wait_for(&*fence, Permission::Granted);
    dead.set_cut(true);
    // Wait for longer than the lease that the dead member has renewed.
    let begun = Instant::now();
    while begun.elapsed() < LEASE * 3 {
        assert_ne!(fence.ask(), Permission::Lost, "{}", fence.reason());
        fence.wait(Duration::from_millis(5));
    }
    wait_for(&*fence, Permission::Granted);
}

/// The files of one certificate authority.
struct Pki {
    dir: TempDir,
}

impl Pki {
    fn new() -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        write("ca.pem", ca.pem());
        let issuer = Issuer::new(params, key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
            let certificate =
                CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
            write(&format!("{name}.pem"), certificate.pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn server(&self) -> ServerTls {
        ServerTls {
            ca: self.path("ca.pem"),
            certificate: self.path("server.pem"),
            key: self.path("server.key"),
        }
    }
}

#[test]
fn tls_on_both_sides_is_used_and_refusals_say_what_to_change() {
    let (pki, other) = (Pki::new(), Pki::new());
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(dir.path(), Some(pki.server())).unwrap();
    let plain = options(etcd.address());
    let with = |pki: &Pki, identity: bool| EtcdOptions {
        ca: Some(pki.path("ca.pem")),
        identity: identity.then(|| (pki.path("client.pem"), pki.path("client.key"))),
        ..plain.clone()
    };
    let a = open(with(&pki, true), "a").unwrap();
    assert_eq!(a.begin(false).unwrap(), Term(1));
    wait_for(&*a.fence(), Permission::Granted);

    let refusal = |options| open(options, "b").unwrap_err().to_string();
    let stranger = refusal(with(&other, true));
    assert!(
        stranger.contains("invalid peer certificate") && stranger.contains("--arbiter-ca"),
        "{stranger}"
    );
    let nobody = refusal(with(&pki, false));
    assert!(nobody.contains("etcd at"), "{nobody}");
    let clear = refusal(plain.clone());
    assert!(clear.contains("etcd at"), "{clear}");
    let missing = refusal(EtcdOptions { ca: Some("/nowhere".into()), ..plain.clone() });
    assert!(missing.contains("--arbiter-ca") && missing.contains("/nowhere"), "{missing}");
}

/// Runs etcd's own client; returns its output.
fn etcdctl(address: SocketAddr, arguments: &[&str]) -> String {
    let output = Command::new(Path::new("/usr/bin/etcdctl"))
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &address.to_string()])
        .args(arguments)
        .output()
        .expect("etcdctl: install it by `apt-get install etcd-client`");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn users_are_let_in_by_password_also_after_a_restart_and_refusals_say_what_to_change() {
    let mut server = server();
    let address = server.etcd.address();
    for command in [
        "user add root:secret",
        "user grant-role root root",
        "role add kemari",
        "role grant-permission kemari --prefix=true readwrite /kemari/",
        "user add kemari:pass",
        "user grant-role kemari kemari",
        "user add stranger:pass",
        "auth enable",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        etcdctl(address, &words);
    }
    let with = |name: &str, password: &str| EtcdOptions {
        user: Some((name.to_owned(), password.to_owned())),
        ..options(address)
    };
    let a = open(with("kemari", "pass"), "a").unwrap();
    a.begin(false).unwrap();
    wait_for(&*a.fence(), Permission::Granted);
    // After a restart of the server, the client's token is not valid.
    server.etcd.kill();
    wait_for(&*a.fence(), Permission::Unknown);
    server.etcd.restart().unwrap();
    wait_for(&*a.fence(), Permission::Granted);

    let refusal = |options| open(options, "b").unwrap_err().to_string();
    let wrong = refusal(with("kemari", "no"));
    assert!(wrong.contains("--arbiter-password-file"), "{wrong}");
    let nobody = refusal(options(address));
    assert!(nobody.contains("--arbiter-user"), "{nobody}");
    let powerless = refusal(with("stranger", "pass"));
    assert!(powerless.contains("grant-permission"), "{powerless}");
}

#[test]
fn an_etcd_that_does_not_answer_is_reported_in_one_line() {
    let server = server();
    let address = server.etcd.address();
    drop(server);
    let refusal = open(options(address), "a").unwrap_err().to_string();
    assert!(refusal.starts_with(&format!("etcd at {address}: expected")), "{refusal}");
    assert!(refusal.contains("refused") && !refusal.contains('\n'), "{refusal}");
}
