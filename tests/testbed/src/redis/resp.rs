//! Redis's protocol (RESP 2), as far as this client needs it.

/// A reply of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Option<String>),
    Array(Vec<Reply>),
}

/// A command in wire format.
pub(super) fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}

/// Removes one complete reply from the front of `bytes`; `None` while it is incomplete.
pub(super) fn take_reply(bytes: &mut Vec<u8>) -> Option<Result<Reply, String>> {
    let mut at = 0;
    let reply = reply(bytes, &mut at)?;
    bytes.drain(..at);
    Some(reply)
}

/// Parses the reply at `at`, and moves `at` past it.
fn reply(bytes: &[u8], at: &mut usize) -> Option<Result<Reply, String>> {
    let line = line(bytes, at)?;
    let (kind, rest) = line.split_at_checked(1).unwrap_or_default();
    Some(match kind {
        "+" => Ok(Reply::Simple(rest.to_owned())),
        "-" => Ok(Reply::Error(rest.to_owned())),
        ":" => number(rest).map(Reply::Integer),
        "$" => match number(rest).map(usize::try_from) {
            Ok(Ok(length)) => {
                let text = bytes.get(*at..*at + length)?;
                let text = String::from_utf8_lossy(text).into_owned();
                bytes.get(*at + length..*at + length + 2)?;
                *at += length + 2;
                Ok(Reply::Bulk(Some(text)))
            }
            Ok(Err(_)) => Ok(Reply::Bulk(None)),
            Err(error) => Err(error),
        },
        "*" => match number(rest) {
            Ok(count) => array(bytes, at, count)?,
            Err(error) => Err(error),
        },
        _ => Err(format!("expected a reply of RESP 2, found {line:?}")),
    })
}

fn array(bytes: &[u8], at: &mut usize, count: i64) -> Option<Result<Reply, String>> {
    let mut replies = Vec::new();
    for _ in 0..count {
        match reply(bytes, at)? {
            Ok(reply) => replies.push(reply),
            Err(error) => return Some(Err(error)),
        }
    }
    Some(Ok(Reply::Array(replies)))
}

/// Returns the line at `at` without its line end, and moves `at` past it.
fn line(bytes: &[u8], at: &mut usize) -> Option<String> {
    let rest = bytes.get(*at..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    *at += end + 2;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
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
        let whole = b"+OK\r\n:-5\r\n$3\r\na\r\n\r\n$-1\r\n*2\r\n:1\r\n$1\r\n2\r\n-ERR no\r\n";
        let expected = [
            Reply::Simple("OK".into()),
            Reply::Integer(-5),
            Reply::Bulk(Some("a\r\n".into())),
            Reply::Bulk(None),
            Reply::Array(vec![Reply::Integer(1), Reply::Bulk(Some("2".into()))]),
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
