//! `umbel.sleep`: waits, for trying things out.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Deserialize;
use umbel_protocol::json::Json;

use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

/// Waits for its one argument in seconds and returns it as it was sent.
pub(crate) struct Sleep;

#[derive(Deserialize)]
struct Keywords {
    seconds: serde_json::Number,
}

/// The seconds, as a number and as they were written.
fn seconds(args: &Arguments) -> Result<(Duration, Json), Failure> {
    let written = match args.args.elements().as_deref() {
        Some([one]) => one.clone(),
        Some([]) => Json::of(&args.keywords::<Keywords>()?.seconds),
        _ => return Err(Failure::type_error("umbel.sleep takes one argument: seconds")),
    };
    let number: f64 = written
        .to()
        .map_err(|err| Failure::type_error(format!("seconds: {err}")))?;
    let wait = Duration::try_from_secs_f64(number)
        .map_err(|err| Failure::permanent("ValueError", format!("seconds: {err}")))?;
    Ok((wait, written))
}

impl Job for Sleep {
    fn name(&self) -> &'static str {
        "umbel.sleep"
    }

    fn run<'a>(&'a self, _ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        async move {
            match seconds(&args) {
                Ok((wait, written)) => {
                    tokio::time::sleep(wait).await;
                    Outcome::Done(written)
                }
                Err(failure) => Outcome::Failed(failure),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(args: &str, kwargs: &str) -> Arguments {
        Arguments {
            args: Json::parse(args).unwrap(),
            kwargs: Json::parse(kwargs).unwrap(),
        }
    }

    #[test]
    fn seconds_by_position_or_name() {
        assert_eq!(
            seconds(&arguments("[0.5]", "{}")).unwrap().0,
            Duration::from_millis(500)
        );
        assert_eq!(
            seconds(&arguments("[]", r#"{"seconds": 2}"#)).unwrap().0,
            Duration::from_secs(2)
        );
        assert_eq!(seconds(&arguments("[2]", "{}")).unwrap().1.as_str(), "2");
        for (args, kwargs) in [
            ("[]", "{}"),
            ("[-1]", "{}"),
            ("[\"x\"]", "{}"),
            ("[1, 2]", "{}"),
            ("[NaN]", "{}"),
            ("[1e300]", "{}"),
        ] {
            assert!(seconds(&arguments(args, kwargs)).is_err(), "{args} {kwargs}");
        }
    }
}
