//! The command `kfp-compile`, also used by others that offer it as a subcommand.

use std::path::Path;

use kfp_core::flags::{Flags, Stop};
use serde_json::{Map, Value};

use crate::{Error, Job, Options, Package, compile_job, inputs, package};

/// A parsed command line.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The pipeline file.
    pub file: String,
    /// Whether caching is off.
    pub cache_disabled: bool,
    /// Namespace of the services and of the Workflow, if given.
    pub namespace: Option<String>,
    /// Where artifacts go, if not to the default.
    pub pipeline_root: String,
    /// `NAME=VALUE` words.
    pub parameters: Vec<String>,
    /// JSON instead of YAML.
    pub json: bool,
}

impl Command {
    /// Reads the words after the program's name. Flags and the file may come in any order, `--param` repeatedly.
    ///
    /// # Errors
    /// [`Stop`] for help and wrong flags.
    pub fn parse(program: &'static str, words: Vec<String>) -> Result<Self, Stop> {
        let flags = Flags::new(
            program,
            "Compiles a pipeline (YAML, JSON, zip or tar.gz) into an Argo Workflow: PIPELINE [flags]",
        )
        .bool("cache-disabled", false, "compile with caching off")
        .text("namespace", "", "namespace of the Workflow and of the services its pods call")
        .text("pipeline-root", "", "where artifacts go, such as s3://bucket/path")
        .text("param", "", "NAME=VALUE of a parameter, any number of times; VALUE is JSON where the type asks for it")
        .text("o", "yaml", "output format, yaml or json");
        let mut files = Vec::new();
        let mut parameters = Vec::new();
        let mut switches = Vec::new();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word.strip_prefix('-').map(|rest| rest.strip_prefix('-').unwrap_or(rest)) {
                None => files.push(word),
                Some("") => files.extend(words.by_ref()),
                Some("param") => parameters.extend(words.next()),
                Some(flag) if flag.starts_with("param=") => parameters.push(flag["param=".len()..].to_owned()),
                Some(flag) => {
                    let takes_value = matches!(flag, "namespace" | "pipeline-root" | "o");
                    switches.push(word);
                    if takes_value {
                        switches.extend(words.next());
                    }
                }
            }
        }
        let values = flags.parse(switches)?;
        let wrong = |text: String| Stop::Wrong(format!("{text}\n{}", flags.usage()));
        let [file] = <[String; 1]>::try_from(files)
            .map_err(|files| wrong(format!("expected one PIPELINE file, got {}", files.len())))?;
        let json = match values.text("o") {
            "yaml" => false,
            "json" => true,
            other => return Err(wrong(format!("invalid value {other:?} for flag -o: yaml or json"))),
        };
        Ok(Self {
            file,
            cache_disabled: values.bool("cache-disabled"),
            namespace: values.given("namespace").then(|| values.text("namespace").to_owned()),
            pipeline_root: values.text("pipeline-root").to_owned(),
            parameters,
            json,
        })
    }

    /// Compiles the contents of [`Command::file`] and prints the Workflow.
    ///
    /// # Errors
    /// See [`compile_job`] and [`inputs::validate`].
    pub fn run(&self, bytes: &[u8], mut options: Options) -> Result<String, Error> {
        let package = Package::parse(
            bytes,
            Path::new(&self.file).file_name().and_then(|name| name.to_str()).unwrap_or_default(),
        )?;
        if self.cache_disabled {
            options.cache_disabled = true;
        }
        if let Some(namespace) = &self.namespace {
            options.namespace.clone_from(namespace);
        }
        let parameters = parameters(&package, &self.parameters)?;
        if !parameters.is_empty() {
            inputs::validate(&package, Some(&parameters))?;
        }
        let job = Job { display_name: String::new(), parameters, pipeline_root: self.pipeline_root.clone() };
        let mut workflow = compile_job(&package, &job, &options)?;
        if let Some(namespace) = &self.namespace {
            workflow["metadata"]["namespace"] = namespace.as_str().into();
        }
        if self.json {
            return Ok(format!("{workflow:#}\n"));
        }
        Ok(package::yaml::to_yaml(&workflow))
    }
}

fn parameters(package: &Package, words: &[String]) -> Result<Map<String, Value>, Error> {
    use kfp_proto::ml_pipelines::parameter_type::ParameterTypeEnum as Type;
    let inputs = package.spec().root.as_ref().and_then(|root| root.input_definitions.as_ref());
    let mut out = Map::new();
    for word in words {
        let Some((name, text)) = word.split_once('=') else {
            return Err(Error::Inputs(format!("--param {word:?} is not of the form NAME=VALUE")));
        };
        let kind = inputs.and_then(|inputs| inputs.parameters.get(name)).map(|parameter| parameter.parameter_type());
        let value = match kind {
            Some(Type::String) | None => Value::from(text),
            Some(_) => serde_json::from_str(text)
                .map_err(|e| Error::Inputs(format!("value of parameter {name} is not JSON: {e}")))?,
        };
        out.insert(name.to_owned(), value);
    }
    Ok(out)
}
