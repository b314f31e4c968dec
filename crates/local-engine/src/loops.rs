//! Loop items of `withItems`, `withParam` and `withSequence`.

use crate::substitute::{self, Lookup, Scope};
use kfp_core::argo::{DagTask, Sequence};
use serde_json::Value;

/// Longest sequence; a larger one is surely a mistake and would exhaust memory.
const MAX_ITEMS: i64 = 100_000;

/// Why a task cannot be expanded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// `withParam` is no JSON list.
    #[error("withParam value could not be parsed as a JSON list: {0}: {1}")]
    Param(String, String),
    /// `withSequence` has something else than integers.
    #[error("withSequence {0} \"{1}\" is not an integer")]
    Sequence(&'static str, String),
    /// `withSequence` has neither `count` nor `end`, or too many items.
    #[error("withSequence {0}")]
    Range(String),
    /// `withParam` has too many items.
    #[error("withParam has {0} items, more than {MAX_ITEMS}")]
    Many(usize),
    /// A tag does not resolve.
    #[error(transparent)]
    Tag(#[from] substitute::Error),
}

/// True when the task is a loop.
pub fn is_loop(task: &DagTask) -> bool {
    task.with_items.is_some() || task.with_param.is_some() || task.with_sequence.is_some()
}

/// Items of a loop task; `None` when the task is no loop.
///
/// # Errors
/// When the input of the loop is malformed or does not resolve.
pub fn items(task: &DagTask, scope: &dyn Scope) -> Result<Option<Vec<Value>>, Error> {
    if let Some(items) = &task.with_items {
        return Ok(Some(items.iter().map(|item| substitute::json(item, scope)).collect::<Result<_, _>>()?));
    }
    if let Some(param) = &task.with_param {
        let text = substitute::text(param, scope)?;
        return match serde_json::from_str::<Vec<Value>>(&text) {
            Ok(items) if items.len() as u64 > MAX_ITEMS.unsigned_abs() => Err(Error::Many(items.len())),
            Ok(items) => Ok(Some(items)),
            Err(error) => Err(Error::Param(text.into_owned(), error.to_string())),
        };
    }
    task.with_sequence.as_ref().map(|sequence| numbers(sequence, scope)).transpose()
}

fn numbers(sequence: &Sequence, scope: &dyn Scope) -> Result<Vec<Value>, Error> {
    let read = |field: &'static str, text: &Option<String>| -> Result<Option<i64>, Error> {
        let Some(text) = text else { return Ok(None) };
        let text = substitute::text(text, scope)?;
        text.trim().parse().map(Some).map_err(|_| Error::Sequence(field, text.into_owned()))
    };
    let start = read("start", &sequence.start)?.unwrap_or(0);
    let end = match (read("count", &sequence.count)?, read("end", &sequence.end)?) {
        (Some(count), _) if count <= 0 => return Ok(Vec::new()),
        (Some(count), _) => start.saturating_add(count - 1),
        (None, Some(end)) => end,
        (None, None) => return Err(Error::Range("needs count or end".to_owned())),
    };
    if start.abs_diff(end) >= MAX_ITEMS.unsigned_abs() {
        return Err(Error::Range(format!("from {start} to {end} has more than {MAX_ITEMS} items")));
    }
    let format = match &sequence.format {
        Some(format) => substitute::text(format, scope)?.into_owned(),
        None => "%d".to_owned(),
    };
    let item = |number: i64| Value::String(print(&format, number));
    Ok(if start <= end { (start..=end).map(item).collect() } else { (end..=start).rev().map(item).collect() })
}

/// printf with one integer: `%d`, `%x`, `%X`, `%o`, flags `0`, `-`, `+` and a width; `%%` is a percent sign.
fn print(format: &str, number: i64) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some((before, spec)) = rest.split_once('%') {
        out.push_str(before);
        if let Some(after) = spec.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let flags = spec.len() - spec.trim_start_matches(['0', '-', '+']).len();
        let width_end = spec[flags..].find(|c: char| !c.is_ascii_digit()).map_or(spec.len(), |end| flags + end);
        let width = spec[flags..width_end].parse::<usize>().unwrap_or(0).min(64);
        let Some(verb) = spec[width_end..].chars().next() else {
            out.push_str("%!(NOVERB)");
            return out;
        };
        let digits = match verb {
            'd' | 'v' => number.unsigned_abs().to_string(),
            'x' => format!("{:x}", number.unsigned_abs()),
            'X' => format!("{:X}", number.unsigned_abs()),
            'o' => format!("{:o}", number.unsigned_abs()),
            other => format!("%!{other}(int={number})"),
        };
        let sign = if number < 0 {
            "-"
        } else if spec[..flags].contains('+') {
            "+"
        } else {
            ""
        };
        let fill = width.saturating_sub(digits.len() + sign.len());
        if spec[..flags].contains('-') {
            out.push_str(&format!("{sign}{digits}{}", " ".repeat(fill)));
        } else if spec[..flags].contains('0') {
            out.push_str(&format!("{sign}{}{digits}", "0".repeat(fill)));
        } else {
            out.push_str(&format!("{}{sign}{digits}", " ".repeat(fill)));
        }
        rest = &spec[width_end + verb.len_utf8()..];
    }
    out + rest
}

/// `item` and `item.key` of one loop item.
pub struct ItemScope<'a>(pub &'a Value);

impl Scope for ItemScope<'_> {
    fn lookup(&self, tag: &str) -> Lookup {
        if tag == "item" {
            return Lookup::Value(match self.0 {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            });
        }
        match (tag.strip_prefix("item."), self.0) {
            (Some(key), Value::Object(map)) => match map.get(key) {
                Some(nested @ (Value::Array(_) | Value::Object(_))) => Lookup::Value(nested.to_string()),
                Some(value) => Lookup::Value(crate::names::go_text(value)),
                None => Lookup::Unresolvable(format!("the loop item has no key \"{key}\"")),
            },
            _ => Lookup::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn expand(task: Value) -> Result<Option<Vec<Value>>, Error> {
        let scope: BTreeMap<String, String> =
            [("n".to_owned(), "2".to_owned()), ("list".to_owned(), "[1,{\"a\":\"b\"}]".to_owned())].into();
        items(&serde_json::from_value(task).unwrap(), &scope)
    }

    #[test]
    fn loops_expand_to_items() {
        for (task, expected) in [
            (json!({"name": "t", "withSequence": {"count": "{{n}}"}}), json!(["0", "1"])),
            (json!({"name": "t", "withSequence": {"count": 0}}), json!([])),
            (json!({"name": "t", "withSequence": {"start": "3", "end": "1"}}), json!(["3", "2", "1"])),
            (
                json!({"name": "t", "withSequence": {"count": "2", "start": 9, "format": "t%03d%%"}}),
                json!(["t009%", "t010%"]),
            ),
            (json!({"name": "t", "withItems": ["{{n}}", 1, {"a": "{{n}}"}]}), json!(["2", 1, {"a": "2"}])),
            (json!({"name": "t", "withParam": "{{list}}"}), json!([1, {"a": "b"}])),
        ] {
            assert_eq!(expand(task.clone()).unwrap(), Some(expected.as_array().unwrap().clone()), "{task}");
        }
        assert_eq!(expand(json!({"name": "t"})).unwrap(), None);
    }

    #[test]
    fn malformed_loops_are_errors() {
        for task in [
            json!({"name": "t", "withSequence": {"count": "x"}}),
            json!({"name": "t", "withSequence": {}}),
            json!({"name": "t", "withSequence": {"count": "99999999999"}}),
            json!({"name": "t", "withSequence": {"start": i64::MIN, "end": i64::MAX}}),
            json!({"name": "t", "withParam": "{}"}),
        ] {
            assert!(expand(task.clone()).is_err(), "{task}");
        }
    }

    #[test]
    fn items_are_variables() {
        let map = json!({"k": "v", "n": 3, "l": [1]});
        let scope = ItemScope(&map);
        assert_eq!(substitute::text("{{item.k}}{{item.n}}{{item.l}}", &scope).unwrap(), "v3[1]");
        assert_eq!(scope.lookup("item"), Lookup::Value("{\"k\":\"v\",\"l\":[1],\"n\":3}".into()));
        assert!(substitute::text("{{item.x}}", &scope).is_err());
    }
}
