//! A very small Redis client: as little work as possible beside the server's.

use std::io::{Read, Write};
use std::net::TcpStream;

pub struct Connection {
    stream: TcpStream,
    pub out: Vec<u8>,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
}

/// A reply; what is inside of strings and arrays is skipped.
#[derive(Debug, PartialEq)]
pub enum Reply {
    Number(i64),
    Other,
}

impl Connection {
    pub fn open(port: u16) -> Connection {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("a server");
        stream.set_nodelay(true).expect("a socket");
        Connection { stream, out: Vec::with_capacity(1 << 20), buffer: vec![0; 1 << 20], at: 0, end: 0 }
    }

    pub fn arg(&mut self, bytes: &[u8]) {
        write!(self.out, "${}\r\n", bytes.len()).expect("memory");
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    pub fn command(&mut self, parts: &[&[u8]]) {
        write!(self.out, "*{}\r\n", parts.len()).expect("memory");
        for part in parts {
            self.arg(part);
        }
    }

    pub fn flush(&mut self) {
        self.stream.write_all(&self.out).expect("a server");
        self.out.clear();
    }

    fn fill(&mut self) {
        if self.at == self.end {
            (self.at, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.at..self.end, 0);
            self.end -= self.at;
            self.at = 0;
        }
        let got = self.stream.read(&mut self.buffer[self.end..]).expect("a server");
        assert!(got > 0, "the server has closed the connection");
        self.end += got;
    }

    /// Kind of the next reply and its number; text after `+` is left out, an error ends the program.
    fn header(&mut self) -> (u8, i64) {
        loop {
            let bytes = &self.buffer[self.at..self.end];
            if let Some(length) = bytes.windows(2).position(|pair| pair == b"\r\n") {
                let text = String::from_utf8_lossy(&bytes[1..length]).into_owned();
                let kind = bytes[0];
                assert!(kind != b'-', "redis: {text}");
                self.at += length + 2;
                return (kind, if kind == b'+' { 0 } else { text.parse().expect("a number") });
            }
            self.fill();
        }
    }

    fn bytes(&mut self, length: i64) -> Vec<u8> {
        let Ok(mut missing) = usize::try_from(length) else { return Vec::new() };
        missing += 2;
        let mut bytes = Vec::with_capacity(missing);
        while missing > 0 {
            if self.at == self.end {
                self.fill();
            }
            let take = missing.min(self.end - self.at);
            bytes.extend_from_slice(&self.buffer[self.at..self.at + take]);
            self.at += take;
            missing -= take;
        }
        bytes.truncate(bytes.len() - 2);
        bytes
    }

    fn skip(&mut self, mut count: usize) {
        while count > 0 {
            if self.at == self.end {
                self.fill();
            }
            let take = count.min(self.end - self.at);
            self.at += take;
            count -= take;
        }
    }

    pub fn reply(&mut self) -> Reply {
        match self.header() {
            (b':', number) => return Reply::Number(number),
            (b'$', length) if length >= 0 => self.skip(length as usize + 2),
            (b'*', count) => (0..count).for_each(|_| drop(self.reply())),
            _ => {}
        }
        Reply::Other
    }

    /// The text that a command answers.
    pub fn text(&mut self, parts: &[&[u8]]) -> String {
        self.command(parts);
        self.flush();
        let (kind, length) = self.header();
        assert_eq!(kind, b'$');
        String::from_utf8_lossy(&self.bytes(length)).into_owned()
    }

    /// An array of strings.
    pub fn strings(&mut self) -> Vec<Vec<u8>> {
        let (kind, count) = self.header();
        assert_eq!(kind, b'*');
        (0..count)
            .map(|_| match self.header() {
                (b'$', length) => self.bytes(length),
                (_, number) => number.to_string().into_bytes(),
            })
            .collect()
    }

    pub fn call(&mut self, parts: &[&[u8]]) -> Reply {
        self.command(parts);
        self.flush();
        self.reply()
    }

    /// Loads a script and returns its hash.
    pub fn load(&mut self, script: &str) -> Vec<u8> {
        self.command(&[b"SCRIPT", b"LOAD", script.as_bytes()]);
        self.flush();
        let (_, length) = self.header();
        self.bytes(length)
    }
}
