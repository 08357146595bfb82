//! Signatures: a task call as a value, as it travels in the embed of a message.

use crate::json::Json;
use crate::message::Reason;
use crate::write;

/// What a signature is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One task. `celery.map`, `celery.starmap` and `celery.chunks` are such, too.
    Task,
    /// `kwargs.tasks`, one after the other.
    Chain,
    /// `kwargs.tasks`, side by side.
    Group,
    /// `kwargs.header`, then `kwargs.body` with the list of results.
    Chord,
}

/// A task call as a value: `{"task", "args", "kwargs", "options", "subtask_type", "immutable"}` and whatever else the
/// sender wrote.
///
/// Values are kept verbatim, unknown keys and options included; [`Signature::to_json`] writes Celery's order.
#[derive(Debug, Clone, PartialEq)]
pub struct Signature {
    /// Task name.
    pub task: String,
    /// Positional arguments: an array.
    pub args: Json,
    /// Keyword arguments: an object.
    pub kwargs: Json,
    /// How to send it.
    pub options: Options,
    /// `subtask_type`; says what the signature is.
    pub kind: Kind,
    /// Takes no result of the task before it.
    pub immutable: bool,
    /// Keys that this crate does not know, in their order.
    pub extra: Vec<(String, Json)>,
}

impl Signature {
    /// A call of one task.
    pub fn task(task: &str, args: Json, kwargs: Json) -> Signature {
        Signature {
            task: task.to_owned(),
            args,
            kwargs,
            options: Options::default(),
            kind: Kind::Task,
            immutable: false,
            extra: Vec::new(),
        }
    }

    /// These tasks one after the other.
    pub fn chain(tasks: &[Signature]) -> Signature {
        Signature {
            kind: Kind::Chain,
            ..Signature::task("celery.chain", Json::empty_array(), tasks_of(tasks))
        }
    }

    /// These tasks side by side.
    pub fn group(tasks: &[Signature]) -> Signature {
        Signature {
            kind: Kind::Group,
            ..Signature::task("celery.group", Json::empty_array(), tasks_of(tasks))
        }
    }

    /// The header's tasks side by side, then the body with the list of their results. `header` is a group.
    pub fn chord(header: &Signature, body: &Signature) -> Signature {
        let kwargs = write::object([
            ("kwargs", &Json::empty_object()),
            ("header", &header.to_json()),
            ("body", &body.to_json()),
        ]);
        Signature {
            kind: Kind::Chord,
            ..Signature::task("celery.chord", Json::empty_array(), kwargs)
        }
    }

    /// `celery.map` of the task over these arguments, one for each run.
    pub fn map(task: &Signature, over: &[Json]) -> Signature {
        Signature::mapped("celery.map", task, over)
    }

    /// `celery.starmap` of the task over these argument lists.
    pub fn starmap(task: &Signature, over: &[Json]) -> Signature {
        Signature::mapped("celery.starmap", task, over)
    }

    pub(crate) fn mapped(name: &str, task: &Signature, over: &[Json]) -> Signature {
        let kwargs = write::object([("task", &task.to_json()), ("it", &write::array(over))]);
        Signature {
            immutable: true,
            ..Signature::task(name, Json::empty_array(), kwargs)
        }
    }

    /// A call of one task with positional arguments, given as a tuple or a list: `Signature::call("proj.add", &(1, 2))`.
    pub fn call<A: serde::Serialize + ?Sized>(task: &str, args: &A) -> Signature {
        let args = Json::of(args);
        let args = if args.is_null() { Json::empty_array() } else { args };
        Signature::task(task, args, Json::empty_object())
    }

    /// The same call with keyword arguments, given as a struct or a map.
    #[must_use]
    pub fn with_kwargs<A: serde::Serialize + ?Sized>(mut self, kwargs: &A) -> Signature {
        self.kwargs = Json::of(kwargs);
        self
    }

    /// The same call, which takes no result of the task before it: Celery's `si`.
    #[must_use]
    pub fn immutable(mut self) -> Signature {
        self.immutable = true;
        self
    }

    /// The same call with an option, by Celery's name: `queue`, `priority`, `countdown`, `expires`, `task_id` and so on.
    #[must_use]
    pub fn with_option<A: serde::Serialize + ?Sized>(mut self, name: &str, value: &A) -> Signature {
        self.options.set(name, Json::of(value));
        self
    }

    /// The same call with a stamp: on each task that it consists of, and on their callbacks and errbacks.
    ///
    /// # Errors
    /// [`Reason`]: a part is no signature.
    pub fn stamped<A: serde::Serialize + ?Sized>(mut self, name: &str, value: &A) -> Result<Signature, Reason> {
        self.stamp(name, &Json::of(value))?;
        Ok(self)
    }

    fn stamp(&mut self, name: &str, value: &Json) -> Result<(), Reason> {
        let mut names = self.options.stamps();
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
        let names = write::array(names.iter().map(|name| Json::string(name)));
        self.options.set("stamped_headers", names);
        self.options.set(name, value.clone());
        for links in ["link", "link_error"] {
            if self.options.get(links).is_some() {
                let stamped = stamped(&self.options.list(links), name, value)?;
                self.options.set(links, stamped);
            }
        }
        match self.kind {
            Kind::Task => {}
            Kind::Chain | Kind::Group => {
                let tasks: Vec<Json> = self.tasks()?.iter().map(Signature::to_json).collect();
                self.set_kwarg("tasks", &stamped(&tasks, name, value)?);
            }
            Kind::Chord => {
                let mut header = super::freeze::header(self)?;
                header.stamp(name, value)?;
                self.set_kwarg("header", &header.to_json());
                let mut body = self.body()?;
                body.stamp(name, value)?;
                self.set_kwarg("body", &body.to_json());
            }
        }
        Ok(())
    }

    /// The same, with each of its tasks changed: those of its callbacks and errbacks as well, and composites themselves
    /// after what they consist of.
    ///
    /// # Errors
    /// [`Reason`]: a part is no signature.
    pub fn with_each(mut self, change: &mut dyn FnMut(&mut Signature)) -> Result<Signature, Reason> {
        let each = |list: Vec<Signature>, change: &mut dyn FnMut(&mut Signature)| -> Result<Vec<Signature>, Reason> {
            list.into_iter().map(|one| one.with_each(change)).collect()
        };
        for links in ["link", "link_error"] {
            if self.options.get(links).is_some() {
                let list = self
                    .options
                    .list(links)
                    .iter()
                    .map(Signature::parse)
                    .collect::<Result<_, _>>()?;
                self.options.set(links, array(&each(list, change)?));
            }
        }
        match self.kind {
            Kind::Task => {}
            Kind::Chain | Kind::Group => {
                let tasks = each(self.tasks()?, change)?;
                self.set_tasks(&tasks);
            }
            Kind::Chord => {
                let header = super::freeze::header(&self)?.with_each(change)?;
                self.set_kwarg("header", &header.to_json());
                let body = self.body()?.with_each(change)?;
                self.set_kwarg("body", &body.to_json());
            }
        }
        change(&mut self);
        Ok(self)
    }

    /// The same call, followed by `next` when it succeeds. Of a chord it follows the body.
    ///
    /// # Errors
    /// [`Reason`]: a chord without a body.
    pub fn link(mut self, next: &Signature) -> Result<Signature, Reason> {
        if self.kind == Kind::Chord {
            let body = self.body()?.link(next)?;
            self.set_kwarg("body", &body.to_json());
        } else {
            self.append("link", &next.to_json());
        }
        Ok(self)
    }

    /// The same call, followed by `errback` when it fails: of a group each member, of a chord the body.
    ///
    /// # Errors
    /// [`Reason`]: parts that are no signatures.
    pub fn link_error(mut self, errback: &Signature) -> Result<Signature, Reason> {
        super::plan::link_error(&mut self, &errback.to_json())?;
        Ok(self)
    }

    /// Reads one. Absent `args`, `kwargs` and `options` are empty; a composite without `subtask_type` is known by its
    /// task name.
    ///
    /// # Errors
    /// [`Reason::Field`]: no object, no task name, or a part of another type.
    pub fn parse(json: &Json) -> Result<Signature, Reason> {
        if !json.is_object() {
            return Err(wrong("signature", "an object"));
        }
        let mut signature = Signature::task("", Json::empty_array(), Json::empty_object());
        let mut named = None;
        for (key, value) in json.entries() {
            match key.as_str() {
                "task" => signature.task = value.text().ok_or(wrong("signature.task", "text"))?,
                "args" if value.is_array() => signature.args = value,
                "kwargs" if value.is_object() => signature.kwargs = value,
                "options" if value.is_object() => signature.options = Options::of(&value),
                "args" | "kwargs" | "options" if value.is_null() => {}
                "args" => return Err(wrong("signature.args", "an array")),
                "kwargs" => return Err(wrong("signature.kwargs", "an object")),
                "options" => return Err(wrong("signature.options", "an object")),
                "subtask_type" => named = value.text(),
                "immutable" => signature.immutable = value.as_str() == "true",
                _ => signature.extra.push((key, value)),
            }
        }
        if signature.task.is_empty() {
            return Err(Reason::Missing("signature.task"));
        }
        let name = named.as_deref().or(match signature.task.as_str() {
            "celery.chain" => Some("chain"),
            "celery.group" => Some("group"),
            "celery.chord" => Some("chord"),
            _ => None,
        });
        signature.kind = match name {
            Some("chain") => Kind::Chain,
            Some("group") => Kind::Group,
            Some("chord") => Kind::Chord,
            _ => Kind::Task,
        };
        Ok(signature)
    }

    /// Writes it, in Celery's order of keys.
    pub fn to_json(&self) -> Json {
        let kind = match self.kind {
            Kind::Task => Json::null(),
            Kind::Chain => Json::string("chain"),
            Kind::Group => Json::string("group"),
            Kind::Chord => Json::string("chord"),
        };
        let (task, options) = (Json::string(&self.task), self.options.to_json());
        let immutable = Json::of(&self.immutable);
        let known = [
            ("task", &task),
            ("args", &self.args),
            ("kwargs", &self.kwargs),
            ("options", &options),
            ("subtask_type", &kind),
            ("immutable", &immutable),
        ];
        let extra = self.extra.iter().map(|(key, value)| (key.as_str(), value));
        write::object(known.into_iter().chain(extra))
    }

    /// The id that the task has been given, if it has.
    pub fn id(&self) -> Option<String> {
        self.options.text("task_id")
    }

    /// The members of a chain or group, or of a chord's header.
    ///
    /// # Errors
    /// [`Reason::Field`]: no list of signatures.
    pub fn tasks(&self) -> Result<Vec<Signature>, Reason> {
        const TASKS: Reason = wrong("signature.kwargs.tasks", "an array of signatures");
        let list = match self.kind {
            Kind::Task => return Ok(Vec::new()),
            Kind::Chain | Kind::Group => self.kwargs.get("tasks").unwrap_or_else(Json::empty_array),
            Kind::Chord => match self.kwargs.get("header") {
                Some(header) if header.is_object() => return Signature::parse(&header)?.tasks(),
                Some(header) => header,
                None => return Err(Reason::Missing("signature.kwargs.header")),
            },
        };
        // A generator's leftovers: Celery writes a lazy list as a group in a group.
        if list.is_object() {
            return Signature::parse(&list)?.tasks();
        }
        list.elements().ok_or(TASKS)?.iter().map(Signature::parse).collect()
    }

    /// The same composite with other members.
    pub(crate) fn set_tasks(&mut self, tasks: &[Signature]) {
        self.set_kwarg("tasks", &array(tasks));
    }

    pub(crate) fn set_kwarg(&mut self, name: &str, value: &Json) {
        let mut kwargs = Options::of(&self.kwargs);
        kwargs.set(name, value.clone());
        self.kwargs = kwargs.to_json();
    }

    /// The body of a chord.
    ///
    /// # Errors
    /// [`Reason`]: there is none, or it is no signature.
    pub fn body(&self) -> Result<Signature, Reason> {
        let body = self.kwargs.get("body").filter(|body| !body.is_null());
        Signature::parse(&body.ok_or(Reason::Missing("signature.kwargs.body"))?)
    }

    /// How many results a chord must wait for on account of this member: 1 for a task, one for each member of a group,
    /// those of the last step of a chain, those of the body of a chord.
    ///
    /// # Errors
    /// [`Reason`]: a part is no signature.
    pub fn size(&self) -> Result<u64, Reason> {
        match self.kind {
            Kind::Task => Ok(1),
            Kind::Chord => self.body()?.size(),
            Kind::Group => self.tasks()?.iter().map(Signature::size).sum(),
            Kind::Chain => {
                for task in self.tasks()?.iter().rev() {
                    let size = task.size()?;
                    if size > 0 {
                        return Ok(size);
                    }
                }
                Ok(0)
            }
        }
    }

    /// Appends to the list option `name` (`link`, `link_error`); one signature becomes a list of two.
    pub(crate) fn append(&mut self, name: &str, signature: &Json) {
        let mut list = self.options.list(name);
        list.push(signature.clone());
        self.options.set(name, write::array(&list));
    }
}

/// Options of a signature: names and values in their order, each name once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options(Vec<(String, Json)>);

impl Options {
    /// The entries of an object; of a doubled name the last value counts.
    pub(crate) fn of(object: &Json) -> Options {
        let mut options = Options::default();
        for (name, value) in object.entries() {
            options.set(&name, value);
        }
        options
    }

    /// Writes them as an object.
    pub fn to_json(&self) -> Json {
        write::object(self.entries())
    }

    /// The entries, `null`s included.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Json)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Is the name there, be it with `null`?
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// The value, unless it is absent or `null`.
    pub fn get(&self, name: &str) -> Option<&Json> {
        let found = self.0.iter().find(|(known, _)| known == name)?;
        Some(&found.1).filter(|value| !value.is_null())
    }

    /// The value, if it is a text that is not empty.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name)?.text().filter(|text| !text.is_empty())
    }

    /// Sets a value in its place, or appends it.
    pub fn set(&mut self, name: &str, value: Json) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1 = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Takes a value out; `None` if it was absent or `null`.
    pub fn take(&mut self, name: &str) -> Option<Json> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1).filter(|value| !value.is_null())
    }

    /// A value that is one signature or a list of them, as a list.
    pub(crate) fn list(&self, name: &str) -> Vec<Json> {
        self.get(name).map_or_else(Vec::new, list)
    }

    /// The names in `stamped_headers`.
    pub(crate) fn stamps(&self) -> Vec<String> {
        let names = self.get("stamped_headers").and_then(Json::elements).unwrap_or_default();
        names.iter().filter_map(Json::text).collect()
    }

    /// These, overruled by `over`. A `null` overrules nothing; neither does a group id, the list of stamps or a stamp,
    /// when these have one: changing it would leave a group waiting, or forge a stamp.
    pub(crate) fn merged(&self, over: &Options) -> Options {
        let mut merged = self.clone();
        let stamps = self.stamps();
        for (name, value) in over.entries().filter(|(_, value)| !value.is_null()) {
            let fixed = matches!(name, "group_id" | "stamped_headers") || stamps.iter().any(|stamp| stamp == name);
            if !(fixed && self.has(name)) {
                merged.set(name, value.clone());
            }
        }
        merged
    }
}

/// These signatures with a stamp each.
fn stamped(signatures: &[Json], name: &str, value: &Json) -> Result<Json, Reason> {
    let mut out = Vec::with_capacity(signatures.len());
    for signature in signatures {
        let mut signature = Signature::parse(signature)?;
        signature.stamp(name, value)?;
        out.push(signature.to_json());
    }
    Ok(write::array(&out))
}

/// One signature or an array of them.
pub(crate) fn list(value: &Json) -> Vec<Json> {
    value.elements().unwrap_or_else(|| vec![value.clone()])
}

pub(crate) fn array(signatures: &[Signature]) -> Json {
    write::array(signatures.iter().map(Signature::to_json))
}

fn tasks_of(tasks: &[Signature]) -> Json {
    write::object([("tasks", &array(tasks))])
}

pub(crate) const fn wrong(field: &'static str, expected: &'static str) -> Reason {
    Reason::Field { field, expected }
}
