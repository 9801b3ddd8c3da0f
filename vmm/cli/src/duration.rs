//! Durations as users write them.

use std::time::Duration;

/// Reads a duration: a decimal number and a unit, as in `500ms`, `30s`, `2m` or `1.5h`; a bare number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = "a duration is a number and a unit, such as 500ms, 30s or 2m";
    let unit_start = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_start);
    let unit_s = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("unknown unit {other:?}: {expected}")),
    };
    let number: f64 = number.parse().map_err(|_| expected.to_owned())?;
    Duration::try_from_secs_f64(number * unit_s).map_err(|_| "that is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_units() {
        for (text, ms) in [("30", 30_000), ("0", 0), ("250ms", 250), ("1.5 m", 90_000), ("2h", 7_200_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1d", "1.2.3s", "99999999999999999999h", "٣s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
