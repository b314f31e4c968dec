//! `{{tag}}` substitution over text and JSON.
//!
//! Argo substitutes in the JSON text of whole objects, several times over. Here every string is scanned exactly
//! once with all variables in scope, so that text which arrives *in a value* is never taken for a tag.

use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What a scope knows about a tag.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// The tag stands for this text.
    Value(String),
    /// Not a variable of this scope; the tag stays as it is.
    Unknown,
    /// The producer was skipped or omitted and left no value.
    Absent,
    /// The tag must have a value but has none.
    Unresolvable(String),
}

/// Something that gives values to tags.
pub trait Scope {
    /// Looks up a tag, trimmed of blanks.
    fn lookup(&self, tag: &str) -> Lookup;
}

/// Scopes asked one after the other.
pub struct Chain<'a>(pub Vec<&'a dyn Scope>);

impl Scope for Chain<'_> {
    fn lookup(&self, tag: &str) -> Lookup {
        self.0
            .iter()
            .map(|scope| scope.lookup(tag))
            .find(|answer| *answer != Lookup::Unknown)
            .unwrap_or(Lookup::Unknown)
    }
}

impl Scope for BTreeMap<String, String> {
    fn lookup(&self, tag: &str) -> Lookup {
        self.get(tag).map_or(Lookup::Unknown, |value| Lookup::Value(value.clone()))
    }
}

/// Why a text cannot be substituted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The tag names something that was skipped.
    #[error("failed to resolve {{{{{0}}}}}: its producer was skipped or omitted")]
    Absent(String),
    /// The tag has to have a value but has none.
    #[error("failed to resolve {{{{{0}}}}}: {1}")]
    Unresolvable(String, String),
}

/// Replaces the known tags of a text; unknown ones stay. Inner tags of nested ones are replaced first.
///
/// # Errors
/// When a tag that must resolve does not.
pub fn text<'t>(text: &'t str, scope: &dyn Scope) -> Result<Cow<'t, str>, Error> {
    if !text.contains("{{") {
        return Ok(Cow::Borrowed(text));
    }
    let mut open: Vec<String> = Vec::new();
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if let Some(after) = from.strip_prefix("{{") {
            open.push(std::mem::take(&mut out));
            rest = after;
        } else if from.starts_with("}}") && !open.is_empty() {
            let tag = std::mem::replace(&mut out, open.pop().unwrap_or_default());
            match scope.lookup(tag.trim()) {
                Lookup::Value(value) => out.push_str(&value),
                Lookup::Unknown => {
                    out.push_str("{{");
                    out.push_str(&tag);
                    out.push_str("}}");
                }
                Lookup::Absent => return Err(Error::Absent(tag.trim().to_owned())),
                Lookup::Unresolvable(why) => return Err(Error::Unresolvable(tag.trim().to_owned(), why)),
            }
            rest = &from[2..];
        } else {
            out.push_str(&from[..1]);
            rest = &from[1..];
        }
    }
    out.push_str(rest);
    while let Some(before) = open.pop() {
        out = before + "{{" + &out;
    }
    Ok(Cow::Owned(out))
}

/// The tag of a text that is exactly one tag.
pub fn single_tag(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    (!inner.contains("{{") && !inner.contains("}}")).then(|| inner.trim())
}

/// Replaces the tags in all strings of a JSON value, keys included.
///
/// # Errors
/// When a tag that must resolve does not.
pub fn json(value: &Value, scope: &dyn Scope) -> Result<Value, Error> {
    Ok(match value {
        Value::String(string) => Value::String(text(string, scope)?.into_owned()),
        Value::Array(items) => Value::Array(items.iter().map(|item| json(item, scope)).collect::<Result<_, _>>()?),
        Value::Object(members) => {
            let mut map = Map::with_capacity(members.len());
            for (key, member) in members {
                map.insert(text(key, scope)?.into_owned(), json(member, scope)?);
            }
            Value::Object(map)
        }
        other => other.clone(),
    })
}

/// All tags of a text, innermost ones of nested tags included.
pub fn tags(string: &str) -> Vec<String> {
    struct Collect(std::cell::RefCell<Vec<String>>);
    impl Scope for Collect {
        fn lookup(&self, tag: &str) -> Lookup {
            self.0.borrow_mut().push(tag.to_owned());
            Lookup::Unknown
        }
    }
    let collect = Collect(Default::default());
    let _ = text(string, &collect);
    collect.0.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scope() -> BTreeMap<String, String> {
        [("a", "1"), ("b.a", "2"), ("n.1", "nested"), ("tagged", "{{a}}")]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn tags_are_replaced_once() {
        for (input, expected) in [
            ("x{{a}}y{{ b.a }}", "x1y2"),
            ("{{$.inputs.parameters['a']}}", "{{$.inputs.parameters['a']}}"),
            ("{{$}} {{unknown}}", "{{$}} {{unknown}}"),
            ("{{{a}}}", "{{{a}}}"),
            ("{\"x\":{{a}}}", "{\"x\":1}"),
            ("open {{ {{a}} end", "open {{ 1 end"),
            ("{{a", "{{a"),
            ("a}} }}", "a}} }}"),
            ("{{n.{{a}}}}", "nested"),
            ("{{tagged}}", "{{a}}"),
            ("é{{a}}ü", "é1ü"),
        ] {
            assert_eq!(text(input, &scope()).unwrap(), expected, "{input}");
        }
    }

    #[test]
    fn map_keys_are_substituted() {
        let value = json(&serde_json::json!({"k{{a}}": ["{{b.a}}", 3]}), &scope()).unwrap();
        assert_eq!(value, serde_json::json!({"k1": ["2", 3]}));
    }

    #[test]
    fn a_single_tag_is_recognised() {
        assert_eq!(single_tag(" {{ tasks.a.outputs.parameters.b }} "), Some("tasks.a.outputs.parameters.b"));
        assert_eq!(single_tag("{{a}}{{b}}"), None);
        assert_eq!(single_tag("x{{a}}"), None);
    }

    proptest! {
        #[test]
        fn text_without_known_tags_is_unchanged(input in "[{}a$. é]{0,40}") {
            let empty = BTreeMap::new();
            prop_assert_eq!(text(&input, &empty).unwrap(), input.as_str());
        }
    }
}
