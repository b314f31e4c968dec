//! The next time at which the wall clock matches.
//!
//! Time is cut into pieces of at most a day in which the zone's offset does not change; inside a piece the calendar is
//! plain arithmetic on local seconds. So a skipped hour is never seen, a repeated one is seen twice, and no clock change
//! can hide a match (the library loses some at midnight and with changes of half an hour).

use chrono::{DateTime, Datelike as _, Offset as _, TimeZone as _};
use chrono_tz::Tz;

use super::{Calendar, Cron, Field};

const DAY: i64 = 86_400;
/// How many years the library searches before it gives up.
const YEARS: i32 = 5;

impl Cron {
    /// The first activation after `from` (Unix seconds), or `None` when there is none within five years.
    #[must_use]
    pub fn next(&self, from: i64, zone: Tz) -> Option<i64> {
        match self {
            Self::Every(seconds) => from.checked_add(*seconds),
            Self::Calendar(calendar) => calendar.next(from, zone),
        }
    }

    /// The last activation that is not after `until`, when activations are counted on from `first`, which is one itself
    /// and not after `until`.
    #[must_use]
    pub fn latest(&self, first: i64, until: i64, zone: Tz) -> i64 {
        match self {
            Self::Every(seconds) => first + (until - first) / seconds * seconds,
            Self::Calendar(calendar) => {
                // Invariant: an activation lies in (low, until]; none lies in (high, until].
                let (mut low, mut high) = (first - 1, until);
                while high - low > 1 {
                    let middle = low + (high - low) / 2;
                    match calendar.next(middle, zone) {
                        Some(found) if found <= until => low = found - 1,
                        _ => high = middle,
                    }
                }
                low + 1
            }
        }
    }
}

impl Field {
    fn has(self, value: u32) -> bool {
        self.bits >> value & 1 == 1
    }

    /// The smallest value that is not below `from`.
    fn at_least(self, from: u32) -> Option<u32> {
        let rest = if from > 63 { 0 } else { self.bits >> from << from };
        (rest != 0).then(|| rest.trailing_zeros())
    }
}

impl Calendar {
    fn next(&self, from: i64, zone: Tz) -> Option<i64> {
        if !self.possible() {
            return None;
        }
        let mut at = from.checked_add(1)?;
        let last_year = year(at.checked_add(offset(zone, at)?)?)? + YEARS;
        loop {
            let shift = offset(zone, at)?;
            if year(at + shift)? > last_year {
                return None;
            }
            let end = constant_until(zone, at, shift)?;
            if let Some(found) = self.first(at + shift, end + shift)? {
                return (year(found)? <= last_year).then_some(found - shift);
            }
            at = end;
        }
    }

    /// Whether some date and time of day can match at all; saves the search for 30 February.
    fn possible(&self) -> bool {
        let time = self.second.bits != 0 && self.minute.bits != 0 && self.hour.bits != 0;
        let both = self.day.star || self.weekday.star;
        let longest = |month: u32| match month {
            2 => 29,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let first_day = self.day.at_least(1);
        let day = (1..=12).any(|month| self.month.has(month) && first_day.is_some_and(|day| day <= longest(month)));
        let weekday = self.weekday.bits != 0;
        time && self.month.bits != 0 && if both { day && weekday } else { day || weekday }
    }

    /// The first match in local seconds `start..end`; the outer `None` stands for dates beyond the calendar.
    #[allow(clippy::option_option)]
    fn first(&self, start: i64, end: i64) -> Option<Option<i64>> {
        let mut day = start.div_euclid(DAY);
        while day * DAY < end {
            let date = DateTime::from_timestamp(day * DAY, 0)?;
            let weekday = self.weekday.has(date.weekday().num_days_from_sunday());
            let in_month = self.day.has(date.day());
            let either = if self.day.star || self.weekday.star { in_month && weekday } else { in_month || weekday };
            if either && self.month.has(date.month()) {
                let second = u32::try_from((start - day * DAY).max(0)).unwrap_or(u32::MAX);
                if let Some(second) = self.time(second) {
                    let found = day * DAY + i64::from(second);
                    if found < end {
                        return Some(Some(found));
                    }
                }
            }
            day += 1;
        }
        Some(None)
    }

    /// The first matching second of a day that is not before `from`.
    fn time(&self, from: u32) -> Option<u32> {
        let (h, m, s) = (from / 3600, from / 60 % 60, from % 60);
        let at = |hour: u32, minute: u32, second: u32| hour * 3600 + minute * 60 + second;
        let (minute0, second0) = (self.minute.at_least(0)?, self.second.at_least(0)?);
        if self.hour.has(h) {
            if self.minute.has(m)
                && let Some(second) = self.second.at_least(s)
            {
                return Some(at(h, m, second));
            }
            if let Some(minute) = self.minute.at_least(m + 1) {
                return Some(at(h, minute, second0));
            }
        }
        self.hour.at_least(h + 1).map(|hour| at(hour, minute0, second0))
    }
}

/// Seconds that the zone is ahead of UTC at `at`.
fn offset(zone: Tz, at: i64) -> Option<i64> {
    let utc = DateTime::from_timestamp(at, 0)?.naive_utc();
    Some(i64::from(zone.offset_from_utc_datetime(&utc).fix().local_minus_utc()))
}

fn year(local: i64) -> Option<i32> {
    Some(DateTime::from_timestamp(local, 0)?.year())
}

/// The end of the piece that begins at `at`: the next change of the offset, at most a day on.
fn constant_until(zone: Tz, at: i64, shift: i64) -> Option<i64> {
    let (mut same, mut other) = (at, at + DAY);
    if offset(zone, other - 1)? == shift {
        return Some(other);
    }
    while other - same > 1 {
        let middle = same + (other - same) / 2;
        if offset(zone, middle)? == shift { same = middle } else { other = middle }
    }
    Some(other)
}
