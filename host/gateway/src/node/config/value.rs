//! The types of settings' values, and how each is read from the text of a file, a variable or a flag.

use std::{collections::BTreeMap, net::SocketAddr, ops::Deref, path::PathBuf, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};
use toml::{Table, Value};

use super::table::Setting;

/// A type that a setting can have.
///
/// A number in quotes is as good as one without: a variable has no other form.
pub trait SettingValue: Sized {
    /// Reads the value and checks it as its setting says.
    ///
    /// # Errors
    /// The requirement, and what was given.
    fn read(given: &Value, setting: &Setting) -> Result<Self, String>;
}

impl<T: SettingValue> SettingValue for Option<T> {
    fn read(given: &Value, setting: &Setting) -> Result<Self, String> {
        T::read(given, setting).map(Some)
    }
}

/// An array of a file, or a text with commas.
impl<T: SettingValue> SettingValue for Vec<T> {
    fn read(given: &Value, setting: &Setting) -> Result<Self, String> {
        let items = match given {
            Value::Array(items) => items.clone(),
            other => text(other)?.split(',').map(|item| Value::String(item.trim().to_owned())).collect(),
        };
        let (mut values, mut problems) = (Vec::new(), Vec::new());
        for item in &items {
            match T::read(item, setting) {
                Ok(value) => values.push(value),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(values) } else { Err(problems.join("; ")) }
    }
}

/// Reads types by their [`FromStr`], and says what is expected when that fails.
macro_rules! from_text {
    ($($Type:ty => $expected:literal,)+) => {$(
        impl SettingValue for $Type {
            fn read(given: &Value, setting: &Setting) -> Result<Self, String> {
                let text = text(given)?;
                setting.check(&text)?;
                text.parse().map_err(|_| format!("must be {} (got `{text}`)", $expected))
            }
        }
    )+};
}

from_text! {
    u32 => "a whole number",
    u64 => "a whole number",
    usize => "a whole number",
    f64 => "a number",
    String => "a text",
    SecretText => "a text",
    SecretUrl => "a URL",
    PathBuf => "a path",
    SocketAddr => "an IP address and a port, such as `127.0.0.1:8080`",
    IpNet => "a network, such as `10.1.0.0/16`",
}

fn text(given: &Value) -> Result<String, String> {
    match given {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(truth) => Ok(truth.to_string()),
        Value::Array(_) => Err("must be one value (got an array)".to_owned()),
        Value::Table(_) => Err("must be one value (got a table)".to_owned()),
        Value::Datetime(_) => Err("must be a text or a number (got a time)".to_owned()),
    }
}

/// An enum that is read from its words, shown as them, and lists them when another is given.
macro_rules! choice {
    ($(#[$attribute:meta])* $Name:ident { $($(#[$doc:meta])* $Case:ident = $word:literal,)+ }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $Name { $($(#[$doc])* $Case,)+ }

        impl SettingValue for $Name {
            fn read(given: &Value, _: &Setting) -> Result<Self, String> {
                match text(given)?.as_str() {
                    $($word => Ok(Self::$Case),)+
                    other => Err(format!("must be {} (got `{other}`)", [$(concat!("`", $word, "`")),+].join(" or "))),
                }
            }
        }

        impl Serialize for $Name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(match self { $(Self::$Case => $word),+ })
            }
        }
    };
}

choice! {
    /// The hosts that components of the folder are granted.
    FolderGrant {
        /// An operator grants hosts by hand.
        None = "none",
        /// The hosts that the component declares: the operator fills the folder.
        Declared = "declared",
    }
}

choice! {
    /// One thing that a node does.
    NodeRole {
        Api = "api",
        Dispatch = "dispatch",
    }
}

choice! {
    /// The form of the log.
    LogFormat {
        Text = "text",
        Json = "json",
    }
}

/// The roles of this node, at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeRoles(pub Vec<NodeRole>);

impl NodeRoles {
    #[must_use]
    pub fn has(&self, role: NodeRole) -> bool {
        self.0.contains(&role)
    }
}

impl SettingValue for NodeRoles {
    fn read(given: &Value, setting: &Setting) -> Result<Self, String> {
        let roles = Vec::read(given, setting)?;
        if roles.is_empty() { Err("must name `api`, `dispatch` or both".to_owned()) } else { Ok(Self(roles)) }
    }
}

/// A text that neither a log nor `config check` shows.
#[derive(Clone)]
pub struct SecretText(String);

/// A URL that is shown without its passwords.
#[derive(Clone, Default)]
pub struct SecretUrl(String);

macro_rules! secret {
    ($Name:ident, $shown:expr) => {
        impl Deref for $Name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $Name {
            type Err = std::convert::Infallible;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Ok(Self(text.to_owned()))
            }
        }

        impl std::fmt::Debug for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&$shown(&self.0))
            }
        }

        impl Serialize for $Name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&$shown(&self.0))
            }
        }
    };
}

secret!(SecretText, |_: &str| "***".to_owned());
secret!(SecretUrl, without_passwords);

/// A URL without its passwords, before the host and among the parameters.
fn without_passwords(url: &str) -> String {
    let Ok(mut url) = url::Url::parse(url) else { return "***".to_owned() };
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return "***".to_owned();
    }
    let secret = |name: &str| name.to_ascii_lowercase().contains("password") || name.eq_ignore_ascii_case("sslkey");
    if url.query_pairs().any(|(name, _)| secret(&name)) {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let shown = pairs.iter().map(|(name, value)| (name, if secret(name) { "***" } else { value.as_str() }));
        url.query_pairs_mut().clear().extend_pairs(shown);
    }
    url.to_string()
}

/// How long the messages of a class of tenants are kept, counted from their acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionClass {
    /// Everything, in days.
    pub ledger_days: u32,
    /// Recipient, content and attachments, in days.
    pub content_days: u32,
}

impl Default for RetentionClass {
    fn default() -> Self {
        Self { ledger_days: 90, content_days: 30 }
    }
}

impl RetentionClass {
    /// The longest that anything can be kept: a hundred years.
    const MAX_DAYS: u32 = 36_500;

    fn is_sound(&self) -> bool {
        (1..=self.ledger_days).contains(&self.content_days) && self.ledger_days <= Self::MAX_DAYS
    }
}

/// The retention classes by name. `default` exists even if the configuration does not name it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RetentionClasses(BTreeMap<String, RetentionClass>);

impl RetentionClasses {
    #[must_use]
    pub fn get(&self, name: &str) -> Option<RetentionClass> {
        let default = || (name == "default").then(RetentionClass::default);
        self.0.get(name).copied().or_else(default)
    }

    /// The days of the class that keeps messages for the longest time.
    #[must_use]
    pub fn longest_ledger_days(&self) -> u32 {
        let named = self.0.values().map(|class| class.ledger_days).max().unwrap_or_default();
        self.get("default").map_or(named, |class| class.ledger_days.max(named))
    }
}

/// A table of a file, or its text: `short = { ledger_days = 7, content_days = 1 }`.
impl SettingValue for RetentionClasses {
    fn read(given: &Value, _: &Setting) -> Result<Self, String> {
        let classes = match given {
            Value::Table(classes) => classes.clone(),
            other => text(other)?.parse::<Table>().map_err(|error| format!("must be a TOML table: {error}"))?,
        };
        let (mut read, mut problems) = (BTreeMap::new(), Vec::new());
        for (name, class) in classes {
            match class.try_into::<RetentionClass>() {
                Ok(class) if class.is_sound() => drop(read.insert(name, class)),
                Ok(_) => problems.push(format!(
                    "`{name}` must have 1 <= content_days <= ledger_days <= {}",
                    RetentionClass::MAX_DAYS
                )),
                Err(error) => {
                    problems.push(format!("`{name}` must have whole `ledger_days` and `content_days`: {error}"))
                }
            }
        }
        if problems.is_empty() { Ok(Self(read)) } else { Err(problems.join("; ")) }
    }
}
