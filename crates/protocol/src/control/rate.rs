//! Rates as Celery writes them.

/// How often per second: `10/s`, `10/m`, `10/h`; a bare number is per second. `None`: no rate. Zero means no limit.
pub fn per_second(rate: &str) -> Option<f64> {
    let (count, seconds) = match rate.trim().split_once('/') {
        Some((count, "s")) => (count, 1.0),
        Some((count, "m")) => (count, 60.0),
        Some((count, "h")) => (count, 3600.0),
        Some(_) => return None,
        None => (rate.trim(), 1.0),
    };
    let count: f64 = count.trim().parse().ok()?;
    (count.is_finite() && count >= 0.0).then_some(count / seconds)
}

#[cfg(test)]
mod tests {
    use super::per_second;

    #[test]
    fn rates_are_read() {
        for (rate, expected) in [
            ("10/s", Some(10.0)),
            ("30/m", Some(0.5)),
            ("3600/h", Some(1.0)),
            ("5", Some(5.0)),
            ("0", Some(0.0)),
            ("2.5/s", Some(2.5)),
            ("10/d", None),
            ("", None),
            ("-1/s", None),
            ("inf", None),
            ("x/m", None),
        ] {
            assert_eq!(per_second(rate), expected, "{rate}");
        }
    }
}
