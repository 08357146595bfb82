//! Times as Celery writes and reads them: ISO 8601 text.

use jiff::Timestamp;
use jiff::fmt::temporal::Pieces;
use jiff::tz::TimeZone;

/// The instant that `text` means; `zone` reads one without an offset. `None` if it is no ISO 8601 time.
///
/// The last day of the year 9999 reaches beyond what [`Timestamp`] holds; it means "never" and becomes the last instant
/// there is.
pub(crate) fn parse(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    let pieces = Pieces::parse(text.trim()).ok()?;
    if pieces.time_zone_annotation().is_some() {
        return None;
    }
    let local = pieces.date().to_datetime(pieces.time().unwrap_or_default());
    let instant = match pieces.to_numeric_offset() {
        Some(offset) => offset.to_timestamp(local),
        // In the hour that a clock change skips or repeats, Python's default is the earlier offset, too.
        None => zone.to_ambiguous_timestamp(local).compatible(),
    };
    Some(instant.unwrap_or(if local.year() > 0 {
        Timestamp::MAX
    } else {
        Timestamp::MIN
    }))
}

/// Python's `isoformat` in UTC: `2026-11-20T11:48:32.082850+00:00`, without the fraction when that is zero.
pub fn iso(instant: Timestamp) -> String {
    let utc = TimeZone::UTC.to_datetime(instant);
    let (date, micros) = (utc.date(), utc.subsec_nanosecond() / 1_000);
    let whole = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        date.year(),
        date.month(),
        date.day(),
        utc.hour(),
        utc.minute(),
        utc.second()
    );
    if micros == 0 {
        format!("{whole}+00:00")
    } else {
        format!("{whole}.{micros:06}+00:00")
    }
}
