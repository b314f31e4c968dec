//! Components as the kfp SDK runs them. Needs a Python with the SDK, named by `KFP_PYTHON`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use kfp_core::mlmd::State;
use kfp_core::shutdown::CancellationToken;
use serde_json::json;
use support::World;

const COMPONENT: &str = "
from kfp import dsl
from kfp.dsl import *
from typing import NamedTuple, List

@dsl.component
def train(data: Input[Dataset], lr: float, model: Output[Model], metrics: Output[Metrics], count: int = 3
          ) -> NamedTuple('Outputs', [('score', float), ('names', list)]):
    import os
    from collections import namedtuple
    text = open(data.path).read()
    os.makedirs(model.path)
    with open(os.path.join(model.path, 'weights'), 'w') as file:
        file.write(text * count)
    model.metadata['framework'] = 'none'
    metrics.log_metric('accuracy', 0.75)
    print('trained')
    return namedtuple('Outputs', ['score', 'names'])(lr * 2, ['a', 'b'])
";

#[tokio::test]
#[ignore = "needs KFP_PYTHON, a Python with the kfp SDK"]
async fn a_lightweight_component_finds_everything_below_a_root() {
    let python = std::env::var("KFP_PYTHON").expect("KFP_PYTHON");
    let world = World::new(1).await;
    std::fs::create_dir_all(world.store("bucket/in")).unwrap();
    std::fs::write(world.store("bucket/in/data"), "xy").unwrap();
    let module = world.dir.path().join("component.py");
    std::fs::write(&module, COMPONENT).unwrap();
    let artifact = |name: &str, title: &str| {
        let uri = format!("minio://bucket/root/t/u/{name}");
        json!({"artifacts": [{"name": name, "uri": uri, "type": {"schemaTitle": title, "schemaVersion": "0.0.1"}}]})
    };
    let input = json!({
        "inputs": {
            "parameterValues": {"lr": 0.25},
            "artifacts": {"data": {"artifacts": [
                {"name": "1", "uri": "minio://bucket/in/data", "type": {"schemaTitle": "system.Dataset"}}]}}
        },
        "outputs": {
            "outputFile": "/minio/bucket/root/t/u/output_metadata.json",
            "parameters": {"score": {"outputFile": "/tmp/kfp/outputs/score"}, "names": {"outputFile": "/tmp/kfp/outputs/names"}},
            "artifacts": {"model": artifact("model", "system.Model"), "metrics": artifact("metrics", "system.Metrics")}
        }
    });
    let component = json!({"outputDefinitions": {
        "parameters": {"score": {"parameterType": "NUMBER_DOUBLE"}, "names": {"parameterType": "LIST"}}}});
    let task = world.task("t").await;
    let module = module.to_string_lossy().into_owned();
    let command = [
        &*python,
        "-m",
        "kfp.dsl.executor_main",
        "--component_module_path",
        &module,
        "--executor_input",
        "{{$}}",
        "--function_to_execute",
        "train",
    ];
    let options = world.options(world.flags(task, &input, &component), &command);
    kfp_launcher::run(options, CancellationToken::new()).await.unwrap();
    let execution = world.metadata.execution(task).await.unwrap();
    assert_eq!(execution.state(), State::Complete);
    let output = |name: &str| kfp_core::ir::to_json(execution.output(name).unwrap());
    assert_eq!((output("score"), output("names")), (json!(0.5), json!(["a", "b"])));
    assert_eq!(std::fs::read_to_string(world.store("bucket/root/t/u/model/weights")).unwrap(), "xyxyxy");
    let artifacts = world.metadata.output_artifacts(task).await.unwrap();
    assert_eq!(artifacts["model"].uri(), "minio://bucket/root/t/u/model");
    assert!(artifacts["model"].custom_properties.contains_key("framework"));
    assert!(artifacts["metrics"].custom_properties.contains_key("accuracy"));
}
