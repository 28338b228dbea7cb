//! How long the last known policy is good for when the API server cannot be reached.

use jiff::{SignedDuration, Timestamp};

use crate::authz::Class;

/// How long everything may be done without news.
const EVERYTHING: SignedDuration = SignedDuration::from_mins(5);
/// How long reading may be done without news.
const READS: SignedDuration = SignedDuration::from_mins(60);

/// Whether a call of this class may still rely on a policy that was last known to be current at that time.
pub(crate) fn is_fresh(now: Timestamp, last_contact: Timestamp, class: Class) -> bool {
    let limit = if class.is_read_only() { READS } else { EVERYTHING };
    now.duration_since(last_contact) <= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(minutes: i64, class: Class) -> bool {
        let contact = Timestamp::from_second(1_000_000).expect("in range");
        is_fresh(contact + SignedDuration::from_mins(minutes), contact, class)
    }

    #[test]
    fn without_news_everything_goes_on_for_five_minutes_and_reading_for_an_hour() {
        for (minutes, read, write) in [(0, true, true), (5, true, true), (6, true, false), (60, true, false)]
        {
            assert_eq!(allowed(minutes, Class::Read), read, "read after {minutes} minutes");
            assert_eq!(allowed(minutes, Class::Sensitive), read, "logs after {minutes} minutes");
            assert_eq!(allowed(minutes, Class::Write), write, "write after {minutes} minutes");
            assert_eq!(allowed(minutes, Class::Destructive), write, "delete after {minutes} minutes");
        }
        assert!(!allowed(61, Class::Read));
    }

    #[test]
    fn a_clock_that_went_back_does_not_stop_anything() {
        assert!(allowed(-10, Class::Write));
    }
}
