//! One way to print an error: what was attempted, then why it did not work.

use std::error::Error;
use std::fmt;

/// An error with all its sources, each once, joined by `: `.
///
/// Our errors keep the source out of their own text (see the error enums), so
/// nothing is printed twice. Texts of foreign crates that already end with
/// their source's text are recognised and not repeated.
pub struct Chain<'a>(&'a (dyn Error + 'static));

/// Shows `error` followed by everything that caused it.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        out.write_str(&last)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            let text = error.to_string();
            if !last.ends_with(&text) {
                write!(out, ": {text}")?;
                last = text;
            }
            next = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|layer| layer as _)
        }
    }

    #[test]
    fn names_every_cause_once() {
        let error = Layer(
            "read secret a/b",
            Some(Box::new(Layer(
                "request: refused",
                Some(Box::new(Layer("refused", None))),
            ))),
        );
        assert_eq!(chain(&error).to_string(), "read secret a/b: request: refused");
    }
}
