//! A connection with one owner, who sends a call, waits for its answer and sends the next.
//!
//! No task stands between him and the bytes, and what Redis answers most is read without ado: a reply of hundreds of
//! messages costs a tenth of what it costs on a connection that many share.
//!
//! # Cancellation
//! A call that is dropped on its way leaves its answer in the stream: the connection must be dropped with it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use redis::{Cmd, RedisResult, Value};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use crate::link::{Line, Link, Watch, unless_moved};
use crate::open::Stream;

/// Memory for replies that is kept between two calls, in bytes.
const KEPT: usize = 256 << 10;
/// Room for the next bytes of a reply: a kernel has seldom more at a time.
const ROOM: usize = 64 << 10;
/// Room that is made at a time for what is only announced.
const MOST: usize = 4 << 20;
/// Arrays in arrays; our scripts answer two.
const DEPTH: usize = 16;

/// See the module.
pub(crate) struct Direct {
    stream: Stream,
    watch: Option<Arc<Watch>>,
    patience: Duration,
    out: Vec<u8>,
    inbox: Vec<u8>,
}

impl Direct {
    pub(crate) fn new(stream: Stream, watch: Option<Arc<Watch>>, patience: Duration) -> Direct {
        Direct {
            stream,
            watch,
            patience,
            out: Vec::new(),
            inbox: Vec::new(),
        }
    }

    /// Does it lead to the wrong place, or rest on credentials that are no more?
    pub(crate) fn is_stale(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.is_stale())
    }

    /// Has the server ended it, or said something that nobody asked? Looks at what has come so far.
    pub(crate) fn is_over(&mut self) -> bool {
        self.stream.read_u8().now_or_never().is_some()
    }

    async fn exchange(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        self.out.clear();
        cmd.write_packed_command(&mut self.out);
        self.stream.write_all(&self.out).await?;
        self.stream.flush().await?;
        self.inbox.clear();
        let mut extent = Extent::default();
        while !extent.is_whole(&self.inbox)? {
            self.inbox.reserve(extent.missing(&self.inbox).clamp(ROOM, MOST));
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server ended the connection").into());
            }
        }
        if extent.at != self.inbox.len() {
            return Err(nonsense("more than one answer"));
        }
        let value = value(&self.inbox, &mut 0, DEPTH);
        self.out.shrink_to(KEPT);
        self.inbox.clear();
        self.inbox.shrink_to(KEPT);
        value
    }

    async fn in_time(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        let patience = self.patience;
        tokio::time::timeout(patience, self.exchange(cmd))
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }
}

impl Line for Direct {
    async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        match self.watch.clone() {
            None => self.in_time(cmd).await,
            Some(watch) => unless_moved(&watch, self.in_time(cmd)).await,
        }
    }

    fn link(&self) -> Option<Link> {
        None
    }
}

fn nonsense(what: &'static str) -> redis::RedisError {
    io::Error::new(io::ErrorKind::InvalidData, what).into()
}

/// A line of a reply: its first byte, the rest, and where the next one begins. `None`: it has not come whole.
fn line(bytes: &[u8], at: usize) -> Option<(u8, &[u8], usize)> {
    let rest = bytes.get(at..)?;
    let end = memchr::memchr(b'\r', rest)?;
    (rest.get(end + 1) == Some(&b'\n') && end > 0).then(|| (rest[0], &rest[1..end], at + end + 2))
}

fn number(digits: &[u8]) -> RedisResult<i64> {
    let text = std::str::from_utf8(digits).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| nonsense("a length or a number that is none"))
}

/// How far a reply goes; it remembers how far it has looked.
struct Extent {
    at: usize,
    /// Values that have not begun yet.
    values: usize,
}

impl Default for Extent {
    fn default() -> Extent {
        Extent { at: 0, values: 1 }
    }
}

impl Extent {
    fn is_whole(&mut self, bytes: &[u8]) -> RedisResult<bool> {
        while self.values > 0 {
            let Some((kind, rest, next)) = line(bytes, self.at) else {
                return Ok(false);
            };
            match kind {
                b'$' => {
                    let length = usize::try_from(number(rest)?).ok();
                    let next = length.map_or(Some(next), |length| next.checked_add(length)?.checked_add(2));
                    self.at = next.ok_or_else(|| nonsense("a length that cannot be"))?;
                }
                b'*' => {
                    self.at = next;
                    self.values = self.values.saturating_add(usize::try_from(number(rest)?).unwrap_or(0));
                }
                _ => self.at = next,
            }
            self.values -= 1;
        }
        Ok(self.at <= bytes.len())
    }

    /// So many bytes are known to come.
    fn missing(&self, bytes: &[u8]) -> usize {
        self.at.saturating_sub(bytes.len())
    }
}

/// The value that begins at `at`, of a reply that is whole.
fn value(bytes: &[u8], at: &mut usize, depth: usize) -> RedisResult<Value> {
    let start = *at;
    let (kind, rest, next) = line(bytes, start).ok_or_else(|| nonsense("no line"))?;
    *at = next;
    Ok(match kind {
        b'$' => match usize::try_from(number(rest)?) {
            Ok(length) => {
                let text = bytes
                    .get(next..next + length)
                    .ok_or_else(|| nonsense("a text cut short"))?;
                *at += length + 2;
                Value::BulkString(text.to_vec())
            }
            Err(_) => Value::Nil,
        },
        b'*' => match usize::try_from(number(rest)?) {
            Ok(count) if depth > 0 => {
                // Each takes a line of three bytes at least: nobody makes us reserve what he does not send.
                let mut items = Vec::with_capacity(count.min(bytes.len() / 3));
                for _ in 0..count {
                    items.push(value(bytes, at, depth - 1)?);
                }
                Value::Array(items)
            }
            Ok(_) => return Err(nonsense("arrays in arrays in arrays")),
            Err(_) => Value::Nil,
        },
        b':' => Value::Int(number(rest)?),
        // Seldom: words and errors, as the client library reads them.
        _ => redis::parse_redis_value(&bytes[start..next])?,
    })
}

/// A stream that is lent to the client library for its greeting, and taken back.
#[derive(Clone, Default)]
pub(crate) struct Lent(Arc<Mutex<Option<Stream>>>);

impl Lent {
    /// Lends this one, and forgets another one that was lent before.
    pub(crate) fn lend(&self, stream: Stream) -> Lent {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        self.clone()
    }

    pub(crate) fn take_back(&self) -> Option<Stream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn with<T>(&self, call: impl FnOnce(Pin<&mut Stream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(stream) => call(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncRead for Lent {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Lent {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    /// The lender may go on with it: it ends when it is dropped.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Option<Value> {
        let mut extent = Extent::default();
        if !extent.is_whole(bytes).unwrap() {
            return None;
        }
        assert_eq!(extent.at, bytes.len());
        Some(value(bytes, &mut 0, DEPTH).unwrap())
    }

    /// Each as the client library reads it, however it is cut.
    #[test]
    fn replies_are_read_as_the_library_reads_them() {
        let long = format!("*2\r\n$3000\r\n{}\r\n:-1\r\n", "\r\nx".repeat(1000));
        for reply in [
            "+OK\r\n",
            "+PONG\r\n",
            "-ERR no such thing\r\n",
            "-NOSCRIPT No matching script.\r\n",
            ":42\r\n",
            ":-7\r\n",
            "$0\r\n\r\n",
            "$5\r\na\r\nbc\r\n",
            "$-1\r\n",
            "*-1\r\n",
            "*0\r\n",
            "*3\r\n$2\r\nok\r\n*2\r\n$-1\r\n*0\r\n:9\r\n",
            "*2\r\n-WRONGTYPE a\r\n+OK\r\n",
            &long,
        ] {
            let bytes = reply.as_bytes();
            assert_eq!(read(bytes), Some(redis::parse_redis_value(bytes).unwrap()), "{reply:?}");
            let mut extent = Extent::default();
            for cut in 0..bytes.len() {
                assert!(!extent.is_whole(&bytes[..cut]).unwrap(), "{reply:?} of {cut} bytes");
            }
            assert!(extent.is_whole(bytes).unwrap());
        }
    }

    #[test]
    fn nonsense_is_an_error_of_the_connection() {
        for reply in [
            "$x\r\n",
            "*9223372036854775808\r\n",
            "$9223372036854775807\r\n",
            ":\r\n",
        ] {
            let err = Extent::default()
                .is_whole(reply.as_bytes())
                .and_then(|_| value(reply.as_bytes(), &mut 0, DEPTH).map(drop))
                .unwrap_err();
            assert!(err.is_io_error(), "{reply:?}: {err}");
        }
        let deep = "*1\r\n".repeat(DEPTH + 1) + "*0\r\n";
        assert!(value(deep.as_bytes(), &mut 0, DEPTH).is_err());
    }
}
