//! Time zones by their IANA names.
//!
//! Time zones come from the system's database, which receives governments' changes first, or from the one within the
//! program if the system has none. Found zones are kept in memory.

use jiff::tz::TimeZone;

/// Returns the zone of this name, in any case; `None` if it does not exist.
#[must_use]
pub fn named(name: &str) -> Option<TimeZone> {
    TimeZone::get(name).ok()
}

/// Whether there is a zone of this name.
#[must_use]
pub fn exists(name: &str) -> bool {
    named(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_exists_or_it_does_not() {
        for name in ["Europe/Stockholm", "America/Argentina/Buenos_Aires", "UTC", "Asia/Kolkata", "europe/stockholm"] {
            assert!(exists(name), "{name}");
        }
        for name in ["", "Europe/Stokholm", "Middle/Earth", "../../etc/passwd", "/etc/localtime", "+02:00"] {
            assert!(!exists(name), "{name}");
        }
    }
}
