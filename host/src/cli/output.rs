//! What a command prints: a table for people, JSON for machines.

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
        println!("{table}");
    }

    /// A list, or an answer with the list in `data`: a line an object.
    pub fn list(&self, value: &Value, columns: &[Column<'_>]) {
        if self.json {
            return print(value);
        }
        let rows = value.get("data").unwrap_or(value).as_array().map_or(&[][..], Vec::as_slice);
        let mut table = empty_table();
        table.set_header(columns.iter().map(|(title, _)| *title));
        for row in rows {
            table.add_row(columns.iter().map(|(_, pointer)| row.pointer(pointer).map_or_else(String::new, text)));
        }
        println!("{table}");
        if let Some(cursor) = value.get("next_cursor").and_then(Value::as_str) {
            println!("more with --cursor {cursor}");
        }
    }
}

fn empty_table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

fn print(value: &Value) {
    println!("{value}");
}

/// Lists of plain values read as such; what is nested stays JSON. Control characters would be the
/// terminal's.
fn text(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            items.iter().map(text).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cell_reads_as_text_and_holds_no_control_character() {
        assert_eq!(text(&json!(["a", 2])), "a, 2");
        assert_eq!(text(&json!({"a": 1})), r#"{"a":1}"#);
        assert_eq!(text(&json!("\u{1b}[31mred\nline")), " [31mred line");
        assert_eq!(text(&json!(null)), "");
    }
}
