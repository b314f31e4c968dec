//! Words of a filter.

use super::Problem;

/// One word.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Word {
    /// A name or keyword; `quoted` names are never keywords.
    Name {
        text: String,
        quoted: bool,
    },
    Int(i64),
    Real(f64),
    Text(String),
    /// An operator or punctuation.
    Sign(&'static str),
}

/// A word and the byte where it starts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) word: Word,
    pub(super) at: usize,
}

const SIGNS: [&str; 14] = ["!=", "<>", "<=", ">=", "=", "<", ">", "(", ")", ",", ".", "+", "-", "*"];

/// Splits a filter into words.
pub(super) fn tokens(query: &str) -> Result<Vec<Token>, Problem> {
    let mut found = Vec::new();
    let mut rest = query;
    loop {
        rest = rest.trim_start();
        let at = query.len() - rest.len();
        let Some(first) = rest.chars().next() else { return Ok(found) };
        let (word, length) = if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            (Word::Name { text: rest[..end].to_owned(), quoted: false }, end)
        } else if first.is_ascii_digit() {
            number(rest, at)?
        } else if matches!(first, '\'' | '"' | '`') {
            let (text, length) = quoted(rest, first, at)?;
            if first == '`' { (Word::Name { text, quoted: true }, length) } else { (Word::Text(text), length) }
        } else if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
            (Word::Sign(sign), sign.len())
        } else {
            return Err(Problem::new(at, format!("Syntax error: Unexpected {first:?}")));
        };
        found.push(Token { word, at });
        rest = &rest[length..];
    }
}

fn number(rest: &str, at: usize) -> Result<(Word, usize), Problem> {
    let bytes = rest.as_bytes();
    let digits = |from: usize| from + bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut end = digits(0);
    let mut real = false;
    if bytes.get(end) == Some(&b'.') {
        real = true;
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits(end + 1 + sign);
        if exponent > end + 1 + sign {
            real = true;
            end = exponent;
        }
    }
    let text = &rest[..end];
    let word = if real { text.parse().ok().map(Word::Real) } else { text.parse().ok().map(Word::Int) };
    word.map(|word| (word, end)).ok_or_else(|| Problem::new(at, format!("Syntax error: Invalid number {text}")))
}

fn quoted(rest: &str, quote: char, at: usize) -> Result<(String, usize), Problem> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((place, c)) = chars.next() {
        if c == quote {
            return Ok((text, place + 1));
        }
        if c != '\\' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some((_, 'n')) => text.push('\n'),
            Some((_, 't')) => text.push('\t'),
            Some((_, 'r')) => text.push('\r'),
            Some((_, c @ ('\\' | '\'' | '"' | '`' | '?'))) => text.push(c),
            // LIKE patterns escape their wildcards with a backslash of their own.
            Some((_, c @ ('%' | '_'))) => text.extend(['\\', c]),
            Some((_, c)) => return Err(Problem::new(at, format!("Syntax error: Illegal escape sequence: \\{c}"))),
            None => break,
        }
    }
    let what = if quote == '`' { "identifier" } else { "string" };
    Err(Problem::new(at, format!("Syntax error: Unclosed {what} literal")))
}
