//! The dialect against its owner: texts that this machine's Python wrote, and what it reads and shows.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::process::Command;

use serde_json::Value;
use umbel_protocol::json::Json;

fn cases(seed: &str) -> Vec<Value> {
    let script = format!(
        "{}/tests/dialect.py",
        std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo")
    );
    let output = Command::new("python3")
        .args([script.as_str(), seed])
        .output()
        .expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn what_python_writes_is_read_shown_and_written_as_python_does() {
    for seed in ["1", "2", "3"] {
        let (mut rewritten, mut refused) = (0, 0);
        for case in cases(seed).iter().filter(|case| case.get("written").is_some()) {
            let text = case["written"].as_str().unwrap();
            let json = Json::parse(text).unwrap_or_else(|err| panic!("{err}: {text}"));
            assert_eq!(json.as_str(), text);
            if let Some(shown) = case["repr"].as_str() {
                assert_eq!(json.repr(), shown, "{text}");
            }
            // The typed value loses big integers, `NaN` and 1.0 against 1e0; entry by entry it must not lose the rest.
            if case.get("default").is_some() && !text.contains(['.', 'N', 'I', 'e']) && !has_long_digits(text) {
                assert_eq!(Json::of(&json.to::<Value>().unwrap()).as_str(), text);
                rewritten += 1;
            }
            let broken = case["broken"].as_str().unwrap();
            let read = Json::parse(broken);
            assert_eq!(read.is_ok(), case["reads"].as_bool().unwrap(), "{broken:?}: {read:?}");
            refused += usize::from(read.is_err());
        }
        assert!(
            rewritten > 50 && refused > 300,
            "{rewritten} rewritten, {refused} refused: the generator is idle"
        );
    }
}

fn has_long_digits(text: &str) -> bool {
    text.split(|ch: char| !ch.is_ascii_digit())
        .any(|digits| digits.len() > 18)
}

#[test]
fn floats_are_written_as_python_writes_them() {
    for case in cases("4").iter().filter(|case| case.get("float").is_some()) {
        let bits: u64 = case["bits"].as_str().unwrap().parse().unwrap();
        let (ours, theirs) = (Json::of(&f64::from_bits(bits)), case["float"].as_str().unwrap());
        // Of two shortest forms that are equally near, Python takes the even one and Rust the upper; both read back.
        let is_tie = ours.as_str().len() == theirs.len() && ours.as_str().parse() == theirs.parse::<f64>();
        assert!(ours.as_str() == theirs || is_tie, "{ours} {theirs}");
    }
    for (value, text) in [
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (1e-7, "1e-07"),
        (1e16, "1e+16"),
        (123e20, "1.23e+22"),
        (0.0001, "0.0001"),
    ] {
        assert_eq!(Json::of(&value).as_str(), text);
    }
}
