//! Grammar of a filter, lowest precedence first: OR, AND, NOT, comparison, sum, operand.

use super::lexer::{Token, Word};
use super::{Class, Filter, Names, Problem, Scope};
use crate::database::Param;

/// How deep expressions may nest.
const DEPTH: usize = 64;

/// A part of the condition with the parameters of its placeholders, in order.
struct Part {
    sql: String,
    params: Vec<Param>,
    class: Class,
    at: usize,
}

struct Parser<'a> {
    tokens: &'a [Token],
    next: usize,
    scope: Scope,
    depth: usize,
}

pub(super) fn parse(tokens: &[Token], scope: Scope) -> Result<Filter, Problem> {
    let mut parser = Parser { tokens, next: 0, scope, depth: 0 };
    let part = parser.or()?;
    if let Some(token) = tokens.get(parser.next) {
        return Err(Problem::new(token.at, "Syntax error: Expected end of input"));
    }
    let part = boolean(part)?;
    Ok(Filter {
        joins: parser.scope.joins,
        join_params: parser.scope.params,
        condition: part.sql,
        condition_params: part.params,
    })
}

fn boolean(part: Part) -> Result<Part, Problem> {
    match part.class {
        Class::Bool | Class::Null => Ok(part),
        _ => Err(Problem::new(part.at, "The expression is not a boolean")),
    }
}

fn comparable(left: Class, right: Class) -> bool {
    let number = |class| matches!(class, Class::Int | Class::Real);
    left == Class::Null || right == Class::Null || left == right || (number(left) && number(right))
}

fn join(left: Part, right: Part, sql: impl FnOnce(&str, &str) -> String, class: Class) -> Part {
    let sql = sql(&left.sql, &right.sql);
    let mut params = left.params;
    params.extend(right.params);
    Part { sql, params, class, at: left.at }
}

impl Parser<'_> {
    fn at(&self) -> usize {
        let end = self.tokens.last().map_or(0, |token| token.at + 1);
        self.tokens.get(self.next).map_or(end, |token| token.at)
    }

    fn unexpected(&self, wanted: &str) -> Problem {
        let what = match self.tokens.get(self.next).map(|token| &token.word) {
            None => "end of filter".to_owned(),
            Some(Word::Name { text, .. }) => text.clone(),
            Some(Word::Int(value)) => value.to_string(),
            Some(Word::Real(value)) => value.to_string(),
            Some(Word::Text(value)) => format!("{value:?}"),
            Some(Word::Sign(sign)) => format!("{sign:?}"),
        };
        Problem::new(self.at(), format!("Syntax error: Unexpected {what}, expected {wanted}"))
    }

    fn keyword(&mut self, wanted: &str) -> bool {
        let found = matches!(self.tokens.get(self.next), Some(Token { word: Word::Name { text, quoted: false }, .. })
            if text.eq_ignore_ascii_case(wanted));
        self.next += usize::from(found);
        found
    }

    fn sign(&mut self, wanted: &[&str]) -> Option<&'static str> {
        match self.tokens.get(self.next)?.word {
            Word::Sign(sign) if wanted.contains(&sign) => {
                self.next += 1;
                Some(sign)
            }
            _ => None,
        }
    }

    fn expect(&mut self, sign: &str) -> Result<(), Problem> {
        self.sign(&[sign]).map(|_| ()).ok_or_else(|| self.unexpected(&format!("{sign:?}")))
    }

    /// Runs `inner` one level deeper; the limit protects the stack.
    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, Problem>) -> Result<T, Problem> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(Problem::new(self.at(), "the filter nests too deeply"));
        }
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn or(&mut self) -> Result<Part, Problem> {
        let mut left = self.and()?;
        while self.keyword("OR") {
            let right = boolean(self.and()?)?;
            left = join(boolean(left)?, right, |l, r| format!("({l} OR {r})"), Class::Bool);
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Part, Problem> {
        let mut left = self.not()?;
        while self.keyword("AND") {
            let right = boolean(self.not()?)?;
            left = join(boolean(left)?, right, |l, r| format!("({l} AND {r})"), Class::Bool);
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Part, Problem> {
        if self.keyword("NOT") {
            let part = boolean(self.deeper(Self::not)?)?;
            return Ok(Part { sql: format!("(NOT {})", part.sql), ..part });
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Part, Problem> {
        let left = self.sum()?;
        if let Class::Enum(names) = left.class {
            return self.enum_comparison(left, names);
        }
        if let Some(sign) = self.sign(&["=", "!=", "<>", "<=", ">=", "<", ">"]) {
            let right = self.sum()?;
            Self::check(&left, &right, sign)?;
            return Ok(join(left, right, |l, r| format!("({l} {sign} {r})"), Class::Bool));
        }
        if self.keyword("IS") {
            let not = if self.keyword("NOT") { "NOT " } else { "" };
            let sql = if self.keyword("NULL") {
                format!("({} IS {not}NULL)", left.sql)
            } else if self.keyword("TRUE") {
                format!("({} IS {not}TRUE)", boolean(Part { sql: left.sql.clone(), params: vec![], ..left })?.sql)
            } else if self.keyword("FALSE") {
                format!("({} IS {not}FALSE)", boolean(Part { sql: left.sql.clone(), params: vec![], ..left })?.sql)
            } else {
                return Err(self.unexpected("NULL, TRUE or FALSE"));
            };
            return Ok(Part { sql, class: Class::Bool, ..left });
        }
        let start = self.next;
        let not = if self.keyword("NOT") { "NOT " } else { "" };
        if self.keyword("IN") {
            return self.list(left, not);
        }
        if self.keyword("LIKE") {
            let right = self.sum()?;
            if !comparable(left.class, Class::Text) || !comparable(right.class, Class::Text) {
                return Err(Problem::new(left.at, "LIKE needs two strings"));
            }
            return Ok(join(left, right, |l, r| format!("({l} {not}LIKE {r} ESCAPE '\\')"), Class::Bool));
        }
        if self.keyword("BETWEEN") {
            let low = self.sum()?;
            Self::check(&left, &low, "BETWEEN")?;
            if !self.keyword("AND") {
                return Err(self.unexpected("AND"));
            }
            let high = self.sum()?;
            Self::check(&left, &high, "BETWEEN")?;
            let bounds = join(low, high, |l, h| format!("{l} AND {h}"), Class::Bool);
            return Ok(join(left, bounds, |l, b| format!("({l} {not}BETWEEN {b})"), Class::Bool));
        }
        self.next = start;
        Ok(left)
    }

    fn check(left: &Part, right: &Part, sign: &str) -> Result<(), Problem> {
        if comparable(left.class, right.class) && !matches!(right.class, Class::Enum(_)) {
            return Ok(());
        }
        Err(Problem::new(left.at, format!("No matching signature for operator {sign} for these argument types")))
    }

    fn list(&mut self, left: Part, not: &str) -> Result<Part, Problem> {
        self.expect("(")?;
        let (mut items, mut params) = (Vec::new(), left.params.clone());
        loop {
            let item = self.sum()?;
            Self::check(&left, &item, "IN")?;
            items.push(item.sql);
            params.extend(item.params);
            if self.sign(&[","]).is_none() {
                break;
            }
        }
        self.expect(")")?;
        let sql = format!("({} {not}IN ({}))", left.sql, items.join(","));
        Ok(Part { sql, params, class: Class::Bool, at: left.at })
    }

    /// States are compared with names only; "not this state" includes "no state".
    fn enum_comparison(&mut self, left: Part, names: Names) -> Result<Part, Problem> {
        let done = |sql: String, params: Vec<Param>| Ok(Part { sql, params, class: Class::Bool, at: left.at });
        let column = &left.sql;
        if let Some(sign) = self.sign(&["=", "!=", "<>"]) {
            let value = self.enum_value(names)?;
            return match sign {
                "=" => done(format!("({column} = ?)"), vec![value]),
                _ => done(format!("({column} != ? OR {column} IS NULL)"), vec![value]),
            };
        }
        if self.keyword("IS") {
            let not = if self.keyword("NOT") { "NOT " } else { "" };
            if !self.keyword("NULL") {
                return Err(self.unexpected("NULL"));
            }
            return done(format!("({column} IS {not}NULL)"), vec![]);
        }
        let not = self.keyword("NOT");
        if !self.keyword("IN") {
            return Err(self.unexpected("=, !=, IN or IS"));
        }
        self.expect("(")?;
        let mut values = vec![self.enum_value(names)?];
        while self.sign(&[","]).is_some() {
            values.push(self.enum_value(names)?);
        }
        self.expect(")")?;
        let list = vec!["?"; values.len()].join(",");
        if not {
            done(format!("({column} NOT IN ({list}) OR {column} IS NULL)"), values)
        } else {
            done(format!("({column} IN ({list}))"), values)
        }
    }

    fn enum_value(&mut self, names: Names) -> Result<Param, Problem> {
        let Some(Token { word: Word::Name { text, .. }, at }) = self.tokens.get(self.next) else {
            return Err(self.unexpected("the name of a state"));
        };
        let number = names.number(text);
        let number = number
            .ok_or_else(|| Problem::new(*at, format!("Unsupported enum value specified in the query: {text}")))?;
        self.next += 1;
        Ok(number.into())
    }

    fn sum(&mut self) -> Result<Part, Problem> {
        let mut left = self.operand()?;
        while let Some(sign) = self.sign(&["+", "-"]) {
            let right = self.operand()?;
            let number = |class| matches!(class, Class::Int | Class::Real);
            if !number(left.class) || !number(right.class) {
                return Err(Problem::new(left.at, format!("No matching signature for operator {sign}")));
            }
            let class = if left.class == right.class { left.class } else { Class::Real };
            left = join(left, right, |l, r| format!("({l} {sign} {r})"), class);
        }
        Ok(left)
    }

    fn operand(&mut self) -> Result<Part, Problem> {
        let at = self.at();
        let bound = |param: Param, class| Ok(Part { sql: "?".to_owned(), params: vec![param], class, at });
        if self.sign(&["("]).is_some() {
            let inner = self.deeper(Self::or)?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.sign(&["-"]).is_some() {
            let part = self.deeper(Self::operand)?;
            if !matches!(part.class, Class::Int | Class::Real) {
                return Err(Problem::new(at, "No matching signature for operator -"));
            }
            return Ok(Part { sql: format!("(-{})", part.sql), ..part });
        }
        let Some(token) = self.tokens.get(self.next) else { return Err(self.unexpected("a value")) };
        match &token.word {
            Word::Int(value) => {
                self.next += 1;
                bound((*value).into(), Class::Int)
            }
            Word::Real(value) => {
                self.next += 1;
                bound((*value).into(), Class::Real)
            }
            Word::Text(value) => {
                self.next += 1;
                bound(value.as_str().into(), Class::Text)
            }
            Word::Name { quoted: false, text } if text.eq_ignore_ascii_case("true") => {
                self.next += 1;
                bound(true.into(), Class::Bool)
            }
            Word::Name { quoted: false, text } if text.eq_ignore_ascii_case("false") => {
                self.next += 1;
                bound(false.into(), Class::Bool)
            }
            Word::Name { quoted: false, text } if text.eq_ignore_ascii_case("null") => {
                self.next += 1;
                bound(Param::Null, Class::Null)
            }
            Word::Name { .. } => {
                let path = self.path()?;
                if self.tokens.get(self.next).is_some_and(|token| token.word == Word::Sign("(")) {
                    return Err(Problem::new(at, format!("Function not supported: {}", path.join("."))));
                }
                let (sql, class) = self.scope.resolve(&path, at)?;
                Ok(Part { sql, params: vec![], class, at })
            }
            Word::Sign(_) => Err(self.unexpected("a value")),
        }
    }

    fn path(&mut self) -> Result<Vec<String>, Problem> {
        let mut path = Vec::new();
        loop {
            let Some(Token { word: Word::Name { text, .. }, .. }) = self.tokens.get(self.next) else {
                return Err(self.unexpected("a name"));
            };
            path.push(text.clone());
            self.next += 1;
            if self.sign(&["."]).is_none() {
                return Ok(path);
            }
        }
    }
}
