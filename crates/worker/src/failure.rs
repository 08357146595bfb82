//! A failure of a task, as Celery's client raises it again.

use serde::Serialize;
use umbel_protocol::json::Json;
use umbel_protocol::result;

use crate::lease::Lost;

/// A failure as Celery's client raises it again: an exception type by module and name, with its arguments.
///
/// ```
/// use umbel_worker::Failure;
///
/// let failure = Failure::raise("shop.errors", "OutOfStock", &("sku-7", 3));
/// assert_eq!(failure.to_string(), "OutOfStock: ('sku-7', 3)");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Exception class, e.g. `ValueError`. Clients that do not know it make one up.
    pub exc_type: String,
    /// Its Python module, e.g. `builtins`.
    pub exc_module: String,
    /// Message; the exception's only constructor argument, unless [`Failure::args`] says otherwise.
    pub message: String,
    /// All constructor arguments, where they are not just the message.
    pub args: Option<Vec<Json>>,
    /// May the worker's retry policy run the task again?
    pub is_retryable: bool,
    /// Traceback text of what led here, for the result document; see [`Failure::caused_by`].
    pub cause: Option<Box<str>>,
}

impl Failure {
    /// A failure that the retry policy of the queue may repeat.
    pub fn transient(message: impl Into<String>) -> Failure {
        Failure {
            is_retryable: true,
            ..Failure::permanent("RuntimeError", message)
        }
    }

    /// A failure that repeating cannot mend.
    pub fn permanent(exc_type: &str, message: impl Into<String>) -> Failure {
        Failure {
            exc_type: exc_type.into(),
            exc_module: "builtins".into(),
            message: message.into(),
            args: None,
            is_retryable: false,
            cause: None,
        }
    }

    /// Arguments of the wrong shape.
    pub fn type_error(message: impl Into<String>) -> Failure {
        Failure::permanent("TypeError", message)
    }

    /// An exception of your own: its module, its class, and its constructor's arguments as a tuple (`&("a", 1)`,
    /// `&("a",)`, `&()`). Python programs that have the class raise exactly that.
    pub fn raise<A: Serialize + ?Sized>(module: &str, class: &str, args: &A) -> Failure {
        let args = Json::of(args);
        let args = match args.elements() {
            Some(args) => args,
            None if args.is_null() => Vec::new(),
            None => vec![args],
        };
        Failure {
            exc_module: module.into(),
            ..Failure::permanent(class, shown(&args))
        }
        .with_args(args)
    }

    /// What `Reject` says of itself, if this is one.
    pub(crate) fn is_rejection(&self) -> Option<String> {
        let is_one = self.exc_module == "celery.exceptions" && self.exc_type == "Reject";
        let reason = self.args.as_ref().and_then(|args| args.first());
        is_one.then(|| {
            let reason = reason.map_or_else(
                || "None".to_owned(),
                |reason| reason.text().unwrap_or_else(|| reason.repr()),
            );
            format!("reject requeue=False: {reason}")
        })
    }

    fn with_args(mut self, args: Vec<Json>) -> Failure {
        self.args = Some(args);
        self
    }

    /// The same failure, which the retry policy may repeat.
    #[must_use]
    pub fn retryable(self) -> Failure {
        Failure {
            is_retryable: true,
            ..self
        }
    }

    /// The same failure with what led to it, an error and its sources: shown in the traceback.
    #[must_use]
    pub fn caused_by(self, cause: &(dyn std::error::Error + 'static)) -> Failure {
        let lines: Vec<String> = std::iter::successors(Some(cause), |err| err.source())
            .map(ToString::to_string)
            .collect();
        Failure {
            cause: Some(lines.join("\ncaused by: ").into()),
            ..self
        }
    }

    /// As the result document has it.
    pub(crate) fn document(&self) -> result::Failure {
        result::Failure {
            exc_type: self.exc_type.clone(),
            exc_module: self.exc_module.clone(),
            message: self.args.clone().unwrap_or_else(|| vec![Json::string(&self.message)]),
        }
    }

    /// Traceback text in Python's form, so that clients that parse it can: one frame, the task.
    pub(crate) fn traceback(&self, task: &str) -> String {
        let name = if self.exc_module.is_empty() || self.exc_module == "builtins" {
            self.exc_type.clone()
        } else {
            format!("{}.{}", self.exc_module, self.exc_type)
        };
        let text = match &self.args {
            Some(args) => shown(args),
            None => self.message.clone(),
        };
        let last = if text.is_empty() {
            name
        } else {
            format!("{name}: {text}")
        };
        let frame = format!("Traceback (most recent call last):\n  File \"{task}\", line 1, in {task}\n{last}\n");
        match &self.cause {
            None => frame,
            Some(cause) => {
                format!("{cause}\n\nThe above exception was the direct cause of the following exception:\n\n{frame}")
            }
        }
    }
}

/// `str(exception)` of these arguments.
fn shown(args: &[Json]) -> String {
    match args {
        [] => String::new(),
        [one] => one.text().unwrap_or_else(|| one.repr()),
        several => {
            let several: Vec<String> = several.iter().map(Json::repr).collect();
            format!("({})", several.join(", "))
        }
    }
}

impl From<&result::Failure> for Failure {
    fn from(read: &result::Failure) -> Failure {
        Failure {
            exc_module: read.exc_module.clone(),
            ..Failure::permanent(&read.exc_type, shown(&read.message))
        }
        .with_args(read.message.clone())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.message.is_empty() {
            return f.write_str(&self.exc_type);
        }
        write!(f, "{}: {}", self.exc_type, self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Failure {
        Failure {
            exc_module: "billiard.exceptions".into(),
            ..Failure::permanent("WorkerLostError", lost.to_string())
        }
        .retryable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_have_all_their_arguments() {
        let failure = Failure::raise("proj", "MyErr", &("a", serde_json::json!({"b": 5})));
        assert_eq!(
            failure.document().to_json().as_str(),
            r#"{"exc_type": "MyErr", "exc_message": ["a", {"b": 5}], "exc_module": "proj"}"#
        );
        assert_eq!(
            failure.traceback("proj.failmy"),
            "Traceback (most recent call last):\n  File \"proj.failmy\", line 1, in proj.failmy\nproj.MyErr: ('a', {'b': 5})\n"
        );
        assert_eq!(Failure::raise("m", "E", &()).document().message, []);
        assert_eq!(Failure::raise("m", "E", &()).to_string(), "E");
    }

    #[test]
    fn a_cause_stands_before_its_consequence() {
        let cause = std::io::Error::other("disk full");
        let text = Failure::permanent("OSError", "not written")
            .caused_by(&cause)
            .traceback("t");
        assert!(
            text.starts_with("disk full\n\nThe above exception was the direct cause"),
            "{text}"
        );
        assert!(text.ends_with("OSError: not written\n"), "{text}");
    }
}
