//! Reads the guest's log from the disk image. Each acknowledged operation must be in it, unchanged
//! and in order. Apart from them, it may contain only unanswered operations.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kemari_workload::record::{SECTOR_LEN, SLOT_LEN};
use kemari_workload::{CHAIN_START, Record, log_capacity, log_sector};

use crate::client::history::{Applied, History};
use crate::findings::{Finding, Kind};

/// Number of operations that may be on disk before they are answered: one for each client ID.
const UNANSWERED: u64 = kemari_workload::MAX_CLIENTS as u64;

/// A disk image, and the number of operations that were checked in it.
#[derive(Debug)]
pub struct DiskLog {
    image: File,
    capacity: u64,
    checked: u64,
}

/// The result of a check.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct DiskFindings {
    /// Number of records that were read and compared.
    pub checked: u64,
    /// Number of acknowledged operations that the log, which wraps, overwrote before they were
    /// checked.
    pub overwritten: u64,
    /// The contradictions.
    pub findings: Vec<Finding>,
}

impl DiskLog {
    /// Opens the image of a disk with the guest's log.
    ///
    /// # Errors
    /// The image cannot be read, or is too small for a log.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || format!("cannot open the disk image {}", path.display());
        let image = File::open(path).with_context(open)?;
        let sectors = image.metadata().with_context(open)?.len() / SECTOR_LEN as u64;
        let capacity = log_capacity(sectors);
        ensure!(capacity > UNANSWERED, "the disk image {} is too small for a log", path.display());
        Ok(Self { image, capacity, checked: 0 })
    }

    /// Checks the operations that were acknowledged since the last check.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn check_new(&mut self, history: &History) -> Result<DiskFindings> {
        let last = history.acknowledged();
        let findings = self.check(history, self.checked + 1)?;
        self.checked = last;
        Ok(findings)
    }

    /// Checks all records that the log still holds. The guest must be off.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn check_all(&mut self, history: &History) -> Result<DiskFindings> {
        let mut findings = self.check(history, 1)?;
        // Earlier calls of `check_new` checked the overwritten records.
        findings.overwritten = 0;
        Ok(findings)
    }

    /// The guest was reset: its log begins anew.
    pub fn begin_anew(&mut self) {
        self.checked = 0;
    }

    fn check(&self, history: &History, first: u64) -> Result<DiskFindings> {
        let last = history.acknowledged();
        let still_there = (last + UNANSWERED).saturating_sub(self.capacity) + 1;
        let mut findings = DiskFindings {
            overwritten: still_there.saturating_sub(first).min(last),
            ..DiskFindings::default()
        };
        for index in first.max(still_there)..=last {
            // The answer may still arrive. The history reports an answer that never does.
            let Some(expected) = history.applied(index) else { continue };
            findings.checked += 1;
            let slot = self.read(index)?;
            if let Err(wrong) = compare(index, &expected, history.boot_id(), &slot) {
                findings.findings.push(Finding::new(Kind::Lost, wrong));
            }
        }
        self.check_beyond(history, last, &mut findings)?;
        Ok(findings)
    }

    /// Checks the records after the acknowledged ones: unanswered operations are permitted, but
    /// must follow without a gap.
    fn check_beyond(
        &self,
        history: &History,
        last: u64,
        findings: &mut DiskFindings,
    ) -> Result<()> {
        let mut chain = history.applied(last).map_or(CHAIN_START, |last| last.chain);
        let mut unbroken = true;
        // Read backwards, because the guest may be writing, in order: a record that is found was
        // written after all records that are read later.
        let mut beyond = Vec::new();
        for index in (last + 1..=last + UNANSWERED).rev() {
            beyond.push((index, self.read(index)?));
        }
        for (index, slot) in beyond.into_iter().rev() {
            let record = Record::decode(&slot).ok().filter(|record| {
                record.index == index && Some(record.boot_id) == history.boot_id()
            });
            match record {
                Some(record) if unbroken && record.follows(chain) => chain = record.chain,
                Some(_) => {
                    let why =
                        if unbroken { "it does not follow" } else { "its predecessor is not" };
                    let what = format!(
                        "record {index} is on disk beyond the acknowledged history, but {why}"
                    );
                    findings.findings.push(Finding::new(Kind::RolledBack, what));
                }
                None => unbroken = false,
            }
        }
        Ok(())
    }

    fn read(&self, index: u64) -> Result<[u8; SLOT_LEN]> {
        let mut slot = [0; SLOT_LEN];
        let offset = log_sector(index, self.capacity) * SECTOR_LEN as u64;
        self.image.read_exact_at(&mut slot, offset).context("cannot read the disk image")?;
        Ok(slot)
    }
}

fn compare(
    index: u64,
    expected: &Applied,
    boot_id: Option<u64>,
    slot: &[u8],
) -> Result<(), String> {
    let record = Record::decode(slot).map_err(|error| {
        format!("operation {index} was acknowledged, but its record is torn or missing: {error}")
    })?;
    let found = Applied {
        client: record.client,
        seq: record.seq,
        op: record.op,
        payload_hash: kemari_workload::payload_hash(record.payload),
        chain: record.chain,
    };
    if record.index != index || found != *expected || Some(record.boot_id) != boot_id {
        return Err(format!(
            "operation {index} was acknowledged as {expected:?}; on disk is {record:?}"
        ));
    }
    Ok(())
}
