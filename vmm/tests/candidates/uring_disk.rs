//! io_uring for a disk image, against one system call per write, as the lane of a disk makes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};

use crate::PAGE;
use crate::rounds::{Way, head, in_turn, time, uninterrupted};

const FILE_PAGES: usize = 64 << 8;
const WRITES: usize = 256;
const DEPTHS: [usize; 3] = [1, 8, 32];

/// A page, aligned for O_DIRECT.
#[derive(Clone)]
#[repr(align(4096))]
struct Block([u8; PAGE]);

/// Writes as a guest might make them, each to a different place.
struct Batch {
    at: Vec<usize>,
    blocks: Vec<Block>,
}

impl Batch {
    fn new(random: &mut fastrand::Rng) -> Self {
        let mut blocks = vec![Block([0; PAGE]); WRITES];
        blocks.iter_mut().for_each(|block| random.fill(&mut block.0));
        let mut at = random.choose_multiple(0..FILE_PAGES, WRITES);
        random.shuffle(&mut at);
        Self { at, blocks }
    }

    fn offset(&self, i: usize) -> u64 {
        (self.at[i] * PAGE) as u64
    }

    fn by_calls(&self, file: &File, sync: bool) {
        for (i, block) in self.blocks.iter().enumerate() {
            file.write_all_at(&block.0, self.offset(i)).unwrap();
        }
        if sync {
            file.sync_data().unwrap();
        }
    }

    fn by_ring(&self, file: &File, ring: &mut IoUring, depth: usize, sync: bool) {
        let fd = types::Fd(file.as_raw_fd());
        let (mut begun, mut done) = (0, 0);
        while done < WRITES {
            while begun < WRITES && begun - done < depth {
                let write = opcode::Write::new(fd, self.blocks[begun].0.as_ptr(), PAGE as u32);
                let entry = write.offset(self.offset(begun)).build();
                // SAFETY: the block outlives the request, for whose end this function waits.
                unsafe { ring.submission().push(&entry) }.unwrap();
                begun += 1;
            }
            uninterrupted(|| ring.submit_and_wait(1));
            for end in ring.completion() {
                assert_eq!(
                    end.result(),
                    PAGE as i32,
                    "{}",
                    io::Error::from_raw_os_error(-end.result())
                );
                done += 1;
            }
        }
        if sync {
            let entry = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
            // SAFETY: the request has no buffers.
            unsafe { ring.submission().push(&entry) }.unwrap();
            uninterrupted(|| ring.submit_and_wait(1));
            assert_eq!(ring.completion().next().unwrap().result(), 0);
        }
    }

    fn check(&self, file: &File) {
        let mut found = Block([0; PAGE]);
        for (i, block) in self.blocks.iter().enumerate() {
            file.read_exact_at(&mut found.0, self.offset(i)).unwrap();
            assert!(found.0 == block.0, "write {i} is not in the file");
        }
    }
}

fn open(path: &Path, direct: bool) -> io::Result<File> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

#[test]
#[ignore = "a measurement"]
fn uring_disk() {
    // Create the image beside the build, on a real disk: temporary directories may be in memory.
    let image = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let zeros = vec![0; 1 << 20];
    (0..FILE_PAGES * PAGE / zeros.len())
        .for_each(|i| image.as_file().write_all_at(&zeros, (i * zeros.len()) as u64).unwrap());
    image.as_file().sync_all().unwrap();
    head(&[
        "file",
        "at the end",
        "pwrite us a write",
        "io_uring, depth 1",
        "8",
        "32",
        "32 to pwrite",
    ]);
    for (direct, sync) in [(false, false), (false, true), (true, false), (true, true)] {
        match open(image.path(), direct) {
            Ok(file) => row(&file, direct, sync),
            Err(error) => println!("NOT MEASURED: O_DIRECT: {error}"),
        }
    }
}

fn row(file: &File, direct: bool, sync: bool) {
    let run = |write: &mut dyn FnMut(&Batch), random: &mut fastrand::Rng| -> Duration {
        let batch = Batch::new(random);
        let taken = time(|| write(&batch));
        batch.check(file);
        // Write the data back, so that the next way does not pay for this one.
        file.sync_data().unwrap();
        taken
    };
    let mut randoms = fastrand::Rng::with_seed(11);
    let mut random = randoms.fork();
    let mut ways: Vec<Way<'_>> = vec![(
        "pwrite",
        Box::new(move || run(&mut |batch| batch.by_calls(file, sync), &mut random)),
    )];
    for depth in DEPTHS {
        let (mut ring, mut random) = (IoUring::new(64).unwrap(), randoms.fork());
        let by_ring =
            move || run(&mut |batch| batch.by_ring(file, &mut ring, depth, sync), &mut random);
        ways.push(("io_uring", Box::new(by_ring)));
    }
    let times = in_turn(31, &mut ways);
    let cells: Vec<String> =
        times.iter().map(|t| format!("{:.2}", t.median() / 1e3 / WRITES as f64)).collect();
    println!(
        "| {} | {} | {} | {:.2} |",
        if direct { "O_DIRECT" } else { "page cache" },
        if sync { "fdatasync" } else { "-" },
        cells.join(" | "),
        times[3].median() / times[0].median(),
    );
}
