//! What is said of a target's credential, and when its token is renewed.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use umbel_api::{
    TargetClusterStatus,
    condition::{Finding, Status, merge, whole_seconds},
    names::cluster_condition::CREDENTIALS_EXPIRING,
};

/// A credential that nobody renews is said to end soon when less than this is left, …
const SOON: SignedDuration = SignedDuration::from_hours(7 * 24);
/// … or less than this part of a shorter life.
const LAST_PART: f64 = 0.2;
/// A token is renewed when this part of its life is over …
const RENEW_AT: f64 = 0.8;
/// … less up to this part, so that a thousand clusters that joined together do not renew together.
const JITTER: f64 = 0.05;
/// Wait after a renewal that failed, doubled each time …
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// … up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// A target's credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// `token` or `client certificate`.
    pub what: &'static str,
    /// When it began, if that is known.
    pub from: Option<Timestamp>,
    /// When it ends, if it does.
    pub until: Option<Timestamp>,
    /// Whether the operator renews it.
    pub is_renewed: bool,
}

/// The latest renewal failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// One sentence without secrets.
    pub why: String,
}

impl Credential {
    /// When it is to be renewed; `seed` spreads clusters over the time before.
    pub fn due(&self, seed: u64) -> Option<Timestamp> {
        let part = RENEW_AT - JITTER * fraction(seed);
        self.is_renewed.then(|| self.at_part(part)).flatten()
    }

    /// When it is said to end soon, where nobody renews it.
    pub fn soon(&self) -> Option<Timestamp> {
        let until = self.until?;
        let last = match self.from {
            Some(from) => SOON.min(until.duration_since(from).mul_f64_or_zero(LAST_PART)),
            None => SOON,
        };
        until.checked_sub(last).ok()
    }

    fn at_part(&self, part: f64) -> Option<Timestamp> {
        let until = self.until?;
        // Of unknown begin: it may end any time.
        let from = self.from.unwrap_or(until);
        until
            .checked_sub(until.duration_since(from).mul_f64_or_zero(1.0 - part))
            .ok()
    }
}

trait Part {
    fn mul_f64_or_zero(self, part: f64) -> SignedDuration;
}

impl Part for SignedDuration {
    fn mul_f64_or_zero(self, part: f64) -> SignedDuration {
        SignedDuration::try_from_secs_f64(self.as_secs_f64().max(0.0) * part).unwrap_or_default()
    }
}

fn fraction(seed: u64) -> f64 {
    // The low bits of a hash are as good as any.
    f64::from(u16::try_from(seed & 0xffff).unwrap_or_default()) / 65_535.0
}

/// How long to wait after so many failures in a row, a fifth more or less.
pub fn wait(failures: u32, seed: u64) -> Duration {
    let wait = LONGEST_WAIT.min(FIRST_WAIT * 2u32.saturating_pow(failures.saturating_sub(1).min(16)));
    wait.mul_f64(0.8 + 0.4 * fraction(seed.rotate_left(failures)))
}

/// What is said of it.
pub fn finding(credential: &Credential, failure: Option<&Failure>, now: Timestamp) -> Finding {
    let Credential { what, until, .. } = credential;
    let say = |holds: bool, reason: &str, message: String| Finding::new(CREDENTIALS_EXPIRING, holds, reason, message);
    let Some(until) = *until else {
        return say(false, "NoEnd", format!("the {what} says no time at which it ends"));
    };
    let failed = failure.map(|failure| format!(": it was not renewed: {}", failure.why));
    let failed = failed.as_deref().unwrap_or_default();
    if until <= now {
        return say(true, "Expired", format!("the {what} ended at {until}{failed}"));
    }
    match failure {
        Some(Failure { at, .. }) => say(
            true,
            "RenewalFailed",
            format!(
                "the {what} ends at {until}, {} after the latest try{failed}",
                left(*at, until)
            ),
        ),
        None if credential.is_renewed => say(
            false,
            "Renewed",
            format!("the {what} is good until {until} and is renewed before"),
        ),
        None if credential.soon().is_some_and(|soon| soon <= now) => say(
            true,
            "ExpiresSoon",
            format!("the {what} ends at {until} and nobody renews it"),
        ),
        None => say(false, "FarAway", format!("the {what} is good until {until}")),
    }
}

fn left(now: Timestamp, until: Timestamp) -> String {
    match until.duration_since(now).as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// The status with what is known of the credential; none where there is no kubeconfig that is accepted.
///
/// # Guarantees
/// Called with its own answer and the same facts, it answers the same.
pub fn add(
    status: TargetClusterStatus,
    credential: Option<&Credential>,
    failure: Option<&Failure>,
    generation: Option<i64>,
    now: Timestamp,
) -> TargetClusterStatus {
    let finding = match credential {
        Some(credential) => finding(credential, failure, now),
        None => Finding::new(
            CREDENTIALS_EXPIRING,
            Status::Unknown,
            "NoCredential",
            "there is no kubeconfig that may be used",
        ),
    };
    TargetClusterStatus {
        credentials_expire_time: credential
            .and_then(|credential| credential.until)
            .map(|until| Time(whole_seconds(until))),
        conditions: merge(&status.conditions, &[finding], generation, now),
        ..status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a valid second")
    }

    fn credential(from: Option<i64>, until: Option<i64>, is_renewed: bool) -> Credential {
        Credential {
            what: "token",
            from: from.map(at),
            until: until.map(at),
            is_renewed,
        }
    }

    #[test]
    fn a_token_is_renewed_at_four_fifths_of_its_life_or_a_little_before() {
        let hour = credential(Some(0), Some(3600), true);
        assert_eq!(hour.due(0), Some(at(2880)));
        assert_eq!(hour.due(0xffff), Some(at(2700)));
        for seed in 0..10_000 {
            let due = hour.due(seed * 7919).expect("a time");
            assert!((at(2700)..=at(2880)).contains(&due), "{seed}: {due}");
        }
        assert_eq!(credential(Some(0), Some(3600), false).due(0), None);
        assert_eq!(credential(Some(0), None, true).due(0), None);
        // Without a begin, and one that ends before it began: at its end.
        assert_eq!(credential(None, Some(3600), true).due(7), Some(at(3600)));
        assert_eq!(credential(Some(9000), Some(3600), true).due(7), Some(at(3600)));
    }

    #[test]
    fn what_nobody_renews_ends_soon_a_week_or_a_fifth_of_its_life_before() {
        let table = [
            (credential(Some(0), Some(365 * DAY), false), Some(358 * DAY)),
            (credential(Some(0), Some(10 * DAY), false), Some(8 * DAY)),
            (credential(Some(0), Some(3600), false), Some(2880)),
            (credential(None, Some(365 * DAY), false), Some(358 * DAY)),
            (credential(Some(0), None, false), None),
        ];
        for (credential, expected) in table {
            assert_eq!(credential.soon(), expected.map(at), "{credential:?}");
        }
    }

    #[test]
    fn each_state_of_a_credential_has_its_word() {
        let failure = Failure {
            at: at(3000),
            why: "the target: no".into(),
        };
        let hour = |is_renewed| credential(Some(0), Some(3600), is_renewed);
        let table = [
            (credential(Some(0), None, false), None, 9, ("False", "NoEnd")),
            (hour(false), None, 2879, ("False", "FarAway")),
            (hour(false), None, 2880, ("True", "ExpiresSoon")),
            (hour(false), None, 3600, ("True", "Expired")),
            (hour(true), None, 2880, ("False", "Renewed")),
            (hour(true), Some(&failure), 3000, ("True", "RenewalFailed")),
            (hour(true), Some(&failure), 3600, ("True", "Expired")),
        ];
        for (credential, failure, now, expected) in table {
            let found = finding(&credential, failure, at(now));
            assert_eq!((found.status.as_str(), found.reason.as_str()), expected, "{found:?}");
        }
        assert_eq!(
            finding(&hour(true), Some(&failure), at(3001)).message,
            "the token ends at 1970-01-01T01:00:00Z, 10 min after the latest try: it was not renewed: the target: no"
        );
    }

    #[test]
    fn failures_wait_longer_each_time_and_the_status_stands_still() {
        let waits: Vec<f64> = (1..12)
            .map(|count| wait(count, 0x7fff_7fff_7fff_7fff).as_secs_f64())
            .collect();
        assert!((3.9..6.1).contains(&waits[0]), "{waits:?}");
        assert!(
            waits.iter().all(|wait| *wait <= 361.0) && waits[10] > 230.0,
            "{waits:?}"
        );

        let hour = credential(Some(0), Some(3600), true);
        let first = add(TargetClusterStatus::default(), Some(&hour), None, Some(1), at(5));
        assert_eq!(first.credentials_expire_time, Some(Time(at(3600))));
        assert_eq!(add(first.clone(), Some(&hour), None, Some(1), at(50)), first);
        let none = add(first, None, None, Some(1), at(60));
        assert_eq!(none.credentials_expire_time, None);
        assert_eq!(none.conditions[0].status, "Unknown");
    }
}
