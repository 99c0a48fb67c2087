//! Guarded functions of the language: those that could be made to do too much, replacing their namesakes.
//!
//! A comparison that fails ends a sort; a replacement is measured before it is made; padding with nothing ends; and
//! lists and maps are printed and compared no deeper than [`limits::VALUE_DEPTH`], whatever a script nests. Printing
//! never fails, it ends the run: the language would otherwise print the failed value in its own way, with all values
//! that closures hold.

use std::{fmt::Write, io};

use rhai::{
    Array, Dynamic, EvalAltResult, FnPtr, ImmutableString, Map, Module, NativeCallContext, Position, plugin::*,
};

use super::{Fallible, ScriptLimit, budget, engine::limits};

/// All of them.
pub(super) fn module() -> Module {
    exported_module!(functions)
}

// The macro unwraps arguments that the engine has already matched by number and type.
#[allow(clippy::unwrap_used)]
#[export_module]
mod functions {
    /// Sorts the list by a function of two members: it answers a number (below zero: the first one
    /// comes first) or a boolean (whether the first one comes first).
    #[rhai_fn(name = "sort", name = "sort_by", return_raw)]
    pub fn sort_with(context: NativeCallContext, list: &mut Array, comparer: FnPtr) -> Fallible<()> {
        let sorted = super::sorted(&context, list, &comparer)?;
        *list = sorted;
        Ok(())
    }

    /// A sorted copy of the list, by a function as `sort` takes it.
    #[rhai_fn(name = "order", name = "order_by", return_raw, pure)]
    pub fn order_with(context: NativeCallContext, list: &mut Array, comparer: FnPtr) -> Fallible<Array> {
        super::sorted(&context, list, &comparer)
    }

    /// Replaces each occurrence of a text.
    #[rhai_fn(name = "replace", return_raw)]
    pub fn replace_text(text: &mut ImmutableString, find: &str, by: &str) -> Fallible<()> {
        *text = super::replaced(text, find, by)?.into();
        Ok(())
    }
    /// Replaces each occurrence of a text by a character.
    #[rhai_fn(name = "replace", return_raw)]
    pub fn replace_text_by_char(text: &mut ImmutableString, find: &str, by: char) -> Fallible<()> {
        *text = super::replaced(text, find, by.encode_utf8(&mut [0; 4]))?.into();
        Ok(())
    }
    /// Replaces each occurrence of a character by a text.
    #[rhai_fn(name = "replace", return_raw)]
    pub fn replace_char_by_text(text: &mut ImmutableString, find: char, by: &str) -> Fallible<()> {
        *text = super::replaced(text, find.encode_utf8(&mut [0; 4]), by)?.into();
        Ok(())
    }
    /// Replaces each occurrence of a character.
    #[rhai_fn(name = "replace", return_raw)]
    pub fn replace_char(text: &mut ImmutableString, find: char, by: char) -> Fallible<()> {
        *text = super::replaced(text, find.encode_utf8(&mut [0; 4]), by.encode_utf8(&mut [0; 4]))?.into();
        Ok(())
    }

    /// Pads the text to a number of characters with another one, again and again.
    #[rhai_fn(name = "pad", return_raw)]
    pub fn pad_text(string: &mut ImmutableString, len: i64, padding: &str) -> Fallible<()> {
        *string = super::padded(string, len, padding)?.into();
        Ok(())
    }

    /// The list as a text.
    #[rhai_fn(name = "print", name = "to_string", name = "debug", name = "to_debug", pure)]
    pub fn print_list(list: &mut Array) -> ImmutableString {
        super::printed(|out| super::print_list(list, 0, out))
    }
    /// The map as a text.
    #[rhai_fn(name = "print", name = "to_string", name = "debug", name = "to_debug", pure)]
    pub fn print_map(map: &mut Map) -> ImmutableString {
        super::printed(|out| super::print_map(map, 0, out))
    }
    /// The function's name.
    #[rhai_fn(name = "print", name = "to_string", name = "debug", name = "to_debug", pure)]
    pub fn print_function(function: &mut FnPtr) -> String {
        super::name_of(function)
    }
    /// The map as JSON.
    #[rhai_fn(name = "to_json", return_raw, pure)]
    pub fn map_to_json(map: &mut Map) -> Fallible<ImmutableString> {
        let value = super::super::answer::json_of_map(map).map_err(|_| super::too_large("Depth of a value"))?;
        let mut out = super::Printed::new(limits::TEXT);
        serde_json::to_writer(&mut out, &value).map_err(|_| super::too_large("Length of string"))?;
        Ok(out.text.into())
    }

    /// Whether two lists have equal members in the same order.
    #[rhai_fn(name = "==", return_raw, pure)]
    pub fn lists_equal(list: &mut Array, other: Array) -> Fallible<bool> {
        super::equal_lists(list, &other, 0)
    }
    /// Whether two lists differ.
    #[rhai_fn(name = "!=", return_raw, pure)]
    pub fn lists_differ(list: &mut Array, other: Array) -> Fallible<bool> {
        super::equal_lists(list, &other, 0).map(|equal| !equal)
    }
    /// Whether two maps have the same members.
    #[rhai_fn(name = "==", return_raw, pure)]
    pub fn maps_equal(map: &mut Map, other: Map) -> Fallible<bool> {
        super::equal_maps(map, &other, 0)
    }
    /// Whether two maps differ.
    #[rhai_fn(name = "!=", return_raw, pure)]
    pub fn maps_differ(map: &mut Map, other: Map) -> Fallible<bool> {
        super::equal_maps(map, &other, 0).map(|equal| !equal)
    }
}

fn too_large(what: &str) -> Box<EvalAltResult> {
    EvalAltResult::ErrorDataTooLarge(what.to_owned(), Position::NONE).into()
}

/// Each member is put in its place among those before it: no comparison, however contradictory,
/// does worse than a strange order, and the first that fails ends it.
fn sorted(context: &NativeCallContext, list: &[Dynamic], comparer: &FnPtr) -> Fallible<Array> {
    let mut sorted: Array = Vec::with_capacity(list.len());
    for item in list {
        let (mut low, mut high) = (0, sorted.len());
        while low < high {
            budget::check()?;
            let middle = usize::midpoint(low, high);
            let answer = comparer.call_raw(context, None, [item.clone(), sorted[middle].clone()])?;
            if comes_first(&answer)? { high = middle } else { low = middle + 1 }
        }
        sorted.insert(low, item.clone());
    }
    Ok(sorted)
}

fn comes_first(answer: &Dynamic) -> Fallible<bool> {
    let number = answer.as_int().map(|it| it < 0).or_else(|_| answer.as_float().map(|it| it < 0.0));
    number.or_else(|_| answer.as_bool()).map_err(|found| {
        let reason = format!("a function that sorts must answer a number or a boolean, not {found}");
        EvalAltResult::ErrorRuntime(reason.into(), Position::NONE).into()
    })
}

fn replaced(text: &str, find: &str, by: &str) -> Fallible<String> {
    let count = text.matches(find).count();
    let length = (text.len() - count * find.len()).saturating_add(count.saturating_mul(by.len()));
    if length > limits::TEXT { Err(too_large("Length of string")) } else { Ok(text.replace(find, by)) }
}

/// The language's own never ends with an empty `padding`.
fn padded(text: &str, length: i64, padding: &str) -> Fallible<String> {
    let missing = usize::try_from(length).unwrap_or_default().saturating_sub(text.chars().count());
    if missing > limits::TEXT {
        return Err(too_large("Length of string"));
    }
    let padded: String = text.chars().chain(padding.chars().cycle().take(missing)).collect();
    if padded.len() > limits::TEXT { Err(too_large("Length of string")) } else { Ok(padded) }
}

/// Returns the beginning of a value as a text, of about this number of bytes.
pub(super) fn beginning(value: &Dynamic, bytes: usize) -> String {
    if let Ok(text) = value.as_immutable_string_ref() {
        return text.to_string();
    }
    let mut out = Printed::new(bytes);
    let _ = print_value(value, 0, &mut out);
    out.text
}

/// A text that stops to grow at its limit, in bytes.
struct Printed {
    text: String,
    limit: usize,
}

impl Printed {
    const fn new(limit: usize) -> Self {
        Self { text: String::new(), limit }
    }

    fn push(&mut self, args: std::fmt::Arguments<'_>) -> Fallible<()> {
        // To write into memory does not fail.
        let _ = self.text.write_fmt(args);
        if self.text.len() > self.limit { Err(too_large("Length of string")) } else { Ok(()) }
    }
}

impl io::Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = str::from_utf8(bytes).map_err(io::Error::other)?;
        self.push(format_args!("{text}")).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn printed(print: impl FnOnce(&mut Printed) -> Fallible<()>) -> ImmutableString {
    let mut out = Printed::new(limits::TEXT);
    if print(&mut out).is_err() {
        budget::exceed(ScriptLimit::Size);
    }
    out.text.into()
}

fn print_list(list: &[Dynamic], depth: usize, out: &mut Printed) -> Fallible<()> {
    out.push(format_args!("["))?;
    for (nth, item) in list.iter().enumerate() {
        out.push(format_args!("{}", if nth > 0 { ", " } else { "" }))?;
        print_value(item, depth, out)?;
    }
    out.push(format_args!("]"))
}

fn print_map(map: &Map, depth: usize, out: &mut Printed) -> Fallible<()> {
    out.push(format_args!("#{{"))?;
    for (nth, (name, item)) in map.iter().enumerate() {
        out.push(format_args!("{}{name:?}: ", if nth > 0 { ", " } else { "" }))?;
        print_value(item, depth, out)?;
    }
    out.push(format_args!("}}"))
}

fn print_value(value: &Dynamic, depth: usize, out: &mut Printed) -> Fallible<()> {
    if depth >= limits::VALUE_DEPTH {
        return Err(too_large("Depth of a value"));
    }
    if let Ok(list) = value.as_array_ref() {
        return print_list(&list, depth + 1, out);
    }
    if let Ok(map) = value.as_map_ref() {
        return print_map(&map, depth + 1, out);
    }
    if let Ok(text) = value.as_immutable_string_ref() {
        return out.push(format_args!("{:?}", text.as_str()));
    }
    if let Some(function) = value.read_lock::<FnPtr>() {
        return out.push(format_args!("{}", name_of(&function)));
    }
    out.push(format_args!("{value}"))
}

fn name_of(function: &FnPtr) -> String {
    format!("Fn({})", function.fn_name())
}

fn equal_lists(left: &[Dynamic], right: &[Dynamic], depth: usize) -> Fallible<bool> {
    if left.len() != right.len() {
        return Ok(false);
    }
    for (left, right) in left.iter().zip(right) {
        if !equal(left, right, depth + 1)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn equal_maps(left: &Map, right: &Map, depth: usize) -> Fallible<bool> {
    if left.len() != right.len() {
        return Ok(false);
    }
    for (name, left) in left {
        let Some(right) = right.get(name) else { return Ok(false) };
        if !equal(left, right, depth + 1)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn equal(left: &Dynamic, right: &Dynamic, depth: usize) -> Fallible<bool> {
    if depth >= limits::VALUE_DEPTH {
        return Err(too_large("Depth of a value"));
    }
    if let (Ok(left), Ok(right)) = (left.as_array_ref(), right.as_array_ref()) {
        return equal_lists(&left, &right, depth);
    }
    if let (Ok(left), Ok(right)) = (left.as_map_ref(), right.as_map_ref()) {
        return equal_maps(&left, &right, depth);
    }
    if let (Ok(left), Ok(right)) = (left.as_immutable_string_ref(), right.as_immutable_string_ref()) {
        return Ok(*left == *right);
    }
    if let (Some(left), Some(right)) = (number(left), number(right)) {
        return Ok(left == right);
    }
    let plain = left.as_bool().ok().zip(right.as_bool().ok()).map(|(left, right)| left == right);
    let plain = plain.or_else(|| left.as_char().ok().zip(right.as_char().ok()).map(|(left, right)| left == right));
    Ok(plain.unwrap_or_else(|| left.is_unit() && right.is_unit()))
}

/// Whole numbers beyond 2⁵³ are compared by their nearest fraction.
fn number(value: &Dynamic) -> Option<f64> {
    value.as_int().map(|it| it as f64).or_else(|_| value.as_float()).ok()
}
