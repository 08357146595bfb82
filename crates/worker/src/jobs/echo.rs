//! `umbel.echo`: answers its arguments, verbatim.

use futures::FutureExt;
use futures::future::BoxFuture;
use umbel_protocol::json::Json;

use crate::job::{Arguments, Failure, Job, JobContext, Outcome};

/// Returns `{"args": [...], "kwargs": {...}}`, byte for byte what was sent: numbers of any size, NaN and all.
pub(crate) struct Echo;

impl Job for Echo {
    fn name(&self) -> &'static str {
        "umbel.echo"
    }

    fn run<'a>(&'a self, _ctx: &'a JobContext, args: Arguments) -> BoxFuture<'a, Outcome> {
        let (args, kwargs) = (args.args.as_str(), args.kwargs.as_str());
        let text = ["{\"args\": ", args, ", \"kwargs\": ", kwargs, "}"].concat();
        let outcome = match Json::parse(&text) {
            Ok(value) => Outcome::Done(value),
            Err(err) => Outcome::Failed(Failure::permanent(
                "ValueError",
                format!("too deep to be returned: {err}"),
            )),
        };
        std::future::ready(outcome).boxed()
    }
}
