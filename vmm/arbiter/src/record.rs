//! The bytes of a term's record.
//!
//! A record of a machine without own disks is one JSON value. A record with a set has a JSON text
//! before that value. An earlier release, which does not know sets, finds the text where it expects
//! the record: it calls the record damaged, shows the text, and claims nothing.

use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};

/// The text before a record with a set.
const OWN_DISKS: &str =
    "this machine has own disks: only a kemari that knows them may claim its terms";

/// A record and the bytes behind it.
pub(crate) struct Read<'a, T> {
    pub(crate) record: T,
    pub(crate) rest: &'a [u8],
}

/// The bytes of a record.
pub(crate) fn encode<T: Serialize>(
    record: &T,
    has_set: bool,
    pretty: bool,
) -> serde_json::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if has_set {
        serde_json::to_writer(&mut bytes, OWN_DISKS)?;
        bytes.push(b'\n');
    }
    match pretty {
        true => serde_json::to_writer_pretty(&mut bytes, record)?,
        false => serde_json::to_writer(&mut bytes, record)?,
    }
    Ok(bytes)
}

/// Whether the bytes are of a record with a set, even of a damaged one.
pub(crate) fn has_set(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\"")
}

/// Reads a record. `set_of` says whether it has a set.
pub(crate) fn decode<T: DeserializeOwned>(
    bytes: &[u8],
    set_of: impl FnOnce(&T) -> bool,
) -> serde_json::Result<Read<'_, T>> {
    let mut values = serde_json::Deserializer::from_slice(bytes);
    let missing = || serde_json::Error::custom("expected a record, found no bytes");
    let mut begins = 0;
    let expected = has_set(bytes);
    if expected {
        let mut texts = values.into_iter::<String>();
        let text = texts.next().ok_or_else(missing)??;
        if text != OWN_DISKS {
            return Err(serde_json::Error::custom(format!(
                "expected a release that can read it, found: {text}"
            )));
        }
        begins = texts.byte_offset();
        values = serde_json::Deserializer::from_slice(&bytes[begins..]);
    }
    let mut records = values.into_iter::<T>();
    let record = records.next().ok_or_else(missing)??;
    if set_of(&record) != expected {
        return Err(serde_json::Error::custom(
            "expected a set exactly behind the text about own disks",
        ));
    }
    let rest = &bytes[begins + records.byte_offset()..];
    Ok(Read { record, rest })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use ft_core::arbiter::{Held, TermRecord};
    use ft_core::disks::set::{ImageSet, Member};
    use ft_core::disks::{DiskId, Generation};
    use serde::Deserialize;

    use super::*;

    /// A record as the release before own disks reads and writes it.
    #[derive(Debug, Serialize, Deserialize)]
    struct Before {
        #[serde(flatten)]
        record: TermRecord,
        lease_ms: u64,
        ended: bool,
    }

    fn held(set: Option<ImageSet>) -> Held {
        let (vm, holder, why) = ("vm".to_owned(), "a".to_owned(), "start".to_owned());
        let record = TermRecord { vm, term: 3, holder, why, won_at: 9 };
        Held { record, lease_ms: 1000, ended: false, set }
    }

    fn set() -> ImageSet {
        let member = |host: &str, id| Member { host: host.to_owned(), disk: DiskId(id) };
        let generation = Generation { term: 3, id: u128::MAX };
        ImageSet { generation, members: vec![member("a", u128::MAX), member("b", 1)] }
    }

    fn has(held: &Held) -> bool {
        held.set.is_some()
    }

    /// Fails if a record without a set gets a byte more, or if one of the two cannot be read.
    #[test]
    fn a_record_without_a_set_keeps_its_bytes() {
        let held = held(None);
        let (record, lease_ms, ended) = (held.record.clone(), held.lease_ms, held.ended);
        let before = Before { record, lease_ms, ended };
        let bytes = encode(&held, false, false).unwrap();
        assert_eq!(bytes, serde_json::to_vec(&before).unwrap());
        assert_eq!(decode(&bytes, has).unwrap().record, held);
        let pretty = encode(&held, false, true).unwrap();
        assert_eq!(pretty, serde_json::to_vec_pretty(&before).unwrap());
    }

    /// R7: fails if an earlier release could read a record with a set, and claim over it.
    #[test]
    fn r7_an_earlier_release_reads_no_record_with_a_set_and_shows_why() {
        let held = held(Some(set()));
        for pretty in [true, false] {
            let mut bytes = encode(&held, true, pretty).unwrap();
            bytes.extend_from_slice(b"succeeded\n");
            let read = decode(&bytes, has).unwrap();
            assert_eq!((read.record, read.rest), (held.clone(), &b"succeeded\n"[..]));
            let error = serde_json::from_slice::<Before>(&bytes).unwrap_err().to_string();
            assert!(error.contains("only a kemari that knows them"), "{error}");
            // The arbiter `file:` of that release reads the first value.
            let first =
                serde_json::Deserializer::from_slice(&bytes).into_iter::<TermRecord>().next();
            let error = first.unwrap().unwrap_err().to_string();
            assert!(error.contains("only a kemari that knows them"), "{error}");
        }
    }

    #[test]
    fn a_set_without_its_text_and_a_text_without_its_set_are_damage() {
        let with = encode(&held(Some(set())), false, false).unwrap();
        let without = encode(&held(None), true, false).unwrap();
        let mut other = b"\"a later release\"\n".to_vec();
        other.extend(encode(&held(Some(set())), false, false).unwrap());
        let whole = encode(&held(Some(set())), true, false).unwrap();
        for bytes in [&with[..], &without, &other, b"\"", b"", &whole[..whole.len() / 2]] {
            assert!(decode(bytes, has).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
        assert!(has_set(&whole) && !has_set(&with) && !has_set(b""));
    }
}
