//! [`Codec`]: any body that is accepted, from and to JSON text.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use jiff::tz::TimeZone;
use umbel_protocol::json::Json;
use umbel_protocol::message::{
    self, Bodies, Body, Limits, Malformed, NewTask, Reason, Retry, TaskMessage, TaskParts, quoted,
};

use crate::{Compression, DEFAULT_MAX_INFLATED, Keyring, Serializer, Signer, compress, decompress, msgpack, yaml};

/// What a codec accepts, and by which keys.
#[derive(Debug)]
pub struct Options {
    /// What is read. Without `Json`, plain JSON is refused as well.
    pub accept: Vec<Serializer>,
    /// Bytes of a body after unpacking, as it came and as JSON text.
    pub max_inflated: usize,
    /// Whose signatures count; without one, nothing signed is accepted.
    pub keyring: Option<Keyring>,
    /// Who signs what we send.
    pub signer: Option<Signer>,
}

impl Default for Options {
    /// JSON, 8 MiB, no keys.
    fn default() -> Options {
        Options {
            accept: vec![Serializer::Json],
            max_inflated: DEFAULT_MAX_INFLATED,
            keyring: None,
            signer: None,
        }
    }
}

/// A task that cannot be written in a format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("task {task:?} cannot be written in {serializer}: {why}")]
pub struct EncodeError {
    /// The task's name.
    pub task: String,
    /// The format.
    pub serializer: Serializer,
    /// Why.
    pub why: String,
}

/// A message that nobody would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message has {bytes} bytes or more")]
pub struct TooLarge {
    /// Its length, or what it has at least.
    pub bytes: usize,
}

/// A message that cannot be written again is treated as one that cannot be read.
impl From<EncodeError> for Malformed {
    fn from(err: EncodeError) -> Malformed {
        Malformed {
            reason: Reason::Format {
                format: err.serializer.name(),
                why: err.why,
            },
            id: None,
            task: Some(err.task),
        }
    }
}

/// Reads and writes bodies. Cheap to clone.
#[derive(Clone)]
pub struct Codec(Arc<Options>);

impl Default for Codec {
    fn default() -> Codec {
        Codec::new(Options::default())
    }
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys say for themselves what of them may be shown.
        self.0.fmt(f)
    }
}

impl Codec {
    /// A codec by these options.
    pub fn new(options: Options) -> Codec {
        Codec(Arc::new(options))
    }

    /// What is read.
    pub fn accept(&self) -> &[Serializer] {
        &self.0.accept
    }

    /// Is there a key to sign with?
    pub fn signs(&self) -> bool {
        self.0.signer.is_some()
    }

    /// Reads one list element, as [`message::decode`]; a plain JSON message costs no more than there.
    ///
    /// # Errors
    /// [`Malformed`], with id and task name if they came before the fault.
    pub fn decode(&self, raw: &[u8], limits: &Limits, zone: &TimeZone) -> Result<TaskMessage, Malformed> {
        message::decode_with(raw, limits, zone, self)
    }

    /// What a message that [`Codec::decode`] refuses says of itself, as [`message::salvage`].
    pub fn salvage(&self, raw: &[u8], limits: &Limits) -> Option<TaskMessage> {
        message::salvage(raw, limits, self)
    }

    /// Writes a task as Celery's producer does.
    ///
    /// # Errors
    /// [`EncodeError`]: a value that the format does not have, or no key to sign with.
    pub fn encode(
        &self,
        task: &NewTask,
        serializer: Serializer,
        compression: Option<Compression>,
    ) -> Result<Vec<u8>, EncodeError> {
        let mut out = Vec::new();
        self.write(&task.parts(), &task.delivery_tag, serializer, compression, &mut out)?;
        Ok(out)
    }

    /// Appends a task as Celery's producer writes it, under this delivery tag. After an error nothing was appended.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    pub fn write(
        &self,
        task: &TaskParts<'_>,
        delivery_tag: &str,
        serializer: Serializer,
        compression: Option<Compression>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        if serializer == Serializer::Json && compression.is_none() {
            task.write(delivery_tag, out);
            return Ok(());
        }
        let bytes = self
            .seal(&task.body(), serializer, compression)
            .map_err(|why| EncodeError {
                task: task.task.to_owned(),
                serializer,
                why,
            })?;
        let body = Body {
            content_type: Cow::Borrowed(serializer.content_type()),
            content_encoding: Some(Cow::Borrowed(serializer.content_encoding())),
            compression: compression.map(|compression| Cow::Borrowed(compression.content_type())),
            bytes: Cow::Owned(bytes),
        };
        task.write_with(&body, delivery_tag, out);
        Ok(())
    }

    /// Writes a task that a worker sends on its own, in the serializer and the compression that it asks for by Celery's
    /// names; without them, or where they cannot say it, signed where there is a key, else as is accepted.
    ///
    /// # Errors
    /// [`TooLarge`]: the message would have more than `most` bytes. A plain one is not written to find that out.
    pub fn outgoing(
        &self,
        task: &NewTask,
        serializer: Option<&str>,
        compression: Option<&str>,
        most: usize,
    ) -> Result<Vec<u8>, TooLarge> {
        let compression = compression.and_then(Compression::named);
        let parts = task.parts();
        let least = parts.least_bytes();
        for serializer in [
            serializer.and_then(Serializer::named),
            Some(self.own()),
            Some(Serializer::Json), // Which says everything.
        ]
        .into_iter()
        .flatten()
        {
            // Signed, a body is larger yet; what the others make of it only they know.
            let is_plain = compression.is_none() && matches!(serializer, Serializer::Json | Serializer::Auth);
            if is_plain && least > most {
                return Err(TooLarge { bytes: least });
            }
            let mut raw = Vec::new();
            if self
                .write(&parts, &task.delivery_tag, serializer, compression, &mut raw)
                .is_ok()
            {
                return fits(raw, most);
            }
        }
        fits(task.encode(), most)
    }

    /// The serializer of what nobody asks for in another: signed where there is a key, else JSON where it is accepted
    /// (those who share the queue read what we read), else the first that is.
    fn own(&self) -> Serializer {
        let accept = &self.0.accept;
        if self.0.signer.is_some() {
            Serializer::Auth
        } else if accept.contains(&Serializer::Json) {
            Serializer::Json
        } else {
            let plain = accept.iter().find(|serializer| **serializer != Serializer::Auth);
            plain.copied().unwrap_or(Serializer::Json)
        }
    }

    /// Writes a task in the serializer and the compression of a message: what follows from one goes the same way.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    pub fn encode_like(&self, raw: &[u8], task: &NewTask) -> Result<Vec<u8>, EncodeError> {
        let old = message::body(raw).ok();
        let old = old.as_ref();
        let serializer = old.and_then(|old| Serializer::named(&old.content_type));
        let compression = old.and_then(|old| Compression::named(old.compression.as_deref()?));
        self.encode(task, serializer.unwrap_or(Serializer::Json), compression)
    }

    /// The message of the next try, as [`message::retry`], of any message that this codec reads. One of protocol 1,
    /// which becomes protocol 2, keeps its serializer and compression; `zone` reads its times that name none.
    ///
    /// # Errors
    /// [`Malformed`]: not to be read, or of protocol 1 and not to be written again.
    pub fn retry(&self, raw: &[u8], retry: &Retry, zone: &TimeZone) -> Result<Vec<u8>, Malformed> {
        if message::header(raw, "task").is_some() {
            return message::retry(raw, retry);
        }
        let limits = Limits {
            bytes: usize::MAX,
            ..Limits::default()
        };
        let message = self.decode(raw, &limits, zone)?;
        let task = message::next_try(&message, retry);
        Ok(self.encode_like(raw, &task)?)
    }

    fn seal(&self, body: &str, serializer: Serializer, compression: Option<Compression>) -> Result<Vec<u8>, String> {
        let json = || Json::parse(body).map_err(|err| err.to_string());
        let bytes = match serializer {
            Serializer::Json => body.as_bytes().to_vec(),
            Serializer::Msgpack => msgpack::write(&json()?)?,
            Serializer::Yaml => yaml::write(&json()?)?.into_bytes(),
            Serializer::Auth => {
                let signer = self.0.signer.as_ref().ok_or("there is no key to sign with")?;
                let inner = Serializer::Json;
                signer.seal(body.as_bytes(), inner.content_type(), inner.content_encoding())?
            }
        };
        Ok(match compression {
            Some(compression) => compress(compression, &bytes),
            None => bytes,
        })
    }

    fn read(&self, serializer: Serializer, bytes: Cow<'_, [u8]>) -> Result<String, Reason> {
        let limit = self.0.max_inflated;
        match serializer {
            Serializer::Json => text(bytes.into_owned()),
            Serializer::Msgpack => msgpack::read(&bytes, limit),
            Serializer::Yaml => yaml::read(&text(bytes.into_owned())?, limit),
            Serializer::Auth => {
                let keyring = self.0.keyring.as_ref();
                let keyring = keyring.ok_or_else(|| Reason::Signature("nobody's signature counts here".into()))?;
                let signed = keyring.open(&bytes)?;
                match Serializer::named(&signed.content_type) {
                    // A signature inside of a signature says nothing more; pickle has no name here.
                    None | Some(Serializer::Auth) => Err(Reason::ContentType(quoted(&signed.content_type))),
                    Some(Serializer::Msgpack) => self.read(Serializer::Msgpack, signed.payload.into()),
                    Some(inner) if is_utf8(&signed.content_encoding) => self.read(inner, signed.payload.into()),
                    Some(_) => Err(Reason::Encoding {
                        field: "content-encoding",
                        found: quoted(&signed.content_encoding),
                    }),
                }
            }
        }
    }
}

impl Bodies for Codec {
    fn accepts(&self, content_type: &str) -> bool {
        Serializer::named(content_type).is_some_and(|serializer| self.0.accept.contains(&serializer))
    }

    fn open(&self, body: Body<'_>) -> Result<String, Reason> {
        let Body {
            content_type,
            content_encoding: _,
            compression,
            bytes,
        } = body;
        let serializer = Serializer::named(&content_type).ok_or_else(|| Reason::ContentType(quoted(&content_type)))?;
        let bytes = match compression {
            None => bytes,
            Some(name) => {
                let compression = Compression::named(&name).ok_or_else(|| Reason::Compression(quoted(&name)))?;
                Cow::Owned(decompress(compression, &bytes, self.0.max_inflated)?)
            }
        };
        self.read(serializer, bytes)
    }
}

fn fits(raw: Vec<u8>, most: usize) -> Result<Vec<u8>, TooLarge> {
    if raw.len() > most {
        return Err(TooLarge { bytes: raw.len() });
    }
    Ok(raw)
}

fn is_utf8(encoding: &str) -> bool {
    ["utf-8", "utf8", "ascii", "us-ascii", "binary"]
        .iter()
        .any(|known| encoding.eq_ignore_ascii_case(known))
}

fn text(bytes: Vec<u8>) -> Result<String, Reason> {
    String::from_utf8(bytes).map_err(|err| Reason::Text {
        part: "body",
        at: err.utf8_error().valid_up_to(),
    })
}
