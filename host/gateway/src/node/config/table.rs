//! The form of the table of settings: [`settings!`] makes the configuration's types and [`SETTINGS`] of it.
//!
//! [`SETTINGS`]: super::settings::SETTINGS

use std::ops::RangeInclusive;

/// Returns the requirement that a text does not meet.
pub type SettingCheck = fn(&str) -> Result<(), String>;

/// One setting, as its entry in the table says.
#[derive(Debug, Clone)]
pub struct Setting {
    /// With dots: `queue.lease_ms`.
    pub key: &'static str,
    /// Its purpose, in Markdown.
    pub meaning: &'static str,
    pub bounds: Option<RangeInclusive<u64>>,
    pub check: Option<SettingCheck>,
    /// The default as the documentation shows it, where the value does not tell it.
    pub default: Option<&'static str>,
    /// A second variable, weaker than the file.
    pub also: Option<&'static str>,
}

impl Setting {
    /// The environment variable: `queue.lease_ms` is `ANGARIUM_QUEUE__LEASE_MS`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("ANGARIUM_{}", self.key.replace('.', "__").to_uppercase())
    }

    /// Whether a text from the file, the environment or a flag is allowed.
    ///
    /// # Errors
    /// The requirement, and what was given.
    pub fn check(&self, text: &str) -> Result<(), String> {
        if let Some(bounds) = &self.bounds {
            let within = text.parse().is_ok_and(|number| bounds.contains(&number));
            within.then_some(()).ok_or_else(|| format!("must be {} (got `{text}`)", self.limits()))?;
        }
        self.check.map_or(Ok(()), |check| check(text))
    }

    /// The bounds in words; empty if there are none.
    #[must_use]
    pub fn limits(&self) -> String {
        match self.bounds.as_ref().map(|bounds| (self.number(*bounds.start()), bounds)) {
            None => String::new(),
            Some((least, bounds)) if *bounds.end() == u64::MAX => format!("at least {least}"),
            Some((least, bounds)) => format!("{least} to {}", self.number(*bounds.end())),
        }
    }

    /// A number of this setting as people read it, with the unit of bytes.
    #[must_use]
    pub fn number(&self, number: u64) -> String {
        const UNITS: [(u64, &str); 3] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")];
        let unit = UNITS
            .iter()
            .find(|(size, _)| self.key.contains("bytes") && number >= *size && number.is_multiple_of(*size));
        unit.map_or_else(|| number.to_string(), |(size, name)| format!("{number} ({} {name})", number / size))
    }
}

/// Makes the types of the configuration and `SETTINGS`: see the head of `settings.rs` for the form.
macro_rules! settings {
    (
        $(#[doc = $config_doc:literal])+
        $Config:ident {$(
            $(#[doc = $top_doc:literal])+
            $top:ident: $Top:ty = $top_default:expr
                $(, in $top_bounds:expr)? $(, check $top_check:path)? $(, shown $top_shown:literal)? $(, also $top_also:literal)?;
        )*}
        $(
            $(#[doc = $section_doc:literal])+
            $section:ident: $Section:ident {$(
                $(#[doc = $doc:literal])+
                $name:ident: $Type:ty = $default:expr
                    $(, in $bounds:expr)? $(, check $check:path)? $(, shown $shown:literal)? $(, also $also:literal)?;
            )+}
        )+
    ) => {
        $(#[doc = $config_doc])+
        #[derive(Debug, Clone, serde::Serialize)]
        pub struct $Config {
            $($(#[doc = $top_doc])+ pub $top: $Top,)*
            $($(#[doc = $section_doc])+ pub $section: $Section,)+
        }

        $(
            $(#[doc = $section_doc])+
            #[derive(Debug, Clone, serde::Serialize)]
            pub struct $Section {
                $($(#[doc = $doc])+ pub $name: $Type,)+
            }
        )+

        /// Every setting, in the order of the table.
        pub const SETTINGS: &[$crate::node::config::table::Setting] = &[
            $($crate::node::config::table::setting! {
                stringify!($top), concat!($($top_doc),+),
                [$($top_bounds)?] [$($top_check)?] [$($top_shown)?] [$($top_also)?]
            },)*
            $($($crate::node::config::table::setting! {
                concat!(stringify!($section), ".", stringify!($name)), concat!($($doc),+),
                [$($bounds)?] [$($check)?] [$($shown)?] [$($also)?]
            },)+)+
        ];

        impl $Config {
            /// Takes each setting from what was given, else its default.
            pub(super) fn take(given: &mut $crate::node::config::given::GivenSettings) -> Self {
                Self {
                    $($top: given.take(stringify!($top), || $top_default),)*
                    $($section: $Section {
                        $($name: given.take(concat!(stringify!($section), ".", stringify!($name)), || $default),)+
                    },)+
                }
            }
        }
    };
}

/// One entry of `SETTINGS`; an option that was left out is `None`.
macro_rules! setting {
    (@option) => { None };
    (@option $value:expr) => { Some($value) };
    ($key:expr, $meaning:expr, [$($bounds:expr)?] [$($check:path)?] [$($shown:literal)?] [$($also:literal)?]) => {
        $crate::node::config::table::Setting {
            key: $key,
            meaning: $meaning,
            bounds: $crate::node::config::table::setting!(@option $($bounds)?),
            check: $crate::node::config::table::setting!(@option $($check)?),
            default: $crate::node::config::table::setting!(@option $($shown)?),
            also: $crate::node::config::table::setting!(@option $($also)?),
        }
    };
}

pub(super) use {setting, settings};
