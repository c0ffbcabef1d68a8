//! When the log tells of files that cannot be used, and of certificates that end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use crate::io::identity::{Look, Validity};
use crate::proto::renewal::SOON;

/// Between two lines about the same files.
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is wrong with files that belong together. It is logged when two looks in a row saw it, for several files are rarely
/// replaced at once; a change once, and one a minute at most.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// Not logged yet.
    waiting: Option<String>,
    logged: Option<(String, Instant)>,
}

impl Trouble {
    /// Takes what a look found; what is to be logged now.
    pub(super) fn log<T>(
        &mut self,
        found: Result<Look<T>, String>,
        now: Instant,
    ) -> Option<String> {
        let lasts = self.waiting.is_some();
        match found {
            Ok(Look::Unchanged) => {}
            Ok(Look::Sound | Look::New(_)) => {
                self.waiting = None;
                // The next trouble is another one, although it may read the same.
                if let Some((text, _)) = &mut self.logged {
                    text.clear();
                }
            }
            Err(text) if self.logged.as_ref().is_some_and(|(logged, _)| *logged == text) => {
                self.waiting = None;
            }
            Err(text) => self.waiting = Some(text),
        }
        let quiet = self.logged.as_ref().is_some_and(|(_, at)| now < *at + MINUTE);
        let text = self.waiting.take_if(|_| lasts && !quiet)?;
        self.logged = Some((text.clone(), now));
        Some(text)
    }
}

/// When it was last logged that a certificate ends.
#[derive(Debug, Default)]
pub(super) struct Ends(BTreeMap<&'static str, (SystemTime, Instant)>);

impl Ends {
    /// Whether it is to be logged now: once a day from the time on when it ends soon.
    pub(super) fn due(
        &mut self,
        certificate: &'static str,
        valid: Validity,
        wall: SystemTime,
        now: Instant,
    ) -> bool {
        let life = valid.not_after.duration_since(valid.not_before).unwrap_or_default();
        let left = valid.not_after.duration_since(wall).unwrap_or_default();
        let logged = self.0.get(certificate);
        let told =
            |(until, at): &(SystemTime, Instant)| *until == valid.not_after && now < *at + DAY;
        if left > SOON.min(life / 3) || logged.is_some_and(told) {
            return false;
        }
        self.0.insert(certificate, (valid.not_after, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests::start;

    #[test]
    fn trouble_is_logged_when_it_lasts_and_once() {
        let (mut trouble, start) = (Trouble::default(), start());
        let mut log = |found: Result<Look<()>, &str>, second| {
            trouble.log(found.map_err(str::to_owned), start + Duration::from_secs(second))
        };
        // Half of a pair, and then the other half.
        assert_eq!(log(Err("mismatch"), 0), None);
        assert_eq!(log(Ok(Look::New(())), 1), None);
        assert_eq!(log(Ok(Look::Unchanged), 2), None);
        // Half of a pair for longer.
        assert_eq!(log(Err("mismatch"), 3), None);
        assert_eq!(log(Ok(Look::Unchanged), 4).as_deref(), Some("mismatch"));
        assert_eq!(log(Ok(Look::Unchanged), 900), None);
        assert_eq!(log(Err("mismatch"), 901), None, "another change to the same");
        // Another trouble, soon after: later, and only the last one.
        assert_eq!(log(Err("gone"), 902), None);
        assert_eq!(log(Ok(Look::Unchanged), 903).as_deref(), Some("gone"));
        assert_eq!(log(Err("rubbish"), 904), None);
        assert_eq!(log(Err("rubbish too"), 905), None);
        assert_eq!(log(Ok(Look::Unchanged), 962), None);
        assert_eq!(log(Ok(Look::Unchanged), 963).as_deref(), Some("rubbish too"));
        // What is over may come back.
        assert_eq!(log(Ok(Look::Sound), 964), None);
        assert_eq!(log(Err("rubbish too"), 1100), None);
        assert_eq!(log(Err("rubbish too"), 1101).as_deref(), Some("rubbish too"));
    }

    #[test]
    fn an_end_is_logged_once_a_day_from_thirty_days_before() {
        let (mut ends, start) = (Ends::default(), start());
        let epoch = SystemTime::UNIX_EPOCH;
        let valid = |days| Validity { not_before: epoch, not_after: epoch + days * DAY };
        let mut due =
            |valid, day: u32| ends.due("node", valid, epoch + day * DAY, start + day * DAY);
        assert!(!due(valid(90), 59), "31 days are left");
        assert!(due(valid(90), 60) && !due(valid(90), 60));
        assert!(due(valid(90), 61));
        assert!(!due(valid(180), 61), "it was renewed");
        assert!(!due(valid(90), 30) && due(valid(90), 400), "it has expired long since");
        // One for three days is renewed on its last one.
        assert!(!due(valid(3), 1) && due(valid(3), 2));
    }
}
