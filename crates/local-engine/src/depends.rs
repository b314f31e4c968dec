//! The `depends` expression of a DAG task: boolean logic over results of other tasks.

use kfp_core::argo::ContinueOn;

/// A result of a task that an expression can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are Argo's own
pub enum Outcome {
    Succeeded,
    Failed,
    Errored,
    Skipped,
    Omitted,
    Daemoned,
    AnySucceeded,
    AllFailed,
}

impl Outcome {
    fn parse(text: &str) -> Option<Outcome> {
        Some(match text {
            "Succeeded" => Outcome::Succeeded,
            "Failed" => Outcome::Failed,
            "Errored" => Outcome::Errored,
            "Skipped" => Outcome::Skipped,
            "Omitted" => Outcome::Omitted,
            "Daemoned" => Outcome::Daemoned,
            "AnySucceeded" => Outcome::AnySucceeded,
            "AllFailed" => Outcome::AllFailed,
            _ => return None,
        })
    }
}

/// A parsed expression; tasks are named as in the template.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// `task.Result`
    Is(String, Outcome),
    /// A bare task: succeeded or skipped, or failed in a way its `continueOn` allows.
    Good(String),
    /// Negation.
    Not(Box<Expr>),
    /// Conjunction; true when empty.
    And(Vec<Expr>),
    /// Disjunction.
    Or(Vec<Expr>),
}

/// Why a `depends` text is no expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("depends expression \"{text}\": {why}")]
pub struct Error {
    text: String,
    why: String,
}

/// Parses a `depends` text.
///
/// # Errors
/// When it is no boolean expression over tasks and known results.
pub fn parse(text: &str) -> Result<Expr, Error> {
    let fail = |why: String| Error { text: text.to_owned(), why };
    let tokens = tokens(text).map_err(fail)?;
    let mut parser = Parser { tokens: &tokens, at: 0, depth: 0 };
    let expr = parser.or().map_err(fail)?;
    match parser.peek() {
        None => Ok(expr),
        Some(token) => Err(fail(format!("unexpected \"{token}\""))),
    }
}

/// The expression of a `dependencies` list.
pub fn all_good(names: &[String]) -> Expr {
    Expr::And(names.iter().cloned().map(Expr::Good).collect())
}

impl Expr {
    /// Names of all tasks in the expression.
    pub fn tasks<'e>(&'e self, into: &mut Vec<&'e str>) {
        match self {
            Expr::Is(task, _) | Expr::Good(task) => into.push(task),
            Expr::Not(inner) => inner.tasks(into),
            Expr::And(parts) | Expr::Or(parts) => parts.iter().for_each(|part| part.tasks(into)),
        }
    }

    /// Evaluates the expression. `is` answers for one task and result, `continue_on` gives a task's `continueOn`.
    pub fn eval(&self, is: &dyn Fn(&str, Outcome) -> bool, continue_on: &dyn Fn(&str) -> ContinueOn) -> bool {
        match self {
            Expr::Is(task, outcome) => is(task, *outcome),
            Expr::Good(task) => {
                let tolerated = continue_on(task);
                is(task, Outcome::Succeeded)
                    || is(task, Outcome::Skipped)
                    || is(task, Outcome::Daemoned)
                    || (tolerated.error && is(task, Outcome::Errored))
                    || (tolerated.failed && is(task, Outcome::Failed))
            }
            Expr::Not(inner) => !inner.eval(is, continue_on),
            Expr::And(parts) => parts.iter().all(|part| part.eval(is, continue_on)),
            Expr::Or(parts) => parts.iter().any(|part| part.eval(is, continue_on)),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<String>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("&&") || rest.starts_with("||") {
            2
        } else if matches!(first, '!' | '(' | ')' | '.') {
            1
        } else {
            let word = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').unwrap_or(rest.len());
            if word == 0 {
                return Err(format!("unexpected character \"{first}\""));
            }
            word
        };
        let (token, after) = rest.split_at(length);
        tokens.push(match token {
            "and" => "&&".to_owned(),
            "or" => "||".to_owned(),
            "not" => "!".to_owned(),
            other => other.to_owned(),
        });
        rest = after.trim_start();
    }
    Ok(tokens)
}

/// Deepest nesting; beyond it the text is refused instead of using up the stack.
const MAX_DEPTH: usize = 100;

struct Parser<'t> {
    tokens: &'t [String],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&str> {
        self.tokens.get(self.at).map(String::as_str)
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn or(&mut self) -> Result<Expr, String> {
        let mut parts = vec![self.and()?];
        while self.take("||") {
            parts.push(self.and()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::Or(parts) })
    }

    fn and(&mut self) -> Result<Expr, String> {
        let mut parts = vec![self.unary()?];
        while self.take("&&") {
            parts.push(self.unary()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::And(parts) })
    }

    fn unary(&mut self) -> Result<Expr, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("nested too deeply".to_owned());
        }
        let expr = self.unary_inner();
        self.depth -= 1;
        expr
    }

    fn unary_inner(&mut self) -> Result<Expr, String> {
        if self.take("!") {
            return Ok(Expr::Not(Box::new(self.unary()?)));
        }
        if self.take("(") {
            let inner = self.or()?;
            return if self.take(")") { Ok(inner) } else { Err("missing \")\"".to_owned()) };
        }
        let task = match self.peek() {
            None => return Err("unexpected end".to_owned()),
            Some(token) if matches!(token, "&&" | "||" | ")" | ".") => return Err(format!("unexpected \"{token}\"")),
            Some(token) => token.to_owned(),
        };
        self.at += 1;
        if !self.take(".") {
            return Ok(Expr::Good(task));
        }
        let result = self.peek().unwrap_or_default().to_owned();
        self.at += 1;
        match Outcome::parse(&result) {
            Some(outcome) => Ok(Expr::Is(task, outcome)),
            None => Err(format!("\"{result}\" is no task result")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn eval(text: &str, good: &[(&str, Outcome)]) -> bool {
        parse(text).unwrap().eval(&|task, outcome| good.contains(&(task, outcome)), &|task| ContinueOn {
            failed: task == "tolerant",
            error: false,
        })
    }

    #[test]
    fn expressions_follow_precedence() {
        let a = ("a-1", Outcome::Succeeded);
        let b = ("b", Outcome::Failed);
        assert!(eval("a-1.Succeeded", &[a]));
        assert!(!eval("a-1.Succeeded && b.Succeeded", &[a, b]));
        assert!(eval("a-1.Succeeded || b.Succeeded && b.Errored", &[a]));
        assert!(!eval("(a-1.Succeeded || b.Succeeded) && b.Errored", &[a]));
        assert!(eval("not b.Succeeded and a-1", &[a, b]));
        assert!(eval("tolerant", &[("tolerant", Outcome::Failed)]));
        assert!(!eval("a_1", &[a]), "names with dash and underscore are different tasks");
    }

    #[test]
    fn bad_expressions_are_refused() {
        for text in ["", "a &&", "a.Done", "(a", "a b", "a ? b", "a.Succeeded)"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"(".repeat(100_000)).is_err());
        assert!(parse(&"!".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "[ab.!&|() -]{0,30}") {
            let _ = parse(&text);
        }
    }
}
