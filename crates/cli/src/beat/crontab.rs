//! Celery's crontab fields, in the words of a PeriodicTask.
//!
//! Celery wants all fields to hold, day of month and day of week too; its steps begin at the field's lowest value, and its
//! ranges go round the end.

use std::collections::BTreeSet;

/// The five fields of a crontab as Celery has them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Crontab {
    pub(crate) minute: String,
    pub(crate) hour: String,
    pub(crate) day_of_month: String,
    pub(crate) month_of_year: String,
    pub(crate) day_of_week: String,
}

const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];

impl Crontab {
    /// The same times in five fields of `spec.schedule.cron`.
    ///
    /// # Errors
    /// The field that Celery would not read either.
    pub(crate) fn cron(&self) -> Result<String, String> {
        let minute = field("minute", &self.minute, 0, 59, &[])?;
        let hour = field("hour", &self.hour, 0, 23, &[])?;
        let day = field("day_of_month", &self.day_of_month, 1, 31, &[])?;
        let month = field("month_of_year", &self.month_of_year, 1, 12, &MONTHS)?;
        let weekday = field("day_of_week", &self.day_of_week, 0, 6, &DAYS)?;
        // Both must hold.
        let and = if day != "*" && weekday != "*" { "+" } else { "" };
        Ok(format!("{minute} {hour} {day} {month} {and}{weekday}"))
    }
}

/// A field as a list of its values, or as a star.
fn field(name: &str, text: &str, least: u32, most: u32, names: &[&str]) -> Result<String, String> {
    let refused = |part: &str| format!("{name} {text:?}: {part:?} cannot be read");
    let mut values = BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (
                range,
                step.parse::<u32>()
                    .ok()
                    .filter(|step| *step > 0)
                    .ok_or_else(|| refused(part))?,
            ),
            None => (part, 1),
        };
        let value = |text: &str| -> Result<u32, String> {
            let by_name = |lower: &str| {
                let at = names
                    .iter()
                    .position(|name| lower.len() >= 3 && lower.starts_with(name))?;
                u32::try_from(at).ok().map(|at| at + least)
            };
            let lower = text.to_ascii_lowercase();
            let found = text.parse::<u32>().ok().or_else(|| by_name(&lower));
            // Sunday has two numbers.
            let found = found.map(|found| {
                if least == 0 && most == 6 && found == 7 {
                    0
                } else {
                    found
                }
            });
            found
                .filter(|found| (least..=most).contains(found))
                .ok_or_else(|| refused(part))
        };
        let all: Vec<u32> = match range.split_once('-') {
            _ if range == "*" => (least..=most).collect(),
            Some((from, to)) => {
                let (from, to) = (value(from)?, value(to)?);
                if from <= to {
                    (from..=to).collect()
                } else {
                    (from..=most).chain(least..=to).collect()
                }
            }
            None => vec![value(range)?],
        };
        values.extend(all.into_iter().step_by(step as usize));
    }
    Ok(listed(&values.into_iter().collect::<Vec<_>>(), least, most))
}

/// Values in few words.
fn listed(values: &[u32], least: u32, most: u32) -> String {
    if values.iter().copied().eq(least..=most) {
        return "*".to_owned();
    }
    // A step that fills the field: at least three values, so that it reads better than the list.
    if let [first, second, _, ..] = values
        && *first == least
        && values.windows(2).all(|pair| pair[1] - pair[0] == second - first)
        && values.last().is_some_and(|last| last + (second - first) > most)
    {
        return format!("*/{}", second - first);
    }
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for value in values {
        match parts.last_mut() {
            Some((_, to)) if *to + 1 == *value => *to = *value,
            _ => parts.push((*value, *value)),
        }
    }
    let words = parts.iter().map(|(from, to)| match to - from {
        0 => from.to_string(),
        1 => format!("{from},{to}"),
        _ => format!("{from}-{to}"),
    });
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_mean_what_celerys_mean() {
        let of = |minute: &str, hour: &str, day: &str, month: &str, weekday: &str| {
            Crontab {
                minute: minute.into(),
                hour: hour.into(),
                day_of_month: day.into(),
                month_of_year: month.into(),
                day_of_week: weekday.into(),
            }
            .cron()
        };
        for (given, cron) in [
            (["*", "*", "*", "*", "*"], "* * * * *"),
            (["0", "*/3", "*", "*", "*"], "0 */3 * * *"),
            (
                ["*/15", "0,8-17/2", "*", "*", "mon-fri"],
                "*/15 0,8,10,12,14,16 * * 1-5",
            ),
            (["0", "0", "13", "*", "friday"], "0 0 13 * +5"),
            (["30", "22-2", "*/10", "*", "*"], "30 0-2,22,23 */10 * *"),
            (["0", "0", "*", "jan,7", "fri-mon"], "0 0 * 1,7 0,1,5,6"),
            (["5", "4", "2-30/7", "*/5", "7"], "5 4 2,9,16,23,30 */5 +0"),
        ] {
            let [minute, hour, day, month, weekday] = given;
            assert_eq!(of(minute, hour, day, month, weekday).as_deref(), Ok(cron), "{given:?}");
        }
        for given in [
            ["60", "*"],
            ["*/0", "*"],
            ["", "*"],
            ["*", "24"],
            ["x", "*"],
            ["*", "1-"],
        ] {
            assert!(of(given[0], given[1], "*", "*", "*").is_err(), "{given:?}");
        }
    }
}
