//! Protocol 1: no headers; one object in the body says everything.

use std::borrow::Cow;

use super::Reason;
use super::decode::{Call, Headers};
use crate::scan::{Bounds, Scanner};

/// Splits such a body. The fields have the names of the headers of protocol 2; what was an embed of its own then is
/// put together here, so that the rest of the program knows one shape.
pub(super) fn split(body: &str, bounds: Bounds) -> Result<(Headers<'_>, Call<'_>), Reason> {
    let broken = |source| Reason::Json { part: "body", source };
    let mut headers = Headers::default();
    let (mut args, mut kwargs) = ("[]", "{}");
    let mut embed = [
        ("callbacks", "null"),
        ("errbacks", "null"),
        ("chain", "null"),
        ("chord", "null"),
    ];
    let mut scanner = Scanner::new(body, bounds);
    scanner
        .object(|inner, key| {
            let value = inner.value()?;
            match &*key.unescaped() {
                "args" => args = value,
                "kwargs" => kwargs = value,
                name @ ("callbacks" | "errbacks" | "chord") => {
                    for (_, place) in embed.iter_mut().filter(|(known, _)| *known == name) {
                        *place = value;
                    }
                }
                // Its name before `group`.
                "taskset" if value != "null" => headers.take("group", value),
                name => headers.take(name, value),
            }
            Ok(())
        })
        .map_err(broken)?;
    scanner.end().map_err(broken)?;
    if headers.task.is_none() {
        return Err(Reason::Missing("headers.task"));
    }
    let embed = embed.map(|(name, value)| format!("\"{name}\": {value}")).join(", ");
    let call = Call {
        args: Cow::Borrowed(args),
        kwargs: Cow::Borrowed(kwargs),
        embed: Some(Cow::Owned(format!("{{{embed}}}"))),
    };
    Ok((headers, call))
}
