//! Sums of Kubernetes quantities.

/// A quantity in thousandths, rounded up as Kubernetes does. `None` for what is no quantity.
pub(super) fn millis(text: &str) -> Option<i128> {
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_negative = whole.starts_with('-');
    let digits = whole.trim_start_matches(['+', '-']);
    if digits.len() + fraction.len() > 18 || (digits.is_empty() && fraction.is_empty()) {
        return None; // Longer ones exist on paper only, and must not overflow below.
    }
    let scaled: i128 = format!("{digits}{fraction}").parse().ok()?;
    let below = 10_i128.pow(u32::try_from(fraction.len()).ok()?);

    // The unit as a fraction, in thousandths of one.
    let (times, per): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (10_i128.pow(6), 1),
        "M" => (10_i128.pow(9), 1),
        "G" => (10_i128.pow(12), 1),
        "T" => (10_i128.pow(15), 1),
        "P" => (10_i128.pow(18), 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        exponent => {
            let power: u32 = exponent
                .strip_prefix(['e', 'E'])?
                .parse()
                .ok()
                .filter(|power| *power <= 18)?;
            (1_000 * 10_i128.pow(power), 1)
        }
    };
    let magnitude = div_ceil(scaled * times, below * per);
    Some(if is_negative { -magnitude } else { magnitude })
}

/// CPU: whole cores where it comes out even, else thousandths.
pub(super) fn cores(millis: i128) -> String {
    if millis % 1000 == 0 {
        (millis / 1000).to_string()
    } else {
        format!("{millis}m")
    }
}

/// Memory: bytes in the largest binary unit that holds it without a remainder.
pub(super) fn bytes(millis: i128) -> String {
    let mut bytes = div_ceil(millis, 1000);
    for unit in ["", "Ki", "Mi", "Gi", "Ti"] {
        if bytes == 0 || bytes % 1024 != 0 || unit == "Ti" {
            return format!("{bytes}{unit}");
        }
        bytes /= 1024;
    }
    bytes.to_string()
}

fn div_ceil(number: i128, by: i128) -> i128 {
    (number + by - 1) / by
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        let table = [
            ("2", 2_000),
            ("1500m", 1_500),
            ("0.5", 500),
            ("1.5k", 1_500_000),
            ("16Gi", 17_179_869_184_000),
            ("1e3", 1_000_000),
            ("1E3", 1_000_000),
            ("123456789n", 124),
            ("-1", -1_000),
            ("8127920Ki", 8_322_990_080_000),
        ];
        for (text, expected) in table {
            assert_eq!(millis(text), Some(expected), "{text}");
        }
        for text in ["", "x", "1x", "1e", "1e99", "Gi", "1.2.3", "99999999999999999999"] {
            assert_eq!(millis(text), None, "{text}");
        }
    }

    #[test]
    fn sums_are_written_short() {
        assert_eq!((cores(8_000), cores(7_500)), ("8".into(), "7500m".into()));
        let written = [
            ("16Gi", "16Gi"),
            ("8127920Ki", "8127920Ki"),
            ("1000", "1000"),
            ("0", "0"),
            ("2048Ti", "2048Ti"),
        ];
        for (text, expected) in written {
            assert_eq!(bytes(millis(text).unwrap()), expected);
        }
    }
}
