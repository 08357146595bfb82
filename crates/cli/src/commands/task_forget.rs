//! `umbel task forget`.

use serde_json::json;

use crate::args::{Forget, Format, Global};
use crate::{broker, output};

pub(crate) async fn run(global: &Global, forget: &Forget) -> anyhow::Result<()> {
    let client = broker::reader(global, forget.queue.as_deref()).await?;
    let mut gone = Vec::new();
    for id in &forget.ids {
        if client.handle(id).forget().await? > 0 {
            gone.push(id);
        }
    }
    match global.output {
        Format::Table | Format::Wide => output::line(&format!(
            "{} of {} had a result, which is deleted",
            gone.len(),
            forget.ids.len()
        )),
        Format::Name => gone.iter().try_for_each(|id| output::line(&format!("task/{id}"))),
        Format::Json | Format::Yaml => {
            output::value(global.output, &json!({"forgotten": gone, "asked": forget.ids.len()}))
        }
    }
}
