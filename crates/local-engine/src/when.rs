//! The `when` condition: a small expression language in which bare words are strings (Argo uses govaluate).

use regex::Regex;
use std::fmt;

/// Why a condition has no truth value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The text is no expression.
    #[error("Invalid 'when' expression '{0}': {1}")]
    Invalid(String, String),
    /// The expression gives something else than true or false.
    #[error("Expected boolean evaluation for '{0}'. Got {1}")]
    NotBoolean(String, String),
}

/// Evaluates a condition after substitution.
///
/// # Errors
/// When the text is malformed, types do not fit or the result is no boolean.
pub fn eval(text: &str) -> Result<bool, Error> {
    let invalid = |why: String| Error::Invalid(text.to_owned(), why);
    let tokens = tokens(text).map_err(invalid)?;
    let mut parser = Parser { tokens: &tokens, at: 0, depth: 0 };
    let value = parser.ternary().map_err(invalid)?;
    if let Some(token) = parser.tokens.get(parser.at) {
        return Err(invalid(format!(
            "Cannot transition token types to {token} (hint: try wrapping the affected expression in quotes (\"))"
        )));
    }
    match value {
        Value::Bool(truth) => Ok(truth),
        other => Err(Error::NotBoolean(text.to_owned(), other.to_string())),
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Number(f64),
    Text(String),
    Bool(bool),
    List(Vec<Value>),
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => write!(formatter, "{number}"),
            Value::Text(text) => formatter.write_str(text),
            Value::Bool(truth) => write!(formatter, "{truth}"),
            Value::List(items) => {
                let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                write!(formatter, "[{}]", items.join(" "))
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Literal(Value),
    Operator(&'static str),
}

impl fmt::Display for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Literal(value) => write!(formatter, "{value}"),
            Token::Operator(operator) => formatter.write_str(operator),
        }
    }
}

/// Longest first, so that `**` is not read as two `*`.
const OPERATORS: [&str; 29] = [
    "&&", "||", "==", "!=", "<=", ">=", "=~", "!~", "<<", ">>", "**", "??", "<", ">", "!", "+", "-", "*", "/", "%",
    "&", "|", "^", "~", "(", ")", ",", "?", ":",
];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if matches!(first, '"' | '\'' | '[') {
            let (word, after) = quoted(rest, if first == '[' { ']' } else { first })?;
            tokens.push(Token::Literal(Value::Text(word)));
            rest = after.trim_start();
            continue;
        }
        if first.is_ascii_digit() || (first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) {
            let (number, after) = number(rest)?;
            tokens.push(Token::Literal(Value::Number(number)));
            rest = after.trim_start();
            continue;
        }
        if let Some(operator) = OPERATORS.into_iter().find(|operator| rest.starts_with(operator)) {
            tokens.push(Token::Operator(operator));
            rest = rest[operator.len()..].trim_start();
            continue;
        }
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '.').unwrap_or(rest.len());
        if end == 0 {
            return Err(format!("Invalid token: '{first}'"));
        }
        let (word, after) = rest.split_at(end);
        tokens.push(match word {
            "true" => Token::Literal(Value::Bool(true)),
            "false" => Token::Literal(Value::Bool(false)),
            "in" | "IN" => Token::Operator("in"),
            other => Token::Literal(Value::Text(other.to_owned())),
        });
        rest = after.trim_start();
    }
    Ok(tokens)
}

fn quoted(text: &str, close: char) -> Result<(String, &str), String> {
    let mut word = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        if character == close {
            return Ok((word, &text[at + character.len_utf8()..]));
        }
        match character {
            '\\' => word.extend(characters.next().map(|(_, escaped)| escaped)),
            other => word.push(other),
        }
    }
    Err(if close == ']' { "Unclosed parameter bracket".to_owned() } else { "Unclosed string literal".to_owned() })
}

fn number(text: &str) -> Result<(f64, &str), String> {
    if let Some(hex) = text.strip_prefix("0x") {
        let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        let value = u64::from_str_radix(&hex[..end], 16)
            .map_err(|_| format!("Unable to parse hex value '{}' to uint64", &text[..end + 2]))?;
        return Ok((value as f64, &hex[end..]));
    }
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(text.len());
    let value =
        text[..end].parse().map_err(|_| format!("Unable to parse numeric value '{}' to float64", &text[..end]))?;
    Ok((value, &text[end..]))
}

/// Deepest nesting; beyond it the text is refused instead of using up the stack.
const MAX_DEPTH: usize = 50;

struct Parser<'t> {
    tokens: &'t [Token],
    at: usize,
    depth: usize,
}

/// Binary operators from loosest to tightest.
const LEVELS: [&[&str]; 8] = [
    &["||"],
    &["&&"],
    &["==", "!=", "<=", ">=", "<", ">", "=~", "!~", "in"],
    &["&", "|", "^"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
    &["**"],
];

impl Parser<'_> {
    fn take(&mut self, operators: &[&'static str]) -> Option<&'static str> {
        match self.tokens.get(self.at) {
            Some(Token::Operator(operator)) if operators.contains(operator) => {
                self.at += 1;
                Some(operator)
            }
            _ => None,
        }
    }

    fn ternary(&mut self) -> Result<Value, String> {
        let condition = self.binary(0)?;
        if self.take(&["??"]).is_some() {
            self.ternary()?;
            return Ok(condition);
        }
        if self.take(&["?"]).is_none() {
            return Ok(condition);
        }
        let then = self.ternary()?;
        if self.take(&[":"]).is_none() {
            return Err("missing ':' after '?'".to_owned());
        }
        let otherwise = self.ternary()?;
        match condition {
            Value::Bool(true) => Ok(then),
            Value::Bool(false) => Ok(otherwise),
            other => Err(format!("Value '{other}' cannot be used with the ternary operator '?', it is not a bool")),
        }
    }

    fn binary(&mut self, level: usize) -> Result<Value, String> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.binary(level + 1)?;
        while let Some(operator) = self.take(operators) {
            let right = self.binary(level + 1)?;
            left = apply(operator, left, right)?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Value, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("nested too deeply".to_owned());
        }
        let value = self.unary_inner();
        self.depth -= 1;
        value
    }

    fn unary_inner(&mut self) -> Result<Value, String> {
        if let Some(operator) = self.take(&["!", "-", "~"]) {
            return match (operator, self.unary()?) {
                ("!", Value::Bool(truth)) => Ok(Value::Bool(!truth)),
                ("-", Value::Number(number)) => Ok(Value::Number(-number)),
                ("~", Value::Number(number)) => Ok(Value::Number(!(number as i64) as f64)),
                (_, other) => Err(format!("Value '{other}' cannot be used with the prefix '{operator}'")),
            };
        }
        if self.take(&["("]).is_some() {
            let first = self.ternary()?;
            let mut items = vec![first];
            while self.take(&[","]).is_some() {
                items.push(self.ternary()?);
            }
            if self.take(&[")"]).is_none() {
                return Err("Unbalanced parenthesis".to_owned());
            }
            return Ok(if items.len() == 1 { items.remove(0) } else { Value::List(items) });
        }
        match self.tokens.get(self.at) {
            Some(Token::Literal(value)) => {
                self.at += 1;
                Ok(value.clone())
            }
            Some(Token::Operator(operator)) => Err(format!(
                "Cannot transition token types to {operator} (hint: try wrapping the affected expression in quotes (\"))"
            )),
            None => Err("Unexpected end of expression".to_owned()),
        }
    }
}

fn apply(operator: &str, left: Value, right: Value) -> Result<Value, String> {
    use Value::{Bool, List, Number, Text};
    let mismatch = |value: &Value| format!("Value '{value}' cannot be used with the operator '{operator}'");
    Ok(match (operator, left, right) {
        ("==", left, right) => Bool(left == right),
        ("!=", left, right) => Bool(left != right),
        ("in", left, List(items)) => Bool(items.contains(&left)),
        ("in", left, right) => Bool(left == right),
        ("||", Bool(left), Bool(right)) => Bool(left || right),
        ("&&", Bool(left), Bool(right)) => Bool(left && right),
        ("<", Number(left), Number(right)) => Bool(left < right),
        ("<=", Number(left), Number(right)) => Bool(left <= right),
        (">", Number(left), Number(right)) => Bool(left > right),
        (">=", Number(left), Number(right)) => Bool(left >= right),
        ("<", Text(left), Text(right)) => Bool(left < right),
        ("<=", Text(left), Text(right)) => Bool(left <= right),
        (">", Text(left), Text(right)) => Bool(left > right),
        (">=", Text(left), Text(right)) => Bool(left >= right),
        ("=~" | "!~", Text(left), Text(right)) => {
            let pattern = Regex::new(&right).map_err(|error| format!("Unable to compile regexp '{right}': {error}"))?;
            Bool(pattern.is_match(&left) == (operator == "=~"))
        }
        ("+", Number(left), Number(right)) => Number(left + right),
        ("+", left @ Text(_), right) | ("+", left, right @ Text(_)) => Text(format!("{left}{right}")),
        ("-", Number(left), Number(right)) => Number(left - right),
        ("*", Number(left), Number(right)) => Number(left * right),
        ("/", Number(left), Number(right)) => Number(left / right),
        ("%", Number(left), Number(right)) => Number(left % right),
        ("**", Number(left), Number(right)) => Number(left.powf(right)),
        ("&", Number(left), Number(right)) => Number(((left as i64) & (right as i64)) as f64),
        ("|", Number(left), Number(right)) => Number(((left as i64) | (right as i64)) as f64),
        ("^", Number(left), Number(right)) => Number(((left as i64) ^ (right as i64)) as f64),
        ("<<", Number(left), Number(right)) => Number((left as i64).wrapping_shl(right as u32) as f64),
        (">>", Number(left), Number(right)) => Number((left as i64).wrapping_shr(right as u32) as f64),
        (_, Number(_), right) => return Err(mismatch(&right)),
        (_, left, _) => return Err(mismatch(&left)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn conditions_have_their_truth_value() {
        for (text, expected) in [
            ("true != true", false),
            ("false != true", true),
            ("tails == tails", true),
            ("\"heads\" == \"tails\"", false),
            ("Error in (Failed, Error)", true),
            ("!(Succeeded in (Failed, Error))", true),
            ("1/2 == 0.5", true),
            ("a < b", true),
            ("\"true\" == true", false),
            ("\"9\" > \"10\"", true),
            ("9 > 10", false),
            ("'a\\'b' == \"a'b\"", true),
            ("2 ** 3 == 8 && 1 + 2 * 3 == 7", true),
            ("true ? false : true", false),
            ("[foo-bar] == 'foo-bar'", true),
            ("abc =~ '^a'", true),
            ("0x10 == 16", true),
            ("true || false && false", true),
        ] {
            assert_eq!(eval(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn malformed_conditions_are_errors() {
        for text in ["foo-bar == foo-bar", " != false", "", "a b", "(a", "'a", "a == ", "1x == 2", "a == b)", "!a"] {
            assert!(matches!(eval(text), Err(Error::Invalid(..))), "{text}");
        }
        assert_eq!(eval("a"), Err(Error::NotBoolean("a".into(), "a".into())));
        assert!(eval(&"(".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_evaluated_or_refused(text in "[ab1.!&|()\"'=<>?:é,+*-]{0,30}") {
            let _ = eval(&text);
        }
    }
}
