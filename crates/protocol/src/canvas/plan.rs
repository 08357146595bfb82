//! Sending a signature: which messages that is, in which order.

use super::freeze::{Place, flat, freeze, freeze_steps, header, steps};
use super::signature::{self, Kind, Options, Signature};
use super::task::{Origin, outgoing};
use super::tuple::ResultTuple;
use super::{Aftermath, FollowUp, MAX_EXPANSION, Sender};
use crate::json::Json;
use crate::message::Reason;
use crate::write;

/// Effects being gathered.
pub(super) struct Plan<'a, 'b> {
    pub(super) steps: Vec<FollowUp>,
    pub(super) children: Vec<ResultTuple>,
    pub(super) origin: Origin,
    pub(super) sender: &'a mut Sender<'b>,
    /// The result of what was spawned last.
    pub(super) result: Option<ResultTuple>,
    bytes: usize,
}

/// What became of a signature that was sent.
struct Sent {
    /// Its result as a child of the task that sent it: of a chain the first step, of a chord the header.
    child: ResultTuple,
    /// Its result as who waits for its end wants it, with what came before as parents.
    result: ResultTuple,
}

impl From<ResultTuple> for Sent {
    fn from(result: ResultTuple) -> Sent {
        Sent {
            child: result.clone(),
            result,
        }
    }
}

/// Arguments of the moment: put before those of a signature, unless it is immutable.
#[derive(Clone, Copy, Default)]
pub(super) struct Call<'a> {
    pub(super) args: &'a [Json],
    /// Overrule keyword arguments of the same names; an object.
    pub(super) kwargs: Option<&'a Json>,
}

impl<'a> Call<'a> {
    pub(super) fn with(args: &'a [Json]) -> Call<'a> {
        Call { args, kwargs: None }
    }
}

impl<'a, 'b> Plan<'a, 'b> {
    pub(super) fn new(origin: Origin, sender: &'a mut Sender<'b>) -> Plan<'a, 'b> {
        Plan {
            steps: Vec::new(),
            children: Vec::new(),
            origin,
            sender,
            result: None,
            bytes: 0,
        }
    }

    pub(super) fn done(self) -> Aftermath {
        Aftermath {
            steps: self.steps,
            children: self.children,
        }
    }

    /// May so many bytes be added?
    fn allow(&self, more: usize) -> Result<(), Reason> {
        let bytes = self.bytes.saturating_add(more);
        if bytes <= MAX_EXPANSION {
            return Ok(());
        }
        Err(Reason::Size {
            bytes,
            limit: MAX_EXPANSION,
        })
    }

    /// Sends `signature` and names it among the children.
    pub(super) fn spawn(&mut self, signature: &Signature, call: Call<'_>, over: &Options) -> Result<(), Reason> {
        let sent = self.apply(signature, call, over)?;
        self.children.push(sent.child);
        self.result = Some(sent.result);
        Ok(())
    }

    /// Sends `signature` under its own options, overruled by `over`.
    fn apply(&mut self, signature: &Signature, call: Call<'_>, over: &Options) -> Result<Sent, Reason> {
        match signature.kind {
            Kind::Task => self.apply_task(signature, call, over),
            Kind::Group => self.apply_group(signature, call, over),
            Kind::Chain => self.apply_chain(signature, call, over),
            Kind::Chord => self.apply_chord(signature, call, over),
        }
    }

    fn apply_task(&mut self, task: &Signature, call: Call<'_>, over: &Options) -> Result<Sent, Reason> {
        let options = task.options.merged(over);
        let (args, kwargs) = arguments(task, call)?;
        let is_as_read = task.immutable && !call.args.is_empty() && options.get("group_id").is_none();
        let mut out = outgoing(&task.task, args, kwargs, &options, &self.origin, self.sender)?;
        if is_as_read && out.task.argsrepr.is_none() {
            // Celery shows a list where it did not touch what it read from JSON, and a tuple elsewhere.
            out.task.argsrepr = Some(out.task.args.repr());
        }
        let embed = out.task.embed.as_ref().map_or(0, |embed| embed.as_str().len());
        self.bytes += out.task.args.as_str().len() + out.task.kwargs.as_str().len() + embed;
        self.allow(0)?;
        let result = ResultTuple::task(&out.task.id);
        self.steps.push(FollowUp::Send(Box::new(out)));
        Ok(result.into())
    }

    fn apply_group(&mut self, group: &Signature, call: Call<'_>, over: &Options) -> Result<Sent, Reason> {
        let mut options = group.options.merged(over);
        let id = take_id(&mut options, self.sender);
        let root = options.text("root_id");
        let mut results = Vec::new();
        let mut tasks = flat(group.tasks()?)?;
        for (index, task) in tasks.iter_mut().enumerate() {
            let place = Place {
                group: Some(&id),
                index: i64::try_from(index).ok(),
                ..Place::under(root.as_deref())
            };
            results.push(freeze(task, place, self.sender)?);
        }
        self.apply_members(&tasks, &id, call, options)?;
        Ok(ResultTuple::group(&id, results).into())
    }

    /// Sends frozen members under the options of their group.
    fn apply_members(
        &mut self,
        tasks: &[Signature],
        id: &str,
        call: Call<'_>,
        mut options: Options,
    ) -> Result<(), Reason> {
        options.take("group_index");
        options.take("add_to_parent");
        options.take("chord");
        options.set("group_id", Json::string(id));
        for task in tasks {
            self.apply(task, call, &options)?;
        }
        Ok(())
    }

    fn apply_chain(&mut self, chain: &Signature, call: Call<'_>, over: &Options) -> Result<Sent, Reason> {
        let mut options = chain.options.merged(over);
        let (id, group, root) = (
            options.text("task_id"),
            options.text("group_id"),
            options.text("root_id"),
        );
        let chord = options.take("chord");
        let index = options
            .take("group_index")
            .and_then(|index| index.as_str().parse().ok());
        let (links, errbacks) = (options.list("link"), options.list("link_error"));
        for name in ["task_id", "group_id", "link", "link_error"] {
            options.take(name);
        }
        let mut steps = steps(chain.tasks()?)?;
        let place = Place {
            id: id.as_deref(),
            group: group.as_deref(),
            index,
            chord: chord.as_ref(),
            root: root.as_deref(),
        };
        let result = freeze_steps(&mut steps, place, self.sender)?;
        if let Some(last) = steps.last_mut() {
            for link in &links {
                last.append("link", link);
            }
        }
        for errback in &errbacks {
            for step in &mut steps {
                link_error(step, errback)?;
            }
        }
        let Some((first, rest)) = steps.split_first() else {
            return Err(Reason::Missing("a task in the chain"));
        };
        // The last element is the next step, so what comes after this chain stands before it.
        let mut after = options
            .take("chain")
            .map_or_else(Vec::new, |chain| signature::list(&chain));
        after.extend(rest.iter().rev().map(Signature::to_json));
        if !after.is_empty() {
            options.set("chain", write::array(&after));
        }
        let (args, _) = arguments(chain, call)?;
        let args = args.elements().unwrap_or_default();
        let kwargs = call.kwargs.filter(|_| !chain.immutable);
        let first = self.apply(first, Call { args: &args, kwargs }, &options)?;
        Ok(Sent {
            child: first.child,
            result,
        })
    }

    fn apply_chord(&mut self, chord: &Signature, call: Call<'_>, over: &Options) -> Result<Sent, Reason> {
        let mut options = chord.options.merged(over);
        let body_id = options.take("task_id").and_then(|id| id.text());
        let delays = ["countdown", "eta"].map(|name| (name, options.take(name)));
        let (links, errbacks) = (options.list("link"), options.list("link_error"));
        options.take("link");
        options.take("link_error");

        let mut header = header(chord)?;
        let id = header.id().unwrap_or_else(&mut *self.sender.ids);
        let mut body = chord.body()?;
        for (name, value) in options.entries().filter(|(name, _)| *name != "parent_id") {
            // A group id of null is kept: a replaced task without a group is not to get one.
            if !(value.is_null() && name != "group_id") {
                body.options.set(name, value.clone());
            }
        }
        for link in &links {
            body.append("link", link);
        }
        for errback in &errbacks {
            link_error(&mut body, errback)?;
        }
        let root = body.options.text("root_id");
        let place = Place {
            id: body_id.as_deref(),
            group: Some(&id),
            ..Place::under(root.as_deref())
        };
        let mut result = freeze(&mut body, place, self.sender)?;
        for name in ["chain", "chord", "group_id"] {
            options.take(name);
        }
        for (name, value) in delays {
            if let Some(value) = value {
                options.set(name, value);
            }
        }
        header.options.set("task_id", Json::string(&id));
        let child = self.start_chord(chord, &header, &body, root.as_deref(), call, &options)?;
        if child.members.is_some() {
            result.set_root(child.clone());
        }
        Ok(Sent { child, result })
    }

    fn start_chord(
        &mut self,
        chord: &Signature,
        header: &Signature,
        body: &Signature,
        root: Option<&str>,
        call: Call<'_>,
        options: &Options,
    ) -> Result<ResultTuple, Reason> {
        let mut tasks = flat(header.tasks()?)?;
        if tasks.is_empty() {
            let sent = self.apply(body, Call::with(&[Json::empty_array()]), &Options::default())?;
            return Ok(sent.child);
        }
        let id = header.id().unwrap_or_default();
        let shared = body.to_json();
        let mut size = 0;
        for task in &tasks {
            size += task.size()?;
        }
        // As many copies of the body will be made; rather count them than make them.
        let copies = usize::try_from(size)
            .unwrap_or(usize::MAX)
            .saturating_mul(shared.as_str().len());
        self.allow(copies)?;
        let mut results = Vec::with_capacity(tasks.len());
        for (index, task) in tasks.iter_mut().enumerate() {
            let place = Place {
                id: None,
                group: Some(&id),
                index: i64::try_from(index).ok(),
                chord: Some(&shared),
                root,
            };
            results.push(freeze(task, place, self.sender)?);
        }
        let result = ResultTuple::group(&id, results);
        if result.members.iter().flatten().any(|member| member.members.is_some()) {
            self.steps.push(FollowUp::SaveGroup {
                group: id.clone(),
                document: write::object([("result", &result.to_json())]),
            });
        }
        let (args, _) = arguments(chord, call)?;
        let args = args.elements().unwrap_or_default();
        let given = chord.kwargs.get("kwargs").filter(Json::is_object);
        let kwargs = merged(&given.unwrap_or_else(Json::empty_object), call.kwargs);
        let call = Call {
            args: &args,
            kwargs: Some(&kwargs),
        };
        let options = header.options.merged(options);
        let start = self.steps.len();
        self.apply_members(&tasks, &id, call, without_id(options))?;
        // Before the last member: nobody can complete the chord until it is sent.
        let is_send = |step: &FollowUp| matches!(step, FollowUp::Send(_));
        let last = self.steps[start..].iter().rposition(is_send).unwrap_or(0);
        self.steps.insert(start + last, FollowUp::ChordSize { group: id, size });
        Ok(result)
    }
}

fn without_id(mut options: Options) -> Options {
    options.take("task_id");
    options
}

fn take_id(options: &mut Options, sender: &mut Sender<'_>) -> String {
    let given = options.take("task_id").and_then(|id| id.text());
    given.unwrap_or_else(&mut *sender.ids)
}

/// Positional and keyword arguments of a call.
fn arguments(signature: &Signature, call: Call<'_>) -> Result<(Json, Json), Reason> {
    if signature.immutable {
        return Ok((signature.args.clone(), signature.kwargs.clone()));
    }
    let args = if call.args.is_empty() {
        signature.args.clone()
    } else {
        let own = signature
            .args
            .elements()
            .ok_or(signature::wrong("signature.args", "an array"))?;
        write::array(call.args.iter().chain(&own))
    };
    Ok((args, merged(&signature.kwargs, call.kwargs)))
}

fn merged(kwargs: &Json, over: Option<&Json>) -> Json {
    let Some(over) = over.filter(|over| over.as_str() != "{}") else {
        return kwargs.clone();
    };
    let mut merged = Options::of(kwargs);
    for (name, value) in over.entries() {
        merged.set(&name, value);
    }
    merged.to_json()
}

/// Adds an errback where the failure of `signature` is noticed: at each task of a group, at the body of a chord.
pub(super) fn link_error(signature: &mut Signature, errback: &Json) -> Result<(), Reason> {
    match signature.kind {
        Kind::Group => {
            let mut tasks = signature.tasks()?;
            for task in &mut tasks {
                link_error(task, errback)?;
            }
            signature.set_tasks(&tasks);
        }
        Kind::Chord => {
            let mut body = signature.body()?;
            link_error(&mut body, errback)?;
            signature.set_kwarg("body", &body.to_json());
        }
        Kind::Task | Kind::Chain => signature.append("link_error", errback),
    }
    Ok(())
}
