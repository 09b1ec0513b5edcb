//! Reading and showing durations, sizes, CPU and times.

use std::time::Duration;

use jiff::Timestamp;
use prost_types::{Duration as ProtoDuration, Timestamp as ProtoTimestamp};

/// `30`, `30s`, `500ms`, `5m`, `6h15m`, `1d`. A bare number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut millis: u64 = 0;
    let mut rest = text;
    let mut smallest = u64::MAX;
    loop {
        let (number, unit, after) = one_duration(rest)?;
        // From large to small, each once; a bare number stands alone.
        let bare = unit == 0;
        if unit >= smallest || (bare && rest.len() != text.len()) {
            return Err("write the larger unit first, for example 6h15m".to_owned());
        }
        smallest = unit;
        millis = number
            .checked_mul(if bare { 1_000 } else { unit })
            .and_then(|more| millis.checked_add(more))
            .filter(|ms| *ms <= 366 * 86_400_000)
            .ok_or("longer than a year")?;
        rest = after;
        if rest.is_empty() {
            return Ok(Duration::from_millis(millis));
        }
    }
}

/// The first number, the milliseconds of its unit (0: none was written), and what follows.
fn one_duration(text: &str) -> Result<(u64, u64, &str), String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits]
        .parse()
        .map_err(|_| "not a duration; write for example 30s, 5m or 2h".to_owned())?;
    let rest = &text[digits..];
    let letters = rest.bytes().take_while(|b| !b.is_ascii_digit()).count();
    let unit = match &rest[..letters] {
        "ms" => 1,
        "" => 0,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        unit => return Err(format!("unknown unit {unit:?}; use ms, s, m, h or d")),
    };
    Ok((number, unit, &rest[letters..]))
}

/// The same, but not zero.
pub(crate) fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("must be more than zero".into()),
        d => Ok(d),
    }
}

/// `4g`, `512m`, `64k`, `4GiB`, `1048576`; factors of 1,024.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits]
        .parse()
        .map_err(|_| "not a size; write for example 4g or 512m".to_owned())?;
    let unit = text[digits..].to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("unknown unit {unit:?}; use k, m, g or t")),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "too large".into())
}

/// `2`, `1.5`: cores, as thousandths.
pub(crate) fn parse_cpu(text: &str) -> Result<u32, String> {
    let cores: f64 = text
        .parse()
        .map_err(|_| "not a number of cores; write for example 2 or 1.5".to_owned())?;
    if !(0.001..=100_000.0).contains(&cores) {
        return Err("must be between 0.001 and 100000 cores".into());
    }
    Ok((cores * 1_000.0).round() as u32)
}

pub(crate) fn proto_duration(d: Duration) -> ProtoDuration {
    ProtoDuration {
        seconds: d.as_secs() as i64,
        nanos: d.subsec_nanos() as i32,
    }
}

/// Seconds of a duration; a part of a second counts as a fraction.
pub(crate) fn seconds(d: &ProtoDuration) -> f64 {
    d.seconds as f64 + f64::from(d.nanos) / 1e9
}

pub(crate) fn timestamp(t: &ProtoTimestamp) -> Option<Timestamp> {
    Timestamp::new(t.seconds, t.nanos).ok()
}

/// RFC 3339 in UTC, at most milliseconds.
pub(crate) fn rfc3339(t: &ProtoTimestamp) -> Option<String> {
    let millis = timestamp(t)?.as_millisecond();
    Timestamp::from_millisecond(millis)
        .ok()
        .map(|t| t.to_string())
}

/// `12s`, `5m`, `3h`, `2d`: how long ago `t` was.
pub(crate) fn age(t: Option<&ProtoTimestamp>, now: Timestamp) -> String {
    match t.and_then(timestamp) {
        Some(t) => short((now.as_second() - t.as_second()).max(0) as u64),
        None => "-".into(),
    }
}

/// All of it, as one would write it: `6h15m`, `90s`.
pub(crate) fn exact(seconds: u64) -> String {
    let mut rest = seconds;
    let mut text = String::new();
    for (unit, length) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        if rest >= length || (length == 1 && text.is_empty()) {
            text.push_str(&format!("{}{unit}", rest / length));
            rest %= length;
        }
    }
    text
}

/// The largest unit that leaves a number of two digits or so.
pub(crate) fn short(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

pub(crate) fn show_cpu(millis: u32) -> String {
    if millis.is_multiple_of(1_000) {
        (millis / 1_000).to_string()
    } else {
        format!("{:.3}", f64::from(millis) / 1_000.0)
            .trim_end_matches('0')
            .to_owned()
    }
}

pub(crate) fn show_bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    for (size, unit) in UNITS {
        if bytes >= size {
            let text = format!("{:.1}", bytes as f64 / size as f64);
            return format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text));
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_take_the_units_people_write() {
        for (text, ms) in [
            ("30", 30_000),
            ("500ms", 500),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("6h15m", 22_500_000),
            ("1d2h3m4s5ms", 93_784_005),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(ms)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "-1",
            "1.5s",
            "5 m",
            "1w",
            "15m6h",
            "1h1h",
            "6h15",
            "6h-1m",
            "99999999999999999999",
            "400d",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        for (seconds, text) in [(0, "0s"), (90, "1m30s"), (300, "5m"), (22_500, "6h15m")] {
            assert_eq!(exact(seconds), text);
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
        assert!(parse_timeout("0").is_err());
    }

    #[test]
    fn sizes_are_factors_of_1024() {
        assert_eq!(parse_size("4g"), Ok(4 << 30));
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("7"), Ok(7));
        for text in ["", "g", "4x", "-1", "99999999999999t"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpu_is_thousandths_of_a_core() {
        assert_eq!(parse_cpu("4.0"), Ok(4_000));
        assert_eq!(parse_cpu("1.5"), Ok(1_500));
        for text in ["", "0", "nan", "inf", "-2", "1e9"] {
            assert!(parse_cpu(text).is_err(), "{text}");
        }
        assert_eq!(show_cpu(1_500), "1.5");
        assert_eq!(show_cpu(4_000), "4");
    }

    #[test]
    fn times_are_utc_with_at_most_milliseconds() {
        let t = ProtoTimestamp {
            seconds: 1_700_000_000,
            nanos: 123_456_789,
        };
        assert_eq!(rfc3339(&t).as_deref(), Some("2023-11-14T22:13:20.123Z"));
        let whole = ProtoTimestamp { nanos: 0, ..t };
        assert_eq!(rfc3339(&whole).as_deref(), Some("2023-11-14T22:13:20Z"));
        let absurd = ProtoTimestamp {
            seconds: i64::MAX,
            nanos: 0,
        };
        assert_eq!(rfc3339(&absurd), None);
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(show_bytes(4 << 30), "4 GiB");
        assert_eq!(show_bytes(1_610_612_736), "1.5 GiB");
        assert_eq!(show_bytes(12), "12 B");
    }
}
