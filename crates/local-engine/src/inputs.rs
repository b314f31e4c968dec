//! Gives the declared inputs of a template their values.

use crate::execution::Call;
use crate::substitute::{self, Chain, Scope};
use crate::variables::InputScope;
use kfp_core::argo::{Artifact, Inputs, Parameter, Template};
use serde_json::Value;

/// Members of an artifact that say where it is.
const LOCATIONS: [&str; 9] = ["raw", "s3", "gcs", "oss", "http", "git", "hdfs", "azure", "artifactory"];

/// Inputs of a node. Arguments that the template does not declare are ignored; one without a value refers to the
/// output of a skipped task and counts as not supplied.
///
/// # Errors
/// Names the input that has no value.
pub(crate) fn process(template: &Template, call: &Call<'_>, globals: &dyn Scope) -> Result<Inputs, String> {
    let mut inputs = Inputs::default();
    for declared in &template.inputs.parameters {
        let name = &declared.name;
        let argument = call.parameters.iter().find(|argument| argument.name == *name);
        let value = match argument.and_then(|argument| argument.value.clone()) {
            Some(value) => value,
            None => match declared.value.as_ref().or(declared.default.as_ref()) {
                Some(text) => substitute::text(text, globals).map_err(|error| error.to_string())?.into_owned(),
                None if argument.is_some() => {
                    return Err(format!("inputs.parameters.{name}: argument references an absent optional output"));
                }
                None => return Err(format!("inputs.parameters.{name} had no value")),
            },
        };
        inputs.parameters.push(Parameter {
            name: name.clone(),
            value: Some(value),
            default: declared.default.clone(),
            ..Parameter::default()
        });
    }
    for declared in &template.inputs.artifacts {
        let given = call.artifacts.iter().find(|argument| argument.name == declared.name);
        let located = given.unwrap_or(declared);
        if located.extra.keys().any(|key| LOCATIONS.contains(&key.as_str())) {
            let mut extra = located.extra.clone();
            if given.is_none() {
                let own = InputScope(Some(&inputs));
                let scope = Chain(vec![&own, globals]);
                let resolved = substitute::json(&Value::Object(extra), &scope).map_err(|error| error.to_string())?;
                extra = resolved.as_object().cloned().unwrap_or_default();
            }
            for own in ["mode", "recurseMode"] {
                extra.remove(own);
                extra.extend(declared.extra.get_key_value(own).map(|(key, value)| (key.clone(), value.clone())));
            }
            extra.remove("globalName");
            inputs.artifacts.push(Artifact { from: None, extra, ..declared.clone() });
        } else if !declared.optional && !given.is_some_and(|given| given.optional) {
            return Err(format!("inputs.artifacts.{} was not supplied", declared.name));
        }
    }
    Ok(inputs)
}
