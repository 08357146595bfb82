//! MessagePack as kombu writes it: text as `str`, bytes as `bin`, no extensions.

use rmp::Marker;
use rmp::decode::{self, RmpRead};
use rmp::encode;
use umbel_protocol::json::{Json, MAX_DEPTH};
use umbel_protocol::message::Reason;

use crate::json::{Value, Writer, take};

#[allow(clippy::needless_pass_by_value)] // As `map_err` gives it.
fn broken(why: impl ToString) -> Reason {
    Reason::Format {
        format: "msgpack",
        why: why.to_string(),
    }
}

/// The JSON text of one value; at most `limit` bytes.
///
/// # Errors
/// [`Reason`]: broken off, followed by something else, nested too deep, a map key that is no text, text that is no
/// UTF-8, an extension type.
pub(crate) fn read(bytes: &[u8], limit: usize) -> Result<String, Reason> {
    let mut out = Writer::new(limit);
    let mut input = bytes;
    value(&mut input, &mut out, 0)?;
    if !input.is_empty() {
        return Err(broken(format!("{} bytes follow the value", input.len())));
    }
    Ok(out.finish())
}

fn cut<E>(_: E) -> Reason {
    broken("broken off")
}

fn value(input: &mut &[u8], out: &mut Writer, depth: u32) -> Result<(), Reason> {
    if depth > MAX_DEPTH {
        return Err(broken(format!("nested deeper than {MAX_DEPTH} levels")));
    }
    let marker = decode::read_marker(input).map_err(cut)?;
    match marker {
        Marker::Null => out.raw("null"),
        Marker::True => out.raw("true"),
        Marker::False => out.raw("false"),
        Marker::FixPos(number) => out.raw(&number.to_string()),
        Marker::FixNeg(number) => out.raw(&number.to_string()),
        Marker::U8 => out.raw(&input.read_data_u8().map_err(cut)?.to_string()),
        Marker::U16 => out.raw(&input.read_data_u16().map_err(cut)?.to_string()),
        Marker::U32 => out.raw(&input.read_data_u32().map_err(cut)?.to_string()),
        Marker::U64 => out.raw(&input.read_data_u64().map_err(cut)?.to_string()),
        Marker::I8 => out.raw(&input.read_data_i8().map_err(cut)?.to_string()),
        Marker::I16 => out.raw(&input.read_data_i16().map_err(cut)?.to_string()),
        Marker::I32 => out.raw(&input.read_data_i32().map_err(cut)?.to_string()),
        Marker::I64 => out.raw(&input.read_data_i64().map_err(cut)?.to_string()),
        Marker::F32 => out.float(f64::from(input.read_data_f32().map_err(cut)?)),
        Marker::F64 => out.float(input.read_data_f64().map_err(cut)?),
        Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
            let text = text(marker, input)?;
            out.string(text)
        }
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
            let length = length(marker, input)?;
            let bytes = slice(input, length)?;
            out.bytes(bytes)
        }
        Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
            let length = length(marker, input)?;
            out.raw("[")?;
            for index in 0..length {
                if index > 0 {
                    out.raw(", ")?;
                }
                value(input, out, depth + 1)?;
            }
            out.raw("]")
        }
        Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
            let length = length(marker, input)?;
            out.raw("{")?;
            for index in 0..length {
                if index > 0 {
                    out.raw(", ")?;
                }
                let key = decode::read_marker(input).map_err(cut)?;
                if !matches!(key, Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32) {
                    return Err(broken("a map has a key that is no text"));
                }
                out.string(text(key, input)?)?;
                out.raw(": ")?;
                value(input, out, depth + 1)?;
            }
            out.raw("}")
        }
        Marker::FixExt1
        | Marker::FixExt2
        | Marker::FixExt4
        | Marker::FixExt8
        | Marker::FixExt16
        | Marker::Ext8
        | Marker::Ext16
        | Marker::Ext32 => {
            match marker {
                Marker::Ext8 => drop(input.read_data_u8().map_err(cut)?),
                Marker::Ext16 => drop(input.read_data_u16().map_err(cut)?),
                Marker::Ext32 => drop(input.read_data_u32().map_err(cut)?),
                _ => {}
            }
            // -1 is a timestamp, which Celery's own workers cannot pass on as JSON either.
            let kind = input.read_data_i8().map_err(cut)?;
            Err(broken(format!("extension type {kind} has no counterpart in JSON")))
        }
        Marker::Reserved => Err(broken("the byte 0xc1 begins nothing")),
    }
}

/// The length that follows or is part of a marker.
fn length(marker: Marker, input: &mut &[u8]) -> Result<usize, Reason> {
    Ok(match marker {
        Marker::FixStr(length) | Marker::FixArray(length) | Marker::FixMap(length) => usize::from(length),
        Marker::Str8 | Marker::Bin8 => usize::from(input.read_data_u8().map_err(cut)?),
        Marker::Str16 | Marker::Bin16 | Marker::Array16 | Marker::Map16 => {
            usize::from(input.read_data_u16().map_err(cut)?)
        }
        _ => usize::try_from(input.read_data_u32().map_err(cut)?).map_err(cut)?,
    })
}

fn slice<'a>(input: &mut &'a [u8], length: usize) -> Result<&'a [u8], Reason> {
    let (bytes, rest) = input.split_at_checked(length).ok_or_else(|| broken("broken off"))?;
    *input = rest;
    Ok(bytes)
}

fn text<'a>(marker: Marker, input: &mut &'a [u8]) -> Result<&'a str, Reason> {
    let length = length(marker, input)?;
    std::str::from_utf8(slice(input, length)?).map_err(|_| broken("a text is not UTF-8"))
}

/// The value as MessagePack.
///
/// # Errors
/// What MessagePack cannot say, as with Celery: integers beyond 64 bits, times, decimals.
pub(crate) fn write(json: &Json) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(json.as_str().len());
    put(&mut out, json)?;
    Ok(out)
}

fn put(out: &mut Vec<u8>, json: &Json) -> Result<(), String> {
    let long = |_| "a value is longer than msgpack can say".to_owned();
    match take(json)? {
        Value::Null => encode::write_nil(out).map_err(written)?,
        Value::Bool(value) => encode::write_bool(out, value).map_err(written)?,
        Value::Integer(digits) => match (digits.parse::<u64>(), digits.parse::<i64>()) {
            (Ok(number), _) => drop(encode::write_uint(out, number).map_err(written)?),
            (_, Ok(number)) => drop(encode::write_sint(out, number).map_err(written)?),
            _ => return Err("an integer is beyond 64 bits".into()),
        },
        Value::Float(value) => encode::write_f64(out, value).map_err(written)?,
        Value::Text(text) => encode::write_str(out, &text).map_err(written)?,
        Value::Bytes(bytes) => encode::write_bin(out, &bytes).map_err(written)?,
        Value::Array(elements) => {
            encode::write_array_len(out, u32::try_from(elements.len()).map_err(long)?).map_err(written)?;
            for element in &elements {
                put(out, element)?;
            }
        }
        Value::Object(entries) => {
            encode::write_map_len(out, u32::try_from(entries.len()).map_err(long)?).map_err(written)?;
            for (key, value) in &entries {
                encode::write_str(out, key).map_err(written)?;
                put(out, value)?;
            }
        }
        Value::Special(kind, _) => return Err(format!("a value of type {kind} is nothing that msgpack has")),
    }
    Ok(())
}

/// A `Vec` takes everything.
fn written<E>(_: E) -> String {
    "out of memory".into()
}
