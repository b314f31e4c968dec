//! Finds out which variables and functions an expression names, without evaluating it.

/// What an expression is made of.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// Variables with the members that are taken of them, such as `inputs`, `parameters`, `x`.
    pub paths: Vec<Vec<String>>,
    /// Functions of sprig that are called.
    pub sprig: Vec<String>,
    /// The expression with `sprig.f(` as `sprig_f(`: functions there are not members of anything.
    pub text: String,
    /// Deepest nesting of brackets.
    pub depth: usize,
    /// Longest range; one whose ends are computed counts as endless.
    pub range: u64,
}

pub(super) fn read(expression: &str) -> Read {
    let mut read = Read::default();
    let mut rest = expression;
    let (mut depth, mut member) = (0usize, false);
    while let Some(first) = rest.chars().next() {
        if rest.starts_with("..") {
            read.range = read.range.max(range(&read.text, rest));
        }
        let taken = match first {
            '\'' | '"' | '`' => {
                let (_, length) = literal(rest);
                length
            }
            _ if word_start(first) => {
                let (path, length) = path(rest);
                let called = rest.get(length..).unwrap_or_default().trim_start().starts_with('(');
                match path.as_slice() {
                    [root, name] if root == "sprig" && called && !member => {
                        read.sprig.push(name.clone());
                        read.text.push_str(&format!("sprig_{name}"));
                        rest = rest.get(length..).unwrap_or_default();
                        continue;
                    }
                    [_] if called || member => {}
                    _ if member => {}
                    names => {
                        let names = if called { names.get(..names.len() - 1).unwrap_or_default() } else { names };
                        read.paths.push(names.to_vec());
                    }
                }
                length
            }
            _ if first.is_ascii_digit() => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                end.max(1)
            }
            _ => first.len_utf8(),
        };
        match first {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        read.depth = read.depth.max(depth);
        if !first.is_whitespace() {
            member = first == '.';
        }
        let (piece, after) = rest.split_at(taken.min(rest.len()));
        read.text.push_str(piece);
        rest = after;
    }
    read
}

/// Length of a range, from the text before its dots and the text from them on.
fn range(before: &str, from: &str) -> u64 {
    let digits = |c: char| c.is_ascii_digit();
    let before = before.trim_end();
    let start = before.trim_end_matches(digits);
    let end = from.trim_start_matches('.').trim_start();
    let length = end.find(|c: char| !digits(c)).unwrap_or(end.len());
    let number = |text: Option<&str>| text.unwrap_or_default().parse::<u64>().ok();
    match (number(before.get(start.len()..)), number(end.get(..length))) {
        (Some(first), Some(last)) => last.saturating_sub(first),
        _ => u64::MAX,
    }
}

fn word_start(c: char) -> bool {
    c.is_alphabetic() || c == '_' || c == '$'
}

/// A variable and its members at the start of a text, and how long that is.
fn path(text: &str) -> (Vec<String>, usize) {
    let word = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '$').unwrap_or(text.len());
    let mut at = word(text);
    let mut names = vec![text.get(..at).unwrap_or_default().to_owned()];
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let trimmed = rest.trim_start();
        let blank = rest.len() - trimmed.len();
        let dotted = trimmed.strip_prefix("?.").map(|after| (after, 2)).or(trimmed.strip_prefix('.').map(|a| (a, 1)));
        if let Some((after, dots)) = dotted.filter(|(after, _)| after.starts_with(word_start)) {
            let length = word(after);
            names.push(after.get(..length).unwrap_or_default().to_owned());
            at += blank + dots + length;
            continue;
        }
        let quoted = trimmed.strip_prefix('[').map(str::trim_start).filter(|inner| inner.starts_with(['\'', '"', '`']));
        if let Some(inner) = quoted {
            let (name, length) = literal(inner);
            let after = inner.get(length..).unwrap_or_default().trim_start();
            if let Some(after) = after.strip_prefix(']') {
                names.push(name);
                at = text.len() - after.len();
                continue;
            }
        }
        return (names, at);
    }
}

/// The text of a string literal at the start, and its length with the quotes.
fn literal(text: &str) -> (String, usize) {
    let mut characters = text.char_indices();
    let Some((_, quote)) = characters.next() else { return (String::new(), 0) };
    let mut out = String::new();
    while let Some((at, c)) = characters.next() {
        if c == quote {
            return (out, at + c.len_utf8());
        }
        if c == '\\' && quote != '`' {
            out.extend(characters.next().map(|(_, escaped)| escaped));
        } else {
            out.push(c);
        }
    }
    (out, text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_found_outside_of_texts() {
        let found = read("a.b['c-d'].e + int(f?.g) == \"h.i\" ? len(j) : k().l[0] + 1.5 + sprig.trim(m [ 'n' ])");
        let paths: Vec<String> = found.paths.iter().map(|path| path.join("/")).collect();
        assert_eq!(paths, ["a/b/c-d/e", "f/g", "j", "m/n"]);
        assert_eq!(found.sprig, ["trim"]);
        assert_eq!((found.range, read("1..10").range, read("1 .. len(x)").range), (0, 9, u64::MAX));
        assert!(found.text.ends_with("sprig_trim(m [ 'n' ])"));
    }
}
