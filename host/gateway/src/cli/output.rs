//! A command's output: a table for people, JSON for machines.

use std::{
    fmt::Display,
    io::{self, Write},
};

use comfy_table::{ColumnConstraint, ContentArrangement, LineStyle, Table, TableStyle, Width};
use serde_json::Value;

/// How to print.
pub struct Output {
    pub json: bool,
}

/// A column's title and the JSON pointer of its value.
pub type Column<'a> = (&'a str, &'a str);

impl Output {
    /// Prints one object: a line for each field.
    pub fn one(&self, value: &Value, columns: &[Column<'_>]) {
        say(&self.shape_one(value, columns));
    }

    /// A list, or an answer with the list in `data`: a line an object.
    pub fn list(&self, value: &Value, columns: &[Column<'_>]) {
        say(&self.shape_list(value, columns));
    }

    /// A table of a list's objects, for people only.
    pub fn rows(&self, list: &Value, columns: &[Column<'_>]) {
        say(&rows(list, columns, Table::new().width()));
    }

    /// Prints one object of a sequence: a line, or an object on its own line.
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
        let fields = columns.iter().map(|(title, pointer)| ((*title).to_owned(), cell(value, pointer, Times::Whole)));
        let rows = fields.filter(|(_, field)| !field.is_empty()).map(|(title, field)| vec![title, field]);
        table(&[], rows.collect(), Table::new().width()).to_string()
    }

    fn shape_list(&self, value: &Value, columns: &[Column<'_>]) -> String {
        if self.json {
            return value.to_string();
        }
        let table = rows(value.get("data").unwrap_or(value), columns, Table::new().width());
        match value.get("next_cursor").and_then(Value::as_str) {
            Some(cursor) => format!("{table}\nmore with --cursor {cursor}"),
            None => table.to_string(),
        }
    }
}

/// Returns the rows of a table that fits: on a narrow terminal times are shortened and columns without space are
/// removed, so that no id is ever broken. Columns are listed by importance.
fn rows(list: &Value, columns: &[Column<'_>], width: Option<u16>) -> String {
    let rows: Vec<_> = list.as_array().into_iter().flatten().collect();
    let whole = Layout::of(&rows, columns, Times::Whole);
    let Some(width) = width.filter(|width| !whole.fits(*width)) else { return whole.table(width).to_string() };
    // An empty column is removed first, silently.
    let is_told = |(_, pointer): &Column<'_>| rows.iter().any(|row| !cell(row, pointer, Times::Short).is_empty());
    let (mut kept, mut left_out) = (Vec::new(), Vec::new());
    for column in columns.iter().copied().filter(is_told) {
        kept.push(column);
        if kept.len() > 1 && !Layout::of(&rows, &kept, Times::Short).fits(width) {
            kept.pop();
            left_out.push(column.0);
        }
    }
    let table = Layout::of(&rows, &kept, Times::Short).table(Some(width));
    match left_out.as_slice() {
        [] => table.to_string(),
        titles => {
            let note = format!("no room for: {} (a wider terminal or `--json` shows them)", titles.join(", "));
            format!("{table}\n{}", wrapped(&note, width))
        }
    }
}

/// Wraps a text at this width, as far as its words allow.
fn wrapped(text: &str, width: u16) -> String {
    let (mut lines, mut used) = (String::new(), 0);
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 {
            let fits = used + 1 + length <= width.into();
            lines.push(if fits { ' ' } else { '\n' });
            used = if fits { used + 1 } else { 0 };
        }
        lines.push_str(word);
        used += length;
    }
    lines
}

/// A table's cells before they are drawn.
struct Layout<'a> {
    titles: Vec<&'a str>,
    rows: Vec<Vec<String>>,
}

impl<'a> Layout<'a> {
    fn of(rows: &[&Value], columns: &[Column<'a>], times: Times) -> Self {
        let filled = |text: String| if text.is_empty() { NOTHING.to_owned() } else { text };
        let row = |row: &&Value| columns.iter().map(|(_, pointer)| filled(cell(row, pointer, times))).collect();
        Self { titles: columns.iter().map(|(title, _)| *title).collect(), rows: rows.iter().map(row).collect() }
    }

    fn fits(&self, width: u16) -> bool {
        least_width(&longest_words(&self.titles, &self.rows)) <= width
    }

    fn table(self, width: Option<u16>) -> Table {
        table(&self.titles, self.rows, width)
    }
}

/// How much of a time is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Times {
    /// To the second, with its date and zone.
    Whole,
    /// Month, day, hour and minute, in UTC.
    Short,
}

/// An empty cell looks like a mistake.
const NOTHING: &str = "–";

/// No line between the rows: a list then fits on a screen.
const STYLE: TableStyle = TableStyle::new()
    .top_border(LineStyle::none().fill('─').junction('─'))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('─').junction('─'));

fn table(titles: &[&str], rows: Vec<Vec<String>>, width: Option<u16>) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_content_arrangement(ContentArrangement::Dynamic);
    let words = longest_words(titles, &rows);
    if !titles.is_empty() {
        table.set_header(titles);
    }
    table.add_rows(rows);
    match width {
        Some(width) if least_width(&words) <= width => {
            table.set_width(width);
            table.set_constraints(words.into_iter().map(|word| ColumnConstraint::LowerBoundary(Width::Fixed(word))));
        }
        // A line that the terminal wraps can be copied; an id that the table breaks can't.
        Some(_) => drop(table.set_content_arrangement(ContentArrangement::Disabled)),
        None => {}
    }
    table
}

/// Returns the width of each column, margins included, that breaks no id, digest or time of it: a broken one cannot be
/// copied. Other words are broken only if they are long.
fn longest_words(titles: &[&str], rows: &[Vec<String>]) -> Vec<u16> {
    let mut widths = vec![0; rows.iter().map(Vec::len).chain([titles.len()]).max().unwrap_or(0)];
    let titles = titles.iter().copied().enumerate();
    let cells = rows.iter().flat_map(|row| row.iter().map(String::as_str).enumerate());
    for (column, cell) in titles.chain(cells) {
        let longest = cell.split(' ').map(unbroken).max().unwrap_or(0);
        if let Some(width) = widths.get_mut(column) {
            *width = u16::try_from(longest + 2).unwrap_or(u16::MAX).max(*width);
        }
    }
    widths
}

/// How wide a table is at least: its columns, with a space between two.
fn least_width(columns: &[u16]) -> u16 {
    let gaps = u16::try_from(columns.len().saturating_sub(1)).unwrap_or(u16::MAX);
    columns.iter().fold(gaps, |width, column| width.saturating_add(*column))
}

/// How much of a word has to stand on one line.
fn unbroken(word: &str) -> usize {
    const LONGEST_WORD: usize = 24;
    let length = word.chars().count();
    let hexadecimal = |text: &str| text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
    let is_id = hexadecimal(bare) || bare.rsplit_once('_').is_some_and(|(_, id)| hexadecimal(id));
    if is_id || bare.parse::<jiff::Timestamp>().is_ok() { length } else { length.min(LONGEST_WORD) }
}

/// Returns the value under a pointer; times are cut to the second.
fn cell(row: &Value, pointer: &str, times: Times) -> String {
    let Some(value) = row.pointer(pointer) else { return String::new() };
    let time = value.as_str().filter(|_| pointer.ends_with("_at") || pointer == "/at");
    match time.and_then(|time| time.parse::<jiff::Timestamp>().ok()) {
        Some(time) if times == Times::Short => time.strftime("%m-%dT%H:%M").to_string(),
        Some(time) => format!("{time:.0}"),
        None => text(value),
    }
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

/// Lists of plain values and of named ones (headers), objects of plain values and amounts of money
/// read as such; what else is nested stays JSON. Control characters would be the terminal's.
fn text(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(is_word) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Object(_) if is_word(value) => format!("{}: {}", text(&value["name"]), text(&value["value"])),
        Value::Object(object) => match money(object) {
            Some(money) => money,
            None if object.values().any(Value::is_object) || object.values().any(Value::is_array) => value.to_string(),
            None => {
                let members = object.iter().filter(|(_, value)| !value.is_null());
                members.map(|(name, value)| format!("{name}: {}", text(value))).collect::<Vec<_>>().join(", ")
            }
        },
        other => other.to_string(),
    };
    without_controls(&text)
}

fn without_controls(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An amount in millionths.
fn money(object: &serde_json::Map<String, Value>) -> Option<String> {
    let (micros, currency) = (object.get("micros")?.as_i64()?, object.get("currency")?.as_str()?);
    let (whole, rest) = (micros / 1_000_000, (micros % 1_000_000).unsigned_abs());
    let amount = format!("{whole}.{rest:06}");
    (object.len() == 2).then(|| format!("{} {currency}", amount.trim_end_matches('0').trim_end_matches('.')))
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
        let lines = ["id state code", "msg_1 sent –", "msg_2 failed http_500", "more with --cursor abc"];
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
        assert_eq!(text(&json!({"type": "linear", "delay_ms": 1, "x": null})), "delay_ms: 1, type: linear");
        assert_eq!(text(&json!({"a": {"b": 1}})), r#"{"a":{"b":1}}"#);
        assert_eq!(text(&json!({"micros": 8300, "currency": "USD"})), "0.0083 USD");
        assert_eq!(text(&json!({"micros": 20_000_000, "currency": "USD"})), "20 USD");
        assert_eq!(text(&json!([{"name": "a", "value": "b"}])), "a: b");
        assert_eq!(text(&json!("\u{1b}[31mred\nline")), " [31mred line");
        assert_eq!(text(&json!(null)), "");
    }

    #[test]
    fn a_time_is_shown_to_the_second() {
        let row = json!({"created_at": "2026-11-21T11:54:38.851199Z", "name": "2026-11-21T11:54:38.851199Z"});
        assert_eq!(cell(&row, "/created_at", Times::Whole), "2026-11-21T11:54:38Z");
        assert_eq!(cell(&row, "/created_at", Times::Short), "11-21T11:54");
        assert_eq!(cell(&row, "/name", Times::Whole), "2026-11-21T11:54:38.851199Z");
    }

    const ID: &str = "msg_01a1fdf5dfc27726af9a1e7b3523d4f4";

    #[test]
    fn an_id_is_not_broken_over_lines() {
        let rows = vec![vec![ID.to_owned(), "words ".repeat(40)]];
        assert!(table(&["id", "text"], rows, Some(60)).to_string().contains(ID));
    }

    /// At every width the id is whole, and no line is longer than the terminal while that can be.
    #[test]
    fn a_narrow_terminal_shortens_times_and_leaves_columns_out() {
        let columns: [Column<'_>; 5] = [
            ("id", "/id"),
            ("state", "/state"),
            ("to", "/to"),
            ("connection", "/connection"),
            ("created", "/created_at"),
        ];
        let list = json!([{"id": ID, "state": "sent", "to": "ann@example.org", "created_at": "2026-11-21T11:54:38.851199Z",
            "connection": "conn_01a1fdf5dfc27726af9a1e7b3523d4f5"}]);
        for width in (20..200).step_by(5) {
            let shown = rows(&list, &columns, Some(width));
            assert!(shown.contains(ID), "{width}: {shown}");
            let widest = shown.lines().map(|it| it.chars().count()).max();
            assert!(width < 40 || widest.is_some_and(|it| it <= width.into()), "{width}: {shown}");
        }
        let at = |width| rows(&list, &columns, Some(width));
        assert!(at(140).contains("2026-11-21T11:54:38Z"), "{}", at(140));
        assert!(at(120).contains(" 11-21T11:54 ") && !at(120).contains("no room"), "{}", at(120));
        assert!(at(80).ends_with("no room for: connection (a wider terminal or `--json` shows them)"), "{}", at(80));
        assert!(rows(&list, &columns, None).contains("2026-11-21T11:54:38Z"), "a program reads all of it");
    }
}
