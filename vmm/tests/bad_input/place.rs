//! The directory of a test, and how a refusal is judged.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use kemari_testbed::process::Process;
use rustix::process::Signal;

use super::micro;

/// Upper bound for a refused start on a busy machine.
const REFUSAL: Duration = Duration::from_secs(60);

pub(super) struct Place {
    pub(super) dir: tempfile::TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
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

    pub(super) fn words(&self, line: &str) -> Vec<String> {
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
    pub(super) fn judge(&self, command: Command, expected: &[&str]) -> Result<(), String> {
        self.judge_as(2, command, expected)
    }

    pub(super) fn judge_as(
        &self,
        wanted: i32,
        command: Command,
        expected: &[&str],
    ) -> Result<(), String> {
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
