//! Every command that a server carries out, as `MONITOR` tells them.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use umbel_testkit::within;

use crate::stage::SOON;

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    /// Address of the client, or `lua` for what a script calls.
    pub(crate) client: String,
    /// Name and arguments.
    pub(crate) parts: Vec<Vec<u8>>,
}

impl Command {
    /// An argument as text; what is no UTF-8 is replaced.
    pub(crate) fn text(&self, index: usize) -> String {
        let part = self.parts.get(index).map_or(&[][..], Vec::as_slice);
        String::from_utf8_lossy(part).into_owned()
    }
}

/// Listens to a server until it is dropped.
pub(crate) struct Monitor {
    seen: Arc<Mutex<Vec<Command>>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Monitor {
    pub(crate) async fn of(port: u16) -> Monitor {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the server runs");
        let (read, mut write) = stream.into_split();
        write.write_all(b"MONITOR\r\n").await.expect("the server runs");
        let mut lines = BufReader::new(read).split(b'\n');
        let first = within(SOON, "MONITOR is answered", lines.next_segment()).await;
        assert_eq!(first.expect("the server runs").as_deref(), Some(&b"+OK\r"[..]));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&seen);
        let reader = tokio::spawn(async move {
            let _open = write;
            while let Ok(Some(line)) = lines.next_segment().await {
                if let Some(command) = parse(&line) {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push(command);
                }
            }
        });
        Monitor { seen, reader }
    }

    /// What was heard so far.
    pub(crate) fn commands(&self) -> Vec<Command> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// `+1700000000.123456 [0 127.0.0.1:1234] "SET" "key" "a \"value\" \x00"`.
fn parse(line: &[u8]) -> Option<Command> {
    let open = line.iter().position(|byte| *byte == b'[')?;
    let close = line.iter().position(|byte| *byte == b']')?;
    let client = std::str::from_utf8(&line[open + 1..close]).ok()?;
    let (_, client) = client.split_once(' ')?;
    let text = line[close + 1..].trim_ascii();
    let parts = escaped(text).or_else(|| unescaped(text))?;
    (!parts.is_empty()).then(|| Command {
        client: client.to_owned(),
        parts,
    })
}

/// The words of a line, each in quotes; `None` where something else stands between them.
fn escaped(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    let mut rest = text.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        if byte != b'"' {
            return None;
        }
        let mut part = Vec::new();
        loop {
            match rest.next()? {
                b'"' => break,
                b'\\' => part.push(match rest.next()? {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'a' => 7,
                    b'b' => 8,
                    b'x' => {
                        let digits = [rest.next()?, rest.next()?];
                        u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                    }
                    other => other,
                }),
                byte => part.push(byte),
            }
        }
        parts.push(part);
        if !matches!(rest.next(), None | Some(b' ')) {
            return None;
        }
    }
    Some(parts)
}

/// The same of Valkey 8.1.1, which writes quotes and backslashes as they are, and only bytes that are no text as `\xHH`.
/// No word of the captures has a quote, a space and a quote in it.
fn unescaped(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let text = text.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let (mut parts, mut part, mut at) = (Vec::new(), Vec::new(), 0);
    while at < text.len() {
        let rest = &text[at..];
        let byte = rest
            .strip_prefix(b"\\x")
            .and_then(|rest| std::str::from_utf8(rest.get(..2)?).ok());
        if rest.starts_with(b"\" \"") {
            parts.push(std::mem::take(&mut part));
            at += 3;
        } else if let Some(byte) = byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            part.push(byte);
            at += 4;
        } else {
            part.push(rest[0]);
            at += 1;
        }
    }
    parts.push(part);
    Some(parts)
}

#[test]
fn a_line_is_read_without_its_escapes_where_there_are_none() {
    let command = parse(br#"+1.5 [0 lua] "LPUSH" "q\x06\x163" "{"a": "\n"}""#).expect("a command");
    let parts: [&[u8]; 3] = [b"LPUSH", b"q\x06\x163", br#"{"a": "\n"}"#];
    assert_eq!(command.parts, parts);
}

#[test]
fn a_line_is_read_with_its_escapes() {
    let command = parse(br#"+1.5 [0 lua] "LPUSH" "q\x06\x163" "{\"a\": \"\\n\"}\n""#).expect("a command");
    assert_eq!(command.client, "lua");
    let parts: [&[u8]; 3] = [b"LPUSH", b"q\x06\x163", b"{\"a\": \"\\n\"}\n"];
    assert_eq!(command.parts, parts);
}
