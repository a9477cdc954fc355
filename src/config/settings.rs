//! The settings before they have types: file, then environment, then `--set`, merged as TOML, each value with its origin.
//!
//! Merging comes before any type is looked at, so that a misspelt key or a wrong type is refused in the same words from
//! wherever it came.
//! Invariant: no value leaves through a message or a description before [`redact`] has seen it.

use super::ConfigError;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Environment variables that set a key start so: `UNDRIFT__NATS__URLS` is `nats.urls`.
const VARIABLE_PREFIX: &str = "UNDRIFT__";

/// Likeness (Jaro-Winkler, 0..=1) from which a known key is offered for an unknown one.
const LIKENESS_MIN: f64 = 0.8;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File(PathBuf),
    /// Name of the variable.
    Environment(String),
    Set,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(variable) => f.write_str(variable),
            Self::Set => f.write_str("--set"),
        }
    }
}

/// One value that is in force.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Setting {
    /// `section.key`
    pub key: String,
    /// With secrets redacted.
    pub value: Value,
    /// File, variable or `--set`.
    pub origin: String,
}

/// All values and where they came from.
#[derive(Clone)]
pub struct Settings {
    path: PathBuf,
    table: Table,
    /// Of the keys that did not come from the file.
    overrides: BTreeMap<String, Origin>,
}

impl Settings {
    /// Merges `text`, the file at `path`, with the variables of `environment` that start with `UNDRIFT__`, then with `sets`.
    pub fn merge(path: &Path, text: &str, sets: &[String], environment: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let syntax = |error: toml::de::Error| ConfigError::Syntax { path: path.to_owned(), message: redact(error.to_string().trim_end()) };
        let mut settings = Self { path: path.to_owned(), table: text.parse().map_err(syntax)?, overrides: BTreeMap::new() };
        for (variable, text) in environment {
            if let Some(name) = variable.strip_prefix(VARIABLE_PREFIX) {
                let key = name.to_ascii_lowercase().replace("__", ".");
                settings.set(&key, text, Origin::Environment(variable.clone()))?;
            }
        }
        for argument in sets {
            let (key, text) = argument.split_once('=').ok_or_else(|| ConfigError::Assignment { argument: redact(argument) })?;
            settings.set(key.trim(), text, Origin::Set)?;
        }
        Ok(settings)
    }

    fn set(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let names: Vec<&str> = key.split('.').collect();
        let Some((last, parents)) = names.split_last().filter(|_| names.iter().all(|name| !name.is_empty())) else {
            return Err(ConfigError::Key { key: key.to_owned(), origin });
        };
        let mut table = &mut self.table;
        for parent in parents {
            let entry = table.entry(*parent).or_insert(Value::Boolean(false));
            if !entry.is_table() {
                *entry = Value::Table(Table::new());
            }
            table = entry.as_table_mut().expect("the entry was made a table one line above");
        }
        // Unquoted text that is no TOML value is meant as a string: nobody wants to quote a URL twice in a shell.
        let value = text.trim().parse().unwrap_or_else(|_| Value::String(text.to_owned()));
        table.insert((*last).to_owned(), value);
        let beneath = format!("{key}.");
        self.overrides.retain(|other, _| !other.starts_with(&beneath));
        self.overrides.insert(key.to_owned(), origin);
        Ok(())
    }

    /// The settings as `T`, whose structs deny unknown fields.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        serde_path_to_error::deserialize(Value::Table(self.table.clone())).map_err(|error| {
            let names = error.path().iter().filter_map(|segment| match segment {
                Segment::Map { key } => Some(key.as_str()),
                _ => None,
            });
            self.explain(&names.collect::<Vec<_>>().join("."), error.inner().message())
        })
    }

    /// Turns serde's words, which name fields between backticks, into an error that names key, value and origin.
    fn explain(&self, path: &str, message: &str) -> ConfigError {
        let mut quoted = message.split('`').skip(1).step_by(2);
        let mut key_of_field = || {
            let field = quoted.next().unwrap_or_default();
            let is_named = path == field || path.ends_with(&format!(".{field}"));
            if path.is_empty() || is_named { (if is_named { path } else { field }).to_owned() } else { format!("{path}.{field}") }
        };
        if message.starts_with("unknown field") {
            let key = key_of_field();
            let suggestion = Suggestion::nearest(&key, quoted);
            // A misspelt section is there only because something beneath it was set.
            let beneath = format!("{key}.");
            let cause = self.overrides.keys().find(|other| other.starts_with(&beneath)).unwrap_or(&key);
            return ConfigError::Unknown { origin: self.origin(cause), key, suggestion };
        }
        if message.starts_with("missing field") {
            return ConfigError::Missing { key: key_of_field(), path: self.path.clone() };
        }
        self.invalid(path, message)
    }

    /// The error for the value of `key`, which breaks the limit that `reason` states.
    pub fn invalid(&self, key: &str, reason: impl fmt::Display) -> ConfigError {
        let value = self.get(key).map_or_else(|| "nothing".to_owned(), |value| redacted(value).to_string());
        ConfigError::Invalid { key: key.to_owned(), value, origin: self.origin(key), reason: redact(&reason.to_string()) }
    }

    /// Refuses a `value` of `key` outside `range`.
    pub fn check_range<T: PartialOrd + fmt::Display>(&self, key: &str, value: T, range: RangeInclusive<T>) -> Result<(), ConfigError> {
        if range.contains(&value) {
            return Ok(());
        }
        Err(self.invalid(key, format_args!("must be from {} to {}", range.start(), range.end())))
    }

    /// The path of `key`: one that the file gives is relative to the file, any other to the working directory.
    pub fn resolve(&self, key: &str, path: &Path) -> PathBuf {
        match (self.origin(key), self.path.parent()) {
            (Origin::File(_), Some(folder)) => folder.join(path),
            _ => path.to_owned(),
        }
    }

    /// Like [`Self::resolve`], for a file that must be there.
    pub fn resolve_file(&self, key: &str, path: &Path) -> Result<PathBuf, ConfigError> {
        let path = self.resolve(key, path);
        if path.is_file() { Ok(path) } else { Err(self.invalid(key, format_args!("there is no file {}", path.display()))) }
    }

    /// Every value in force, by key.
    pub fn entries(&self) -> Vec<Setting> {
        let mut entries = Vec::new();
        self.collect("", &self.table, &mut entries);
        entries
    }

    fn collect(&self, prefix: &str, table: &Table, entries: &mut Vec<Setting>) {
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            match value {
                Value::Table(table) => self.collect(&format!("{key}."), table, entries),
                value => entries.push(Setting { value: redacted(value), origin: self.origin(&key).to_string(), key }),
            }
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        let mut names = key.split('.');
        let first = self.table.get(names.next()?);
        names.fold(first, |value, name| value?.get(name))
    }

    fn origin(&self, key: &str) -> Origin {
        let ancestors = std::iter::successors(Some(key), |key| Some(key.rsplit_once('.')?.0));
        let found = ancestors.into_iter().find_map(|key| self.overrides.get(key));
        found.cloned().unwrap_or_else(|| Origin::File(self.path.clone()))
    }
}

/// TOML that reads as the merged file, with the origin of each value behind it.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut section = String::new();
        for setting in self.entries() {
            let (head, name) = setting.key.split_once('.').unwrap_or(("", &setting.key));
            if head != section {
                writeln!(f, "{}[{head}]", if section.is_empty() { "" } else { "\n" })?;
                section = head.to_owned();
            }
            writeln!(f, "{:<50} # {}", format!("{name} = {}", setting.value), setting.origin)?;
        }
        Ok(())
    }
}

/// The known key that an unknown one was probably meant to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suggestion(Option<String>);

impl Suggestion {
    fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Self {
        let (parent, field) = key.rsplit_once('.').map_or(("", key), |(parent, field)| (parent, field));
        let likeness = known.map(|name| (strsim::jaro_winkler(field, name), name));
        let nearest = likeness.filter(|(likeness, _)| *likeness >= LIKENESS_MIN).max_by(|a, b| a.0.total_cmp(&b.0));
        Self(nearest.map(|(_, name)| if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }))
    }
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |name| write!(f, "; did you mean {name}?"))
    }
}

/// `text` without the user and password of any URL in it.
pub fn redact(text: &str) -> String {
    let tokens = text.split_inclusive(['/', ',', ' ', '"', '\'', '`', '\n']);
    tokens.flat_map(|token| token.rfind('@').map_or(["", token], |at| ["***", &token[at..]])).collect()
}

fn redacted(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(redact(text)),
        Value::Array(values) => Value::Array(values.iter().map(redacted).collect()),
        Value::Table(table) => Value::Table(table.iter().map(|(name, value)| (name.clone(), redacted(value))).collect()),
        value => value.clone(),
    }
}
