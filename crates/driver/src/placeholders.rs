//! Placeholders in command lines, images and resources, as far as the driver fills them in. The launcher does the rest.

use kfp_proto::ml_pipelines::ExecutorInput;
use prost_types::Value;
use prost_types::value::Kind;
use serde_json::Value as Json;

use crate::text;

const OPEN: &str = "{{$.inputs.parameters['";
const CLOSE: &str = "']}}";
const BARE: &str = "$.inputs.parameters['";
/// `IfPresent` and `Concat` may nest; deeper nesting than this is refused.
const MAX_DEPTH: usize = 64;

/// Values that placeholders may refer to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    input: &'a ExecutorInput,
}

impl<'a> Known<'a> {
    pub(crate) fn new(input: &'a ExecutorInput) -> Self {
        Self { input }
    }

    fn parameter(&self, name: &str) -> Option<&'a Value> {
        self.input.inputs.as_ref()?.parameter_values.get(name)
    }

    /// Present means: a parameter that is not null, or an artifact list that is not empty.
    fn is_present(&self, name: &str) -> bool {
        let parameter = self.parameter(name).is_some_and(|v| !matches!(v.kind, None | Some(Kind::NullValue(_))));
        let artifacts = self.input.inputs.as_ref().and_then(|inputs| inputs.artifacts.get(name));
        parameter || artifacts.is_some_and(|list| !list.artifacts.is_empty())
    }

    /// `word` with input parameters filled in; unknown ones stay for the launcher, which knows their defaults.
    fn fill(&self, word: &str) -> String {
        let (mut out, mut rest) = (String::new(), word);
        while let Some(at) = rest.find(OPEN) {
            let (before, tail) = rest.split_at(at);
            out.push_str(before);
            let body = &tail[OPEN.len()..];
            match body.find(CLOSE).map(|end| (&body[..end], &body[end + CLOSE.len()..])) {
                Some((name, after)) => {
                    match self.parameter(name) {
                        Some(value) => out.push_str(&text::placeholder(value)),
                        None => out.push_str(&tail[..tail.len() - after.len()]),
                    }
                    rest = after;
                }
                None => {
                    out.push_str(OPEN);
                    rest = body;
                }
            }
        }
        out.push_str(rest);
        out
    }

    /// One word of a string list: left alone if it speaks of outputs, else filled in.
    fn word(&self, word: &str) -> String {
        if word.contains("$.outputs") { word.to_owned() } else { self.fill(word) }
    }

    /// What an item of `Concat`, `Then` or `Else` stands for.
    fn item(&self, item: &Json, depth: usize) -> Result<Vec<String>, String> {
        if depth > MAX_DEPTH {
            return Err("IfPresent and Concat are nested too deeply".to_owned());
        }
        let all = |items: &[Json]| -> Result<Vec<String>, String> {
            let parts: Result<Vec<_>, _> = items.iter().map(|item| self.item(item, depth + 1)).collect();
            Ok(parts?.concat())
        };
        match item {
            Json::Null => Ok(Vec::new()),
            Json::String(word) => match structured(word) {
                Some(nested) => self.item(&nested, depth + 1),
                None => Ok(vec![self.word(word)]),
            },
            Json::Array(items) => all(items),
            Json::Object(fields) => {
                if let Some(Json::Array(items)) = fields.get("Concat") {
                    return Ok(vec![all(items)?.concat()]);
                }
                let Some(Json::Object(clause)) = fields.get("IfPresent") else {
                    return Err(format!("non-string item in IfPresent or Concat: {item}"));
                };
                let name = clause.get("InputName").and_then(Json::as_str).unwrap_or_default();
                let branch = if self.is_present(name) { "Then" } else { "Else" };
                self.item(clause.get(branch).unwrap_or(&Json::Null), depth + 1)
            }
            other => Err(format!("non-string item in IfPresent or Concat: {other}")),
        }
    }

    /// A command line with `IfPresent` and `Concat` evaluated and input parameters filled in.
    ///
    /// # Errors
    /// When such an expression holds something else than strings.
    pub(crate) fn command_line(&self, words: &[String]) -> Result<Vec<String>, String> {
        let mut line = Vec::new();
        for word in words {
            match structured(word) {
                Some(json) => line.extend(self.item(&json, 0)?),
                None => line.push(self.word(word)),
            }
        }
        Ok(line)
    }

    /// An image or a quantity with input parameters filled in, all of which must exist.
    ///
    /// # Errors
    /// When one does not.
    pub(crate) fn setting(&self, setting: &str) -> Result<String, String> {
        if !setting.contains(BARE) {
            return Ok(setting.to_owned());
        }
        let filled = if setting.contains(OPEN) { self.fill(setting) } else { setting.to_owned() };
        let Some(at) = filled.find(BARE) else { return Ok(filled) };
        let body = &filled[at + BARE.len()..];
        let name = body.split_once("']").map_or(body, |(name, _)| name);
        // Without braces around it the parameter is the whole setting, as upstream has it.
        match self.parameter(name) {
            Some(value) if !setting.contains(OPEN) => Ok(text::placeholder(value)),
            _ => Err(format!("executorInput did not contain container Image input parameter {name:?}")),
        }
    }
}

/// The JSON of a word that is an `IfPresent` or `Concat` expression.
fn structured(word: &str) -> Option<Json> {
    let trimmed = word.trim();
    if !(trimmed.starts_with("{\"IfPresent\":") || trimmed.starts_with("{\"Concat\":")) {
        return None;
    }
    serde_json::from_str(trimmed).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfp_core::ir;
    use serde_json::json;

    fn input() -> ExecutorInput {
        let json = json!({"inputs": {
            "parameterValues": {"s": "text", "i": 3, "f": 0.5, "b": true, "n": null, "l": [1, "a"],
                                "evil": "{{$.inputs.parameters['s']}}", "image": "repo/app:1"},
            "artifacts": {"data": {"artifacts": [{"name": "1"}]}, "empty": {}}}});
        ir::decode(&json, ir::Unknown::Reject).unwrap()
    }

    #[test]
    fn words_are_filled_in() {
        let p = |name: &str| format!("{{{{$.inputs.parameters['{name}']}}}}");
        for (word, wanted) in [
            ("plain".to_owned(), vec!["plain".to_owned()]),
            (p("s"), vec!["text".into()]),
            (format!("--x={}-{}", p("i"), p("f")), vec!["--x=3-0.5".into()]),
            (p("b"), vec!["true".into()]),
            (p("n"), vec![String::new()]),
            (p("l"), vec!["[1,\"a\"]".into()]),
            (p("evil"), vec![p("s")]),
            (p("absent"), vec![p("absent")]),
            ("{{$.inputs.parameters['s'".into(), vec!["{{$.inputs.parameters['s'".into()]),
            (
                format!("{}{{{{$.outputs.parameters['o'].output_file}}}}", p("s")),
                vec![format!("{}{{{{$.outputs.parameters['o'].output_file}}}}", p("s"))],
            ),
            ("{{$}}".into(), vec!["{{$}}".into()]),
            ("{\"IfPresent\": broken".into(), vec!["{\"IfPresent\": broken".into()]),
        ] {
            assert_eq!(Known::new(&input()).command_line(std::slice::from_ref(&word)).unwrap(), wanted, "{word}");
        }
    }

    #[test]
    fn expressions_are_evaluated() {
        let p = |name: &str| format!("{{{{$.inputs.parameters['{name}']}}}}");
        let if_present = |name: &str, then: Json, otherwise: Json| json!({"IfPresent": {"InputName": name, "Then": then, "Else": otherwise}});
        for (expression, wanted) in [
            (if_present("s", json!(["--s", p("s")]), json!(null)), vec!["--s", "text"]),
            (if_present("n", json!("yes"), json!("no")), vec!["no"]),
            (if_present("absent", json!("yes"), json!(null)), vec![]),
            (if_present("data", json!("yes"), json!("no")), vec!["yes"]),
            (if_present("empty", json!("yes"), json!("no")), vec!["no"]),
            (if_present("s", json!([{"Concat": ["a", p("i"), "b"]}]), json!(null)), vec!["a3b"]),
            (json!({"Concat": ["x", if_present("s", json!("y"), json!("z")), p("i")]}), vec!["xy3"]),
            (
                if_present("s", json!(["--out", "{{$.outputs.artifacts['m'].path}}"]), json!(null)),
                vec!["--out", "{{$.outputs.artifacts['m'].path}}"],
            ),
        ] {
            let word = expression.to_string();
            assert_eq!(Known::new(&input()).command_line(std::slice::from_ref(&word)).unwrap(), wanted, "{word}");
        }
        let bad = if_present("s", json!([3]), json!(null)).to_string();
        assert!(Known::new(&input()).command_line(&[bad]).unwrap_err().contains("non-string item"));
    }

    #[test]
    fn settings_need_their_parameters() {
        for (setting, wanted) in [
            ("python:3.11", Ok("python:3.11")),
            ("{{$.inputs.parameters['image']}}", Ok("repo/app:1")),
            ("$.inputs.parameters['image']", Ok("repo/app:1")),
            ("{{$.inputs.parameters['i']}}Gi", Ok("3Gi")),
            ("registry/{{$.inputs.parameters['s']}}:{{$.inputs.parameters['i']}}", Ok("registry/text:3")),
            ("{{$.inputs.parameters['absent']}}", Err("absent")),
        ] {
            let known = input();
            match (Known::new(&known).setting(setting), wanted) {
                (Ok(result), Ok(wanted)) => assert_eq!(result, wanted),
                (Err(error), Err(name)) => assert!(error.contains(name), "{error}"),
                other => panic!("{setting}: {other:?}"),
            }
        }
    }
}
