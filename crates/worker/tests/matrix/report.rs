//! What a table shows: a line a case, a column a producer, and the reasons of the gaps.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::cell::{Outcome, Producer};

/// One table's cells, for one kind of worker.
#[derive(Debug)]
pub(crate) struct Report {
    title: String,
    producers: Vec<Producer>,
    lines: Vec<(&'static str, Vec<Outcome>)>,
}

impl Report {
    pub(crate) fn new(title: String, producers: &[Producer]) -> Report {
        Report {
            title,
            producers: producers.to_vec(),
            lines: Vec::new(),
        }
    }

    /// Adds a case with its outcome by producer.
    pub(crate) fn line(&mut self, case: &'static str, outcomes: Vec<Outcome>) {
        self.lines.push((case, outcomes));
    }

    /// Prints the table, past the capture of passing tests.
    pub(crate) fn show(&self) {
        let _ = std::io::stdout().write_all(self.text().as_bytes());
    }

    /// Fails when a cell is wrong.
    pub(crate) fn check(&self) {
        let wrong: Vec<String> = self
            .lines
            .iter()
            .flat_map(|(case, outcomes)| {
                outcomes
                    .iter()
                    .zip(&self.producers)
                    .filter_map(move |(outcome, producer)| match outcome {
                        Outcome::Wrong(why) => Some(format!("{case} by {producer}: {why}")),
                        Outcome::Right | Outcome::Gap(_) => None,
                    })
            })
            .collect();
        assert!(wrong.is_empty(), "{}\n{}", self.title, wrong.join("\n"));
    }

    fn text(&self) -> String {
        let mut reasons: Vec<&str> = Vec::new();
        let mut text = format!("\n{}\n{:<24}", self.title, "");
        for producer in &self.producers {
            let _ = write!(text, "{producer:<12}");
        }
        for (case, outcomes) in &self.lines {
            let _ = write!(text, "\n{case:<24}");
            for outcome in outcomes {
                let mark = match outcome {
                    Outcome::Right => "yes".to_owned(),
                    Outcome::Wrong(_) => "WRONG".to_owned(),
                    Outcome::Gap(reason) => {
                        let known = reasons.iter().position(|known| known == reason);
                        let number = known.unwrap_or_else(|| {
                            reasons.push(reason);
                            reasons.len() - 1
                        });
                        format!("- ({})", number + 1)
                    }
                };
                let _ = write!(text, "{mark:<12}");
            }
        }
        for (number, reason) in reasons.iter().enumerate() {
            let _ = write!(text, "\n({}) {reason}", number + 1);
        }
        text + "\n"
    }
}
