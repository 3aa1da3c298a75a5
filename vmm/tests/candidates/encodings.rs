//! Encodings of a page, from its contents and from the contents that the other side has.

use std::hint::black_box;

use ft_core::pages::{Page, is_zero};

use crate::PAGE;

/// A page whose encoded form has at least this length is sent raw, as in the product.
const WORTHWHILE: usize = PAGE * 7 / 8;
/// Length of a line: a page has one for each bit of a `u64`.
pub(crate) const LINE: usize = PAGE / 64;

/// Appends one encoded page, from its current contents and the other side's.
type Encode = fn(&Page, &Page, &mut Vec<u8>);
/// Changes the old page into the new one. Takes the sent bytes without the first, which names the
/// encoding.
type Decode = fn(&[u8], &mut Page);

const RAW: u8 = 0;
const ZERO: u8 = 1;
const SMALL: u8 = 2;

pub(crate) struct Encoding {
    pub(crate) name: &'static str,
    /// Whether the sender must keep the pages that it has sent. That costs another copy of each
    /// page, and as much memory as the guest has.
    keeps: bool,
    encode: Encode,
    decode: Decode,
}

pub(crate) const ENCODINGS: [Encoding; 5] = [
    Encoding { name: "raw", keeps: false, encode: raw, decode: |_, _| unreachable!() },
    Encoding {
        name: "zero or raw (today)",
        keeps: false,
        encode: zero_or_raw,
        decode: |_, _| unreachable!(),
    },
    Encoding { name: "lz4", keeps: false, encode: lz4, decode: unlz4 },
    Encoding { name: "xor + lz4", keeps: true, encode: xor_lz4, decode: unxor_lz4 },
    Encoding { name: "changed lines of 64 B", keeps: true, encode: lines, decode: unlines },
];

fn raw(now: &Page, _: &Page, out: &mut Vec<u8>) {
    out.push(RAW);
    out.extend_from_slice(now);
}

fn zero_or_raw(now: &Page, old: &Page, out: &mut Vec<u8>) {
    if is_zero(now) { out.push(ZERO) } else { raw(now, old, out) }
}

fn lz4_or_raw(from: &Page, now: &Page, out: &mut Vec<u8>) {
    let mut block = [0; lz4_flex::block::get_maximum_output_size(PAGE)];
    match lz4_flex::block::compress_into(from, &mut block) {
        Ok(len) if len < WORTHWHILE => {
            out.push(SMALL);
            out.extend_from_slice(&block[..len]);
        }
        _ => raw(now, now, out),
    }
}

fn lz4(now: &Page, _: &Page, out: &mut Vec<u8>) {
    if is_zero(now) { out.push(ZERO) } else { lz4_or_raw(now, now, out) }
}

fn unlz4(sent: &[u8], page: &mut Page) {
    assert_eq!(lz4_flex::block::decompress_into(sent, page).unwrap(), PAGE);
}

fn xor(into: &mut Page, with: &Page) {
    into.iter_mut().zip(with).for_each(|(a, b)| *a ^= b);
}

fn xor_lz4(now: &Page, old: &Page, out: &mut Vec<u8>) {
    if is_zero(now) {
        return out.push(ZERO);
    }
    let mut delta = *now;
    xor(&mut delta, old);
    lz4_or_raw(&delta, now, out);
}

fn unxor_lz4(sent: &[u8], page: &mut Page) {
    let mut delta = [0; PAGE];
    unlz4(sent, &mut delta);
    xor(page, &delta);
}

fn lines(now: &Page, old: &Page, out: &mut Vec<u8>) {
    if is_zero(now) {
        return out.push(ZERO);
    }
    let (now_lines, old_lines) = (now.as_chunks::<LINE>().0, old.as_chunks::<LINE>().0);
    let pairs = now_lines.iter().zip(old_lines).enumerate();
    let mask = pairs.fold(0u64, |mask, (i, (a, b))| mask | u64::from(a != b) << i);
    if mask.count_ones() as usize * LINE >= WORTHWHILE {
        return raw(now, old, out);
    }
    out.push(SMALL);
    out.extend_from_slice(&mask.to_le_bytes());
    bits(mask).for_each(|i| out.extend_from_slice(&now_lines[i]));
}

fn unlines(sent: &[u8], page: &mut Page) {
    let (mask, changed) = sent.split_first_chunk().unwrap();
    let lines = bits(u64::from_le_bytes(*mask)).zip(changed.chunks_exact(LINE));
    lines.for_each(|(i, line)| page[i * LINE..][..LINE].copy_from_slice(line));
}

fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = (mask != 0).then(|| mask.trailing_zeros() as usize);
        mask &= mask.wrapping_sub(1);
        next
    })
}

/// Encoded pages, and the end of each in `bytes`.
#[derive(Default)]
pub(crate) struct Sent {
    pub(crate) bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Encoding {
    pub(crate) fn encode_all(
        &self,
        now: &[Page],
        old: &[Page],
        kept: &mut [Page],
        sent: &mut Sent,
    ) {
        sent.bytes.clear();
        sent.ends.clear();
        for ((now, old), kept) in black_box(now).iter().zip(old).zip(kept) {
            (self.encode)(now, old, &mut sent.bytes);
            sent.ends.push(sent.bytes.len());
            if self.keeps {
                *kept = *now;
            }
        }
    }

    pub(crate) fn decode_all(&self, sent: &Sent, pages: &mut [Page]) {
        let (Sent { bytes: sent, ends }, mut start) = (sent, 0);
        for (&end, page) in ends.iter().zip(pages) {
            match (sent[start], &sent[start + 1..end]) {
                (RAW, rest) => page.copy_from_slice(rest),
                (ZERO, _) => page.fill(0),
                (_, rest) => (self.decode)(rest, page),
            }
            start = end;
        }
    }
}
