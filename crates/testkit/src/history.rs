//! What the processes of a test say they did, and the verdict on it.
//!
//! Each process appends lines to its own file, one system call a line, so that a SIGKILL loses nothing that was
//! said. The merge is by task id; times are of one machine's clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::TempDir;

/// The environment variable by which a process under test learns where to write.
const FOLDER: &str = "UMBEL_TEST_HISTORY";

/// Something that happened to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A producer knows that Redis has it.
    Enqueued,
    /// A worker began to run it.
    Started,
    /// The run did what must not be done by two at a time.
    Effect,
    /// The same, but the process was held between the look at its lease and this: no look helps against that, only a token
    /// that the other side compares.
    Held,
    /// The run came to its end.
    Done,
}

impl Event {
    const ALL: [Event; 5] = [Event::Enqueued, Event::Started, Event::Effect, Event::Held, Event::Done];

    fn name(self) -> &'static str {
        match self {
            Event::Enqueued => "enqueued",
            Event::Started => "started",
            Event::Effect => "effect",
            Event::Held => "held",
            Event::Done => "done",
        }
    }
}

/// One process' file.
#[derive(Debug, Clone)]
pub struct Log {
    file: Arc<File>,
}

impl Log {
    /// The file of this process, where the test that started it said so.
    ///
    /// # Panics
    /// When the folder that the test named cannot be written to.
    pub fn of_this_process() -> Option<Log> {
        let folder = std::env::var_os(FOLDER)?;
        Some(Log::in_folder(
            Path::new(&folder),
            &format!("process-{}", std::process::id()),
        ))
    }

    fn in_folder(folder: &Path, name: &str) -> Log {
        let file = File::options()
            .create(true)
            .append(true)
            .open(folder.join(name))
            .expect("the history can be written");
        Log { file: Arc::new(file) }
    }

    /// Appends one event. `token` orders the deliveries of a task; 0 where there is none.
    ///
    /// # Panics
    /// When the disk is full: a history with holes proves nothing.
    pub fn write(&self, event: Event, id: &str, token: u64) {
        self.write_at(SystemTime::now(), event, id, token);
    }

    /// The same, of an event at that time.
    ///
    /// # Panics
    /// As there.
    pub fn write_at(&self, at: SystemTime, event: Event, id: &str, token: u64) {
        let now = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        let line = format!("{now} {} {} {token} {id}\n", std::process::id(), event.name());
        (&*self.file)
            .write_all(line.as_bytes())
            .expect("the history can be written");
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    at: u128,
    process: u32,
    event: Event,
    token: u64,
}

/// The histories of all processes of one test.
#[derive(Debug)]
pub struct History {
    folder: TempDir,
    own: Log,
}

impl Default for History {
    fn default() -> History {
        History::new()
    }
}

impl History {
    /// A new, empty one.
    pub fn new() -> History {
        let folder = TempDir::new("history");
        let own = Log::in_folder(folder.path(), "test");
        History { folder, own }
    }

    /// What to put into the environment of a process that shall write to it.
    ///
    /// # Panics
    /// When the folder for temporary files has a name that is no text.
    pub fn environment(&self) -> (&'static str, &str) {
        (FOLDER, self.folder.path().to_str().expect("the folder's name is ours"))
    }

    /// Notes that Redis has these tasks.
    pub fn enqueued<'a>(&self, ids: impl IntoIterator<Item = &'a str>) {
        for id in ids {
            self.own.write(Event::Enqueued, id, 0);
        }
    }

    fn entries(&self) -> BTreeMap<String, Vec<Entry>> {
        let mut tasks: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        let files = std::fs::read_dir(self.folder.path()).expect("the folder is there");
        for file in files.flatten() {
            let text = std::fs::read_to_string(file.path()).expect("the histories are text");
            // A process that was stopped or killed while it wrote leaves a last line without its end.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            for line in whole.lines() {
                let (id, entry) = parse(line).unwrap_or_else(|| panic!("not a line of a history: {line:?}"));
                tasks.entry(id.to_owned()).or_default().push(entry);
            }
        }
        for entries in tasks.values_mut() {
            entries.sort_by_key(|entry| entry.at);
        }
        tasks
    }

    /// How often this happened to this task.
    pub fn count(&self, event: Event, id: &str) -> usize {
        self.entries()
            .get(id)
            .map_or(0, |entries| entries.iter().filter(|entry| entry.event == event).count())
    }

    /// How often this happened to any task.
    pub fn total(&self, event: Event) -> usize {
        self.entries()
            .values()
            .flatten()
            .filter(|entry| entry.event == event)
            .count()
    }

    /// The processes in which this happened, and how often in each.
    pub fn processes(&self, event: Event) -> BTreeMap<u32, usize> {
        let mut processes = BTreeMap::new();
        for entry in self.entries().values().flatten().filter(|entry| entry.event == event) {
            *processes.entry(entry.process).or_default() += 1;
        }
        processes
    }

    /// The tasks to which this happened, in the order in which it did for the first time.
    pub fn order(&self, event: Event) -> Vec<String> {
        let mut first: Vec<(u128, String)> = Vec::new();
        for (id, entries) in self.entries() {
            if let Some(entry) = entries.iter().find(|entry| entry.event == event) {
                first.push((entry.at, id));
            }
        }
        first.sort();
        first.into_iter().map(|(_, id)| id).collect()
    }

    /// Microseconds from being enqueued to the first start, of each task that was started.
    pub fn waits(&self) -> Vec<u64> {
        let at = |entries: &[Entry], event| entries.iter().find(|entry| entry.event == event).map(|entry| entry.at);
        let wait =
            |entries: &Vec<Entry>| Some(at(entries, Event::Started)?.saturating_sub(at(entries, Event::Enqueued)?));
        self.entries()
            .values()
            .filter_map(wait)
            .filter_map(|wait| wait.try_into().ok())
            .collect()
    }

    /// The verdict. `elsewhere` are tasks that are known to have come to another end: dead-lettered, expired, still
    /// queued.
    pub fn verdict(&self, elsewhere: &[String]) -> Verdict {
        let elsewhere: BTreeSet<&str> = elsewhere.iter().map(String::as_str).collect();
        let mut verdict = Verdict::default();
        for (id, entries) in self.entries() {
            let count = |event| entries.iter().filter(|entry| entry.event == event).count();
            verdict.enqueued += usize::from(count(Event::Enqueued) > 0);
            verdict.done += usize::from(count(Event::Done) > 0);
            verdict.rerun += count(Event::Started).saturating_sub(1);
            verdict.repeated_effects += (count(Event::Effect) + count(Event::Held)).saturating_sub(1);
            if count(Event::Enqueued) == 0 {
                verdict.unknown.push(id.clone());
            } else if count(Event::Done) == 0 && !elsewhere.contains(id.as_str()) {
                verdict.lost.push(id.clone());
            }
            // An effect is stale when a later delivery of the same task had begun before it.
            let mut newest = 0;
            for entry in &entries {
                match entry.event {
                    Event::Started => newest = newest.max(entry.token),
                    Event::Effect if entry.token < newest => verdict.stale.push(id.clone()),
                    Event::Held if entry.token < newest => verdict.held += 1,
                    Event::Effect | Event::Held | Event::Enqueued | Event::Done => {}
                }
            }
        }
        verdict
    }
}

fn parse(line: &str) -> Option<(&str, Entry)> {
    let mut words = line.splitn(5, ' ');
    let at = words.next()?.parse().ok()?;
    let process = words.next()?.parse().ok()?;
    let name = words.next()?;
    let token = words.next()?.parse().ok()?;
    let event = Event::ALL.into_iter().find(|event| event.name() == name)?;
    Some((
        words.next()?,
        Entry {
            at,
            process,
            event,
            token,
        },
    ))
}

/// What the histories add up to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Tasks that Redis had.
    pub enqueued: usize,
    /// Tasks that were run to the end at least once.
    pub done: usize,
    /// Tasks that Redis had and nobody finished.
    pub lost: Vec<String>,
    /// Starts beyond the first of each task.
    pub rerun: usize,
    /// Effects beyond the first of each task.
    pub repeated_effects: usize,
    /// Tasks with an effect of an older delivery after a newer one had begun.
    pub stale: Vec<String>,
    /// The same by processes that were held between their look at the lease and the effect.
    pub held: usize,
    /// Tasks that ran although nobody sent them.
    pub unknown: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict {
            enqueued,
            done,
            lost,
            rerun,
            repeated_effects,
            stale,
            held,
            unknown,
        } = self;
        write!(
            f,
            "enqueued {enqueued}, done {done}, lost {}, run again {rerun}, ",
            lost.len()
        )?;
        write!(
            f,
            "effects repeated {repeated_effects}, stale {} and {held} of held processes, unknown {}",
            stale.len(),
            unknown.len()
        )?;
        for (name, ids) in [("lost", lost), ("stale", stale), ("unknown", unknown)] {
            if let Some(first) = ids.first() {
                write!(f, "; first {name}: {first}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_seen() {
        let history = History::new();
        history.enqueued(["a", "b", "c", "d", "dead"]);
        let log = &history.own;
        for (event, id, token) in [
            (Event::Started, "a", 1),
            (Event::Effect, "a", 1),
            (Event::Done, "a", 1),
            (Event::Started, "b", 2), // and then silence: lost
            (Event::Started, "c", 3),
            (Event::Started, "c", 4),
            (Event::Effect, "c", 4),
            (Event::Effect, "c", 3), // stale, and repeated
            (Event::Held, "c", 3),
            (Event::Done, "c", 4),
            (Event::Started, "nobody sent this", 5),
            (Event::Done, "nobody sent this", 5),
        ] {
            log.write(event, id, token);
        }
        let verdict = history.verdict(&["dead".to_owned()]);
        let ids = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(verdict.lost, ids(&["b", "d"]));
        assert_eq!(verdict.stale, ids(&["c"]));
        assert_eq!(verdict.unknown, ids(&["nobody sent this"]));
        assert_eq!(
            (verdict.enqueued, verdict.done, verdict.rerun, verdict.repeated_effects),
            (5, 3, 1, 2)
        );
        assert_eq!(verdict.held, 1);
        assert_eq!(history.order(Event::Started), ids(&["a", "b", "c", "nobody sent this"]));
    }
}
