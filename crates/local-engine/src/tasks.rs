//! Resolves one task or step: its condition and its arguments.

use crate::expression;
use crate::substitute::{self, Error, Lookup, Scope};
use crate::variables::ProducerScope;
use crate::when;
use kfp_core::argo::{Arguments, Artifact, DagTask, Inputs, Parameter};

/// What is to become of a task.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Run it with these arguments.
    Run(Arguments),
    /// Its condition is false.
    Skip(String),
    /// It cannot be run.
    Fail(String),
}

/// Decides about a task. The condition comes first; arguments of a skipped task need not resolve.
pub(crate) fn decide(task: &DagTask, scope: &dyn Scope) -> Decision {
    if let Some(condition) = &task.when {
        let text = match substitute::text(condition, scope) {
            Ok(text) => text,
            Err(error) => return Decision::Fail(error.to_string()),
        };
        match when::eval(&text) {
            Ok(true) => {}
            Ok(false) => return Decision::Skip(format!("when '{text}' evaluated false")),
            Err(error) => return Decision::Fail(error.to_string()),
        }
    }
    arguments(&task.arguments, scope).map_or_else(|error| Decision::Fail(error.to_string()), Decision::Run)
}

/// Resolves arguments. One that is exactly a reference to something skipped is left without a value.
///
/// # Errors
/// When a reference does not resolve.
pub(crate) fn arguments(arguments: &Arguments, scope: &dyn Scope) -> Result<Arguments, Error> {
    let mut resolved = Arguments::default();
    for parameter in &arguments.parameters {
        let from = parameter.value_from.as_ref();
        if let Some(expression) = from.and_then(|from| from.expression.as_deref()) {
            let value = expression::print(&expression::evaluate(expression, scope)?);
            resolved.parameters.push(Parameter::new(&parameter.name, value));
            continue;
        }
        let given = parameter.value.as_deref().or_else(|| from?.parameter.as_deref());
        let value = match given.map(|text| (text, substitute::text(text, scope))) {
            None => None,
            Some((_, Ok(value))) => Some(value.into_owned()),
            Some((text, Err(Error::Absent(_)))) if substitute::single_tag(text).is_some() => None,
            Some((_, Err(error))) => return Err(error),
        };
        resolved.parameters.push(Parameter { name: parameter.name.clone(), value, ..Parameter::default() });
    }
    for artifact in &arguments.artifacts {
        let given = match source(artifact, scope)? {
            Some((_, Some(found))) => Artifact { name: artifact.name.clone(), ..found },
            Some(_) if artifact.optional => continue,
            Some((from, None)) => return Err(Error::Unresolvable(from, "no such artifact".to_owned())),
            None => {
                let json = serde_json::to_value(artifact).unwrap_or_default();
                serde_json::from_value(substitute::json(&json, scope)?).unwrap_or_else(|_| artifact.clone())
            }
        };
        resolved.artifacts.push(given);
    }
    Ok(resolved)
}

/// What an artifact's `from` or `fromExpression` says and leads to; `None` when it has neither.
///
/// # Errors
/// When the expression has no value.
pub(crate) fn source(artifact: &Artifact, scope: &dyn Scope) -> Result<Option<(String, Option<Artifact>)>, Error> {
    if let Some(from) = &artifact.from {
        return Ok(Some((from.clone(), located(from, scope))));
    }
    let Some(expression) = artifact.extra.get("fromExpression").and_then(|expression| expression.as_str()) else {
        return Ok(None);
    };
    let found = expression::evaluate(expression, scope)?;
    Ok(Some((expression.to_owned(), serde_json::from_value(found).ok())))
}

/// Artifacts that a task can refer to, as variables whose value is the artifact's JSON.
pub(crate) struct Artifacts<'a> {
    pub producers: &'a ProducerScope<'a>,
    pub inputs: Option<&'a Inputs>,
}

/// Prefix that keeps these variables apart from those of plain text.
pub(crate) const ARTIFACT: &str = "artifact:";

impl Scope for Artifacts<'_> {
    fn lookup(&self, tag: &str) -> Lookup {
        let Some(tag) = tag.strip_prefix(ARTIFACT) else { return Lookup::Unknown };
        let own = tag
            .strip_prefix("inputs.artifacts.")
            .and_then(|name| self.inputs?.artifacts.iter().find(|artifact| artifact.name == name).cloned());
        match own.or_else(|| self.producers.artifact(tag)).and_then(|found| serde_json::to_string(&found).ok()) {
            Some(json) => Lookup::Value(json),
            None => Lookup::Unknown,
        }
    }
}

/// The artifact behind a `from` text.
pub(crate) fn located(from: &str, scope: &dyn Scope) -> Option<Artifact> {
    let tag = substitute::single_tag(from).unwrap_or(from.trim());
    match scope.lookup(&format!("{ARTIFACT}{tag}")) {
        Lookup::Value(json) => serde_json::from_str(&json).ok(),
        _ => None,
    }
}
