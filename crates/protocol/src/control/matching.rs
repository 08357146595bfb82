//! Patterns of node names.

use regex::RegexBuilder;

/// A pattern whose automaton is larger is refused: requests come from anyone.
const MAX_AUTOMATON: usize = 1 << 20;
/// So is one that is longer.
const MAX_PATTERN: usize = 1024;

/// Why nobody can be told to be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unmatchable {
    /// Neither `glob` nor `pcre`.
    #[error("no matcher installed for {0:?}")]
    Matcher(String),
    /// Longer than 1,024 bytes.
    #[error("pattern of {0} bytes is too long")]
    Length(usize),
    /// Not understood. Look-around and back-references are not.
    #[error("pattern cannot be evaluated: {0}")]
    Pattern(String),
}

pub(super) fn matches(node: &str, pattern: &str, matcher: &str) -> Result<bool, Unmatchable> {
    if pattern.len() > MAX_PATTERN {
        return Err(Unmatchable::Length(pattern.len()));
    }
    match matcher {
        "glob" => Ok(glob(node, pattern)),
        "pcre" => {
            let regex = RegexBuilder::new(pattern)
                .size_limit(MAX_AUTOMATON)
                .build()
                .map_err(|err| Unmatchable::Pattern(err.to_string()))?;
            // Python's `re.match`: from the beginning, but not to the end.
            Ok(regex.find(node).is_some_and(|found| found.start() == 0))
        }
        other => Err(Unmatchable::Matcher(other.chars().take(64).collect())),
    }
}

/// Python's `fnmatch`: `*`, `?`, `[abc]`, `[a-z]`, `[!abc]`; the whole name, case matters.
pub fn glob(name: &str, pattern: &str) -> bool {
    let (name, pattern): (Vec<char>, Vec<char>) = (name.chars().collect(), pattern.chars().collect());
    let (mut at, mut in_pattern) = (0, 0);
    // Where to go on when a match fails: behind the last star, one character of the name further.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(in_pattern) == Some(&'*') {
            in_pattern += 1;
            retry = Some((in_pattern, at));
            continue;
        }
        match (name.get(at), one(&pattern[in_pattern..], name.get(at).copied())) {
            (None, _) if in_pattern == pattern.len() => return true,
            (Some(_), Some(length)) => {
                at += 1;
                in_pattern += length;
            }
            _ => match retry {
                Some((star, from)) if from < name.len() => {
                    retry = Some((star, from + 1));
                    (in_pattern, at) = (star, from + 1);
                }
                _ => return false,
            },
        }
    }
}

/// How many characters of the pattern match this one.
fn one(pattern: &[char], ch: Option<char>) -> Option<usize> {
    let (first, ch) = (*pattern.first()?, ch?);
    match first {
        '?' => Some(1),
        '[' => match class(pattern, ch) {
            Some((length, is_in)) => is_in.then_some(length),
            // Not closed: a bracket like any other character.
            None => (ch == '[').then_some(1),
        },
        _ => (first == ch).then_some(1),
    }
}

fn class(pattern: &[char], ch: char) -> Option<(usize, bool)> {
    let is_negated = pattern.get(1) == Some(&'!');
    let start = if is_negated { 2 } else { 1 };
    // A bracket right at the beginning is a member.
    let end = (start + 1..pattern.len()).find(|at| pattern[*at] == ']')?;
    let members = &pattern[start..end];
    let (mut at, mut is_in) = (0, false);
    while let Some(&low) = members.get(at) {
        if let (Some('-'), Some(&high)) = (members.get(at + 1), members.get(at + 2)) {
            is_in |= (low..=high).contains(&ch);
            at += 3;
        } else {
            is_in |= low == ch;
            at += 1;
        }
    }
    Some((end + 1, is_in != is_negated))
}

#[cfg(test)]
mod tests {
    use super::{Unmatchable, matches};

    #[test]
    fn glob_is_pythons_fnmatch() {
        // Judged by Python 3.11's fnmatch.fnmatchcase.
        let table = [
            ("w1@lab", "w*", true),
            ("w1@lab", "*@lab", true),
            ("w1@lab", "*", true),
            ("w1@lab", "w?@lab", true),
            ("w1@lab", "w?", false),
            ("w1@lab", "W*", false),
            ("w1@lab", "w[0-9]@*", true),
            ("w1@lab", "w[!0-9]@*", false),
            ("w1@lab", "w[1", false),
            ("w[1", "w[1", true),
            ("w]x", "w[]]x", true),
            ("a.b", "a.b", true),
            ("axb", "a.b", false),
            ("aab", "*ab", true),
            ("abab", "*ab", true),
            ("aba", "*ab", false),
            ("", "*", true),
            ("", "", true),
            ("x", "", false),
            ("w-1", "w[-1]1", true),
            ("aXbXc", "a*b*c", true),
        ];
        for (name, pattern, expected) in table {
            assert_eq!(matches(name, pattern, "glob"), Ok(expected), "{name} {pattern}");
        }
        // Time is bounded, whatever the pattern.
        assert_eq!(matches(&"a".repeat(1000), &"*a".repeat(500), "glob"), Ok(true));
        assert_eq!(
            matches(&"a".repeat(1000), &format!("{}b", "*a".repeat(400)), "glob"),
            Ok(false)
        );
    }

    #[test]
    fn pcre_is_anchored_at_the_beginning_only() {
        for (pattern, expected) in [
            ("^w[0-9]@", true),
            ("w1", true),
            ("lab", false),
            (".*lab$", true),
            ("(?i)W1", true),
            ("x|w", true),
        ] {
            assert_eq!(matches("w1@lab", pattern, "pcre"), Ok(expected), "{pattern}");
        }
        assert!(matches!(
            matches("w1@lab", "(?=w)w", "pcre"),
            Err(Unmatchable::Pattern(_))
        ));
        assert!(matches!(
            matches("w1@lab", "(a{1000}){1000}", "pcre"),
            Err(Unmatchable::Pattern(_))
        ));
        assert_eq!(matches("w1@lab", "x", "sql"), Err(Unmatchable::Matcher("sql".into())));
        assert_eq!(
            matches("w1@lab", &"x".repeat(2000), "glob"),
            Err(Unmatchable::Length(2000))
        );
    }
}
