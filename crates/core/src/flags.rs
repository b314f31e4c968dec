//! Command lines in the syntax of Go's `flag` package, which upstream's manifests and compiled workflows use.
//!
//! `-x v`, `--x v`, `-x=v`, `--x=v`; a boolean is `--x` or `--x=true|false` and never takes the next word; the last
//! occurrence wins; `--` or the first word that is not a flag ends the flags.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;

/// What a flag accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Int,
    Float,
    Bool,
    Duration,
}

#[derive(Clone, Debug)]
struct Flag {
    kind: Kind,
    default: String,
    help: &'static str,
}

/// Why parsing ended without values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// `-h`, `--help` or `--version` was given: print the text to standard output and exit 0.
    Info(String),
    /// The command line is wrong: print the text to standard error and exit 2.
    Wrong(String),
}

impl Stop {
    /// Prints the text where it belongs and ends the process with Go's exit code: 0 for information, 2 for errors.
    pub fn exit(&self) -> ! {
        match self {
            Stop::Info(text) => {
                // Who reads it may have read enough.
                let _ = writeln!(std::io::stdout(), "{text}");
                std::process::exit(0)
            }
            Stop::Wrong(text) => {
                let _ = writeln!(std::io::stderr(), "{text}");
                std::process::exit(2)
            }
        }
    }
}

/// The flags that a program knows.
#[derive(Clone, Debug)]
pub struct Flags {
    program: &'static str,
    about: &'static str,
    known: BTreeMap<&'static str, Flag>,
    ignored: BTreeSet<&'static str>,
}

/// Flag values after parsing.
#[derive(Clone, Debug)]
pub struct Values {
    values: BTreeMap<&'static str, String>,
    given: BTreeSet<&'static str>,
    rest: Vec<String>,
}

impl Flags {
    /// A program without flags; `about` is one line for `--help`.
    #[must_use]
    pub fn new(program: &'static str, about: &'static str) -> Self {
        Self { program, about, known: BTreeMap::new(), ignored: BTreeSet::new() }
    }

    fn add(mut self, name: &'static str, kind: Kind, default: impl ToString, help: &'static str) -> Self {
        self.known.insert(name, Flag { kind, default: default.to_string(), help });
        self
    }

    /// Adds a text flag.
    #[must_use]
    pub fn text(self, name: &'static str, default: &str, help: &'static str) -> Self {
        self.add(name, Kind::Text, default, help)
    }

    /// Adds a 64-bit integer flag.
    #[must_use]
    pub fn int(self, name: &'static str, default: i64, help: &'static str) -> Self {
        self.add(name, Kind::Int, default, help)
    }

    /// Adds a floating-point flag.
    #[must_use]
    pub fn float(self, name: &'static str, default: f64, help: &'static str) -> Self {
        self.add(name, Kind::Float, default, help)
    }

    /// Adds a boolean flag.
    #[must_use]
    pub fn bool(self, name: &'static str, default: bool, help: &'static str) -> Self {
        self.add(name, Kind::Bool, default, help)
    }

    /// Adds a duration flag in Go's syntax (`1h30m`, `300ms`); `default` is written the same way.
    #[must_use]
    pub fn duration(self, name: &'static str, default: &str, help: &'static str) -> Self {
        self.add(name, Kind::Duration, default, help)
    }

    /// Accepts and ignores the logging flags of Go's glog, which upstream's manifests pass.
    #[must_use]
    pub fn ignoring_glog(mut self) -> Self {
        self.ignored.extend([
            "logtostderr",
            "alsologtostderr",
            "stderrthreshold",
            "v",
            "vmodule",
            "log_dir",
            "log_backtrace_at",
            "log_link",
            "logbuflevel",
        ]);
        self
    }

    /// Parses the words after the program's name.
    ///
    /// # Errors
    /// [`Stop::Info`] for `--help` and `--version`; [`Stop::Wrong`] for an unknown flag or a value of the wrong type.
    pub fn parse<I, S>(&self, words: I) -> Result<Values, Stop>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let mut words = words.into_iter().map(Into::into);
        let mut values: BTreeMap<_, _> = self.known.iter().map(|(name, flag)| (*name, flag.default.clone())).collect();
        let mut given = BTreeSet::new();
        let mut rest = Vec::new();
        while let Some(word) = words.next() {
            if word == "--" {
                break;
            }
            let Some(body) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|b| !b.is_empty())
            else {
                rest.push(word);
                break;
            };
            let (name, inline) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (body, None),
            };
            if name.is_empty() || name.starts_with('-') {
                return Err(self.wrong(&format!("bad flag syntax: {word}")));
            }
            let Some((known, flag)) = self.known.get_key_value(name) else {
                match name {
                    "help" | "h" => return Err(Stop::Info(self.usage())),
                    "version" => {
                        return Err(Stop::Info(format!("{} {}", self.program, env!("CARGO_PKG_VERSION"))));
                    }
                    _ if self.ignored.contains(name) => {
                        // Boolean in glog; the others are always written with '=' or a separate value.
                        let boolean = matches!(name, "logtostderr" | "alsologtostderr");
                        if inline.is_none() && !boolean {
                            words.next();
                        }
                        continue;
                    }
                    _ => return Err(self.wrong(&format!("flag provided but not defined: -{name}"))),
                }
            };
            let value = match (flag.kind, inline) {
                (_, Some(value)) => value,
                (Kind::Bool, None) => "true".to_owned(),
                (_, None) => match words.next() {
                    Some(value) => value,
                    None => return Err(self.wrong(&format!("flag needs an argument: -{name}"))),
                },
            };
            let value = match flag.kind {
                Kind::Text => Some(value.clone()),
                Kind::Int => parse_int(&value).map(|v| v.to_string()),
                Kind::Float => value.parse::<f64>().ok().map(|v| v.to_string()),
                Kind::Bool => parse_bool(&value).map(|v| v.to_string()),
                Kind::Duration => parse_duration(&value).map(|_| value.clone()),
            }
            .ok_or_else(|| self.wrong(&format!("invalid value {value:?} for flag -{name}: parse error")))?;
            values.insert(known, value);
            given.insert(*known);
        }
        rest.extend(words);
        Ok(Values { values, given, rest })
    }

    /// Parses the process's own command line; prints and exits on help, version and errors, as Go programs do.
    #[must_use]
    pub fn parse_or_exit(&self) -> Values {
        self.parse(std::env::args().skip(1)).unwrap_or_else(|stop| stop.exit())
    }

    fn wrong(&self, message: &str) -> Stop {
        Stop::Wrong(format!("{message}\n{}", self.usage()))
    }

    /// The text of `--help`.
    #[must_use]
    pub fn usage(&self) -> String {
        let mut text = format!("{}: {}\n\nUsage of {}:\n", self.program, self.about, self.program);
        for (name, flag) in &self.known {
            let kind = match flag.kind {
                Kind::Text => " string",
                Kind::Int => " int",
                Kind::Float => " float",
                Kind::Bool => "",
                Kind::Duration => " duration",
            };
            let default = if flag.default.is_empty() { String::new() } else { format!(" (default {})", flag.default) };
            let _ = writeln!(text, "  --{name}{kind}\n        {}{default}", flag.help);
        }
        text.push_str("  --help\n        print this text\n  --version\n        print the version");
        text
    }
}

/// Integers as Go's `strconv.ParseInt(s, 0, 64)` reads them: decimal, `0x`, `0o`, `0b`, sign.
fn parse_int(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let lower = digits.to_ascii_lowercase();
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(rest) = lower.strip_prefix(prefix) {
            return i64::from_str_radix(&format!("{sign}{rest}"), radix).ok();
        }
    }
    format!("{sign}{digits}").parse().ok()
}

/// Booleans as Go's `strconv.ParseBool` reads them.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Durations as Go's `time.ParseDuration` reads them; `None` for anything else and for negative ones.
#[must_use]
pub fn parse_duration(text: &str) -> Option<std::time::Duration> {
    crate::duration::parse(text).ok().and_then(|nanos| u64::try_from(nanos).ok()).map(std::time::Duration::from_nanos)
}

impl Values {
    /// The flag's text; empty for a flag that was never declared.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// The flag as an integer; 0 for a flag that was never declared as one.
    #[must_use]
    pub fn int(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or(0)
    }

    /// The flag as a float; 0 for a flag that was never declared as one.
    #[must_use]
    pub fn float(&self, name: &str) -> f64 {
        self.text(name).parse().unwrap_or(0.0)
    }

    /// The flag as a boolean.
    #[must_use]
    pub fn bool(&self, name: &str) -> bool {
        self.text(name) == "true"
    }

    /// The flag as a duration; zero for a flag that was never declared as one.
    #[must_use]
    pub fn duration(&self, name: &str) -> std::time::Duration {
        parse_duration(self.text(name)).unwrap_or_default()
    }

    /// Whether the flag stood on the command line, even with an empty value.
    #[must_use]
    pub fn given(&self, name: &str) -> bool {
        self.given.contains(name)
    }

    /// The words after the flags.
    #[must_use]
    pub fn rest(&self) -> &[String] {
        &self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags::new("t", "test")
            .text("name", "d", "a name")
            .int("n", -1, "a number")
            .bool("on", false, "a switch")
            .float("qps", 5.0, "a rate")
            .ignoring_glog()
    }

    #[test]
    fn reads_every_go_spelling() {
        let v = flags()
            .parse(["-name", "x", "--n=0x10", "--on", "-logtostderr=true", "-v", "4", "--qps=2.5", "--", "--n", "3"])
            .unwrap();
        assert_eq!((v.text("name"), v.int("n"), v.bool("on"), v.float("qps")), ("x", 16, true, 2.5));
        assert_eq!(v.rest(), ["--n", "3"]);
        assert!(v.given("name") && v.given("on"));
    }

    #[test]
    fn boolean_does_not_take_the_next_word() {
        let v = flags().parse(["--on", "false", "--n=1"]).unwrap();
        assert!(v.bool("on"));
        assert_eq!((v.rest(), v.int("n")), (["false".to_owned(), "--n=1".to_owned()].as_slice(), -1));
    }

    #[test]
    fn last_occurrence_wins_and_empty_counts_as_given() {
        let v = flags().parse(["--name=a", "--name="]).unwrap();
        assert_eq!(v.text("name"), "");
        assert!(v.given("name"));
        assert!(!v.given("n"));
    }

    #[test]
    fn durations_read_as_in_go() {
        let ms = |text| parse_duration(text).map(|d| d.as_millis());
        for (text, want) in [("2m0s", 120_000), ("1h30m", 5_400_000), ("300ms", 300), ("1.5h", 5_400_000), ("0", 0)] {
            assert_eq!(ms(text), Some(want), "{text}");
        }
        for text in ["", "5", "-1s", "1x", "s", "1s2", "1..5s"] {
            assert_eq!(ms(text), None, "{text}");
        }
    }

    #[test]
    fn errors_name_the_flag() {
        for (words, text) in [
            (vec!["--nope"], "flag provided but not defined: -nope"),
            (vec!["--n=x"], "invalid value \"x\" for flag -n: parse error"),
            (vec!["--on=maybe"], "invalid value \"maybe\" for flag -on: parse error"),
            (vec!["--name"], "flag needs an argument: -name"),
            (vec!["---x"], "bad flag syntax: ---x"),
        ] {
            match flags().parse(words) {
                Err(Stop::Wrong(message)) => assert!(message.starts_with(text), "{message}"),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(flags().parse(["--help"]), Err(Stop::Info(_))));
        assert!(matches!(flags().parse(["-version"]), Err(Stop::Info(_))));
    }
}
