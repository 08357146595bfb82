//! Chords: counting parts, as Celery's own workers on the same result database do.

use umbel_protocol::canvas::{ChordKeys, ChordPart, PartState, timings};

use crate::call::{Args, PART, Reply};
use crate::settle::FollowUp;
use crate::{Error, ResultStore};

/// A part on its way.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// What it is a part of.
    pub part: &'a ChordPart,
    /// [`ChordPart::json`] as it is stored.
    pub written: &'a [u8],
}

/// What a part did.
#[derive(Debug, Clone, PartialEq)]
pub enum Counted {
    /// Others are missing, or somebody else dispatches the body.
    Open,
    /// The chord has ended already.
    Done,
    /// This was the last one: the caller sends the body, guarded by the token.
    Claimed {
        /// The document with the structure of a header that has groups in it.
        structure: Option<Vec<u8>>,
        /// All parts, in their order, as they were stored.
        parts: Vec<Vec<u8>>,
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

    /// Counts parts, in one call; answers what each of them did. Counting twice changes nothing; a claim is renewed by the
    /// token that holds it.
    ///
    /// `is_fast`: the first part that is no success completes its chord, whatever parts there are.
    ///
    /// # Errors
    /// [`Error::Call`]: repeat it, one chord at a time where the server refuses the whole.
    ///
    /// # Cancellation
    /// Safe: an unused claim runs out.
    pub async fn count_parts(&self, parts: &[Part<'_>], is_fast: bool) -> Result<Vec<Counted>, Error> {
        // Places of the parts of each chord.
        let mut chords: Vec<(&str, Vec<usize>)> = Vec::new();
        for (place, Part { part, .. }) in parts.iter().enumerate() {
            match chords.iter_mut().find(|(group, _)| *group == part.group) {
                Some((_, places)) => places.push(place),
                None => chords.push((&part.group, vec![place])),
            }
        }
        let mut args = Args::new(&PART, self.scope())
            .arg(timings::PARTS)
            .arg(timings::PUBLISH)
            .arg(timings::DONE)
            .arg(i32::from(is_fast));
        for (group, places) in &chords {
            let keys = self.chord_keys(group);
            for key in [keys.group, keys.parts, keys.extra, keys.size, keys.counted, keys.claim] {
                args.push(key);
            }
            args.push(places.len());
            for Part { part, written } in places.iter().map(|place| parts[*place]) {
                args.push(part.score());
                args.push(written);
                args.push(part.member());
                args.push(claim_token(part));
                args.push(i32::from(part.state != PartState::Success));
            }
        }
        let mut reply = args.call(&mut self.connection()).await?.reply()?;
        let mut counted = vec![Counted::Open; parts.len()];
        for (_, places) in &chords {
            let mut answer = reply.array()?;
            match answer.text()?.as_str() {
                "claimed" => {
                    let place = usize::try_from(answer.count()?).ok();
                    let place = place.and_then(|place| places.get(place.checked_sub(1)?));
                    let Some(slot) = place.and_then(|place| counted.get_mut(*place)) else {
                        return Err(answer.wrong("a claim of no part".into()));
                    };
                    *slot = claimed(&mut answer)?;
                }
                "done" => places.iter().for_each(|place| counted[*place] = Counted::Done),
                _ => {}
            }
        }
        Ok(counted)
    }

    /// Carries out what follows an end, where this database is not the broker's.
    ///
    /// # Errors
    /// [`Error::Call`]: repeat it.
    pub async fn follow(&self, follow_ups: &[FollowUp]) -> Result<(), Error> {
        self.broker.follow(follow_ups).await
    }
}

/// The token by which a part claims the dispatch. The same in each delivery of the member: one that follows a crash takes
/// up the claim of the one before.
pub fn claim_token(part: &ChordPart) -> String {
    format!("umbel:{}", part.id)
}

fn claimed(answer: &mut Reply) -> Result<Counted, Error> {
    let structure = Some(answer.bytes()?).filter(|bytes| !bytes.is_empty());
    let mut parts = Vec::with_capacity(answer.len());
    while !answer.is_done() {
        parts.push(answer.bytes()?);
    }
    Ok(Counted::Claimed { structure, parts })
}
