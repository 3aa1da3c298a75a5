//! Redis's protocol (RESP 2), as far as a client of a few commands needs it.

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Option<String>),
}

/// A command as it goes over the wire.
pub(super) fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}

/// Takes one whole reply off the front of `bytes`; `None` while it is not whole.
pub(super) fn take_reply(bytes: &mut Vec<u8>) -> Option<Result<Reply, String>> {
    let (line, mut end) = line(bytes)?;
    let (kind, rest) = line.split_at_checked(1).unwrap_or_default();
    let reply = match kind {
        "+" => Ok(Reply::Simple(rest.to_owned())),
        "-" => Ok(Reply::Error(rest.to_owned())),
        ":" => number(rest).map(Reply::Integer),
        "$" => match number(rest) {
            Ok(length) => match usize::try_from(length) {
                Ok(length) => {
                    let text = bytes.get(end..end + length)?;
                    let text = String::from_utf8_lossy(text).into_owned();
                    bytes.get(end + length..end + length + 2)?;
                    end += length + 2;
                    Ok(Reply::Bulk(Some(text)))
                }
                Err(_) => Ok(Reply::Bulk(None)),
            },
            Err(error) => Err(error),
        },
        _ => Err(format!("expected a reply of RESP 2, found {line:?}")),
    };
    bytes.drain(..end);
    Some(reply)
}

/// The first line without its end, and where the next one begins.
fn line(bytes: &[u8]) -> Option<(String, usize)> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some((String::from_utf8_lossy(&bytes[..end]).into_owned(), end + 2))
}

fn number(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| format!("expected a number, found {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_strings() {
        assert_eq!(command(&["GET", "k"]), b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    }

    #[test]
    fn replies_are_taken_whole_or_not_at_all() {
        let whole = b"+OK\r\n:-5\r\n$3\r\na\r\n\r\n$-1\r\n-ERR no\r\n";
        let expected = [
            Reply::Simple("OK".into()),
            Reply::Integer(-5),
            Reply::Bulk(Some("a\r\n".into())),
            Reply::Bulk(None),
            Reply::Error("ERR no".into()),
        ];
        let (mut buffer, mut found) = (Vec::new(), Vec::new());
        for byte in whole {
            buffer.push(*byte);
            found.extend(take_reply(&mut buffer));
        }
        assert_eq!(found, expected.map(Ok));
        assert!(buffer.is_empty());
    }

    #[test]
    fn nonsense_is_told() {
        assert!(take_reply(&mut b"?\r\n".to_vec()).is_some_and(|reply| reply.is_err()));
        assert!(take_reply(&mut b"\r\n".to_vec()).is_some_and(|reply| reply.is_err()));
    }
}
