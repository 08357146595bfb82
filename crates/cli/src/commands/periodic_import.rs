//! `umbel periodic import`.

use std::io::{Read as _, Write as _};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};

use crate::args::{Format, Global, Import};
use crate::beat::{self, Imported};
use crate::output;

pub(crate) fn run(global: &Global, import: &Import) -> anyhow::Result<ExitCode> {
    let imported = match (&import.app, &import.file) {
        (Some(app), _) => {
            beat::of_app(&ask_python(import, app)?, &import.queue).context("read what the app's program printed")?
        }
        (None, Some(file)) => {
            let mut text = String::new();
            if file.as_os_str() == "-" {
                std::io::stdin()
                    .read_to_string(&mut text)
                    .context("read standard input")?;
            } else {
                text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            }
            beat::of_fixture(&text, &import.queue).with_context(|| {
                format!(
                    "{} is not what `manage.py dumpdata django_celery_beat` prints",
                    file.display()
                )
            })?
        }
        (None, None) => bail!("name a file, or an app by --app"),
    };
    print(global, &imported)?;
    Ok(if imported.left_out > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn print(global: &Global, imported: &Imported) -> anyhow::Result<()> {
    for note in &imported.notes {
        output::say(note);
    }
    let (count, left_out) = (imported.objects.len(), imported.left_out);
    output::say(&format!("{count} PeriodicTasks, {left_out} entries left out"));
    match global.output {
        Format::Json => {
            let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": imported.objects});
            output::value(Format::Json, &list)
        }
        Format::Name => imported.objects.iter().try_for_each(|object| {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            output::line(&format!("periodictask.umbel.dev/{name}"))
        }),
        Format::Table | Format::Wide | Format::Yaml => imported.objects.iter().try_for_each(|object| {
            output::line("---")?;
            output::value(Format::Yaml, object)
        }),
    }
}

/// Lets a Python that can import the app print its schedule.
fn ask_python(import: &Import, app: &str) -> anyhow::Result<String> {
    let program = import.python.display();
    let mut child = Command::new(&import.python)
        .args(["-", app])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut input = child.stdin.take().context("no standard input")?;
    input
        .write_all(beat::SCRIPT.as_bytes())
        .with_context(|| format!("talk to {program}"))?;
    drop(input);
    let done = child.wait_with_output().with_context(|| format!("hear {program}"))?;
    if !done.status.success() {
        bail!("{program} could not read the schedule of {app}: {}", done.status);
    }
    String::from_utf8(done.stdout).context("it printed no text")
}
