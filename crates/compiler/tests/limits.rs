//! Hostile and oversized input through the public functions: an answer in bounded time and memory, never a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use kfp_compiler::package::{MAX_BYTES, yaml};
use kfp_compiler::{MAX_DEPTH, MAX_TASKS, Options, Package, compile};

/// Far more than any of these takes, far less than what has no bound takes.
const PATIENCE: Duration = Duration::from_secs(120);

fn refused(bytes: &[u8], name: &str) -> String {
    let begin = Instant::now();
    let error = Package::parse(bytes, name)
        .and_then(|package| compile(&package, &Options::default()))
        .expect_err("must be refused")
        .to_string();
    assert!(begin.elapsed() < PATIENCE, "took {:?}: {error}", begin.elapsed());
    assert!(error.len() < 20_000, "{} bytes of error", error.len());
    error
}

fn pipeline(components: &str, tasks: &str) -> String {
    format!(
        "schemaVersion: 2.1.0\npipelineInfo: {{name: p}}\ndeploymentSpec: {{executors: {{e: {{container: {{image: i}}}}}}}}\n\
         components:\n  c: {{executorLabel: e}}\n{components}root:\n  dag:\n    tasks:\n{tasks}"
    )
}

#[test]
fn fifty_megabytes_are_refused_at_once() {
    let mut text = pipeline("", "      t: {componentRef: {name: c}}\n");
    text.push_str(&format!("# {}\n", "x".repeat(50 << 20)));
    let begin = Instant::now();
    for name in ["a.yaml", "a.json", "a"] {
        assert!(refused(text.as_bytes(), name).starts_with("File size too large ("));
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn packed_bombs_stop_unpacking() {
    let zeros = vec![b' '; 1 << 20];
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer.start_file("pipeline.yaml", zip::write::SimpleFileOptions::default()).unwrap();
    for _ in 0..128 {
        writer.write_all(&zeros).unwrap();
    }
    let zipped = writer.finish().unwrap().into_inner();
    assert!(zipped.len() < 1 << 20);
    assert!(refused(&zipped, "a.zip").starts_with("File size too large ("));

    let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    let size = 10 * MAX_BYTES as u64;
    header.set_size(size);
    header.set_mode(0o644);
    builder.append_data(&mut header, "other.txt", std::io::repeat(b' ').take_bytes(size)).unwrap();
    let packed = builder.into_inner().unwrap().finish().unwrap();
    let text = refused(&packed, "a.tar.gz");
    assert!(text.starts_with("Error decompress the pipeline file: "), "{text}");
}

trait TakeBytes: std::io::Read + Sized {
    fn take_bytes(self, size: u64) -> std::io::Take<Self> {
        self.take(size)
    }
}

impl TakeBytes for std::io::Repeat {}

#[test]
fn yaml_bombs_end_early() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        writeln!(laughs, "a{i}: &a{i} [{}]", vec![format!("*a{}", i - 1); 10].join(", ")).unwrap();
    }
    assert!(refused(laughs.as_bytes(), "a.yaml").contains(&format!("more than {} values", yaml::MAX_NODES)));
    let wide = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 100].join(","));
    assert!(refused(wide.as_bytes(), "a.yaml").contains(&format!("more than {} bytes of text", yaml::MAX_TEXT)));
    let nested = format!("nested more than {} deep", yaml::MAX_NESTING);
    assert!(refused("[".repeat(1_000_000).as_bytes(), "a.yaml").contains("recursion limit exceeded"));
    assert!(refused(format!("a: {}", "{a: ".repeat(300_000)).as_bytes(), "a.yaml").contains(&nested));
    let mut steps = String::new();
    for depth in 0..2_000 {
        writeln!(steps, "{}a:", " ".repeat(depth)).unwrap();
    }
    assert!(refused(steps.as_bytes(), "a.yaml").contains(&nested));
    refused(format!("{{\"a\": {}", "[".repeat(1_000_000)).as_bytes(), "a.json");
    refused("? ".repeat(1_000_000).as_bytes(), "a.yaml");
    refused("- ".repeat(1_000_000).as_bytes(), "a.yaml");
    refused("&a ".repeat(1_000_000).as_bytes(), "a.yaml");
    refused("! ".repeat(1_000_000).as_bytes(), "a.yaml");
    refused("---\n".repeat(1_000_000).as_bytes(), "a.yaml");
    refused("a: *b\n".as_bytes(), "a.yaml");
    refused("a: &a [*a]\n".as_bytes(), "a.yaml");
    refused(b"\xff\xfe\x00a", "a.yaml");
    refused("x".repeat(MAX_BYTES).as_bytes(), "a.yaml");
    refused(format!("'{}", "x".repeat(MAX_BYTES - 1)).as_bytes(), "a.yaml");
    refused(format!("|{}", "\n".repeat(MAX_BYTES - 1)).as_bytes(), "a.yaml");
    refused("\n".repeat(3_900_000).as_bytes(), "a.yaml");
    refused(":".repeat(3_900_000).as_bytes(), "a.yaml");
    refused("a:\n".repeat(1_900_000).as_bytes(), "a.yaml");
    refused("[a,".repeat(1_000_000).as_bytes(), "a.yaml");
}

#[test]
fn json_is_not_bound_by_yaml_tokens() {
    let mut list = "1,".repeat(yaml::MAX_NODES - 100);
    list.push('1');
    let text = format!("{{\"components\": [{list}]}}");
    assert!(refused(text.as_bytes(), "a.json").contains("components: expected an object, got a list"));
    let text = format!("{{\"components\": [{list},{list}]}}");
    assert!(refused(text.as_bytes(), "a.json").contains("values"));
}

#[test]
fn long_names_do_not_multiply() {
    let long = "d".repeat(1 << 20);
    let mut tasks = String::new();
    for i in 0..500 {
        writeln!(tasks, "        t{i}: {{componentRef: {{name: c}}}}").unwrap();
        writeln!(
            tasks,
            "        x{i}: {{componentRef: {{name: c}}, dependentTasks: [t{i}], triggerPolicy: {{strategy: 2}}}}"
        )
        .unwrap();
    }
    let text = pipeline(
        &format!("  ? {long}\n  : dag:\n      tasks:\n{tasks}"),
        &format!("      t: {{componentRef: {{name: {long}}}}}\n"),
    );
    let error = refused(text.as_bytes(), "a.yaml");
    assert!(error.contains("DAG component name \"dddd") && error.contains("1048576 bytes"), "{error}");
    let error = refused(
        pipeline("", &format!("      {}: {{componentRef: {{name: c}}}}\n", "t".repeat(129))).as_bytes(),
        "a.yaml",
    );
    assert!(error.contains("component name=\"root\": task name \"ttt") && error.contains("129 bytes"), "{error}");
}

#[test]
fn wide_graphs_take_linear_time() {
    let size = 8_000;
    // One task with very many producers, all of them listed as dependencies too.
    let (mut tasks, mut inputs, mut waits) = (String::new(), String::new(), String::new());
    for i in 0..size {
        writeln!(tasks, "      t{i}: {{componentRef: {{name: c}}}}").unwrap();
        write!(inputs, "p{i}: {{taskOutputParameter: {{producerTask: t{i}, outputParameterKey: o}}}}, ").unwrap();
        write!(waits, "t{i}, ").unwrap();
    }
    writeln!(
        tasks,
        "      z: {{componentRef: {{name: gone}}, dependentTasks: [{waits}], inputs: {{parameters: {{{inputs}}}}}}}"
    )
    .unwrap();
    assert!(refused(pipeline("", &tasks).as_bytes(), "a.yaml").contains("cannot find component ref name=\"gone\""));
    let begin = Instant::now();
    let package = Package::from_text(pipeline("", &tasks).replace("gone", "c").as_bytes()).unwrap();
    compile(&package, &Options::default()).unwrap();
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    // A cycle through all tasks.
    let mut ring = String::new();
    for i in 0..size {
        writeln!(ring, "      t{i}: {{componentRef: {{name: c}}, dependentTasks: [t{}]}}", (i + 1) % size).unwrap();
    }
    let error = refused(pipeline("", &ring).as_bytes(), "a.yaml");
    assert!(error.contains("tasks depend on each other in a cycle: ") && error.contains(" -> ... -> "), "{error}");
}

#[test]
fn tasks_are_counted_over_all_components() {
    let half = |indent: &str| -> String {
        (0..MAX_TASKS / 2).map(|i| format!("{indent}t{i}: {{componentRef: {{name: c}}}}\n")).collect()
    };
    let components = format!("  d:\n    dag:\n      tasks:\n{}", half("        "));
    let tasks = format!("{}      z: {{componentRef: {{name: d}}}}\n", half("      "));
    let error = refused(pipeline(&components, &tasks).as_bytes(), "a.yaml");
    let want = format!("error processing component name=\"d\": the pipeline has more than {MAX_TASKS} tasks");
    assert_eq!(error, want);
}

#[test]
fn deep_components_end_in_an_error() {
    let mut components = String::new();
    for level in 0..5_000 {
        writeln!(components, "  d{level}: {{dag: {{tasks: {{s: {{componentRef: {{name: d{}}}}}}}}}}}", level + 1)
            .unwrap();
    }
    let error = refused(pipeline(&components, "      t: {componentRef: {name: d0}}\n").as_bytes(), "a.yaml");
    assert!(error.contains(&format!("DAG components are nested more than {MAX_DEPTH} deep")), "{error}");
    let deep = format!("{}1{}", "[".repeat(60), "]".repeat(60));
    let text = pipeline("", "      t: {componentRef: {name: c}}\n").replace(
        "root:\n",
        &format!("root:\n  inputDefinitions: {{parameters: {{x: {{parameterType: LIST, defaultValue: {deep}}}}}}}\n"),
    );
    assert!(refused(text.as_bytes(), "a.yaml").starts_with("unknown template format: "));
}

#[test]
fn wrong_types_name_the_field() {
    let good = pipeline("", "      t: {componentRef: {name: c}}\n");
    for (from, to, want) in [
        ("name: p}", "name: [p]}", "pipelineInfo.name: expected a string, got a list"),
        ("{name: c}}", "{name: 3}}", "root.dag.tasks.t.componentRef.name: expected a string, got a number"),
        ("executorLabel: e}", "executorLabel: {}}", "components.c.executorLabel: expected a string, got an object"),
        ("{image: i}", "{image: 1}", "deploymentSpec: executors.e.container.image: expected a string, got a number"),
        ("{container: {image: i}}", "[]", "deploymentSpec: executors.e: expected an object, got a list"),
        (
            "{executors:",
            "{executorz:",
            "error processing component name=\"c\": executor(label=\"e\") not found in deployment config",
        ),
        (
            "componentRef: {name: c}",
            "componentRef: {name: c}, retryPolicy: {maxRetryCount: many}",
            "root.dag.tasks.t.retryPolicy.maxRetryCount: ",
        ),
        (
            "componentRef: {name: c}",
            "componentRef: {name: c}, iteratorPolicy: {parallelismLimit: 1.5}",
            "root.dag.tasks.t.iteratorPolicy.parallelismLimit: ",
        ),
    ] {
        let text = good.replace(from, to);
        assert_ne!(text, good);
        let error = refused(text.as_bytes(), "a.yaml");
        assert!(error.contains(want), "{error}\nwanted {want}");
    }
    let platform =
        "---\nplatforms: {kubernetes: {deploymentSpec: {executors: {e: {secretAsVolume: [{mountPath: 1}]}}}}}\n";
    let error = refused(format!("{good}{platform}").as_bytes(), "a.yaml");
    assert!(
        error.contains("error processing component name=\"c\": failed to add Kubernetes spec for c: failed to unmarshal kubernetes spec for component \"c\": secretAsVolume.0.mountPath: "),
        "{error}"
    );
}
