//! Parts of chords, many in one call: each counts as it would alone.

use umbel_broker::{Broker, Config, Counted, Part, ResultStore};
use umbel_protocol::canvas::{ChordPart, PartState};
use umbel_protocol::json::Json;
use umbel_testkit::Redis;
use umbel_testkit::redis::AsyncCommands;
use umbel_testkit::redis::aio::MultiplexedConnection;

struct Stage {
    _server: Redis,
    redis: MultiplexedConnection,
    store: ResultStore,
}

impl Stage {
    async fn start() -> Stage {
        let server = Redis::start().await;
        let redis = server.connection().await;
        let broker = Broker::connect(&Config::new(&server.url()))
            .await
            .expect("the server runs");
        Stage {
            _server: server,
            redis,
            store: ResultStore::of(&broker),
        }
    }

    /// How many parts a chord waits for.
    async fn size(&mut self, group: &str, size: u64) {
        let key = self.store.chord_keys(group).size;
        let _: () = self.redis.set(key, size).await.expect("the server answers");
    }

    async fn count(&self, parts: &[ChordPart], is_fast: bool) -> Vec<Counted> {
        let written = parts.iter().map(|part| Part {
            part,
            written: part.json.as_str().as_bytes(),
        });
        let parts: Vec<Part<'_>> = written.collect();
        self.store
            .count_parts(&parts, is_fast)
            .await
            .expect("the server answers")
    }
}

fn part(group: &str, index: i64) -> ChordPart {
    ChordPart {
        group: group.into(),
        id: format!("{group}-{index}"),
        index: Some(index),
        state: PartState::Success,
        json: Json::of(&(1, format!("{group}-{index}"), "SUCCESS", index)),
        body: Json::null(),
    }
}

fn failed(group: &str, index: i64) -> ChordPart {
    ChordPart {
        state: PartState::Failure,
        json: Json::of(&(1, format!("{group}-{index}"), "FAILURE", "x")),
        ..part(group, index)
    }
}

/// The indices of the parts that somebody has claimed, in their order.
fn claimed(counted: &Counted) -> Option<Vec<String>> {
    let Counted::Claimed { structure, parts } = counted else {
        return None;
    };
    assert_eq!(structure, &None);
    let values = parts.iter().map(|part| {
        let part = Json::parse(std::str::from_utf8(part).expect("it is text")).expect("it is JSON");
        part.elements().expect("it is a list")[3].to_string()
    });
    Some(values.collect())
}

#[tokio::test]
async fn parts_of_several_chords_are_counted_in_one_call() {
    let mut stage = Stage::start().await;
    stage.size("a", 3).await;
    stage.size("b", 1).await;
    stage.size("c", 2).await;
    let parts = [part("a", 2), part("b", 0), part("a", 0), part("c", 0), part("a", 1)];
    let counted = stage.count(&parts, false).await;
    let shown: Vec<_> = counted.iter().map(claimed).collect();
    let in_order = |indices: &[&str]| Some(indices.iter().map(|&index| index.to_owned()).collect::<Vec<_>>());
    assert_eq!(shown, [None, in_order(&["0"]), None, None, in_order(&["0", "1", "2"])]);
    assert_eq!(counted[3], Counted::Open, "another part of it is missing");
    // Nobody heard the answer: the claims are those of the same parts.
    let again = stage.count(&parts, false).await;
    assert_eq!(again, counted);
    // Another worker's member comes again: the claim is held.
    assert_eq!(stage.count(&[part("a", 0)], false).await, [Counted::Open]);
    let keys = stage.store.chord_keys("a");
    let _: () = stage.redis.set(&keys.claim, "done").await.expect("the server answers");
    let late = [part("a", 0), part("c", 1), part("a", 1)];
    let counted = stage.count(&late, false).await;
    assert_eq!((&counted[0], &counted[2]), (&Counted::Done, &Counted::Done));
    assert_eq!(claimed(&counted[1]), in_order(&["0", "1"]));
    let left: i64 = stage.redis.ttl(&keys.parts).await.expect("the server answers");
    assert!(
        (1..=300).contains(&left),
        "parts of a chord that has ended are kept for a while: {left}"
    );
}

#[tokio::test]
async fn a_member_that_comes_twice_in_one_call_counts_once() {
    let mut stage = Stage::start().await;
    stage.size("a", 2).await;
    // Two runs of one member, with different results.
    let second = ChordPart {
        json: Json::of(&(1, "a-0", "SUCCESS", "other")),
        ..part("a", 0)
    };
    assert_eq!(
        stage.count(&[part("a", 0), second], false).await,
        [Counted::Open, Counted::Open]
    );
    let counted = stage.count(&[part("a", 1)], false).await;
    assert_eq!(claimed(&counted[0]), Some(vec!["0".to_owned(), "1".to_owned()]));
}

#[tokio::test]
async fn a_list_of_parts_stays_one() {
    let mut stage = Stage::start().await;
    stage.size("a", 3).await;
    let keys = stage.store.chord_keys("a");
    // A Python worker with `result_chord_ordered` off was first.
    let theirs = part("a", 2);
    let _: () = stage
        .redis
        .rpush(&keys.parts, theirs.json.as_str())
        .await
        .expect("the server answers");
    let _: () = stage
        .redis
        .sadd(&keys.counted, theirs.member())
        .await
        .expect("the server answers");
    let counted = stage.count(&[part("a", 1), part("a", 0)], false).await;
    assert_eq!(
        claimed(&counted[1]),
        Some(vec!["2".to_owned(), "1".to_owned(), "0".to_owned()])
    );
}

/// What a careless producer wrote as the size must not leave the chord open for ever.
#[tokio::test]
async fn a_size_that_is_met_on_the_way_counts() {
    let mut stage = Stage::start().await;
    stage.size("a", 2).await;
    let counted = stage.count(&[part("a", 0), part("a", 1), part("a", 2)], false).await;
    assert_eq!(counted.iter().filter_map(claimed).count(), 1, "{counted:?}");
}

#[tokio::test]
async fn the_first_failure_of_a_call_ends_its_chord_where_that_is_told() {
    let mut stage = Stage::start().await;
    for (is_fast, ends) in [(false, false), (true, true)] {
        let group = if is_fast { "fast" } else { "slow" };
        stage.size(group, 9).await;
        let parts = [part(group, 0), failed(group, 1), part(group, 2)];
        let counted = stage.count(&parts, is_fast).await;
        assert_eq!(counted.iter().any(|one| claimed(one).is_some()), ends, "{group}");
    }
    // Known before the size is.
    assert_eq!(stage.count(&[failed("early", 0)], true).await, [Counted::Open]);
    stage.size("early", 9).await;
    let counted = stage.count(&[part("early", 1)], true).await;
    assert_eq!(claimed(&counted[0]), Some(vec!["\"x\"".to_owned(), "1".to_owned()]));
}
