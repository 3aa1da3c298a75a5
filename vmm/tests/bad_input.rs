//! Mistakes of an operator, one line each. The program refuses at the start, with exit code 2. Its
//! error says what happened, what was expected and found, and what to do. No file is lost or left
//! behind.
//!
//! `@` is a directory with the files that `Place::new` creates.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::ffi::{CString, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use kemari_testbed::process::Process;
use micro::KEMARI;
use rustix::process::Signal;

/// A command line, and the texts that its error must contain.
type Case = (&'static str, &'static [&'static str]);

/// Upper bound for a refused start on a busy machine.
const REFUSAL: Duration = Duration::from_secs(60);

const NUMBERS: &[Case] = &[
    ("--memory 1G", &["--memory", "MiB, without a unit, for instance 1024"]),
    ("--memory 512MiB", &["for instance 512"]),
    ("--memory 0", &["MiB", "2 to 16777216"]),
    ("--memory 1", &["2 to 16777216"]),
    ("--memory -5", &["--memory", "2 to 16777216"]),
    ("--memory +64", &["2 to 16777216"]),
    ("--memory 0x40", &["2 to 16777216"]),
    ("--memory 64.5", &["2 to 16777216"]),
    ("--memory 99999999999999999999", &["2 to 16777216"]),
    ("--memory 16777217", &["2 to 16777216"]),
    ("--memory many", &["`many`|'many'", "2 to 16777216"]),
    ("--memory size=1G", &["`size=1G`", "for instance 1024"]),
    ("--memory 64,file=@ram", &["share=on"]),
    ("--memory 64,share=on", &["file=PATH"]),
    ("--memory 64,file=,share=on", &["`file=`", "no value"]),
    ("--memory 64,65", &["`65`", "no such key"]),
    ("--memory 64,share=perhaps", &["share=on or share=off"]),
    ("--memory 64 --memory 65", &["--memory", "multiple times"]),
    ("--cpus 0", &["--cpus", "vCPUs", "1 to 254"]),
    ("--cpus 255", &["1 to 254"]),
    ("--cpus -1", &["--cpus", "1 to 254"]),
    ("--cpus two", &["1 to 254"]),
    ("--cpus 2.0", &["1 to 254"]),
    ("--epoch-interval 25ms", &["milliseconds, without a unit, for instance 25", "1 to 60000"]),
    ("--epoch-interval 0", &["1 to 60000"]),
    ("--heartbeat-timeout 1s", &["for instance 1000"]),
    ("--heartbeat-timeout -1", &["--heartbeat-timeout", "1 to 600000"]),
    ("--heartbeat-timeout 99 --heartbeat-interval 50", &["99", "twice", "100"]),
    ("--heartbeat-interval 1000", &["--heartbeat-timeout 500", "2000"]),
    ("--ack-timeout 0", &["1 to 3600000"]),
    ("--stall-timeout 4999", &["5000 to 3600000"]),
    ("--stall-timeout 10s", &["for instance 10000"]),
    ("--max-in-flight 65", &["1 to 64"]),
    ("--max-in-flight +4", &["1 to 64"]),
    ("--delta-cache 64M", &["for instance 64"]),
    ("--delta-cache -1", &["0 to 1048576"]),
    ("--arbiter-lease 99", &["100 to 600000"]),
    ("--arbiter-lease 1s", &["for instance 1000"]),
    ("--disk path=@disk.img,queues=0", &["`queues=0`", "1 to 16"]),
    ("--disk path=@disk.img,queues=17", &["`queues=17`", "1 to 16"]),
    ("--disk path=@disk.img,queues=+1", &["`queues=+1`", "1 to 16"]),
    ("--disk path=@disk.img,queues", &["`queues`", "1 to 16"]),
    ("--net tap=t,queues=9", &["`queues=9`", "1 to 8"]),
    ("--net tap=t,queues=99999999999", &["1 to 8"]),
    ("--memory ,64", &["found nothing"]),
    ("--memory 64,", &["found nothing"]),
    ("--memory 1e2", &["2 to 16777216"]),
    ("--memory \u{ff16}4", &["2 to 16777216"]),
    ("--memory 64,file=@ram,share=off", &["share=on together"]),
    ("--cpus 1,2", &["1 to 254"]),
    ("--ack-timeout 1.5", &["--ack-timeout", "1 to 3600000"]),
    ("--stall-timeout 0", &["5000 to 3600000"]),
    ("--require-protected 0", &["1 to 3600000"]),
    ("--require-protected -1", &["without a unit", "1 to 3600000"]),
    ("--heartbeat-timeout 100 --heartbeat-interval 100", &["twice", "200"]),
    ("--arbiter-lease 5000000000", &["100 to 600000"]),
    ("--audit @log,keep=65", &["`keep=65`", "2 to 64"]),
    ("--audit @log,keep=1", &["`keep=1`", "2 to 64"]),
    ("--audit @log,size=64M", &["`size=64M`", "for instance 64MiB"]),
    ("--audit @log,size=0KiB", &["16KiB to 1024GiB"]),
    ("--audit @log,size=+64MiB", &["16KiB to 1024GiB"]),
    ("--audit @log,size=99999999999999999GiB", &["16KiB to 1024GiB"]),
];

const LISTS: &[Case] = &[
    ("--disk @disk.img", &["no such key", "path=FILE"]),
    ("--disk path=@a,b.img", &["`b.img`", "write a comma in a path twice"]),
    ("--disk path=@disk.img,", &["found nothing"]),
    ("--disk ,path=@disk.img", &["found nothing"]),
    ("--disk path=@disk.img,readonly=on,readonly=off", &["`readonly` is given twice"]),
    ("--disk path=@disk.img,path=@disk.img", &["`path` is given twice"]),
    ("--disk readonly=on", &["no path="]),
    ("--disk path=", &["`path=`", "no value"]),
    ("--disk path", &["`path`", "no value"]),
    ("--disk path=@disk.img,read_only=on", &["`read_only=on`", "no such key", "readonly=on"]),
    ("--disk path=@disk.img,readonly", &["readonly=on or readonly=off"]),
    ("--disk path=@disk.img,readonly=yes", &["`readonly=yes`", "readonly=on or readonly=off"]),
    ("--disk path=@disk.img,direct=1", &["`direct=1`", "direct=on or direct=off"]),
    (
        "--disk path=@disk.img,cache=none",
        &["`cache=none`", "cache=writethrough or cache=writeback"],
    ),
    ("--disk path=@disk.img,format=qcow2", &["`format=qcow2`", "qemu-img convert -f qcow2 -O raw"]),
    ("--disk path=@disk.img,format=", &["`format=`", "no value"]),
    ("--disk path=@disk.img,fence=", &["`fence=`", "no value"]),
    ("--disk path=@disk.img,serial=123456789012345678901", &["`serial=", "at most 20"]),
    ("--disk path=@disk.img,serial=\u{e9}", &["printable ASCII"]),
    ("--disk path=@disk.img,serial=", &["`serial=`", "no value"]),
    ("--disk file=@disk.img", &["`file=", "no such key", "path=FILE"]),
    ("--disk path=@disk.img,readonly=On", &["readonly=on or readonly=off"]),
    ("--net tap=t,create=perhaps", &["create=on or create=off"]),
    ("--net stream=@a,create=on", &["create=on is for tap="]),
    ("--net stream=@a,mac=", &["`mac=`", "no value"]),
    ("--device beeper,beeper", &["`beeper`", "console=SPEC"]),
    ("--name ..", &["not beginning with `.`"]),
    ("--disk path=@disk.img,serial=a\tb", &["printable ASCII"]),
    ("--disk path=@disk.img,PATH=x", &["`PATH=x`", "no such key"]),
    ("--net user", &["`user`", "stream=SOCKETPATH"]),
    ("--net tap=", &["`tap=`", "no value"]),
    ("--net mac=52:54:00:12:34:56", &["tap=IFNAME"]),
    ("--net tap=a,stream=@b", &["found two"]),
    ("--net tap=a,tap=b", &["`tap` is given twice"]),
    ("--net tap=interface-that-is-too-long", &["at most 15 bytes"]),
    ("--net tap=a/b", &["without `/`"]),
    ("--net tap=tap%d", &["without `/`, `:`, `%`"]),
    ("--net tap=..", &["name of an interface"]),
    ("--net dgram=@a", &["LOCALPATH:PEERPATH"]),
    ("--net dgram=:@a", &["LOCALPATH:PEERPATH"]),
    ("--net dgram=@a:", &["LOCALPATH:PEERPATH"]),
    ("--net dgram=@a:@b:@c", &["LOCALPATH:PEERPATH"]),
    ("--net tap=t,mac=xx", &["`mac=xx`", "MAC address"]),
    ("--net tap=t,mac=01:00:5e:00:00:01", &["group address"]),
    ("--net tap=t,mac=ff:ff:ff:ff:ff:ff", &["group address"]),
    ("--net tap=t,mac=00:00:00:00:00:00", &["all zeros"]),
    ("--net tap=t,mac=52:54:00:12:34", &["MAC address"]),
    ("--net tap=t,mac=52:54:00:12:34:56:78", &["MAC address"]),
    ("--net tap=t,mac=52-54-00-12-34-56", &["MAC address"]),
    ("--net tap=t,mac=+2:54:00:12:34:56", &["MAC address"]),
    ("--net tap=t,model=rtl8139", &["model=virtio or model=e1000"]),
    ("--net tap=t,queues=2,model=e1000", &["one queue"]),
    ("--net tap=t,vhost=on", &["vhost-net"]),
    ("--serial pty", &["pty", "file=PATH"]),
    ("--serial file=", &["no path"]),
    ("--serial file", &["file=PATH"]),
    ("--serial STDIO", &["stdio"]),
    ("--virtio-console none=x", &["file=PATH"]),
    ("--device nothing", &["expected one of", "nothing"]),
    ("--device beeper,console=pty", &["pty"]),
    ("--device beeper,volume=3", &["`volume=3`", "console=SPEC"]),
    ("--device beeper,tap=t,mac=52:54:00:12:34:56", &["mac=", "remove"]),
    ("--audit @log/", &["name of a file"]),
    ("--audit ,size=64MiB", &["found nothing"]),
    ("--audit @log,rotate=on", &["`rotate=on`", "no such key"]),
    ("--audit @log,size=64MiB,size=64MiB", &["`size` is given twice"]),
    ("--name a/b", &["letters", "a/b"]),
    ("--name .hidden", &["letters"]),
    ("--name \u{fc}ber", &["ASCII letters"]),
    ("--seccomp strict", &["strict", "on, log, off"]),
    ("--no-such-flag", &["--no-such-flag"]),
];

const ADDRESSES: &[Case] = &[
    ("--standby nonsense", &["HOST:PORT", "unix:PATH"]),
    ("--standby host:0", &["`host:0`", "1 to 65535"]),
    ("--standby host:65536", &["`host:65536`", "1 to 65535"]),
    ("--standby host:+7000", &["1 to 65535"]),
    ("--standby host:", &["1 to 65535"]),
    ("--standby :7000", &["no name or address of a host"]),
    ("--standby ::1", &["in brackets", "[::1]:7000"]),
    ("--standby fe80::1:7000", &["in brackets"]),
    ("--standby [::1", &["in brackets"]),
    ("--standby [::g]:7000", &["not an IPv6 address"]),
    ("--standby http://host:7000", &["HOST:PORT"]),
    ("--standby tcp:127.0.0.1:7000", &["HOST:PORT"]),
    ("--standby localhost:7000:8000", &["HOST:PORT"]),
    ("--standby [::1]", &["in brackets, for instance"]),
    ("--standby [::1]7000", &["in brackets, for instance"]),
    ("--standby 256.1.1.1:7000", &["`256.1.1.1`", "not an IPv4 address"]),
    ("--standby unix:@notes", &["--standby", "expected a socket", "a regular file"]),
    ("--standby unix:@directory", &["expected a socket", "a directory"]),
    ("--arbiter etcd:1.2.3.400:2379", &["not an IPv4 address"]),
    ("--arbiter etcd:a:2379,", &["HOST:PORT"]),
    ("--arbiter File:@arbiter", &["`file:DIRECTORY`"]),
    ("--arbiter file:@notes", &["--arbiter", "expected a directory", "a regular file"]),
    ("--arbiter file:@fifo", &["expected a directory", "a FIFO"]),
    ("--arbiter file:@dangling", &["expected a directory", "a symbolic link"]),
    ("--arbiter file:/dev/null", &["expected a directory", "a character device"]),
    ("--arbiter-user x", &["--arbiter-user", "etcd:"]),
    ("--standby unix:", &["no path"]),
    (
        "--standby 192.0.2.1:7000",
        &["192.0.2.1:7000", "not a loopback", "--tls", "--insecure-plain-tcp"],
    ),
    ("--standby [2001:db8::1]:7000", &["not a loopback"]),
    ("--arbiter oracle", &["file:DIRECTORY"]),
    ("--arbiter file:", &["file:DIRECTORY"]),
    ("--arbiter etcd:", &["HOST:PORT"]),
    ("--arbiter etcd:host", &["HOST:PORT"]),
    ("--arbiter etcd:host:0", &["1 to 65535"]),
    ("--arbiter etcd:a:2379,,b:2379", &["HOST:PORT"]),
    ("--arbiter etcd:a:2379,a:2379", &["`a:2379` is given twice"]),
    ("--arbiter etcd:192.0.2.1:2379", &["--arbiter-ca"]),
    ("--arbiter file:@arbiter --arbiter-ca @ca.pem", &["--arbiter etcd:"]),
    ("--arbiter file:@disk.img", &["disk.img", "--arbiter"]),
    ("--seize", &["--seize", "--arbiter"]),
    ("--tls-peer name", &["--tls"]),
    ("--tls @nowhere", &["--tls", "ca.pem|cert.pem", "no file"]),
    ("--tls @disk.img", &["--tls", "found"]),
    ("--tls @credentials", &["--tls", "cert.pem", "found"]),
    ("--tls @nowhere --insecure-plain-tcp", &["--insecure-plain-tcp"]),
];

const FILES: &[Case] = &[
    ("--disk path=@nothing", &["nothing", "No such file", "--disk"]),
    ("--disk path=@directory", &["directory", "--disk"]),
    ("--disk path=@fifo", &["fifo", "a FIFO", "--disk"]),
    ("--disk path=@fifo,readonly=on", &["fifo", "a FIFO"]),
    ("--disk path=@socket", &["socket", "--disk"]),
    ("--disk path=@dangling", &["dangling", "--disk"]),
    ("--disk path=@loop", &["loop", "--disk"]),
    ("--disk path=@empty", &["at least 512 bytes"]),
    ("--disk path=@odd.img", &["multiple of 512", "found 1000"]),
    ("--disk path=/dev/null", &["/dev/null", "a character device", "--disk"]),
    ("--disk path=/dev/zero,readonly=on", &["a character device"]),
    ("--disk path=@disk.img/", &["disk.img/", "--disk"]),
    ("--disk path=@record", &["the fence record of another disk", "check the path"]),
    ("--disk path=@other.img.kemari-fence", &["other.img.kemari-fence", "its own records"]),
    ("--serial file=@other.img.kemari-fence", &["--serial", "its own records"]),
    ("--virtio-console file=@new.kemari-counter-mark", &["its own records"]),
    ("--control @new.kemari-mark", &["--control", "its own records"]),
    ("--pid-file @term-00000000000000000002.json", &["--pid-file", "its own records"]),
    ("--net dgram=@ended-1:@b", &["--net", "its own records"]),
    ("--disk path=@disk.img,fence=@term-00000000000000000002.json", &["fence=", "its own records"]),
    ("--disk path=@disk.img,fence=@other.img.kemari-mark", &["fence=", "its own records"]),
    (
        "--arbiter file:@directory --disk path=@disk.img,fence=@directory/x",
        &["fence=", "arbiter's directory"],
    ),
    ("--arbiter file:@directory --net dgram=@directory/x:@b", &["--net", "arbiter's directory"]),
    ("--disk path=/proc/version", &["/proc/version", "without a size"]),
    ("--disk path=/dev/tty", &["/dev/tty", "a character device"]),
    ("--disk path=@disk.img,fence=@disk.img", &["fence=", "given twice"]),
    ("--arbiter file:@arbiter --disk path=@disk.img,fence=/dev/null", &["a character device"]),
    ("--disk path=@qcow2", &["qcow2 image", "qemu-img convert -f qcow2 -O raw", "format=raw"]),
    ("--disk path=@qcow2,readonly=on", &["qcow2 image", "format=raw"]),
    ("--disk path=@vmdk", &["VMDK", "qemu-img convert -f vmdk"]),
    ("--disk path=@vdi", &["VDI", "qemu-img convert -f vdi"]),
    ("--disk path=@vhdx", &["VHDX", "qemu-img convert -f vhdx"]),
    ("--disk path=@vhd", &["VHD", "qemu-img convert -f vpc"]),
    ("--disk path=@qed", &["QED", "qemu-img convert -f qed"]),
    ("--disk path=@disk.gz", &["gzip", "unpack it first"]),
    ("--arbiter file:@arbiter --disk path=@disk.img,fence=@fifo", &["fifo", "a FIFO", "fence"]),
    ("--arbiter file:@arbiter --disk path=@disk.img,fence=@directory", &["directory", "fence"]),
    (
        "--arbiter file:@arbiter --disk path=@disk.img,fence=@notes",
        &["notes", "no file|fence record", "left alone"],
    ),
    ("--kernel @nothing", &["nothing", "No such file", "--kernel"]),
    ("--kernel @directory", &["--kernel"]),
    ("--kernel @fifo", &["fifo", "not a regular file", "--kernel"]),
    ("--kernel /dev/zero", &["not a regular file", "--kernel"]),
    ("--kernel @loop", &["loop", "--kernel"]),
    ("--kernel @socket", &["socket", "not a regular file"]),
    ("--kernel @directory/", &["is a directory", "--kernel"]),
    ("--initrd @socket", &["socket", "not a regular file"]),
    ("--initrd /proc/version", &["no size", "--initrd"]),
    ("--initrd /dev/null", &["not a regular file", "--initrd"]),
    ("--kernel @empty", &["an empty file", "--kernel"]),
    ("--kernel @notes", &["not a kernel", "bzImage"]),
    ("--kernel @disk.gz", &["gzip", "unpack"]),
    ("--kernel @short.elf", &["cut short", "copy it again"]),
    ("--initrd @nothing", &["nothing", "--initrd"]),
    ("--initrd @directory", &["--initrd"]),
    ("--initrd @fifo", &["not a regular file"]),
    ("--initrd @empty", &["empty", "--initrd"]),
    ("--serial file=@directory", &["directory", "file="]),
    ("--serial file=@nothing/log", &["nothing/log", "file="]),
    ("--serial file=@socket", &["socket", "file="]),
    ("--serial file=@loop", &["loop", "file="]),
    ("--serial file=@dangling", &["dangling", "symbolic link", "file="]),
    ("--serial file=@disk.img", &["disk.img", "binary data", "left alone"]),
    ("--device beeper,console=file=@luks", &["luks", "left alone"]),
    ("--virtio-console file=@qcow2", &["qcow2 image", "left alone"]),
    ("--control @nothing/control", &["--control", "nothing/control", "directory that exists"]),
    ("--control @directory", &["--control", "a directory"]),
    ("--control @fifo", &["a FIFO", "left alone"]),
    ("--control @notes", &["a regular file", "left alone"]),
    ("--control @LONG", &["--control", "1 to 107 bytes", "shorter path"]),
    ("--net stream=@LONG", &["--net", "1 to 107 bytes", "shorter path"]),
    ("--net dgram=@LONG:@peer", &["--net", "1 to 107 bytes"]),
    ("--net dgram=@mine:@LONG", &["--net", "1 to 107 bytes"]),
    ("--net dgram=@nothing/a:@b", &["--net", "nothing/a", "directory that exists"]),
    ("--net dgram=@notes:@b", &["--net", "left alone"]),
    ("--net stream=@notes", &["--net stream=", "notes", "expected a socket", "a regular file"]),
    ("--net stream=@fifo", &["expected a socket", "a FIFO"]),
    ("--net stream=/dev/null", &["expected a socket", "a character device"]),
    ("--net dgram=@mine:@notes", &["--net dgram=", "notes", "expected a socket"]),
    ("--net dgram=@mine:@directory", &["expected a socket", "a directory"]),
    ("--device beeper,stream=@notes", &["beeper|expected a socket"]),
    ("--standby unix:@LONG", &["--standby", "1 to 107 bytes"]),
    ("--pid-file @directory", &["--pid-file", "a directory"]),
    ("--pid-file @nothing/pid", &["--pid-file", "nothing/pid"]),
    ("--pid-file @fifo", &["--pid-file", "a FIFO"]),
    ("--pid-file /dev/full", &["--pid-file", "a character device"]),
    ("--pid-file @dangling", &["--pid-file", "a symbolic link"]),
    ("--audit @nothing/log", &["--audit", "nothing/log"]),
    ("--audit @LONGER", &["--audit", "too long"]),
    ("--audit /dev/full", &["--audit /dev/full", "a character device", "add a name"]),
    ("--audit @directory", &["--audit", "a directory", "directory/audit"]),
    ("--audit @fifo", &["--audit", "a FIFO"]),
    ("--arbiter file:@arbiter --audit @arbiter/log", &["--audit", "the arbiter's directory"]),
    ("--arbiter file:@directory --pid-file @directory/x", &["--pid-file", "arbiter's directory"]),
    ("--arbiter file:@directory --control @directory/x", &["--control", "arbiter's directory"]),
    ("--arbiter file:@directory --serial file=@directory/vm/x", &["--serial", "arbiter's"]),
    ("--arbiter file:@no/such/arbiter", &["no/such/arbiter", "parent directory does not exist"]),
    ("--pid-file @number", &["--pid-file", "left alone"]),
    ("--serial file=@luks", &["luks", "binary data", "left alone"]),
    ("--serial file=@disk.gz", &["gzip", "left alone"]),
    ("--arbiter file:@notes/arbiter", &["--arbiter", "notes/arbiter"]),
    ("--tls @fifos", &["--tls", "a FIFO", "regular file"]),
    ("--memory 64,file=@directory,share=on", &["directory", "file="]),
    ("--memory 64,file=@fifo,share=on", &["fifo", "file=", "a FIFO"]),
    ("--memory 64,file=@notes,share=on", &["notes", "left alone"]),
    ("--memory 64,file=@socket,share=on", &["a socket", "left alone"]),
    ("--memory 64,file=/dev/zero,share=on", &["a character device", "left alone"]),
    ("--pid-file @loop", &["--pid-file", "a symbolic link"]),
    ("--pid-file @directory/", &["--pid-file", "a directory"]),
    ("--pid-file /proc/self/status", &["--pid-file", "left alone"]),
    ("--control @loop", &["--control", "a symbolic link"]),
    ("--control /dev/null", &["--control", "a character device"]),
    ("--control @notes/control", &["--control", "directory that exists"]),
    ("--tls @notes", &["--tls", "notes/cert.pem", "found"]),
    ("--memory 64,file=@nothing/ram,share=on", &["nothing/ram", "file="]),
    ("--kernel=", &["--kernel"]),
    ("--control=", &["--control"]),
    ("--pid-file=", &["--pid-file"]),
];

const TOGETHER: &[Case] = &[
    ("--serial stdio --virtio-console stdio", &["one standard input"]),
    ("--serial stdio --device beeper,console=stdio", &["one standard input"]),
    (
        "--net stream=@a,mac=52:54:00:00:00:01 --net stream=@b,mac=52:54:00:00:00:01",
        &["mac=52:54:00:00:00:01"],
    ),
    ("--net tap=t0 --net tap=t0", &["tap=t0: given twice"]),
    ("--disk path=@disk.img --disk path=@disk.img", &["given twice"]),
    ("--disk path=@disk.img --disk path=@hard.img", &["given twice"]),
    ("--initrd @notes --kernel @notes", &["given twice"]),
    ("--memory 64,file=@ram,share=on --arbiter file:@arbiter", &["fault tolerance"]),
    ("--arbiter-cert @ca.pem", &["--arbiter-key"]),
    ("--arbiter-password-file @notes", &["--arbiter-user"]),
];

const STANDBY: &[Case] = &[
    ("", &["--listen"]),
    ("--listen nonsense", &["HOST:PORT"]),
    ("--listen 127.0.0.1:0", &["1 to 65535"]),
    ("--listen 0.0.0.0:7000", &["not a loopback", "--tls"]),
    (
        "--listen 192.0.2.1:7000 --insecure-plain-tcp",
        &["192.0.2.1:7000", "an address of this host"],
    ),
    ("--listen unix:@LONG", &["--listen", "1 to 107 bytes"]),
    ("--listen unix:@notes", &["--listen", "left alone"]),
    ("--listen unix:@x.kemari-mark", &["--listen", "its own records"]),
    ("--listen unix:@link --disk path=@x.kemari-fence", &["--disk", "its own records"]),
    ("--listen unix:@nothing/link", &["--listen", "nothing/link"]),
    ("--listen unix:@link --kernel @nothing", &["nothing", "--kernel"]),
    ("--listen unix:@link --kernel @fifo", &["not a regular file", "--kernel"]),
    ("--listen unix:@link --memory 64", &["remove the flag"]),
    ("--listen unix:@link --memory 1G", &["without a unit"]),
    ("--listen unix:@link --heartbeat-interval 600", &["twice", "1200"]),
    ("--listen unix:@link --standby 192.0.2.1:7000", &["--standby", "not a loopback"]),
    ("--listen unix:@link --serial stdio --virtio-console stdio", &["one standard input"]),
    ("--listen unix:@link --net tap=t,net=x", &["`net=x`", "no such key"]),
    ("--listen unix:@link --initrd @notes", &["--kernel"]),
    ("--listen unix:@link --tls @credentials", &["cert.pem", "found"]),
    ("--listen *:7000", &["*:7000", "an address of this host"]),
    ("--listen tcp:7000", &["tcp:7000", "an address of this host"]),
    ("--listen unix:@link --standby unix:@notes", &["--standby", "expected a socket"]),
    ("--listen unix:@link --kernel @notes", &["not a kernel", "bzImage"]),
    ("--listen unix:@link --kernel @empty", &["an empty file", "--kernel"]),
    ("--listen unix:@link --disk path=@directory", &["--disk", "a directory"]),
    ("--listen unix:@link --disk path=/dev/null", &["--disk", "a character device"]),
    ("--listen unix:@link --disk path=@socket", &["--disk", "a socket"]),
    ("--listen unix:@link --disk path=@empty", &["at least 512 bytes"]),
    ("--listen unix:@link --serial file=@directory", &["directory", "left alone"]),
    ("--listen unix:@link --serial file=@socket", &["a socket", "left alone"]),
    ("--listen unix:@link --serial file=@nothing/log", &["nothing/log", "file="]),
    ("--listen unix:@link --net stream=@notes", &["expected a socket"]),
    ("--listen unix:@link --net dgram=@notes:@b", &["--net", "left alone"]),
    ("--listen unix:@link --net dgram=@nothing/a:@b", &["--net", "directory that exists"]),
    ("--listen unix:@link --audit @directory", &["--audit", "add a name"]),
    ("--listen unix:@link --pid-file @number", &["--pid-file", "left alone"]),
    ("--listen unix:@link --arbiter file:@notes", &["expected a directory"]),
];

const OTHERS: &[Case] = &[
    ("", &["Usage"]),
    ("nonsense", &["nonsense"]),
    ("ctl status", &["--control"]),
    ("ctl --control @control", &["status"]),
    ("ctl --control @control explode", &["explode"]),
    ("ctl --control @control protect", &["<ADDR>"]),
    ("ctl --control @control --timeout 1s status", &["seconds, without a unit", "for instance 1"]),
    ("ctl --control @control --timeout 99999999999999999999 status", &["seconds", "0 to 86400"]),
    ("ctl --control @control --timeout -1 status", &["seconds", "0 to 86400"]),
    ("ctl --control @control protect nonsense", &["HOST:PORT", "unix:PATH"]),
    ("ctl --control @control protect 256.0.0.1:7000", &["not an IPv4 address"]),
    ("ctl --control @control protect unix:", &["no path"]),
    ("audit verify", &["<FILE>"]),
    ("audit verify @nothing", &["nothing", "found none"]),
    ("audit verify @nothing/log", &["nothing"]),
    ("audit verify @notes", &["notes"]),
    ("audit verify @empty", &["empty"]),
    ("audit verify @directory", &["directory"]),
    ("audit verify @fifo", &["fifo"]),
    ("audit verify /dev/zero", &["/dev/zero"]),
    ("audit show @fifo", &["fifo"]),
    ("audit verify @piped", &["piped.4.0", "expected a regular file", "a FIFO"]),
    ("audit show @piped", &["piped.4.0", "expected a regular file", "a FIFO"]),
    ("audit show @piped.4.0", &["found none"]),
    ("audit verify @held", &["held.1.0", "expected a regular file", "a directory"]),
    ("audit verify @spoken", &["spoken.1.0", "expected a regular file", "a socket"]),
    ("audit show @endless", &["endless.1.0", "expected a regular file", "a character device"]),
    ("audit show @notes", &["notes"]),
    ("probe --pages 16", &["--limits"]),
    ("probe --limits --pages 0", &["--pages", "1 to"]),
    ("probe --limits --pages -1", &["--pages", "1 to"]),
    ("probe --limits --pages 16,many", &["--pages", "many"]),
    ("probe --limits --pages 99999999", &["--pages", "1 to"]),
];

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let with = |offset: usize, sign: &[u8]| {
            let mut bytes = vec![0; 4096];
            bytes[offset..offset + sign.len()].copy_from_slice(sign);
            bytes
        };
        for (name, bytes) in [
            ("disk.img", vec![0; 4096]),
            ("odd.img", vec![0; 1000]),
            ("empty", Vec::new()),
            ("notes", b"what nobody wants to lose\n".repeat(100)),
            ("ca.pem", b"no certificate".to_vec()),
            ("number", b"4194303\n".to_vec()),
            ("luks", with(0, b"LUKS\xba\xbe\0\x02")),
            ("qcow2", with(0, b"QFI\xfb\0\0\0\x03")),
            ("vmdk", with(0, b"KDMV")),
            ("vdi", with(0x40, b"\x7f\x10\xda\xbe")),
            ("vhdx", with(0, b"vhdxfile")),
            ("vhd", with(3584, b"conectix")),
            ("qed", with(0, b"QED\0")),
            ("disk.gz", with(0, b"\x1f\x8b\x08")),
            ("record", with(0, b"kemari-fence 2 other 1 held 1 somebody .\n")),
            ("short.elf", fs::read(micro::image()).unwrap()[..5000].to_vec()),
        ] {
            fs::write(at(name), bytes).unwrap();
        }
        fs::create_dir(at("directory")).unwrap();
        fs::hard_link(at("disk.img"), at("hard.img")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        symlink(at("loop"), at("loop")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(at("socket")).unwrap());
        drop(std::os::unix::net::UnixListener::bind(at("spoken.1.0")).unwrap());
        symlink("/dev/zero", at("endless.1.0")).unwrap();
        for directory in ["credentials", "fifos", "held.1.0"] {
            fs::create_dir(at(directory)).unwrap();
        }
        for fifo in ["fifo", "piped.4.0", "fifos/ca.pem", "fifos/cert.pem", "fifos/key.pem"] {
            let fifo = CString::new(at(fifo).to_str().unwrap()).unwrap();
            // SAFETY: the path is a C string.
            assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        }
        write_expired(&at("credentials"));
        Self { dir }
    }

    fn words(&self, line: &str) -> Vec<String> {
        let dir = format!("{}/", self.dir.path().display());
        let long = format!("{dir}{}", "x".repeat(107));
        let longer = format!("{dir}{}", "x".repeat(300));
        let word = |word: &str| {
            word.replace("@LONGER", &longer).replace("@LONG", &long).replace('@', &dir)
        };
        line.split(' ').filter(|word| !word.is_empty()).map(word).collect()
    }

    /// The path, inode and contents of every file.
    fn contents(&self) -> Vec<(PathBuf, u64, Vec<u8>)> {
        let mut found: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            // A start creates the arbiter's directory, and the next start uses it.
            .filter(|path| !path.ends_with("log of the test") && !path.ends_with("arbiter"))
            .map(|path| {
                let metadata = fs::symlink_metadata(&path).unwrap();
                let bytes = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                (path, metadata.ino(), bytes)
            })
            .collect();
        found.sort();
        found
    }

    /// Checks the program's answer to this command line; returns what is wrong.
    fn judge(&self, command: Command, expected: &[&str]) -> Result<(), String> {
        self.judge_as(2, command, expected)
    }

    fn judge_as(&self, wanted: i32, command: Command, expected: &[&str]) -> Result<(), String> {
        let before = self.contents();
        let log = self.dir.path().join("log of the test");
        let mut process = Process::start("kemari", command, &log).unwrap();
        let ended = process.wait_exit(REFUSAL);
        if ended.is_none() {
            process.signal(Signal::KILL);
            process.wait_exit(REFUSAL);
        }
        // No line contains this text: the wait ends when all output was read.
        process.wait_line("\0", REFUSAL);
        let lines = process.lines();
        let text = lines.join("\n");
        let code = ended.and_then(|ended| ended.code());
        if code != Some(wanted) {
            return Err(format!("expected exit code {wanted}, found {code:?}: {text}"));
        }
        if self.contents() != before {
            return Err(format!("something was changed or left behind: {text}"));
        }
        let missing = expected.iter().find(|part| !part.split('|').any(|one| text.contains(one)));
        if let Some(missing) = missing {
            return Err(format!("expected `{missing}` in: {text}"));
        }
        let said: Vec<&String> = lines.iter().filter(|line| !line.trim().is_empty()).collect();
        let twice = said.iter().enumerate().any(|(at, line)| said[..at].contains(line));
        let bare = ["panicked", "invalid digit", "Invalid argument", "number too large"];
        match bare.iter().find(|bare| text.contains(**bare)) {
            Some(bare) => Err(format!("`{bare}` is no message: {text}")),
            None if twice => Err(format!("a line is said twice: {text}")),
            None => Ok(()),
        }
    }
}

/// Writes an expired certificate and its authority.
fn write_expired(dir: &std::path::Path) {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa,
        KeyPair, date_time_ymd,
    };
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let mut own = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    own.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    own.not_before = date_time_ymd(2020, 1, 1);
    own.not_after = date_time_ymd(2021, 1, 1);
    let key = KeyPair::generate().unwrap();
    let own = own.signed_by(&key, &authority).unwrap();
    fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
    fs::write(dir.join("cert.pem"), own.pem()).unwrap();
    fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

fn kemari(words: impl IntoIterator<Item = impl Into<OsString>>) -> Command {
    let mut command = Command::new(KEMARI);
    command.args(words.into_iter().map(Into::into)).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// The flags of a valid machine; a case's own flags replace them.
fn run(place: &Place, line: &str) -> Command {
    let mut words = vec!["run".to_owned()];
    for (flag, value) in
        [("--kernel", micro::image().to_str().unwrap()), ("--memory", "64"), ("--serial", "none")]
    {
        if !line.contains(flag) {
            words.extend([flag.to_owned(), value.to_owned()]);
        }
    }
    words.extend(place.words(line));
    kemari(words)
}

#[track_caller]
fn all(cases: &[Case], command: impl Fn(&Place, &str) -> Command) {
    let place = Place::new();
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|(line, expected)| {
            let judged = place.judge(command(&place, line), expected);
            judged.err().map(|error| format!("{line}\n    {error}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn numbers() {
    all(NUMBERS, run);
}

#[test]
fn lists_of_keys() {
    all(LISTS, run);
}

#[test]
fn addresses() {
    all(ADDRESSES, run);
}

#[test]
fn files() {
    all(FILES, run);
}

#[test]
fn what_does_not_go_together() {
    all(TOGETHER, run);
}

#[test]
fn standbys() {
    let standby = |place: &Place, line: &str| {
        let serial = if line.contains("--serial") { "" } else { " --serial none" };
        kemari(place.words(&format!("standby {line}{serial}")))
    };
    all(STANDBY, standby);
}

#[test]
fn other_commands() {
    all(OTHERS, |place, line| kemari(place.words(line)));
}

/// P9. Fails if, for any flag with a path, the program waits for a FIFO's writer or reads an
/// endless device without a bound.
#[test]
fn a_path_that_leads_to_no_file_is_waited_for_by_nobody() {
    const READ: &[&str] = &[
        "run --kernel @PATH --serial none --memory 64",
        "run --kernel @KERNEL --initrd @PATH --serial none --memory 64",
        "run --kernel @KERNEL --disk path=@PATH --serial none --memory 64",
        "run --kernel @KERNEL --arbiter file:@arbiter --disk path=@disk.img,fence=@PATH --serial none",
        "run --kernel @KERNEL --arbiter file:@PATH --serial none --memory 64",
        "run --kernel @KERNEL --arbiter etcd:127.0.0.1:1 --arbiter-user u --arbiter-password-file @PATH --serial none",
        "run --kernel @KERNEL --arbiter etcd:127.0.0.1:1 --arbiter-ca @PATH --serial none",
        "run --kernel @KERNEL --tls @PATH --serial none --memory 64",
        "run --kernel @KERNEL --pid-file @PATH --serial none --memory 64",
        "run --kernel @KERNEL --memory 64,file=@PATH,share=on --serial none",
        "run --kernel @KERNEL --audit @PATH --serial none --memory 64",
        "standby --listen unix:@link --kernel @PATH --serial none",
        "standby --listen unix:@PATH --serial none --disk path=@disk.img",
        "standby --listen unix:@link --tls @PATH --serial none",
        "standby --listen unix:@link --disk path=@PATH --serial none",
    ];
    let place = Place::new();
    let kernel = micro::image().display().to_string();
    let mut wrong = Vec::new();
    for line in READ {
        for kind in ["fifo", "directory", "socket", "endless.1.0"] {
            // These flags accept a directory, or replace an unused socket.
            let fits = match kind {
                "directory" => line.contains("file:@PATH") || line.contains("--tls"),
                "socket" => line.contains("unix:@PATH"),
                _ => false,
            };
            if fits {
                continue;
            }
            let path = place.dir.path().join(kind).display().to_string();
            let words = line.replace("@PATH", &path).replace("@KERNEL", &kernel);
            let judged = place.judge(kemari(place.words(&words)), &[kind]);
            wrong.extend(judged.err().map(|error| format!("{words}: {error}")));
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The program cannot listen: the system has failed, not the command line.
#[test]
fn sockets_to_talk_to() {
    let place = Place::new();
    for (line, expected) in [
        ("@notes", &["--control", "expected a socket", "a regular file"][..]),
        ("@directory", &["expected a socket", "a directory"]),
        ("@fifo", &["expected a socket", "a FIFO"]),
        ("/dev/null", &["expected a socket", "a character device"]),
        ("@LONG", &["1 to 107 bytes"]),
        ("@nothing", &["nothing", "No such file", "--control"]),
        ("@socket", &["socket", "Connection refused", "--control"]),
    ] {
        let command = kemari(place.words(&format!("ctl --control {line} status")));
        let told = place.judge_as(1, command, expected);
        told.unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn bytes_that_are_no_text() {
    let place = Place::new();
    for (flag, value) in
        [("--disk", &b"path=/\xff\xfe"[..]), ("--name", b"\xff"), ("--serial", b"file=\x80")]
    {
        let mut command = run(&place, flag);
        command.arg(flag).arg(OsString::from_vec(value.to_vec()));
        // `run` has added the flag without a value: remove that one.
        let mut words: Vec<OsString> = command.get_args().map(ToOwned::to_owned).collect();
        let at = words.iter().position(|word| word == flag).unwrap();
        words.remove(at);
        place.judge(kemari(words), &["expected UTF-8"]).unwrap();
    }
}

/// More devices than a machine has slots for.
#[test]
fn too_many() {
    let place = Place::new();
    let many = |flag: &str, count: usize| -> String {
        (0..count).map(|number| flag.replace('#', &number.to_string()) + " ").collect()
    };
    for (line, expected) in [
        (many("--net stream=@s#", 16), "15 windows"),
        (many("--net stream=@s#,model=e1000", 40), "PCI devices"),
        (many("--device beeper", 16), "15 windows"),
        (many("--net stream=@s#", 300), "15 windows"),
        ("--memory 16777216".to_owned(), "lower --memory"),
    ] {
        place.judge(run(&place, &line), &[expected]).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
}

/// Every command that prints to standard output runs with a closed pipe and with a full disk.
#[test]
fn nobody_takes_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (control, audit) = (at("control"), at("audit"));
    let mut guest = micro::Guest::boot_with(1, &["--control", &control, "--audit", &audit]);
    guest.ask(kemari_workload::Op::Ping);
    for line in [
        "--help".to_owned(),
        "help".to_owned(),
        "run --help".to_owned(),
        "--version".to_owned(),
        "probe".to_owned(),
        format!("ctl --control {control} status"),
        format!("ctl --control {control} reset-stats"),
        format!("audit show {audit}"),
        format!("audit verify {audit}"),
    ] {
        let start = |stdout: Stdio| {
            let mut command = kemari(line.split(' '));
            command.stdout(stdout).stderr(Stdio::piped()).output().unwrap()
        };
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let closed = start(writer.into());
        let text = String::from_utf8_lossy(&closed.stderr).into_owned();
        assert!(text.is_empty(), "{line}: {text}");
        assert!(closed.status.code().is_some_and(|code| code != 101 && code != 134), "{line}");
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let full = start(full.into());
        let text = String::from_utf8_lossy(&full.stderr).into_owned();
        assert!(text.contains("No space left") && text.lines().count() == 1, "{line}: {text}");
        assert_eq!(full.status.code(), Some(1), "{line}");
    }
    // The error itself cannot be printed either.
    for line in
        ["run", "run --memory 1G", "ctl --control /nowhere status", "audit verify /nowhere/x"]
    {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let code = kemari(line.split(' ')).stderr(full).status().unwrap().code();
        assert!(matches!(code, Some(1 | 2)), "{line}: {code:?}");
    }
}
