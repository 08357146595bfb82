//! As much of Redis' protocol as a relay needs: where commands and replies begin and end.

/// The first command in `bytes` (an array of strings) and its length; `None` while it is not complete.
pub(crate) fn command(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let (count, mut at) = header(bytes, b'*')?;
    let mut parts = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, skip) = header(bytes.get(at..)?, b'$')?;
        let from = at + skip;
        parts.push(bytes.get(from..from + length)?.to_vec());
        at = from + length + 2;
    }
    (at <= bytes.len()).then_some((parts, at))
}

fn header(bytes: &[u8], kind: u8) -> Option<(usize, usize)> {
    let end = line(bytes)?;
    assert_eq!(bytes[0], kind, "a client speaks Redis' protocol");
    Some((number(&bytes[1..end - 2])?, end))
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Length of the first line with its end.
fn line(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\r\n").map(|at| at + 2)
}

/// Length of the first reply in `bytes`, of either version of the protocol; `None` while it is not complete.
pub(crate) fn reply(bytes: &[u8]) -> Option<usize> {
    let end = line(bytes)?;
    let digits = &bytes[1..end - 2];
    match bytes[0] {
        b'$' | b'=' | b'!' => {
            let Some(length) = number(digits) else { return Some(end) }; // -1: no value
            (bytes.len() >= end + length + 2).then_some(end + length + 2)
        }
        b'*' | b'~' | b'>' => replies(bytes, end, number(digits).unwrap_or(0)),
        b'%' => replies(bytes, end, 2 * number(digits).unwrap_or(0)),
        b'|' => replies(bytes, end, 2 * number(digits).unwrap_or(0) + 1), // Attributes stand before their value.
        _ => Some(end),
    }
}

fn replies(bytes: &[u8], from: usize, count: usize) -> Option<usize> {
    let mut at = from;
    for _ in 0..count {
        at += reply(&bytes[at..])?;
    }
    Some(at)
}

/// Is this reply one that no command asked for?
pub(crate) fn is_push(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'>')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_cut_at_their_end() {
        let bytes = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*1\r\n$4\r\nPING\r\n";
        let (parts, length) = command(bytes).expect("the first is complete");
        assert_eq!(parts, [b"GET".to_vec(), b"a".to_vec()]);
        assert_eq!(
            command(&bytes[length..]).map(|(parts, _)| parts),
            Some(vec![b"PING".to_vec()])
        );
        for cut in 0..length {
            assert_eq!(command(&bytes[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn replies_of_both_protocols_are_cut_at_their_end() {
        let whole: [&[u8]; 11] = [
            b"+OK\r\n",
            b"-ERR no\r\n",
            b":42\r\n",
            b"$-1\r\n",
            b"$5\r\nhel\r\n\r\n",
            b"*-1\r\n",
            b"*2\r\n:1\r\n*1\r\n$1\r\na\r\n",
            b"%1\r\n+k\r\n,1.5\r\n",
            b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nq\r\n",
            b"_\r\n",
            b"|1\r\n+ttl\r\n:3\r\n$1\r\na\r\n",
        ];
        for bytes in whole {
            assert_eq!(reply(bytes), Some(bytes.len()), "{}", String::from_utf8_lossy(bytes));
            for cut in 0..bytes.len() {
                assert_eq!(
                    reply(&bytes[..cut]),
                    None,
                    "{} cut at {cut}",
                    String::from_utf8_lossy(bytes)
                );
            }
        }
    }
}
