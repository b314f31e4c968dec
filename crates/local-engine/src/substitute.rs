//! `{{tag}}` substitution over text and JSON.
//!
//! Argo substitutes in the JSON text of whole objects, several times over. Here every string is scanned exactly
//! once with all variables in scope, so that text which arrives *in a value* is never taken for a tag.

use crate::expression;
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
    /// An expression has no value.
    #[error(transparent)]
    Expression(#[from] expression::Error),
}

/// Replaces the known tags of a text; unknown ones stay. Inner tags of nested ones are replaced first.
///
/// # Errors
/// When a tag that must resolve does not.
pub fn text<'t>(text: &'t str, scope: &dyn Scope) -> Result<Cow<'t, str>, Error> {
    scan(text, &mut |tag| match lookup(tag, scope)? {
        Lookup::Value(value) => Ok(Some(value)),
        Lookup::Unknown => Ok(None),
        Lookup::Absent => Err(Error::Absent(tag.trim().to_owned())),
        Lookup::Unresolvable(why) => Err(Error::Unresolvable(tag.trim().to_owned(), why)),
    })
}

/// Finds the tags of a text and puts in their place what `replace` gives, if it gives something.
fn scan<'t>(
    text: &'t str,
    replace: &mut dyn FnMut(&str) -> Result<Option<String>, Error>,
) -> Result<Cow<'t, str>, Error> {
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
            match replace(&tag)? {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("{{");
                    out.push_str(&tag);
                    out.push_str("}}");
                }
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

/// Value of a tag. One that begins with `=` is an expression; it stays as it is when it cannot be read or names what is
/// not known here, so that text of users which only looks like one is left alone.
fn lookup(tag: &str, scope: &dyn Scope) -> Result<Lookup, Error> {
    let Some(expression) = tag.strip_prefix('=') else { return Ok(scope.lookup(tag.trim())) };
    match expression::evaluate(expression, scope) {
        Ok(value) => Ok(Lookup::Value(expression::print(&value))),
        Err(expression::Error::Missing(_, name)) if !must_resolve(&name) => Ok(Lookup::Unknown),
        Err(expression::Error::Syntax(..)) => Ok(Lookup::Unknown),
        Err(error) => Err(error.into()),
    }
}

/// Variables that exist wherever they are meant.
fn must_resolve(name: &str) -> bool {
    ["tasks.", "steps.", "inputs.", "workflow.", "lastRetry."].iter().any(|prefix| name.starts_with(prefix))
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

/// All tags of a text, trimmed, innermost ones of nested tags included.
pub fn tags(string: &str) -> Vec<String> {
    let mut tags = Vec::new();
    let _ = scan(string, &mut |tag| {
        tags.push(tag.trim().to_owned());
        Ok(None)
    });
    tags
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
