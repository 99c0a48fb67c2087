//! Time zones by their IANA names.
//!
//! They come from the system's database, which is the first to know of a government's change, or from the one within
//! the program where the system has none. What was found is kept in memory.

use jiff::tz::TimeZone;

/// The zone of this name, whatever its case; `None` where there is none.
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
