//! What an unquoted scalar means. YAML 1.1, by PyYAML's own patterns: `on` is true, `012` is ten, `1e5` is text.

/// A plain scalar's meaning.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Plain {
    Null,
    Bool(bool),
    /// Decimal digits, perhaps with a minus.
    Integer(String),
    Float(f64),
    /// ISO 8601.
    Date(String),
    /// ISO 8601, as Python's `isoformat` writes it.
    DateTime(String),
    /// `<<`: another map's entries belong here.
    Merge,
    Text,
}

/// The meaning of a plain scalar; `None` if it is a number that nobody can hold, or a time that does not exist.
pub(super) fn meaning(text: &str) -> Option<Plain> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Plain::Null),
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Some(Plain::Bool(true)),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => return Some(Plain::Bool(false)),
        "<<" => return Some(Plain::Merge),
        ".nan" | ".NaN" | ".NAN" => return Some(Plain::Float(f64::NAN)),
        _ => {}
    }
    let (sign, digits) = match text.as_bytes()[0] {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    if matches!(digits, ".inf" | ".Inf" | ".INF") {
        let infinite = if sign.is_empty() {
            f64::INFINITY
        } else {
            f64::NEG_INFINITY
        };
        return Some(Plain::Float(infinite));
    }
    if !digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return Some(Plain::Text);
    }
    if let Some(time) = time(text) {
        return time;
    }
    integer(sign, digits)
        .or_else(|| float(sign, digits, text))
        .unwrap_or(Some(Plain::Text))
}

fn all(text: &str, accepted: impl Fn(u8) -> bool) -> bool {
    !text.is_empty() && text.bytes().all(accepted)
}

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b'_'
}

/// Outer `None`: no integer.
fn integer(sign: &str, digits: &str) -> Option<Option<Plain>> {
    let radix = |digits: &str, radix| {
        let digits = digits.replace('_', "");
        let number = u128::from_str_radix(&digits, radix).ok();
        Some(number.map(|number| whole(sign, &number.to_string())))
    };
    if let Some(bits) = digits.strip_prefix("0b")
        && all(bits, |byte| matches!(byte, b'0' | b'1' | b'_'))
    {
        return radix(bits, 2);
    }
    if let Some(hex) = digits.strip_prefix("0x")
        && all(hex, |byte| byte.is_ascii_hexdigit() || byte == b'_')
    {
        return radix(hex, 16);
    }
    if digits == "0" {
        return Some(Some(Plain::Integer("0".into())));
    }
    if let Some(octal) = digits.strip_prefix('0')
        && all(octal, |byte| matches!(byte, b'0'..=b'7' | b'_'))
    {
        return radix(octal, 8);
    }
    if !digits.starts_with(|first: char| ('1'..='9').contains(&first)) {
        return None;
    }
    if all(digits, is_digit) {
        return Some(Some(whole(sign, &digits.replace('_', ""))));
    }
    // Base 60, as 1.1 has it for times of day: 12:30:45.
    let mut parts = digits.split(':');
    let first = parts.next().filter(|part| all(part, is_digit))?;
    let rest: Vec<&str> = parts.collect();
    if rest.is_empty() || !rest.iter().all(|part| is_sixtieth(part)) {
        return None;
    }
    let sum = rest
        .iter()
        .try_fold(first.replace('_', "").parse::<u128>().ok(), |sum, part| {
            let part: u128 = part.parse().ok()?;
            Some(sum.and_then(|sum| sum.checked_mul(60)?.checked_add(part)))
        })
        .flatten();
    Some(sum.map(|sum| whole(sign, &sum.to_string())))
}

/// `[0-5]?[0-9]`
fn is_sixtieth(part: &str) -> bool {
    match part.as_bytes() {
        [low] => low.is_ascii_digit(),
        [high, low] => matches!(high, b'0'..=b'5') && low.is_ascii_digit(),
        _ => false,
    }
}

fn whole(sign: &str, digits: &str) -> Plain {
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        Plain::Integer("0".into())
    } else {
        Plain::Integer(format!("{sign}{digits}"))
    }
}

/// Outer `None`: no float.
fn float(sign: &str, digits: &str, text: &str) -> Option<Option<Plain>> {
    let (before, after) = digits.split_once('.')?;
    let (fraction, exponent) = match after.find(['e', 'E']) {
        None => (after, ""),
        Some(at) => (&after[..at], &after[at + 1..]),
    };
    let has_exponent = fraction.len() < after.len();
    let is_exponent = exponent
        .strip_prefix(['+', '-'])
        .is_some_and(|digits| all(digits, |byte| byte.is_ascii_digit()));
    if (has_exponent && !is_exponent) || !fraction.bytes().all(is_digit) {
        return None;
    }
    let is_plain = all(before, is_digit) && !before.starts_with('_');
    let is_short = before.is_empty()
        && !text.starts_with(['+', '-'])
        && fraction.starts_with(|first: char| first.is_ascii_digit());
    if is_plain || is_short {
        let number: f64 = format!("{sign}{digits}").replace('_', "").parse().ok()?;
        return Some(Some(Plain::Float(number)));
    }
    if has_exponent {
        return None;
    }
    // Base 60 with a fraction.
    let mut parts = before.split(':');
    let first = parts.next().filter(|part| all(part, is_digit))?;
    let rest: Vec<&str> = parts.collect();
    if rest.is_empty() || !rest.iter().all(|part| is_sixtieth(part)) {
        return None;
    }
    let mut sum: f64 = first.replace('_', "").parse().ok()?;
    for part in rest {
        sum = sum * 60.0 + part.parse::<f64>().ok()?;
    }
    sum += format!("0.{}", fraction.replace('_', "")).parse::<f64>().unwrap_or(0.0);
    Some(Some(Plain::Float(if sign == "-" { -sum } else { sum })))
}

/// Outer `None`: no time. Inner `None`: one that no calendar has.
fn time(text: &str) -> Option<Option<Plain>> {
    let bytes = text.as_bytes();
    let number = |range: std::ops::Range<usize>| -> Option<i16> {
        let digits = text.get(range)?;
        all(digits, |byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let year = number(0..4)?;
    if bytes.get(4) != Some(&b'-') {
        return None;
    }
    let mut rest = text.get(5..)?;
    let month = short(&mut rest)?;
    let mut rest = rest.strip_prefix('-')?;
    let day = short(&mut rest)?;
    let date = jiff::civil::Date::new(year, month, day).ok();
    if rest.is_empty() {
        // A date alone has all its digits; `2024-5-6` is text.
        return (text.len() == 10).then(|| date.map(|date| Plain::Date(date.to_string())));
    }
    let trimmed = rest.trim_start_matches([' ', '\t']);
    let mut rest = if trimmed.len() < rest.len() {
        trimmed
    } else {
        rest.strip_prefix(['T', 't'])?
    };
    let hour = short(&mut rest)?;
    let minute = pair(&mut rest)?;
    let second = pair(&mut rest)?;
    let mut micros = String::new();
    if let Some(fraction) = rest.strip_prefix('.') {
        let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
        micros = format!("{:0<6}", fraction[..length].chars().take(6).collect::<String>());
        rest = &fraction[length..];
    }
    let zone = zone(rest.trim_start_matches([' ', '\t']))?;
    let time = jiff::civil::Time::new(hour, minute, second, 0).ok();
    let (Some(date), Some(_)) = (date, time) else {
        return Some(None);
    };
    let micros = if micros.trim_start_matches('0').is_empty() {
        String::new()
    } else {
        format!(".{micros}")
    };
    Some(Some(Plain::DateTime(format!(
        "{date}T{hour:02}:{minute:02}:{second:02}{micros}{zone}"
    ))))
}

/// One or two digits.
fn short(rest: &mut &str) -> Option<i8> {
    let length = rest.bytes().take(2).take_while(u8::is_ascii_digit).count();
    let (digits, after) = rest.split_at(length);
    *rest = after;
    digits.parse().ok()
}

/// A colon and two digits.
fn pair(rest: &mut &str) -> Option<i8> {
    let digits = rest.strip_prefix(':')?;
    let (digits, after) = digits.split_at_checked(2)?;
    *rest = after;
    all(digits, |byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The offset, as Python writes it; empty if there is none.
fn zone(text: &str) -> Option<String> {
    match text {
        "" => return Some(String::new()),
        "Z" => return Some("+00:00".into()),
        _ => {}
    }
    let sign = text.chars().next().filter(|sign| matches!(sign, '+' | '-'))?;
    let mut rest = &text[1..];
    let hours = short(&mut rest)?;
    let minutes = if rest.is_empty() { 0 } else { pair(&mut rest)? };
    (rest.is_empty() && hours < 24 && minutes < 60).then(|| format!("{sign}{hours:02}:{minutes:02}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_words_mean_what_they_mean_to_pyyaml() {
        let integer = |digits: &str| Some(Plain::Integer(digits.into()));
        let moment = |text: &str| Some(Plain::DateTime(text.into()));
        let cases = [
            ("", Some(Plain::Null)),
            ("~", Some(Plain::Null)),
            ("nil", Some(Plain::Text)),
            ("on", Some(Plain::Bool(true))),
            ("No", Some(Plain::Bool(false))),
            ("y", Some(Plain::Text)),
            ("0", integer("0")),
            ("-0", integer("0")),
            ("+7", integer("7")),
            ("012", integer("10")),
            ("08", Some(Plain::Text)),
            ("0x1F", integer("31")),
            ("-0b101", integer("-5")),
            ("1_000", integer("1000")),
            ("12:30:45", integer("45045")),
            ("12:60", Some(Plain::Text)),
            (
                "1606938044258990275541962092341162602522202993782792835301376",
                integer("1606938044258990275541962092341162602522202993782792835301376"),
            ),
            ("1.5", Some(Plain::Float(1.5))),
            ("1.", Some(Plain::Float(1.0))),
            (".5", Some(Plain::Float(0.5))),
            ("-.5", Some(Plain::Text)),
            ("1.0e-07", Some(Plain::Float(1e-7))),
            ("1e5", Some(Plain::Text)),
            ("1.0e5", Some(Plain::Text)),
            ("1:30.5", Some(Plain::Float(90.5))),
            ("-.inf", Some(Plain::Float(f64::NEG_INFINITY))),
            ("2024-05-06", Some(Plain::Date("2024-05-06".into()))),
            ("2024-5-6", Some(Plain::Text)),
            ("2024-13-06", None),
            ("2024-05-06 07:08:09", moment("2024-05-06T07:08:09")),
            (
                "2024-05-06 07:08:09.000010+00:00",
                moment("2024-05-06T07:08:09.000010+00:00"),
            ),
            ("2024-5-6T7:08:09.5 -3", moment("2024-05-06T07:08:09.500000-03:00")),
            ("2024-05-06t07:08:09Z", moment("2024-05-06T07:08:09+00:00")),
            ("<<", Some(Plain::Merge)),
            ("-", Some(Plain::Text)),
            ("1.2.3", Some(Plain::Text)),
        ];
        for (text, expected) in cases {
            assert_eq!(meaning(text), expected, "{text:?}");
        }
        assert!(matches!(meaning(".NaN"), Some(Plain::Float(nan)) if nan.is_nan()));
    }
}
