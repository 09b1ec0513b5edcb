//! GitHub's time stamps.

use scheduler_core::model::UtcMillis;

/// RFC 3339 to milliseconds since 1970; `None` when it is none or before 1970.
pub(crate) fn millis(text: &str) -> Option<UtcMillis> {
    let time: jiff::Timestamp = text.trim().parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::millis;

    #[test]
    fn every_form_github_sends_is_read() {
        assert_eq!(millis("1970-01-01T00:00:01Z"), Some(1_000));
        assert_eq!(
            millis("2026-01-31T12:00:00.123+02:00"),
            Some(1_769_853_600_123)
        );
        assert_eq!(millis("1969-12-31T23:59:59Z"), None);
        assert_eq!(millis(""), None);
        assert_eq!(millis("yesterday"), None);
    }
}
