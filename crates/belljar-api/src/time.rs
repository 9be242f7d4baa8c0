//! Times as people and JSON write them. No clock is read here.

/// Seconds of a day.
const DAY: i64 = 86_400;

/// Year, month and day of a day since 1970, in the Gregorian calendar.
pub fn date(days: i64) -> (i64, i64, i64) {
    // Years are counted from March, so that the leap day is their last; eras are 400 years, from the year 0.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year_of_era + next_year, month, day)
}

/// `2026-11-25T01:40:53.007Z`, of milliseconds since 1970.
pub fn rfc3339(at_ms: i64) -> String {
    let (seconds, milliseconds) = (at_ms.div_euclid(1000), at_ms.rem_euclid(1000));
    let (year, month, day) = date(seconds.div_euclid(DAY));
    let second = seconds.rem_euclid(DAY);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (days, expected) in
            [(0, (1970, 1, 1)), (-1, (1969, 12, 31)), (11_016, (2000, 2, 29)), (20_782, (2026, 11, 25))]
        {
            assert_eq!(date(days), expected);
        }
    }

    #[test]
    fn times_are_those_of_the_standard() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_757_152_266_007), "2025-09-06T09:51:06.007Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999Z");
    }
}
