//! Tests of the lab. The ignored ones boot it (`cargo test -p xtask -- --ignored`).
#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn only_a_stall_is_repeated_and_it_is_said() {
    let spec = LabSpec::new("t", "true");
    let mut said = Vec::new();
    let mut attempts = 0;
    let result = retry(&spec, &mut |l| said.push(l.to_owned()), |_| {
        attempts += 1;
        if attempts == 1 { bail!(Stalled("silent".into())) } else { Ok(attempts) }
    });
    assert_eq!(result.unwrap(), 2);
    assert!(said.len() == 1 && said[0].contains("stalled: silent"), "{said:?}");
}

#[test]
fn another_error_is_not_repeated_and_a_stall_not_for_ever() {
    let spec = LabSpec::new("t", "true");
    let count = |stalled: bool| {
        let mut attempts = 0;
        let result: Result<()> = retry(&spec, &mut |_| {}, |_| {
            attempts += 1;
            if stalled { bail!(Stalled("again".into())) } else { bail!("something else") }
        });
        assert!(result.is_err());
        attempts
    };
    assert_eq!(count(false), 1);
    assert_eq!(count(true), 2);
}

fn images() -> LabImages {
    let say = |line: &str| println!("{line}");
    let p = Preparation::begin(&say).unwrap();
    let guest = p.linux_guest().unwrap();
    LabImages::prepare(&p, &guest).unwrap()
}

fn show(line: &str) {
    println!("{line}");
}

#[test]
#[ignore = "boots an emulated host"]
fn a_command_gets_kvm_and_its_status_and_files_come_back() {
    let command = "test -c /dev/kvm && ip tuntap add t0 mode tap vnet_hdr && ip netns add a && \
                   echo result > out; sh ./given; exit 7";
    let given = std::env::temp_dir().join(format!("kemari-given-{}", std::process::id()));
    std::fs::write(&given, "echo given >> out").unwrap();
    let spec = LabSpec::new("command", command).file(&given, "given");
    let (status, mut lab) = run(&images(), &spec, &mut show).unwrap();
    std::fs::remove_file(given).unwrap();
    assert_eq!(status, 7);
    assert_eq!(lab.fetch("out").unwrap(), b"result\ngiven\n");
    assert!(lab.fetch("nothing").is_err());
}

#[test]
#[ignore = "boots an emulated host twice"]
fn a_silent_lab_is_started_once_more_and_then_given_up() {
    let mut spec = LabSpec::new("silent", "read -r never");
    spec.stall = Duration::from_secs(8);
    let mut said = Vec::new();
    let why = run(&images(), &spec, &mut |l| said.push(l.to_owned())).unwrap_err();
    assert!(format!("{why:#}").contains("no output for 8 s"), "{why:#}");
    assert_eq!(said.iter().filter(|l| l.starts_with("LAB retry of silent")).count(), 1);
    assert_eq!(said.iter().filter(|l| l.starts_with(UP)).count(), 2);
}

#[test]
#[ignore = "boots two emulated hosts"]
fn two_hosts_see_each_other_until_the_link_or_the_power_fails() {
    let images = images();
    let socket = std::env::temp_dir().join(format!("kemari-link-{}", std::process::id()));
    let spec = |name: &str, own: u8, other: u8, listen: bool| {
        let ping = format!("ping -c 2 -W 2 10.77.0.{other} > ping.log && echo SEEN || echo UNSEEN");
        let command = format!(
            "ip addr add 10.77.0.{own}/24 dev eth0; ip link set eth0 up; echo synced > kept; sync; \
             echo LINK-UP; while read -r line; do {ping}; done"
        );
        let mut spec = LabSpec::new(name, &command);
        let mac = format!("52:54:00:00:00:0{own}");
        spec.links = vec![Link { socket: socket.clone(), listen, mac }];
        spec
    };
    let mut a = Lab::boot(&images, &spec("a", 1, 2, true), &mut show).unwrap();
    let mut b = Lab::boot(&images, &spec("b", 2, 1, false), &mut show).unwrap();
    a.wait_for("LINK-UP", &mut show).unwrap();
    b.wait_for("LINK-UP", &mut show).unwrap();
    let sees = |b: &mut Lab| {
        b.type_in(b"look\n").unwrap();
        let mut seen = None;
        while seen.is_none() {
            b.wait_for("", &mut |line| match line {
                "SEEN" => seen = Some(true),
                "UNSEEN" => seen = Some(false),
                _ => {}
            })
            .unwrap();
        }
        seen.unwrap()
    };
    assert!(sees(&mut b));
    a.monitor("set_link n0 off").unwrap();
    assert!(!sees(&mut b), "a silent partition");
    a.monitor("set_link n0 on").unwrap();
    assert!(sees(&mut b), "it heals");
    assert!(a.fetch("kept").is_err(), "it still runs");
    a.fail_power().unwrap();
    assert!(!sees(&mut b));
    assert_eq!(a.fetch("kept").unwrap(), b"synced\n", "what was synced survives");
    drop(b);
    std::fs::remove_file(socket).unwrap();
}
