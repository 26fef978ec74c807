//! `strftime` for chat templates, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The current time in `format`; `None` where the format has a conversion that is not known.
pub(super) fn now(format: &str) -> Option<String> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    strftime(format, since.as_secs())
}

/// `format` at `seconds` after 1970-01-01 00:00 UTC.
fn strftime(format: &str, seconds: u64) -> Option<String> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = DAYS[(days as usize + 4) % 7];
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next()? {
            'Y' => out += &year.to_string(),
            'y' => out += &format!("{:02}", year % 100),
            'm' => out += &format!("{month:02}"),
            'd' => out += &format!("{day:02}"),
            'H' => out += &format!("{hour:02}"),
            'I' => out += &format!("{:02}", (hour + 11) % 12 + 1),
            'M' => out += &format!("{minute:02}"),
            'S' => out += &format!("{second:02}"),
            'p' => out += if hour < 12 { "AM" } else { "PM" },
            'B' => out += month_name,
            'b' => out += &month_name[..3],
            'A' => out += weekday,
            'a' => out += &weekday[..3],
            '%' => out.push('%'),
            _ => return None,
        }
    }
    Some(out)
}

/// Year, month and day of a day since 1970-01-01. Years are counted from March on, so that a leap day comes last
/// (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        // 2024-07-26 09:05:07 UTC, a Friday.
        let seconds = 1_721_984_707;
        let all = "%Y-%m-%d %H:%M:%S %y %b %B %a %A %I %p %%";
        let expected = "2024-07-26 09:05:07 24 Jul July Fri Friday 09 AM %";
        assert_eq!(strftime(all, seconds).as_deref(), Some(expected));
        assert_eq!(strftime("%I %p", 0).as_deref(), Some("12 AM"));
        assert_eq!(strftime("%Q", 0), None);
        assert_eq!(strftime("%", 0), None);
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let leap =
            |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..146_097 * 2 {
            assert_eq!(civil(days), (year, month, day));
            let length = match month {
                2 => 28 + u64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }
}
