//! The time of day as the runner prints it, without a library.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since the Unix epoch.
pub(crate) fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// (year, month, day, hour, minute, second) in UTC.
fn parts(seconds: u64) -> (i64, u64, u64, u64, u64, u64) {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // days since 0000-03-01, in eras of 400 years
    let z = days as i64 + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (
        year,
        month as u64,
        day as u64,
        rest / 3600,
        rest / 60 % 60,
        rest % 60,
    )
}

/// `2026-01-31 10:20:30Z`
pub(crate) fn stamp(seconds: u64) -> String {
    let (y, mo, d, h, mi, s) = parts(seconds);
    format!("{y:04}-{mo:02}-{d:02} {h:02}:{mi:02}:{s:02}Z")
}

/// `20260131-102030`
pub(crate) fn file_stamp(seconds: u64) -> String {
    let (y, mo, d, h, mi, s) = parts(seconds);
    format!("{y:04}{mo:02}{d:02}-{h:02}{mi:02}{s:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(stamp(0), "1970-01-01 00:00:00Z");
        assert_eq!(stamp(951_782_400), "2000-02-29 00:00:00Z");
        assert_eq!(stamp(1_700_000_000), "2023-11-14 22:13:20Z");
        assert_eq!(stamp(4_107_542_399), "2100-02-28 23:59:59Z");
        assert_eq!(stamp(4_107_542_400), "2100-03-01 00:00:00Z");
        assert_eq!(file_stamp(1_700_000_000), "20231114-221320");
    }
}
