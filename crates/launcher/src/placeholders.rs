//! Placeholders in the user's command: one pass from left to right, each on its own; inserted text is not read again.

use std::path::PathBuf;

use serde_json::Value;

use crate::paths::Paths;
use crate::spec::{Artifact, ExecutorInput};

/// What placeholders may refer to.
#[derive(Clone, Debug)]
pub struct Placeholders<'a> {
    input: &'a ExecutorInput,
    paths: &'a Paths,
    user_input: String,
}

impl<'a> Placeholders<'a> {
    /// `input` has its defaults filled in.
    #[must_use]
    pub fn new(input: &'a ExecutorInput, paths: &'a Paths) -> Self {
        Self { input, paths, user_input: paths.for_user(input.json.clone()).to_string() }
    }

    /// Replaces the placeholders of all words. A word that is an `IfPresent` or `Concat` object is evaluated; it may
    /// become several words or none.
    #[must_use]
    pub fn words(&self, words: &[String]) -> Vec<String> {
        let mut result = Vec::with_capacity(words.len());
        for word in words {
            match structure(word) {
                Some(value) => self.evaluate(&value, &mut result),
                None => result.push(self.text(word)),
            }
        }
        result
    }

    /// Replaces the placeholders in one text. Unknown ones stay.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        let mut result = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("{{$") {
            result.push_str(&rest[..start]);
            let inner = &rest[start + 2..];
            match end(inner).and_then(|end| Some((end, self.value(&inner[..end])?))) {
                Some((end, value)) => {
                    result.push_str(&value);
                    rest = &inner[end + 2..];
                }
                None => {
                    result.push_str("{{$");
                    rest = &rest[start + 3..];
                }
            }
        }
        result.push_str(rest);
        result
    }

    fn evaluate(&self, value: &Value, result: &mut Vec<String>) {
        match value {
            Value::String(text) => result.push(self.text(text)),
            Value::Array(items) => items.iter().for_each(|item| self.evaluate(item, result)),
            Value::Object(object) => {
                if let Some(Value::Array(items)) = object.get("Concat") {
                    let mut parts = Vec::new();
                    items.iter().for_each(|item| self.evaluate(item, &mut parts));
                    result.push(parts.concat());
                } else if let Some(condition) = object.get("IfPresent") {
                    let name = condition["InputName"].as_str().unwrap_or_default();
                    let branch = if self.present(name) { "Then" } else { "Else" };
                    if let Some(chosen) = condition.get(branch) {
                        self.evaluate(chosen, result);
                    }
                } else {
                    result.push(self.text(&value.to_string()));
                }
            }
            Value::Null => {}
            other => result.push(other.to_string()),
        }
    }

    fn present(&self, name: &str) -> bool {
        self.input.parameter(name).is_some_and(|value| !value.is_null())
            || self.input.input_artifacts.get(name).is_some_and(|list| !list.is_empty())
    }

    /// The value of what stands between the braces, `None` if that is not a placeholder.
    fn value(&self, inner: &str) -> Option<String> {
        match inner {
            "$" => return Some(self.user_input.clone()),
            "$.outputs.output_file" | "$.outputs.outputFile" => {
                return Some(self.placed(self.input.output_file()));
            }
            "$.workspace_path" => return Some(self.placed(kfp_core::objects::WORKSPACE)),
            _ => {}
        }
        let (group, rest) = inner.strip_prefix("$.")?.split_once('.')?;
        let (kind, rest) = rest.split_once('[')?;
        let (name, rest) = quoted(rest)?;
        match (group, kind, rest) {
            ("inputs", "parameters", "") => {
                // An optional parameter without a value is empty, not an error.
                Some(self.input.parameter(name).map(parameter_text).unwrap_or_default())
            }
            ("outputs", "parameters", ".output_file") => {
                let path = self.input.output_parameters().find(|(n, _)| *n == name)?.1;
                Some(self.placed(path))
            }
            ("inputs" | "outputs", "artifacts", rest) => {
                let lists = if group == "inputs" { &self.input.input_artifacts } else { &self.input.output_artifacts };
                self.artifact(lists.get(name)?.first()?, group, name, rest)
            }
            _ => None,
        }
    }

    fn artifact(&self, artifact: &Artifact, group: &str, name: &str, rest: &str) -> Option<String> {
        let json = || &self.input.json[group]["artifacts"][name]["artifacts"][0];
        match rest {
            ".uri" => Some(artifact.uri.clone()),
            ".path" => self.paths.artifact(artifact).map(|path| path.to_string_lossy().into_owned()),
            "" => Some(json().to_string()),
            ".metadata" => Some(Value::Object(artifact.metadata.clone()).to_string()),
            other => {
                let (key, after) = quoted(other.strip_prefix(".metadata[")?)?;
                after.is_empty().then(|| artifact.metadata.get(key).map(parameter_text).unwrap_or_default())
            }
        }
    }

    fn placed(&self, path: &str) -> String {
        self.paths.place(PathBuf::from(path)).to_string_lossy().into_owned()
    }
}

/// Where the closing braces stand. Braces within quotes do not count.
fn end(inner: &str) -> Option<usize> {
    let mut quote = None;
    let bytes = inner.as_bytes();
    for (i, byte) in bytes.iter().enumerate() {
        match (quote, byte) {
            (None, b'\'' | b'"') => quote = Some(*byte),
            (Some(open), close) if open == *close => quote = None,
            (None, b'}') if bytes.get(i + 1) == Some(&b'}') => return Some(i),
            // A placeholder is short and on one line; anything else is other text that happens to look like one.
            (None, b'\n' | b'{') => return None,
            _ => {}
        }
    }
    None
}

/// `'name']rest` or `"name"]rest`.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let (name, rest) = text[1..].split_once(quote)?;
    Some((name, rest.strip_prefix(']')?))
}

/// A parameter as text: strings as they are, numbers in shortest decimal form without exponent, null empty, the rest
/// as JSON.
#[must_use]
pub fn parameter_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => number.as_f64().unwrap_or_default().to_string(),
        other => other.to_string(),
    }
}

fn structure(word: &str) -> Option<Value> {
    let trimmed = word.trim();
    let looks = trimmed.starts_with('{') && (trimmed.contains("\"IfPresent\"") || trimmed.contains("\"Concat\""));
    let value: Value = looks.then(|| serde_json::from_str(trimmed).ok()).flatten()?;
    let object = value.as_object()?;
    (object.len() == 1 && (object.contains_key("IfPresent") || object.contains_key("Concat"))).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn input() -> ExecutorInput {
        ExecutorInput::parse(
            &json!({
                "inputs": {
                    "parameterValues": {
                        "s": "te xt", "i": 3, "d": 0.5, "big": 1e21, "w": 2.0, "b": true, "n": null, "l": [1, "x"],
                        "o": {"k": 1}, "trap": "{{$.inputs.parameters['s']}}"
                    },
                    "artifacts": {
                        "a": {"artifacts": [{"uri": "minio://b/in", "metadata": {"m": 7, "t": "u"}}]},
                        "h": {"artifacts": [{"uri": "https://h/x"}]},
                        "empty": {}
                    }
                },
                "outputs": {
                    "outputFile": "/minio/b/out.json",
                    "parameters": {"p": {"outputFile": "/tmp/kfp/outputs/p"}},
                    "artifacts": {"o": {"artifacts": [{"uri": "gs://b/out", "type": {"schemaTitle": "system.Model"}}]}}
                }
            })
            .to_string(),
        )
        .unwrap()
    }

    #[test]
    fn every_placeholder() {
        let (input, paths) = (input(), Paths::default());
        let p = Placeholders::new(&input, &paths);
        for (text, want) in [
            ("{{$.inputs.parameters['s']}}", "te xt"),
            ("{{$.inputs.parameters[\"s\"]}}", "te xt"),
            ("<{{$.inputs.parameters['i']}}|{{$.inputs.parameters['d']}}>", "<3|0.5>"),
            ("{{$.inputs.parameters['big']}}", "1000000000000000000000"),
            ("{{$.inputs.parameters['w']}}", "2"),
            ("{{$.inputs.parameters['b']}}", "true"),
            ("x{{$.inputs.parameters['n']}}y", "xy"),
            ("x{{$.inputs.parameters['absent']}}y", "xy"),
            ("{{$.inputs.parameters['l']}}", "[1,\"x\"]"),
            ("{{$.inputs.parameters['o']}}", "{\"k\":1}"),
            // Inserted text is not read again.
            ("{{$.inputs.parameters['trap']}}", "{{$.inputs.parameters['s']}}"),
            ("{{$.inputs.artifacts['a'].uri}}", "minio://b/in"),
            ("{{$.inputs.artifacts['a'].path}}", "/minio/b/in"),
            ("{{$.inputs.artifacts['h'].path}}", "{{$.inputs.artifacts['h'].path}}"),
            ("{{$.inputs.artifacts['a'].metadata['m']}}", "7"),
            ("{{$.inputs.artifacts['a'].metadata}}", "{\"m\":7,\"t\":\"u\"}"),
            ("{{$.inputs.artifacts['empty'].uri}}", "{{$.inputs.artifacts['empty'].uri}}"),
            ("{{$.outputs.artifacts['o'].path}}", "/gcs/b/out"),
            ("{{$.outputs.artifacts['o']}}", "{\"type\":{\"schemaTitle\":\"system.Model\"},\"uri\":\"gs://b/out\"}"),
            ("{{$.outputs.parameters['p'].output_file}}", "/tmp/kfp/outputs/p"),
            ("{{$.outputs.output_file}}", "/minio/b/out.json"),
            ("{{$.unknown}} {{$ {{ x }}", "{{$.unknown}} {{$ {{ x }}"),
            ("no placeholder", "no placeholder"),
        ] {
            assert_eq!(p.text(text), want, "{text}");
        }
        assert_eq!(serde_json::from_str::<Value>(&p.text("{{$}}")).unwrap(), input.json);
    }

    #[test]
    fn command_word_is_replaced_too_and_structures_are_evaluated() {
        let (input, paths) = (input(), Paths::default());
        let p = Placeholders::new(&input, &paths);
        let words = [
            "{{$.inputs.parameters['s']}}".to_owned(),
            json!({"IfPresent": {"InputName": "s", "Then": ["--s", "{{$.inputs.parameters['s']}}"]}}).to_string(),
            json!({"IfPresent": {"InputName": "n", "Then": "no", "Else": "else"}}).to_string(),
            json!({"IfPresent": {"InputName": "empty", "Then": "no"}}).to_string(),
            json!({"IfPresent": {"InputName": "a", "Then": {"Concat": ["a=", "{{$.inputs.artifacts['a'].path}}"]}}})
                .to_string(),
            json!({"Concat": ["x", {"IfPresent": {"InputName": "b", "Then": "y"}}, "z"]}).to_string(),
            json!({"Concat": 1, "other": 2}).to_string(),
        ];
        let want = ["te xt", "--s", "te xt", "else", "a=/minio/b/in", "xyz", "{\"Concat\":1,\"other\":2}"];
        assert_eq!(p.words(&words), want);
    }

    proptest::proptest! {
        #[test]
        fn text_without_placeholders_is_unchanged(text in "[^$]*") {
            let (input, paths) = (ExecutorInput::default(), Paths::default());
            proptest::prop_assert_eq!(Placeholders::new(&input, &paths).text(&text), text);
        }

        #[test]
        fn broken_placeholders_do_not_disturb_what_precedes_them(text in "(\\{\\{\\$|\\.inputs|\\.parameters|\\['|'\\]|\\}\\}|[a-zé'\"\\[\\]]){0,12}") {
            let input = input();
            let paths = Paths::default();
            let done = Placeholders::new(&input, &paths).text(&text);
            // What stands before the first placeholder is never touched.
            let before = text.split("{{$").next().unwrap_or_default();
            proptest::prop_assert!(done.starts_with(before));
        }
    }
}
