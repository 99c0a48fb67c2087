//! The settings from the file, the environment and the flags, and every problem with them.

use std::collections::{BTreeMap, HashMap};

use toml::{Table, Value};

use super::{SettingProblem, settings::SETTINGS, table::Setting, value::SettingValue};

/// Variables with the gateway's prefix that are not settings: the command line's, and those of the project's own tests.
const OTHER_VARIABLES: &[&str] =
    &["ANGARIUM_CONFIG", "ANGARIUM_URL", "ANGARIUM_KEY", "ANGARIUM_REQUIRE_PEERS", "ANGARIUM_SEED", "ANGARIUM_UPDATE"];
const OTHER_BEGINNINGS: &[&str] = &["ANGARIUM_TEST_", "ANGARIUM_PEERS_"];

/// Values of settings that are not read yet, and the problems found so far.
#[derive(Debug, Default)]
pub struct GivenSettings {
    values: BTreeMap<&'static str, (&'static Setting, Value)>,
    problems: Vec<SettingProblem>,
}

impl GivenSettings {
    /// Puts the sources together, the weakest first: second variables, the file, the environment, the flags.
    pub fn collect(file: Table, environment: &HashMap<String, String>, flags: &[(&'static str, String)]) -> Self {
        let mut given = Self { values: BTreeMap::new(), problems: unknown_variables(environment) };
        let variable = |name: &str| environment.get(name).filter(|text| !text.is_empty()).cloned().map(Value::String);
        for setting in SETTINGS {
            given.set(setting, setting.also.and_then(variable));
        }
        for (key, value) in keys(file) {
            given.set_key(&key, value);
        }
        for setting in SETTINGS {
            given.set(setting, variable(&setting.variable()));
        }
        for (key, text) in flags {
            given.set_key(key, Value::String(text.clone()));
        }
        given
    }

    /// Reads a setting; its default stands in for a value with a problem, which is noted.
    pub fn take<T: SettingValue>(&mut self, key: &'static str, default: impl FnOnce() -> T) -> T {
        let Some((setting, value)) = self.values.remove(key) else { return default() };
        T::read(&value, setting).unwrap_or_else(|detail| {
            self.refuse(key, detail);
            default()
        })
    }

    pub fn refuse(&mut self, key: &str, detail: impl Into<String>) {
        self.problems.push(SettingProblem::new(key, detail));
    }

    /// Whether none of these keys has a problem.
    pub fn is_sound(&self, keys: &[&str]) -> bool {
        self.problems.iter().all(|problem| !keys.contains(&problem.name.as_str()))
    }

    pub fn into_problems(self) -> Vec<SettingProblem> {
        self.problems
    }

    fn set(&mut self, setting: &'static Setting, value: Option<Value>) {
        if let Some(value) = value {
            self.values.insert(setting.key, (setting, value));
        }
    }

    fn set_key(&mut self, key: &str, value: Value) {
        match SETTINGS.iter().find(|setting| setting.key == key) {
            Some(setting) => self.set(setting, Some(value)),
            None if is_section(key) => self.refuse(key, format!("must be a table of settings, `[{key}]`")),
            None => self.refuse(key, does_not_exist(nearest(key).map(|meant| format!("`{}`", meant.key)))),
        }
    }
}

/// Every key of a file with its value, as far down as settings go: `queue.lease_ms`.
fn keys(file: Table) -> Vec<(String, Value)> {
    let keys = file.into_iter().flat_map(|(section, value)| match value {
        Value::Table(keys) if is_section(&section) || !keys.is_empty() => {
            keys.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)).collect()
        }
        other => vec![(section, other)],
    });
    keys.collect()
}

fn is_section(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.key.split_once('.').is_some_and(|(section, _)| section == name))
}

fn does_not_exist(nearest: Option<String>) -> String {
    nearest.map_or_else(
        || "does not exist".to_owned(),
        |meant| format!("does not exist; the nearest is {meant}: rename or remove it"),
    )
}

/// The setting that a name was probably meant for. One with the same last part goes before one that is spelled alike.
fn nearest(key: &str) -> Option<&'static Setting> {
    fn last(key: &str) -> &str {
        key.rsplit('.').next().unwrap_or(key)
    }
    SETTINGS.iter().min_by_key(|setting| (last(setting.key) != last(key), strsim::levenshtein(key, setting.key)))
}

fn unknown_variables(environment: &HashMap<String, String>) -> Vec<SettingProblem> {
    let known: Vec<_> = SETTINGS.iter().map(Setting::variable).collect();
    let mut unknown: Vec<_> = environment
        .iter()
        .filter(|(name, value)| !known.contains(name) && !is_other(name, value))
        .filter_map(|(name, _)| Some((name, name.strip_prefix("ANGARIUM_")?.to_lowercase().replace("__", "."))))
        .map(|(name, key)| SettingProblem::new(name, does_not_exist(nearest(&key).map(Setting::variable))))
        .collect();
    unknown.sort_by(|one, other| one.name.cmp(&other.name));
    unknown
}

/// Whether a variable with the gateway's prefix belongs to another program.
///
/// Kubernetes sets `…_SERVICE_HOST`, `…_PORT=tcp://…` and the like for a service whose name begins with `angarium`.
fn is_other(name: &str, value: &str) -> bool {
    OTHER_VARIABLES.contains(&name)
        || cfg!(any(debug_assertions, feature = "failpoints")) && name == "ANGARIUM_FAILPOINTS"
        || OTHER_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
        || ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT_"].iter().any(|part| name.contains(part))
        || name.ends_with("_PORT") && value.contains("://")
}
