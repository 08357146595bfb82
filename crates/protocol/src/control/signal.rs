//! Signals as requests name them. None is ever sent: a run is not a process. Events show which it would have been.

/// What Celery sends unless told otherwise: SIGTERM.
pub const DEFAULT: u8 = 15;

/// Signals of Linux, by name without `SIG`.
const NAMES: [(&str, u8); 24] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("XCPU", 24),
    ("WINCH", 28),
    ("SYS", 31),
];

/// The number of a signal that is named in any case, with or without `SIG`, or given as a number. `None`: no signal.
pub fn number(signal: Option<&str>) -> Option<u8> {
    let Some(signal) = signal.map(str::trim).filter(|signal| !signal.is_empty()) else {
        return Some(DEFAULT);
    };
    if let Ok(number) = signal.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = signal.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn signals_are_named_or_numbered() {
        for (signal, expected) in [
            (None, Some(15)),
            (Some(""), Some(15)),
            (Some("SIGKILL"), Some(9)),
            (Some("kill"), Some(9)),
            (Some("2"), Some(2)),
            (Some("SIGFOO"), None),
            (Some("0"), None),
            (Some("-9"), None),
            (Some("999"), None),
        ] {
            assert_eq!(number(signal), expected, "{signal:?}");
        }
    }
}
