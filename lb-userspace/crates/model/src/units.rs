//! Durations and counts as people write and read them.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Units of a duration, largest first, with their length in milliseconds.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads `500ms`, `30s`, `15m`, `2h`, `1d`, or a sum of them such as `1h30m`.
///
/// # Errors
///
/// Anything else, with the remedy.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!("`{text}` is no duration; write a number and its unit, as 500ms, 30s, 15m or 2h")
    };
    let mut rest = text.trim();
    let mut total = 0u64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let letters =
            after.len() - after.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, after) = after.split_at(letters);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        total = number.checked_mul(*millis).and_then(|n| total.checked_add(n)).ok_or_else(wrong)?;
        rest = after;
    }
    Ok(Duration::from_millis(total))
}

/// A duration in whole seconds, rounded up: what is to wait may not end early.
#[must_use]
pub const fn whole_secs(duration: Duration) -> u64 {
    duration.as_secs().saturating_add((duration.subsec_nanos() > 0) as u64)
}

/// Writes a duration so that [`parse_duration`] reads it, in at most two units.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    let mut parts = 0;
    for (unit, length) in UNITS {
        let count = millis / length;
        if count > 0 && parts < 2 {
            text += &format!("{count}{unit}");
            parts += 1;
            millis %= length;
        } else if parts > 0 {
            break;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

/// Writes a duration in as many units as it takes, so that [`parse_duration`] reads the same.
///
/// Parts shorter than a millisecond are cut off.
#[must_use]
pub(crate) fn exact_duration(duration: Duration) -> String {
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, length) in UNITS {
        if millis >= length {
            text += &format!("{}{unit}", millis / length);
            millis %= length;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

/// Writes a time as RFC 3339 has it, in UTC and whole seconds.
#[must_use]
pub(crate) fn format_time(time: SystemTime) -> String {
    let secs = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |secs| -secs),
    };
    let (days, second) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    // Years begin in March here, so that the leap day is the last, and eras are of 400 years.
    let from_march = days + 719_468;
    let (era, day) = (from_march.div_euclid(146_097), from_march.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A count in at most four digits and a prefix: `999`, `1.23k`, `45.6M`.
#[must_use]
pub fn format_count(count: u64) -> String {
    scaled(count, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
}

/// Bytes in at most four digits and a binary prefix: `512 B`, `1.50 KiB`.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    scaled(bytes, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"])
}

fn scaled(count: u64, step: f64, suffixes: &[&str]) -> String {
    let mut value = count as f64;
    let mut power = 0;
    while value >= 999.5 && power + 1 < suffixes.len() {
        value /= step;
        power += 1;
    }
    let decimals = match value {
        _ if power == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{}", suffixes[power])
}

/// A count and its noun, in the plural unless it is one: `1 SYN`, `0 queues`.
#[must_use]
pub fn counted<N: fmt::Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let plural = if count == N::from(1) { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// The error for an unknown name, with the known ones.
#[must_use]
pub fn unknown_word(word: &str, known: &[&str]) -> String {
    let all: Vec<_> = known.iter().map(|known| format!("\"{known}\"")).collect();
    let all = all.join(", ");
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("`{word}` is unknown; did you mean \"{near}\"? ({all})"),
        None => format!("`{word}` is unknown; write one of {all}"),
    }
}

/// The name of `known` that is spelled most like `word`, if one is near.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(word, name), name))
        .filter(|(similarity, _)| *similarity >= 0.6)
        // Of equally near ones, the first.
        .min_by(|a, b| b.0.total_cmp(&a.0))
        .map(|(_, name)| name)
}

/// A duration as whole milliseconds, for `#[serde(with = "millis")]`.
pub mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    /// Writes the milliseconds.
    ///
    /// # Errors
    ///
    /// The serializer's.
    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    /// Reads the milliseconds.
    ///
    /// # Errors
    ///
    /// The text is no number.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// A time as RFC 3339 has it, in UTC with milliseconds, for `#[serde(with = "rfc3339")]`.
pub mod rfc3339 {
    use std::time::{Duration, SystemTime};

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// The time as text: `2026-11-21T14:57:36.000Z`.
    #[must_use]
    pub fn format(time: SystemTime) -> String {
        // A time with a year of five digits can't be written; none here has one.
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        humantime::format_rfc3339_millis(time.clamp(SystemTime::UNIX_EPOCH, last)).to_string()
    }

    /// Writes the time.
    ///
    /// # Errors
    ///
    /// The serializer's.
    pub fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format(*time))
    }

    /// Reads a time.
    ///
    /// # Errors
    ///
    /// The text is no time.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_rfc3339_weak(&text).map_err(D::Error::custom)
    }

    /// A time that may not be.
    pub mod option {
        use std::time::SystemTime;

        use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

        use super::format;

        #[derive(Deserialize)]
        struct At(#[serde(with = "super")] SystemTime);

        /// Writes the time, or that there is none.
        ///
        /// # Errors
        ///
        /// The serializer's.
        pub fn serialize<S: Serializer>(
            time: &Option<SystemTime>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            time.map(format).serialize(to)
        }

        /// Reads a time, if there is one.
        ///
        /// # Errors
        ///
        /// The text is no time.
        pub fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<SystemTime>, D::Error> {
            Ok(Option::<At>::deserialize(from)?.map(|At(time)| time))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("15m", 900_000),
            ("2h", 7_200_000),
            ("1h30m", 5_400_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "15", "m", "15 m", "-1s", "1.5s", "1w", "99999999999999999999s", "s15"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        for text in ["0s", "500ms", "30s", "15m", "2h", "1h30m", "1d1h"] {
            assert_eq!(format_duration(parse_duration(text).expect(text)), text);
        }
        assert_eq!(format_duration(Duration::from_secs(3_723)), "1h2m");
    }

    #[test]
    fn exact_durations_lose_nothing() {
        for text in ["0s", "1ms", "1s500ms", "1h30m15s", "2d3h4m5s6ms"] {
            assert_eq!(exact_duration(parse_duration(text).expect(text)), text);
        }
    }

    #[test]
    fn a_time_to_wait_is_rounded_up() {
        for (millis, secs) in [(0, 0), (1, 1), (1_000, 1), (9_957, 10)] {
            assert_eq!(whole_secs(Duration::from_millis(millis)), secs, "{millis}");
        }
    }

    #[test]
    fn times_are_dates() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
        ] {
            assert_eq!(format_time(UNIX_EPOCH + Duration::from_secs(secs)), text);
        }
        assert_eq!(format_time(UNIX_EPOCH - Duration::from_secs(1)), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn counts_fit_their_column() {
        for (count, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1.00k"),
            (12_345, "12.3k"),
            (999_999, "1.00M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(format_count(count), text);
        }
        assert_eq!(format_bytes(512), "512 B");
        assert_eq!(format_bytes(1536), "1.50 KiB");
    }

    #[test]
    fn one_of_a_thing_is_in_the_singular() {
        for (count, text) in [(0_u64, "0 SYNs"), (1, "1 SYN"), (2, "2 SYNs")] {
            assert_eq!(counted(count, "SYN"), text);
        }
        assert_eq!(counted(1_usize, "queue"), "1 queue");
    }

    #[test]
    fn times_are_written_and_read_to_the_millisecond() {
        use std::time::SystemTime;

        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct At(#[serde(with = "rfc3339")] SystemTime);
        let at = At(SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_272_000_123));
        let json = serde_json::to_string(&at).expect("it is JSON");
        assert_eq!(json, "\"2026-11-21T14:40:00.123Z\"");
        assert_eq!(serde_json::from_str::<At>(&json).expect(&json), at);
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(rfc3339::format(before), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn nearest_name_is_near() {
        assert_eq!(nearest("prot", ["port", "protocol", "mode"]), Some("port"));
        assert_eq!(nearest("backned", ["backend", "name"]), Some("backend"));
        assert_eq!(nearest("zzz", ["backend", "name"]), None);
    }
}
