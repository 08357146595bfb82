//! Arguments whose values are those of Secrets: resolved here, right before a run, and nowhere written down.
//!
//! A message names them in its header `umbel_args_from`; which Secrets may be named says the pool, never the message. Their
//! values are files that follow the Secrets, so each try reads what is true then. Retries, dead letters, results, events
//! and `inspect` have the arguments as they came.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::Deserialize;
use umbel_protocol::json::Json;
use umbel_protocol::message::TaskMessage;

use crate::arguments::Arguments;
use crate::failure::Failure;

/// The header.
const HEADER: &str = "umbel_args_from";
/// Arguments of one message, and bytes of a value: more is a mistake.
const MOST: usize = 50;
const MOST_BYTES: u64 = 1 << 20;

/// What messages may name.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    names: HashSet<String>,
    folder: PathBuf,
}

/// One argument, as the header names it.
#[derive(Debug, Deserialize)]
struct ArgFrom {
    arg: String,
    secret: String,
    key: String,
}

/// Has the message such arguments?
pub(crate) fn is_needed(message: &TaskMessage) -> bool {
    message.own_header(HEADER).is_some()
}

impl Secrets {
    pub(crate) fn new(names: impl IntoIterator<Item = String>, folder: PathBuf) -> Secrets {
        let names = names.into_iter().collect();
        Secrets { names, folder }
    }

    /// The arguments of a call, with the values of Secrets in their places.
    ///
    /// # Errors
    /// A failure that is not retried where the pool does not allow it, and one that is where the value is not there (yet).
    pub(crate) async fn arguments(&self, message: &TaskMessage) -> Result<Arguments, Failure> {
        let mut arguments = Arguments::of(message);
        let Some(header) = message.own_header(HEADER) else {
            return Ok(arguments);
        };
        let wanted: Vec<ArgFrom> = header
            .to()
            .map_err(|_| refused(format!("the header {HEADER} is no list of arguments")))?;
        if wanted.len() > MOST {
            return Err(refused(format!("the header {HEADER} names more than {MOST} arguments")));
        }
        let mut entries = arguments.kwargs.entries();
        for one in wanted {
            let value = Json::string(&self.value(&one.secret, &one.key).await?);
            entries.retain(|(name, _)| *name != one.arg);
            entries.push((one.arg, value));
        }
        arguments.kwargs = Json::object(entries.iter().map(|(name, value)| (name.as_str(), value)));
        Ok(arguments)
    }

    async fn value(&self, secret: &str, key: &str) -> Result<String, Failure> {
        if !self.names.contains(secret) {
            return Err(refused(format!(
                "this pool does not let tasks have values of Secret {secret:?}"
            )));
        }
        // As the API server has them; a folder's own names are none.
        let is_key = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if key.is_empty() || key.starts_with("..") || key == "." || !key.chars().all(is_key) {
            return Err(refused(format!("{key:?} is no key of a Secret")));
        }
        let path = self.folder.join(secret).join(key);
        let absent = |why: String| Failure::transient(format!("key {key:?} of Secret {secret:?}: {why}"));
        let size = tokio::fs::metadata(&path)
            .await
            .map_err(|err| absent(err.kind().to_string()))?
            .len();
        if size > MOST_BYTES {
            return Err(refused(format!(
                "key {key:?} of Secret {secret:?} is too large for an argument"
            )));
        }
        let bytes = tokio::fs::read(&path)
            .await
            .map_err(|err| absent(err.kind().to_string()))?;
        String::from_utf8(bytes).map_err(|_| refused(format!("key {key:?} of Secret {secret:?} is no text")))
    }
}

fn refused(why: String) -> Failure {
    Failure::permanent("ArgumentRefused", why)
}
