//! Sizes as users write them.

/// Reads a number of bytes: a decimal number and a unit, as in `64M`, `1.5GiB` or `512 kb`.
///
/// Units are powers of 1024 however they are spelled, as Docker's are; a bare number is bytes. The result is rounded
/// down to whole bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let expected = "a size is a number and a unit, such as 64M or 1.5GiB";
    let unit_start = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_start);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("unknown unit {:?}: {expected}", unit.trim())),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(fraction) || number.ends_with('.') {
        return Err(expected.to_owned());
    }
    let too_large = || "a size has less than 2^64 bytes".to_owned();
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    // Twelve decimals are exact for a tebibyte to the byte; more make no difference.
    let decimals = &fraction[..fraction.len().min(12)];
    let part = decimals.parse().unwrap_or(0_u128) * (1 << shift) / 10_u128.pow(decimals.len() as u32);
    let bytes = u128::from(whole) * (1 << shift) + part;
    u64::try_from(bytes).map_err(|_| too_large())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary_however_spelled() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512b", 512),
            ("64M", 64 << 20),
            ("64mib", 64 << 20),
            ("1 GB", 1 << 30),
            ("1.5GiB", 3 << 29),
            ("0.1k", 102),
            ("2T", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn anything_else_is_an_error() {
        for text in ["", "M", "-1", "1.2.3", ".5G", "1.", "1e3", "64 quux", "0x10", "16777216T", "１M"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
