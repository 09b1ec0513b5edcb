//! Values as people write them: durations, sizes, CPUs.

use std::time::Duration;

/// `90`, `90s`, `5m`, `6h15m`, `2d`, `250ms`. A bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration; write it like 90s, 5m, 6h15m or 2d");
    let text_trimmed = text.trim();
    if let Ok(seconds) = text_trimmed.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = 0u64;
    let mut rest = text_trimmed;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        total = number
            .checked_mul(unit)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(wrong)?;
        rest = &rest[letters..];
    }
    if text_trimmed.is_empty() {
        return Err(wrong());
    }
    Ok(Duration::from_millis(total))
}

/// `4g`, `4GiB`, `512m`, `4000000000`: binary units, as Docker reads them.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write it like 4GiB, 4g or 512m");
    let lower = text.trim().to_lowercase();
    let digits = lower
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(lower.len());
    let number: u64 = lower[..digits].parse().map_err(|_| wrong())?;
    let shift = match lower[digits..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(1 << shift)
        .filter(|value| *value > 0)
        .ok_or_else(wrong)
}

/// The size as [`bytes`] reads it, in the largest unit that leaves nothing over.
pub fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = units
        .into_iter()
        .find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    whole.map_or(bytes.to_string(), |(shift, unit)| {
        format!("{}{unit}", bytes >> shift)
    })
}

/// The duration as [`duration`] reads it, in the largest unit that leaves nothing over.
pub fn span(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1_000, "s"),
    ];
    let whole = units
        .into_iter()
        .find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit));
    whole.map_or(format!("{millis}ms"), |(unit, word)| {
        format!("{}{word}", millis / unit)
    })
}

/// Less kills the runner program before it has a job.
pub const LEAST_MEMORY: u64 = 64 << 20;

/// Memory of one runner: a size of at least 64 MiB.
pub fn runner_bytes(text: &str) -> Result<u64, String> {
    enough(bytes(text)?)
}

/// Refuses what no sandbox can be made with.
pub fn enough(memory: u64) -> Result<u64, String> {
    if memory < LEAST_MEMORY {
        return Err(format!(
            "{memory} bytes of memory are less than the 64 MiB a runner needs; write it like 4GiB, 4g or 512m"
        ));
    }
    Ok(memory)
}

/// `2`, `4.0`, `0.5`, `1500m`, in thousandths of a core.
pub fn cpu_millis(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is not a number of CPUs; write it like 2, 0.5 or 1500m");
    let text = text.trim();
    let millis = match text.strip_suffix('m') {
        Some(millis) => millis.parse::<f64>().map_err(|_| wrong())?,
        None => text.parse::<f64>().map_err(|_| wrong())? * 1_000.0,
    };
    if !millis.is_finite() || !(1.0..=4_000_000.0).contains(&millis) {
        return Err(wrong());
    }
    Ok(millis.round() as u32)
}

/// `true` or `false`.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.trim() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("`{text}` is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, millis) in [
            ("60", 60_000),
            ("250ms", 250),
            ("90s", 90_000),
            ("6h15m", 22_500_000),
            ("5d", 432_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5 parsecs", "m", "-3s", "99999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_read_as_docker_reads_them() {
        assert_eq!(bytes("4g"), Ok(4 << 30));
        assert_eq!(bytes("4GiB"), Ok(4 << 30));
        assert_eq!(bytes("512m"), Ok(512 << 20));
        for text in ["", "g", "0", "4 apples", "99999999999999g"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpus_read_as_the_predecessor_wrote_them() {
        assert_eq!(cpu_millis("4.0"), Ok(4_000));
        assert_eq!(cpu_millis("1500m"), Ok(1_500));
        assert_eq!(cpu_millis("0.5"), Ok(500));
        for text in ["", "0", "-1", "many", "NaN"] {
            assert!(cpu_millis(text).is_err(), "{text}");
        }
    }
}
