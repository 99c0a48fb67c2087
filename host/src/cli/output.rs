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
        say(&self.shape_one(value, columns));
    }

    /// A list, or an answer with the list in `data`: a line an object.
    pub fn list(&self, value: &Value, columns: &[Column<'_>]) {
        say(&self.shape_list(value, columns));
    }

    /// A table of a list's objects, for people only.
    pub fn rows(&self, list: &Value, columns: &[Column<'_>]) {
        say(&table(list, columns));
    }

    /// One object of many that follow: a line, or an object on a line of its own.
    pub fn line(&self, value: &Value, line: impl Fn(&Value) -> String) {
        say(&if self.json { value.to_string() } else { without_controls(&line(value)) });
    }

    /// A text that is for a program in any case.
    pub fn text(&self, text: &str) {
        say(&text);
    }

    fn shape_one(&self, value: &Value, columns: &[Column<'_>]) -> String {
        if self.json {
            return value.to_string();
        }
        let mut table = empty_table();
        for (title, pointer) in columns {
            if let Some(field) = value.pointer(pointer).filter(|field| !field.is_null()) {
                table.add_row([(*title).to_owned(), text(field)]);
            }
        }
        table.to_string()
    }

    fn shape_list(&self, value: &Value, columns: &[Column<'_>]) -> String {
        if self.json {
            return value.to_string();
        }
        let table = table(value.get("data").unwrap_or(value), columns);
        match value.get("next_cursor").and_then(Value::as_str) {
            Some(cursor) => format!("{table}\nmore with --cursor {cursor}"),
            None => table,
        }
    }
}

fn table(list: &Value, columns: &[Column<'_>]) -> String {
    let mut table = empty_table();
    table.set_header(columns.iter().map(|(title, _)| *title));
    for row in list.as_array().into_iter().flatten() {
        table.add_row(columns.iter().map(|(_, pointer)| row.pointer(pointer).map_or_else(String::new, text)));
    }
    table.to_string()
}

fn empty_table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table
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
    without_controls(&text)
}

fn without_controls(text: &str) -> String {
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

    const COLUMNS: [Column<'_>; 3] = [("id", "/id"), ("state", "/state"), ("code", "/delivery/code")];

    /// Programs read the JSON, and people's scripts the tables: neither changes by chance.
    #[test]
    fn what_is_printed_stays_as_it_is() {
        let one = json!({"id": "msg_1", "state": "sent", "delivery": {"code": null}});
        let list = json!({"data": [one, {"id": "msg_2", "state": "failed", "delivery": {"code": "http_500"}}],
            "next_cursor": "abc"});
        let people = Output { json: false };
        assert_eq!(read(&people.shape_one(&one, &COLUMNS)), ["id msg_1", "state sent"]);
        let lines = ["id state code", "msg_1 sent", "msg_2 failed http_500", "more with --cursor abc"];
        assert_eq!(read(&people.shape_list(&list, &COLUMNS)), lines);
        let programs = Output { json: true };
        assert_eq!(programs.shape_one(&one, &COLUMNS), one.to_string());
        assert_eq!(programs.shape_list(&list, &COLUMNS), list.to_string(), "one line, all that was answered");
    }

    /// The lines that say something, without the table's rules and gaps.
    fn read(shown: &str) -> Vec<String> {
        let lines = shown.lines().filter(|line| line.contains(char::is_alphanumeric));
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn a_cell_reads_as_text_and_holds_no_control_character() {
        assert_eq!(text(&json!(["a", 2])), "a, 2");
        assert_eq!(text(&json!({"a": 1})), r#"{"a":1}"#);
        assert_eq!(text(&json!([{"name": "a", "value": "b"}])), "a: b");
        assert_eq!(text(&json!("\u{1b}[31mred\nline")), " [31mred line");
        assert_eq!(text(&json!(null)), "");
    }
}
