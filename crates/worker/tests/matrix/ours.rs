//! Our producer as the table uses it.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use umbel_broker::{Config, result_prefix};
use umbel_client::{Client, Handle, Options, ResultError, Signature, Task};
use umbel_testkit::{App, Raised};

/// What ours sends.
pub(crate) enum Sends {
    Task(Task),
    Workflow(Signature),
    /// A task whose callback's result is read; the id is the callback's.
    Watched(Task, String),
}

/// Our producer: a client for each application.
pub(crate) struct Ours {
    clients: HashMap<String, Client>,
    options: Options,
}

impl Ours {
    pub(crate) fn with(options: Options) -> Ours {
        Ours {
            clients: HashMap::new(),
            options,
        }
    }

    async fn client(&mut self, app: &App) -> Client {
        let key = format!("{app:?}");
        if !self.clients.contains_key(&key) {
            let client = Client::connect(config(app), self.options_of(app))
                .await
                .expect("the server runs");
            self.clients.insert(key.clone(), client);
        }
        self.clients[&key].clone()
    }

    /// The options that say the same as Celery's settings.
    fn options_of(&self, app: &App) -> Options {
        let mut results = Config::new(&app.results);
        if let Some(prefix) = app.settings["result_backend_transport_options"]["global_keyprefix"].as_str() {
            results.result_prefix = result_prefix(prefix);
        }
        Options {
            results: Some(results),
            ..self.options.clone()
        }
    }

    pub(crate) async fn send(&mut self, app: &App, what: Sends) -> Handle {
        let client = self.client(app).await;
        let sent = match what {
            Sends::Task(task) => client.send(task).await,
            Sends::Workflow(workflow) => client.apply(workflow).await,
            Sends::Watched(task, id) => client.send(task).await.map(|_| client.handle(&id)),
        };
        sent.expect("our client sends it")
    }

    /// As text that is equal for equal values.
    pub(crate) async fn result(handle: &Handle, deadline: Duration) -> Result<String, Raised> {
        let raised = |exc_type: &str, module: &str, message: String| Raised {
            exc_type: exc_type.to_owned(),
            module: module.to_owned(),
            message,
            traceback: None,
        };
        match handle.get(deadline).await {
            Ok(result) => Ok(canonical(result.as_str())),
            Err(ResultError::Remote(remote)) => Err(raised(&remote.exc_type, &remote.exc_module, remote.message())),
            Err(other) => Err(raised("", "", other.to_string())),
        }
    }
}

/// The broker as Celery's settings describe it.
fn config(app: &App) -> Config {
    let mut config = Config::new(&app.broker);
    let transport = &app.settings["broker_transport_options"];
    if let Some(prefix) = transport["global_keyprefix"].as_str() {
        prefix.clone_into(&mut config.key_prefix);
    }
    if let Some(steps) = transport["priority_steps"].as_array() {
        let step = |step: &Value| step.as_u64().and_then(|step| step.try_into().ok());
        config.priority_steps = steps.iter().filter_map(step).collect();
    }
    config
}

/// JSON text without blanks and escapes, else as it is: numbers keep their digits.
fn canonical(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('"') {
        out.extend(rest[..at].chars().filter(|letter| !letter.is_whitespace()));
        let mut words = serde_json::Deserializer::from_str(&rest[at..]).into_iter::<String>();
        let word = words.next().expect("a string").expect("a string");
        out += &serde_json::to_string(&word).expect("text is JSON");
        rest = &rest[at + words.byte_offset()..];
    }
    out.extend(rest.chars().filter(|letter| !letter.is_whitespace()));
    out
}
