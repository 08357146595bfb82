//! What the single fields of a message mean: required, defaulted, clamped or refused.

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::reason::quoted;
use super::{Limits, MAX_PRIORITY, MAX_TIME_LIMIT, Reason, TimeLimit};
use crate::json::Json;
use crate::scan::Text;
use crate::time;

/// A value that is there and not `null`.
pub(super) fn present(value: Option<&str>) -> Option<&str> {
    value.filter(|value| *value != "null")
}

pub(super) fn text(value: Option<&str>) -> Option<Cow<'_, str>> {
    value.and_then(Text::of).map(Text::unescaped)
}

/// A foreign value for a reason, without the quotes of a text.
pub(super) fn named(value: &str) -> String {
    quoted(&text(Some(value)).unwrap_or(Cow::Borrowed(value)))
}

pub(super) fn is_name(text: &str, limits: &Limits) -> bool {
    !text.is_empty() && text.len() <= limits.id_bytes
}

const NAME: &str = "a text of acceptable length";

pub(super) fn required(value: Option<&str>, field: &'static str, limits: &Limits) -> Result<String, Reason> {
    let value = present(value).ok_or(Reason::Missing(field))?;
    match text(Some(value)) {
        Some(text) if is_name(&text, limits) => Ok(text.into_owned()),
        _ => Err(Reason::Field { field, expected: NAME }),
    }
}

pub(super) fn optional_name(
    value: Option<&str>,
    field: &'static str,
    limits: &Limits,
) -> Result<Option<String>, Reason> {
    match text(value) {
        Some(text) if text.len() > limits.id_bytes => Err(Reason::Field { field, expected: NAME }),
        other => Ok(other.map(Cow::into_owned)),
    }
}

pub(super) fn shaped(value: &str, first: char, field: &'static str, expected: &'static str) -> Result<Json, Reason> {
    if value.starts_with(first) {
        Ok(Json::trusted(value))
    } else {
        Err(Reason::Field { field, expected })
    }
}

pub(super) fn instant(value: Option<&str>, field: &'static str, zone: &TimeZone) -> Result<Option<Timestamp>, Reason> {
    let Some(value) = present(value) else { return Ok(None) };
    text(Some(value))
        .and_then(|text| time::parse(&text, zone))
        .map(Some)
        .ok_or(Reason::Field {
            field,
            expected: "an ISO 8601 time",
        })
}

/// A number as `int()` of Python takes it: a fraction is cut off, digits in quotes count.
pub(super) fn integer(value: Option<&str>) -> Option<f64> {
    let value = present(value)?;
    let number = match text(Some(value)) {
        Some(digits) => digits.trim().parse::<i64>().ok()? as f64,
        None => value.parse::<f64>().ok()?,
    };
    number.is_finite().then_some(number.trunc())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the type's range"
)]
pub(super) fn priority(value: Option<&str>) -> u8 {
    integer(value).unwrap_or(0.0).clamp(0.0, f64::from(MAX_PRIORITY)) as u8
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the type's range"
)]
pub(super) fn count(value: Option<&str>) -> u32 {
    integer(value).unwrap_or(0.0).clamp(0.0, f64::from(u32::MAX)) as u32
}

/// `[hard, soft]`. What is not above zero is no limit, as in Celery; what is not finite neither.
pub(super) fn time_limit(value: Option<&str>) -> Result<TimeLimit, Reason> {
    let wrong = Reason::Field {
        field: "headers.timelimit",
        expected: "[hard, soft] in seconds",
    };
    let Some(value) = present(value) else {
        return Ok(TimeLimit::default());
    };
    if value == "[null, null]" {
        return Ok(TimeLimit::default());
    }
    let elements = Json::trusted(value).elements().ok_or_else(|| wrong.clone())?;
    let mut limits = [None; 2];
    for (limit, element) in limits.iter_mut().zip(&elements) {
        *limit = match element.as_str() {
            "null" | "NaN" | "Infinity" | "-Infinity" => None,
            number => {
                let seconds: f64 = number.parse().map_err(|_| wrong.clone())?;
                (seconds > 0.0 && seconds.is_finite()).then(|| seconds.min(MAX_TIME_LIMIT))
            }
        };
    }
    let [hard, soft] = limits;
    Ok(TimeLimit { hard, soft })
}
