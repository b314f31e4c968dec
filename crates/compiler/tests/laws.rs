//! Laws that hold for every pipeline: generated ones compile into Workflows whose references resolve, whose names are
//! unique and whose stored JSON reads back; arbitrary documents are compiled or refused, never a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;

use kfp_compiler::{Options, Package, check, compile};
use kfp_core::ir::{self, Unknown};
use kfp_proto::ml_pipelines::pipeline_deployment_config::{ImporterSpec, PipelineContainerSpec};
use kfp_proto::ml_pipelines::{ComponentSpec, PipelineTaskSpec};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// One task: which component, which earlier tasks it waits for, and what else it has.
#[derive(Debug, Clone)]
struct Task {
    component: usize,
    waits: Vec<usize>,
    takes: Option<usize>,
    looped: Option<i32>,
    condition: bool,
    retry: Option<i32>,
}

const LEAVES: [&str; 4] = ["comp-a", "comp-b", "comp-claim", "comp-import"];

fn any_task() -> impl Strategy<Value = Task> {
    (
        0..20_usize,
        prop::collection::vec(0..8_usize, 0..3),
        prop::option::of(0..8_usize),
        prop::option::weighted(0.2, -1..4_i32),
        any::<bool>(),
        prop::option::weighted(0.3, 0..5_i32),
    )
        .prop_map(|(component, waits, takes, looped, condition, retry)| Task {
            component,
            waits,
            takes,
            looped,
            condition,
            retry,
        })
}

/// DAG components `dag-0`..; each may use leaves and DAGs before it, the last one is the root.
fn any_pipeline() -> impl Strategy<Value = Value> {
    prop::collection::vec((prop::collection::vec(any_task(), 1..6), any::<bool>()), 1..6).prop_map(|dags| {
        let mut components = json!({
            "comp-a": {"executorLabel": "exec-a", "outputDefinitions": {"parameters": {"o": {"parameterType": "STRING"}}}},
            "comp-b": {"executorLabel": "exec-b"},
            "comp-claim": {"executorLabel": "exec-claim"},
            "comp-import": {"executorLabel": "exec-import"},
        });
        let last = dags.len() - 1;
        let mut root = Value::Null;
        for (at, (tasks, guarded)) in dags.into_iter().enumerate() {
            let mut built = Map::new();
            for (i, task) in tasks.iter().enumerate() {
                let which = task.component % (LEAVES.len() + at);
                let name = LEAVES.get(which).map_or_else(|| format!("dag-{}", which - LEAVES.len()), |leaf| leaf.to_string());
                let mut spec = json!({"componentRef": {"name": name}, "taskInfo": {"name": format!("task {i} <&>")}});
                let waits: HashSet<String> = task.waits.iter().filter(|w| **w < i).map(|w| format!("t{w}")).collect();
                spec["dependentTasks"] = json!(waits);
                if let Some(from) = task.takes.filter(|from| *from < i) {
                    spec["inputs"] = json!({"parameters": {"v": {"taskOutputParameter": {"producerTask": format!("t{from}"), "outputParameterKey": "o"}}}});
                }
                if let Some(limit) = task.looped {
                    spec["parameterIterator"] = json!({"itemInput": "i", "items": {"raw": "[1,2]"}});
                    spec["iteratorPolicy"] = json!({"parallelismLimit": limit});
                }
                if task.condition && name != "comp-import" {
                    spec["triggerPolicy"] = json!({"condition": "1 < 2 && 'a' != \"b\""});
                }
                if let Some(count) = task.retry {
                    spec["retryPolicy"] = json!({"maxRetryCount": count, "backoffDuration": "1.5s"});
                }
                built.insert(format!("t{i}"), spec);
            }
            if guarded {
                built.insert("x-exit".into(), json!({"componentRef": {"name": "comp-b"}, "dependentTasks": ["t0"], "triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}}));
            }
            let dag = json!({"dag": {"tasks": built}});
            if at == last {
                root = dag;
            } else {
                components[format!("dag-{at}")] = dag;
            }
        }
        json!({
            "schemaVersion": "2.1.0",
            "pipelineInfo": {"name": "generated"},
            "components": components,
            "root": root,
            "deploymentSpec": {"executors": {
                "exec-a": {"container": {"image": "i", "args": ["<a>", "\u{2028}"]}},
                "exec-b": {"container": {"image": "i", "args": ["<a>", "\u{2028}"]}},
                "exec-claim": {"container": {"image": "argostub/createpvc"}},
                "exec-import": {"importer": {"artifactUri": {"constant": "gs://x"}}},
            }},
        })
    })
}

fn strings(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(fields) => fields.values().for_each(|item| strings(item, found)),
        _ => {}
    }
}

fn hold(workflow: &Value) -> Result<(), TestCaseError> {
    prop_assert_eq!(check::workflow(workflow), Ok(()));
    let mut arguments = HashSet::new();
    for argument in workflow["spec"]["arguments"]["parameters"].as_array().unwrap() {
        let (name, text) = (argument["name"].as_str().unwrap(), argument["value"].as_str().unwrap());
        prop_assert!(arguments.insert(name), "{} twice", name);
        let json: Value = serde_json::from_str(text).unwrap();
        let again = if name.starts_with("components-") {
            ir::encode(&ir::decode::<ComponentSpec>(&json, Unknown::Reject).unwrap())
        } else if json.get("artifactUri").is_some() {
            ir::encode(&ir::decode::<ImporterSpec>(&json, Unknown::Reject).unwrap())
        } else {
            ir::encode(&ir::decode::<PipelineContainerSpec>(&json, Unknown::Reject).unwrap())
        };
        prop_assert_eq!(kfp_core::gojson::to_string(&again), text, "{} is not canonical", name);
    }
    let mut templates = HashSet::new();
    let mut used = HashSet::from(["entrypoint"]);
    for template in workflow["spec"]["templates"].as_array().unwrap() {
        prop_assert!(templates.insert(template["name"].as_str().unwrap()));
        let tasks = template["dag"]["tasks"].as_array().map_or(&[][..], Vec::as_slice);
        let names: HashSet<&str> = tasks.iter().map(|task| task["name"].as_str().unwrap()).collect();
        prop_assert_eq!(names.len(), tasks.len());
        for task in tasks {
            used.insert(task["template"].as_str().unwrap());
            used.extend(task["hooks"]["exit"]["template"].as_str());
            for term in task["depends"].as_str().into_iter().flat_map(|depends| depends.split(" && ")) {
                prop_assert!(names.contains(term.strip_suffix(".Succeeded").unwrap()), "{}", term);
            }
            for parameter in task["arguments"]["parameters"].as_array().unwrap() {
                if parameter["name"] == "task" {
                    let text = parameter["value"].as_str().unwrap();
                    let json: Value = serde_json::from_str(text).unwrap();
                    let again = ir::encode(&ir::decode::<PipelineTaskSpec>(&json, Unknown::Reject).unwrap());
                    prop_assert_eq!(kfp_core::gojson::to_string(&again), text);
                }
            }
        }
    }
    prop_assert_eq!(&used, &templates, "every template is used and every used template exists");
    let mut all = Vec::new();
    strings(&workflow["spec"]["templates"], &mut all);
    for text in all {
        if let Some(name) = text.strip_prefix("{{workflow.parameters.") {
            prop_assert!(arguments.contains(name.trim_end_matches("}}")), "{}", text);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn generated_pipelines_obey_the_laws(pipeline in any_pipeline()) {
        let package = Package::from_json(pipeline).unwrap();
        let workflow = compile(&package, &Options::default()).unwrap();
        hold(&workflow)?;
        prop_assert_eq!(compile(&package, &Options::default()).unwrap(), workflow);
        let again = Package::from_text(package.to_yaml().as_bytes()).unwrap();
        prop_assert_eq!(again, package);
    }

    #[test]
    fn broken_pipelines_are_compiled_or_refused(pipeline in any_pipeline(), cut in any::<prop::sample::Index>(), to in prop::sample::select(vec!["null", "{}", "[]", "\"root\"", "\"t0\"", "3"])) {
        // Replaces one value somewhere in the text.
        let text = pipeline.to_string();
        let starts: Vec<usize> = text.match_indices(':').map(|(at, _)| at + 1).collect();
        let start = *cut.get(&starts);
        let mut rest = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
        let _ = rest.next();
        let broken = format!("{}{to}{}", &text[..start], &text[start + rest.byte_offset()..]);
        if let Ok(package) = Package::from_text(broken.as_bytes())
            && let Ok(workflow) = compile(&package, &Options::default())
        {
            prop_assert_eq!(check::workflow(&workflow), Ok(()));
        }
    }
}
