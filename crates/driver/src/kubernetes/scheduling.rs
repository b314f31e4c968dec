//! Where a pod may run: node selector, tolerations, node and pod affinity.

use std::collections::BTreeMap;

use kfp_core::ir;
use kfp_proto::kfp_kubernetes::{KubernetesExecutorConfig, PodAffinityTerm, SelectorRequirement};
use kfp_proto::ml_pipelines::task_config_passthrough_type::TaskConfigPassthroughTypeEnum as Field;
use kfp_proto::ml_pipelines::task_inputs_spec::InputParameterSpec;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::pod::Pod;
use crate::resolve::{Resolved, Resolver};

/// A parameter as JSON; `None` when it is null.
async fn parameter(resolver: &mut Resolver<'_>, spec: &InputParameterSpec, what: &str) -> Result<Option<Value>, Error> {
    match resolver.parameter(spec).await {
        Ok(Resolved::Value(value)) => Ok(Some(ir::to_json(&value)).filter(|json| !json.is_null())),
        Ok(Resolved::Null(_)) => Ok(None),
        Err(error) => Err(Error::Pod(format!("failed to resolve {what}: {error}"))),
    }
}

pub(super) async fn add_node_selector(
    pod: &mut Pod,
    config: &KubernetesExecutorConfig,
    resolver: &mut Resolver<'_>,
) -> Result<(), Error> {
    let Some(selector) = &config.node_selector else { return Ok(()) };
    let labels = match &selector.node_selector_json {
        None => json!(selector.labels),
        Some(spec) => match parameter(resolver, spec, "node selector").await? {
            None => return Ok(()),
            Some(Value::Object(fields)) if fields.values().all(Value::is_string) => Value::Object(fields),
            Some(_) => {
                return Err(Error::Pod("failed to resolve node selector: it must be a struct of texts".to_owned()));
            }
        },
    };
    pod.route(Field::KubernetesNodeSelector, |scope| scope.node_selector = Some(labels.clone()));
    Ok(())
}

pub(super) async fn add_tolerations(
    pod: &mut Pod,
    config: &KubernetesExecutorConfig,
    resolver: &mut Resolver<'_>,
) -> Result<(), Error> {
    let mut tolerations = Vec::new();
    for toleration in &config.tolerations {
        let Some(spec) = &toleration.toleration_json else {
            let mut fields = Map::new();
            let texts = [
                ("key", &toleration.key),
                ("operator", &toleration.operator),
                ("value", &toleration.value),
                ("effect", &toleration.effect),
            ];
            fields.extend(texts.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_owned(), json!(v))));
            fields.extend(toleration.toleration_seconds.map(|v| ("tolerationSeconds".to_owned(), json!(v))));
            tolerations.push(Value::Object(fields));
            continue;
        };
        match parameter(resolver, spec, "toleration").await? {
            None => {}
            Some(Value::Object(fields)) if fields.is_empty() => {}
            Some(toleration @ Value::Object(_)) => tolerations.push(toleration),
            Some(Value::Array(list)) if list.iter().all(Value::is_object) => tolerations.extend(list),
            Some(_) => {
                let text = "encountered unexpected toleration proto value, must be either struct or list type";
                return Err(Error::Pod(text.to_owned()));
            }
        }
    }
    if !config.tolerations.is_empty() {
        pod.route(Field::KubernetesTolerations, |scope| scope.tolerations = Some(tolerations.clone()));
    }
    Ok(())
}

fn requirements(list: &[SelectorRequirement]) -> Vec<Value> {
    let one = |requirement: &SelectorRequirement| {
        let mut value = json!({"key": requirement.key, "operator": requirement.operator});
        if !requirement.values.is_empty() {
            value["values"] = json!(requirement.values);
        }
        value
    };
    list.iter().map(one).collect()
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) async fn add_affinity(
    pod: &mut Pod,
    config: &KubernetesExecutorConfig,
    resolver: &mut Resolver<'_>,
) -> Result<(), Error> {
    let (mut required, mut preferred) = (Vec::new(), Vec::new());
    for term in &config.node_affinity {
        if let Some(spec) = &term.node_affinity_json {
            let Some(affinity) = parameter(resolver, spec, "node affinity json").await? else { continue };
            if !affinity.is_object() {
                return Err(Error::Pod("failed to unmarshal node affinity json: it must be a struct".to_owned()));
            }
            required.extend(affinity[REQUIRED]["nodeSelectorTerms"].as_array().into_iter().flatten().cloned());
            preferred.extend(affinity[PREFERRED].as_array().into_iter().flatten().cloned());
            continue;
        }
        let lists = [("matchExpressions", &term.match_expressions), ("matchFields", &term.match_fields)];
        let fields: Map<_, _> = lists
            .into_iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| (name.to_owned(), json!(requirements(list))))
            .collect();
        match term.weight {
            _ if fields.is_empty() => {}
            Some(weight) => preferred.push(json!({"weight": weight, "preference": fields})),
            None => required.push(Value::Object(fields)),
        }
    }
    let mut affinity = Map::new();
    let required = if required.is_empty() { Vec::new() } else { vec![json!({"nodeSelectorTerms": required})] };
    insert(&mut affinity, "nodeAffinity", required.into_iter().next(), preferred);
    for (name, anti) in [("podAffinity", false), ("podAntiAffinity", true)] {
        let terms = config.pod_affinity.iter().filter(|term| term.anti.unwrap_or(false) == anti);
        let (weighted, firm): (Vec<_>, Vec<_>) = terms.partition(|term| term.weight.is_some());
        let preferred =
            weighted.iter().map(|term| json!({"weight": term.weight, "podAffinityTerm": pod_term(term)})).collect();
        let firm: Vec<_> = firm.iter().map(|term| pod_term(term)).collect();
        insert(&mut affinity, name, Some(json!(firm)).filter(|_| !firm.is_empty()), preferred);
    }
    if !affinity.is_empty() {
        pod.route(Field::KubernetesAffinity, |scope| scope.affinity = affinity.clone());
    }
    Ok(())
}

fn insert(affinity: &mut Map<String, Value>, name: &str, required: Option<Value>, preferred: Vec<Value>) {
    let mut fields = Map::new();
    fields.extend(required.map(|terms| (REQUIRED.to_owned(), terms)));
    if !preferred.is_empty() {
        fields.insert(PREFERRED.to_owned(), json!(preferred));
    }
    if !fields.is_empty() {
        affinity.insert(name.to_owned(), Value::Object(fields));
    }
}

fn pod_term(term: &PodAffinityTerm) -> Value {
    let selector = |labels: &BTreeMap<String, String>, expressions: &[SelectorRequirement]| {
        let mut selector = Map::new();
        if !labels.is_empty() {
            selector.insert("matchLabels".to_owned(), json!(labels));
        }
        if !expressions.is_empty() {
            selector.insert("matchExpressions".to_owned(), json!(requirements(expressions)));
        }
        selector
    };
    let pods = selector(&term.match_pod_labels, &term.match_pod_expressions);
    let namespaces = selector(&term.match_namespace_labels, &term.match_namespace_expressions);
    let mut value = json!({"topologyKey": term.topology_key, "labelSelector": pods});
    if !term.namespaces.is_empty() {
        value["namespaces"] = json!(term.namespaces);
    }
    if !namespaces.is_empty() {
        value["namespaceSelector"] = Value::Object(namespaces);
    }
    value
}
