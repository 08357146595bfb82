//! All of Redis, read back.

use std::collections::{BTreeMap, BTreeSet};

use redis::FromRedisValue;
use redis::streams::StreamRangeReply;

use super::{Op, World, id, name};
use crate::model::{Gate, QUEUES, Raw};

/// List and message under a lease id: in the id and bare, or both in a record.
fn under(lid: &str, value: &[u8]) -> (Raw, Raw) {
    let list = lid.split_once('|').and_then(|(_, rest)| rest.rsplit_once(':'));
    list.map_or_else(|| unfold(value), |(list, _)| (list.into(), value.to_vec()))
}

/// `<length of head>:<head><rest>`.
fn unfold(record: &[u8]) -> (Raw, Raw) {
    let colon = record
        .iter()
        .position(|byte| *byte == b':')
        .expect("a record has a length");
    let length: usize = std::str::from_utf8(&record[..colon])
        .expect("digits")
        .parse()
        .expect("digits");
    let (head, rest) = record[colon + 1..].split_at(length);
    (head.to_vec(), rest.to_vec())
}

impl World {
    pub(super) async fn read<T: FromRedisValue>(&mut self, command: &str, key: &str) -> T {
        let range: &[&str] = match command {
            "LRANGE" | "ZRANGE" => &["0", "-1"],
            "XRANGE" => &["-", "+"],
            _ => &[],
        };
        redis::cmd(command)
            .arg(key)
            .arg(range)
            .query_async(&mut self.redis)
            .await
            .expect("the server answers")
    }

    async fn stream(&mut self, key: &str) -> Vec<Raw> {
        let reply: StreamRangeReply = self.read("XRANGE", key).await;
        reply
            .ids
            .iter()
            .map(|entry| entry.get("raw").expect("the raw message is kept"))
            .collect()
    }

    pub(super) async fn compare(&mut self, op: &Op) {
        let mut places: BTreeMap<Raw, Vec<&str>> = BTreeMap::new();
        let mut put = |raw: &Raw, place| places.entry(raw.clone()).or_default().push(place);

        let keys: Vec<String> = self.model.lists.keys().cloned().collect();
        for key in keys {
            let mut list: Vec<Raw> = self.read("LRANGE", &key).await;
            list.reverse();
            list.iter().for_each(|raw| put(raw, "list"));
            assert_eq!(
                list,
                self.model.lists[&key].iter().cloned().collect::<Vec<_>>(),
                "list {key:?} after {op:?}"
            );
        }
        for (queue, name) in QUEUES.iter().enumerate() {
            let suspects: Vec<Raw> = self.read("LRANGE", &format!("umbel:suspect:{name}")).await;
            let suspects: Vec<(Raw, Raw)> = suspects.iter().rev().map(|record| unfold(record)).collect();
            suspects.iter().for_each(|(_, raw)| put(raw, "suspect"));
            let expected: Vec<_> = self.model.suspects[queue]
                .iter()
                .map(|(list, raw)| (list.clone().into_bytes(), raw.clone()))
                .collect();
            assert_eq!(suspects, expected, "suspects after {op:?}");

            let delayed: Vec<Raw> = self.read("ZRANGE", &format!("umbel:delayed:{}", QUEUES[queue])).await;
            let delayed: BTreeSet<(Raw, Raw)> = delayed
                .iter()
                .map(|member| {
                    let (list, tagged) = unfold(member);
                    (list, unfold(&tagged).1)
                })
                .collect();
            delayed.iter().for_each(|(_, raw)| put(raw, "delayed"));
            let expected = self.model.delayed[queue]
                .iter()
                .map(|member| (member.list.clone().into_bytes(), member.raw.clone()));
            assert_eq!(delayed, expected.collect(), "delayed after {op:?}");

            let dead = self.stream(&format!("umbel:dead:{}", QUEUES[queue])).await;
            dead.iter().for_each(|raw| put(raw, "dead"));
            assert_eq!(dead, self.model.dead[queue], "dead letters after {op:?}");
            let quarantine = self.stream(&format!("umbel:quarantine:{}", QUEUES[queue])).await;
            quarantine.iter().for_each(|raw| put(raw, "quarantine"));
            let sorted = |raws: &[Raw]| raws.iter().cloned().collect::<BTreeSet<_>>();
            assert_eq!(
                sorted(&quarantine),
                sorted(&self.model.quarantine[queue]),
                "quarantine after {op:?}"
            );
        }

        let bodies: BTreeMap<String, Raw> = self.read("HGETALL", "umbel:unacked").await;
        let leases: BTreeSet<String> = self.read("ZRANGE", "umbel:lease").await;
        let with_body: BTreeSet<String> = bodies.keys().cloned().collect();
        assert_eq!(with_body, leases, "a body and a lease go together, after {op:?}");
        let bodies: BTreeMap<String, (Raw, Raw)> = bodies
            .iter()
            .map(|(lid, value)| (lid.clone(), under(lid, value)))
            .collect();
        bodies.values().for_each(|(_, raw)| put(raw, "leased"));
        let fold = |lease: &crate::model::Lease| (lease.list.clone().into_bytes(), lease.raw.clone());
        let expected = self.model.leases.iter().map(|(lid, lease)| (lid.clone(), fold(lease)));
        assert_eq!(bodies, expected.collect(), "leases after {op:?}");

        for raw in &self.model.published {
            let found = places.get(raw).map_or(0, Vec::len) + usize::from(self.model.settled.contains(raw));
            let (id, places) = (id(raw), places.get(raw));
            assert_eq!(
                found, 1,
                "message {id} is in exactly one place, not in {places:?}, after {op:?}"
            );
        }
        self.compare_counts(op).await;
    }

    async fn compare_counts(&mut self, op: &Op) {
        let held: BTreeMap<String, i64> = self.read("HGETALL", "umbel:held").await;
        let mut expected: BTreeMap<String, i64> = BTreeMap::new();
        for lease in self.model.leases.values() {
            *expected.entry(format!("w:{}", name(lease.worker))).or_default() += 1;
            *expected.entry(format!("q:{}", QUEUES[lease.queue])).or_default() += 1;
        }
        let held: BTreeMap<String, i64> = held.into_iter().filter(|(_, count)| *count != 0).collect();
        assert_eq!(held, expected, "counts after {op:?}");

        let deaths: BTreeMap<String, u32> = self.read("HGETALL", "umbel:att").await;
        let expected: BTreeMap<String, u32> = self.model.deaths.iter().map(|(raw, count)| (id(raw), *count)).collect();
        assert_eq!(deaths, expected, "deaths after {op:?}");

        let entries: BTreeMap<String, String> = self.read("HGETALL", "umbel:workers").await;
        for (worker, gate) in self.gates.iter().enumerate() {
            let entry = entries.get(&name(worker)).map_or("", String::as_str);
            let state = entry.split(['|', '@']).next().unwrap_or_default();
            let expected = match gate {
                Gate::Unknown => "",
                Gate::New => "new",
                Gate::Open => "open",
                Gate::Closed => "closed",
            };
            assert_eq!(state, expected, "gate of worker {worker} after {op:?}");
        }

        let names: Vec<String> = QUEUES.iter().map(|queue| (*queue).to_owned()).collect();
        let sample = self.broker.depths(&names).await.expect("the server answers");
        for (queue, depth) in sample.queues.iter().enumerate() {
            let depth = depth.as_ref().expect("all keys are of their type");
            let of_queue = |list: &str| list.split("\u{6}\u{16}").next() == Some(QUEUES[queue]);
            let counted = [
                depth.waiting,
                depth.in_flight,
                depth.delayed,
                depth.suspect,
                depth.dead,
                depth.quarantine,
            ];
            let expected = [
                self.model
                    .lists
                    .iter()
                    .filter(|(list, _)| of_queue(list))
                    .map(|(_, messages)| messages.len())
                    .sum(),
                self.model.leases.values().filter(|lease| lease.queue == queue).count(),
                self.model.delayed[queue].len(),
                self.model.suspects[queue].len(),
                self.model.dead[queue].len(),
                self.model.quarantine[queue].len(),
            ];
            assert_eq!(
                counted,
                expected.map(|count| count as u64),
                "depth of queue {queue} after {op:?}"
            );
        }
    }
}
