//! `umbel task revoke`.

use serde_json::json;

use crate::args::{Format, Global, Revoke};
use crate::{broker, output};

pub(crate) async fn run(global: &Global, revoke: &Revoke) -> anyhow::Result<()> {
    let Revoke {
        ids,
        terminate,
        signal,
        queue,
    } = revoke;
    let (client, _) = broker::client(global, queue.as_deref()).await?;
    let how = umbel_client::Revoke {
        terminate: *terminate,
        signal: signal.clone(),
        ..umbel_client::Revoke::default()
    };
    let heard = client.revoke(ids, &how).await?;
    if heard == 0 {
        output::say("no worker listens: Umbel's workers will know it when they start, Celery's will not");
    }
    match global.output {
        Format::Table | Format::Wide => output::line(&format!("{} revoked, {heard} listeners", ids.len())),
        Format::Name => ids.iter().try_for_each(|id| output::line(&format!("task/{id}"))),
        Format::Json | Format::Yaml => output::value(global.output, &json!({"revoked": ids, "listeners": heard})),
    }
}
