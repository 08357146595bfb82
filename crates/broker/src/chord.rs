//! Chords: counting parts, as Celery's own workers on the same result database do.

use umbel_protocol::canvas::{ChordKeys, ChordPart, PartState, timings};
use umbel_protocol::json::Json;

use crate::call::{Args, PART, Reply};
use crate::settle::FollowUp;
use crate::{Error, ResultStore};

/// What a part did.
#[derive(Debug, Clone, PartialEq)]
pub enum Counted {
    /// Others are missing, or somebody else dispatches the body.
    Open,
    /// The chord has ended already.
    Done,
    /// This was the last one: the caller sends the body, guarded by the token.
    Claimed {
        /// The structure of a header with groups in it.
        structure: Option<Json>,
        /// All parts, in their order.
        parts: Vec<Json>,
    },
}

impl ResultStore {
    /// The chord's keys on this database.
    pub fn chord_keys(&self, group: &str) -> ChordKeys {
        let prefix = self.prefix();
        let ChordKeys {
            group,
            parts,
            extra,
            size,
            counted,
            claim,
        } = ChordKeys::of(group);
        let key = |name: String| format!("{prefix}{name}");
        ChordKeys {
            group: key(group),
            parts: key(parts),
            extra: key(extra),
            size: key(size),
            counted: key(counted),
            claim: key(claim),
        }
    }

    /// Counts a part. Counting twice changes nothing; a claim is renewed by the token that holds it.
    ///
    /// `is_fast`: the first part that is no success completes the chord, whatever parts there are.
    ///
    /// # Errors
    /// [`Error::Call`]: repeat it.
    ///
    /// # Cancellation
    /// Safe: an unused claim runs out.
    pub async fn count_part(&self, part: &ChordPart, token: &str, is_fast: bool) -> Result<Counted, Error> {
        let keys = self.chord_keys(&part.group);
        let args = Args::new(&PART, self.scope())
            .arg(keys.group)
            .arg(keys.parts)
            .arg(keys.extra)
            .arg(keys.size)
            .arg(keys.counted)
            .arg(keys.claim)
            .arg(part.score())
            .arg(part.json.as_str())
            .arg(part.member())
            .arg(token)
            .arg(timings::PARTS)
            .arg(timings::PUBLISH)
            .arg(match (is_fast, part.state) {
                (false, _) => "all",
                (true, PartState::Success) => "soon",
                (true, PartState::Failure | PartState::Revoked) => "failed",
            })
            .arg(timings::DONE);
        let mut reply = Reply::of(&PART, args.call(&mut self.connection()).await?)?;
        match reply.text()?.as_str() {
            "claimed" => {}
            "done" => return Ok(Counted::Done),
            _ => return Ok(Counted::Open),
        }
        let structure = Json::parse(&reply.text()?).ok();
        let mut parts = Vec::new();
        while !reply.is_done() {
            let text = reply.text()?;
            parts.push(Json::parse(&text).map_err(|err| Error::Reply {
                call: "part",
                what: format!("a part that is no JSON: {err}"),
            })?);
        }
        Ok(Counted::Claimed { structure, parts })
    }

    /// Carries out what follows an end, where this database is not the broker's.
    ///
    /// # Errors
    /// [`Error::Call`]: repeat it.
    pub async fn follow(&self, follow_ups: &[FollowUp]) -> Result<(), Error> {
        self.broker.follow(follow_ups).await
    }
}
