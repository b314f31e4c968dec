//! Checking a run's parameters against the inputs of the root component.

use kfp_core::{gojson, ir};
use kfp_proto::ml_pipelines::component_inputs_spec::ParameterSpec;
use kfp_proto::ml_pipelines::parameter_type::ParameterTypeEnum as Type;
use serde_json::{Map, Value};

use crate::{Error, Package};

/// Checks the parameters of a run or recurring run; `None` means that no runtime config was given at all.
///
/// # Errors
/// [`Error::Inputs`] with upstream's texts.
pub fn validate(package: &Package, parameters: Option<&Map<String, Value>>) -> Result<(), Error> {
    let inputs = package.spec().root.as_ref().and_then(|root| root.input_definitions.as_ref());
    let Some(given) = parameters else {
        let names: Vec<&str> =
            inputs.into_iter().flat_map(|inputs| inputs.parameters.keys()).map(String::as_str).collect();
        if names.is_empty() {
            return Ok(());
        }
        return Err(Error::Inputs(format!(
            "pipeline requiring input has no parameter(s) provided. Need parameter(s): {}",
            names.join(", ")
        )));
    };
    for (name, spec) in inputs.map(|inputs| &inputs.parameters).into_iter().flatten() {
        match given.get(name) {
            Some(value) => check(name, spec, value)?,
            None if spec.is_optional || spec.default_value.is_some() => {}
            None => {
                return Err(Error::Inputs(format!(
                    "parameter {name} is not optional, yet has neither default value nor user provided value"
                )));
            }
        }
    }
    let extra: Vec<&str> = given
        .keys()
        .filter(|name| !inputs.is_some_and(|inputs| inputs.parameters.contains_key(*name)))
        .map(String::as_str)
        .collect();
    if extra.is_empty() {
        return Ok(());
    }
    Err(Error::Inputs(format!("parameter(s) provided are not required by pipeline: {}", extra.join(", "))))
}

fn check(name: &str, spec: &ParameterSpec, value: &Value) -> Result<(), Error> {
    let kind = spec.parameter_type();
    let (fits, wanted) = match kind {
        Type::Unspecified => {
            return Err(Error::Inputs(format!("input parameter {name} has unspecified type")));
        }
        Type::NumberDouble | Type::NumberInteger => {
            (value.is_number(), "double or integer, but the parameter value is not of number value type")
        }
        Type::String => (value.is_string(), "string, but the input parameter is not of string value type"),
        Type::Boolean => (value.is_boolean(), "bool, but the input parameter is not of bool value type"),
        Type::List => (value.is_array(), "list, but the input parameter is not of list value type"),
        Type::Struct => (value.is_object(), "struct, but the input parameter is not of struct value type"),
        Type::TaskFinalStatus => (false, "TASK_FINAL_STATUS, which is invalid for root component"),
        Type::TaskConfig => (false, "unknown"),
    };
    if !fits {
        return Err(Error::Inputs(format!("input parameter {name} requires type {wanted}")));
    }
    let value = ir::to_json(&ir::from_json(value));
    let literals: Vec<Value> = spec.literals.iter().map(ir::to_json).collect();
    if literals.is_empty() || literals.contains(&value) {
        return Ok(());
    }
    let shown: Vec<String> = literals.iter().map(gojson::to_string).collect();
    Err(Error::Inputs(format!(
        "input parameter {name:?} value {} does not match any of the allowed literal values: [{}]",
        gojson::to_string(&value),
        shown.join(" ")
    )))
}
