//! What a command prints: a table for people, JSON for machines.

use std::{
    fmt::Display,
    io::{self, Write},
};

use comfy_table::{ContentArrangement, Table, presets::UTF8_HORIZONTAL_ONLY};
use serde_json::Value;

/// How to print.
pub struct Output {
    pub json: bool,
}

/// A column's title and where its value stands, as a JSON pointer.
pub type Column<'a> = (&'a str, &'a str);

impl Output {
    /// One object: a line a field.
    pub fn one(&self, value: &Value, columns: &[Column<'_>]) {
        if self.json {
            return print(value);
        }
        let mut table = empty_table();
        for (title, pointer) in columns {
            if let Some(field) = value.pointer(pointer).filter(|field| !field.is_null()) {
                table.add_row([(*title).to_owned(), text(field)]);
            }
        }
        say(&table);
    }

    /// A list, or an answer with the list in `data`: a line an object.
    pub fn list(&self, value: &Value, columns: &[Column<'_>]) {
        if self.json {
            return print(value);
        }
        self.rows(value.get("data").unwrap_or(value), columns);
        if let Some(cursor) = value.get("next_cursor").and_then(Value::as_str) {
            say(&format_args!("more with --cursor {cursor}"));
        }
    }

    /// A table of a list's objects, for people only.
    pub fn rows(&self, list: &Value, columns: &[Column<'_>]) {
        let mut table = empty_table();
        table.set_header(columns.iter().map(|(title, _)| *title));
        for row in list.as_array().into_iter().flatten() {
            table.add_row(columns.iter().map(|(_, pointer)| row.pointer(pointer).map_or_else(String::new, text)));
        }
        say(&table);
    }
}

fn empty_table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

fn print(value: &Value) {
    say(value);
}

/// A line on standard output. A reader that has seen enough (`head`) ends the command quietly.
fn say(line: &dyn Display) {
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            eprintln!("error: standard output can't be written: {error}");
            std::process::exit(1);
        }
    }
}

/// Lists of plain values and of named ones (headers) read as such; what else is nested stays JSON. Control characters would be the
/// terminal's.
fn text(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(is_word) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Object(_) if is_word(value) => format!("{}: {}", text(&value["name"]), text(&value["value"])),
        other => other.to_string(),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn is_word(value: &Value) -> bool {
    match value {
        Value::Array(_) => false,
        Value::Object(object) => object.len() == 2 && object.contains_key("name") && object.contains_key("value"),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cell_reads_as_text_and_holds_no_control_character() {
        assert_eq!(text(&json!(["a", 2])), "a, 2");
        assert_eq!(text(&json!({"a": 1})), r#"{"a":1}"#);
        assert_eq!(text(&json!([{"name": "a", "value": "b"}])), "a: b");
        assert_eq!(text(&json!("\u{1b}[31mred\nline")), " [31mred line");
        assert_eq!(text(&json!(null)), "");
    }
}
