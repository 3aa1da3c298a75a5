//! Tests of the lab. The ignored tests boot it (`cargo test -p kemari-testbed -- --ignored`).
#![allow(clippy::unwrap_used)]

use super::*;
use crate::guest::KernelChoice;

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
    let guest = p.linux_guest(KernelChoice::Cloud).unwrap();
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

/// `kemari run` works without a standby: a person logs in at the serial console of a stock Debian
/// guest, and its disk and network work.
#[test]
#[ignore = "boots an emulated host with a guest in it"]
fn a_person_logs_in_at_the_serial_console_of_an_unprotected_guest() {
    log_in(KernelChoice::Cloud, "virtio", "virtio_net");
}

/// As above, with an e1000 card (twenty years old) and Debian's driver for it.
#[test]
#[ignore = "boots an emulated host with a guest in it"]
fn a_person_logs_in_at_a_guest_with_an_e1000() {
    log_in(KernelChoice::Generic, "e1000", "e1000");
}

fn log_in(kernel: KernelChoice, model: &str, driver: &str) {
    let say = |line: &str| println!("{line}");
    let p = Preparation::begin(&say).unwrap();
    let guest = p.linux_guest(kernel).unwrap();
    let images = LabImages::prepare(&p, &guest).unwrap();
    drop(p);
    // A Redis on the host's side of the tap is the outside world of the guest.
    let command = format!(
        "ip tuntap add t0 mode tap vnet_hdr && ip addr add 10.77.0.1/24 dev t0 && ip link set t0 up && \
                   redis-server --bind 10.77.0.1 --port 7000 --protected-mode no --daemonize yes --save '' > /dev/null && \
                   ./kemari run --kernel vmlinuz --initrd initramfs.cpio --memory 160 --cpus 2 --rng \
                       --disk path=root.ext4,serial=kemari-root --net tap=t0,model={model} \
                       --cmdline 'console=ttyS0 quiet panic=-1 kemari.ip=10.77.0.2/24'; \
                   echo \"MONITOR ENDED $?\"; e2fsck -fn root.ext4"
    );
    let kemari = xtask_common::build::static_kemari().unwrap();
    let mut spec =
        LabSpec::new("login", &command).linux_guest(&guest, &["root.ext4"]).file(kemari, "kemari");
    spec.stall = Duration::from_secs(180);
    let status = retry(&spec, &mut show, |_| {
        let mut lab = Lab::boot(&images, &spec, &mut show)?;
        lab.wait_for("Debian ", &mut show)?;
        lab.type_in(b"root\n")?;
        // Leave the first line of a command's output empty: the shell puts escape sequences before
        // it.
        lab.type_in(b"printf '\\nLOGGED IN as %s, %s cpus\\n' $(id -un) $(nproc)\n")?;
        assert_eq!(lab.wait_for("LOGGED IN as ", &mut show)?, "root, 2 cpus");
        lab.type_in(
            b"printf '\\nDISK %s\\n' $(cat /sys/block/vda/serial); echo kept > /root/kept; sync\n",
        )?;
        assert_eq!(lab.wait_for("DISK ", &mut show)?, "kemari-root");
        lab.type_in(b"printf '\\nNET %s\\n' $(redis-cli -h 10.77.0.1 -p 7000 incr visits)\n")?;
        assert_eq!(lab.wait_for("NET ", &mut show)?, "1");
        lab.type_in(
            b"printf '\\nDRIVER %s\\n' $(ls /sys/class/net/eth0/device/driver/module/drivers)\n",
        )?;
        assert!(lab.wait_for("DRIVER ", &mut show)?.ends_with(&format!(":{driver}")));
        lab.type_in(b"poweroff\n")?;
        assert_eq!(lab.wait_for("MONITOR ENDED ", &mut show)?, "0");
        lab.run(&mut show)
    });
    assert_eq!(status.unwrap(), 0, "the file system is clean after the power-off");
}
