//! The command line of kfp-local.

use std::net::IpAddr;
use std::path::PathBuf;

use kfp_core::flags::{Flags, Stop, Values};
use kfp_local_pods::{Isolation, Runner};

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Serve until stopped.
    Up(Platform),
    /// Serve, run the bundled pipeline, print its results.
    Demo(Platform),
    /// Serve, run a pipeline file, print its results.
    Run(Platform, Submission),
    /// Print the Workflow of a pipeline file: the words are kfp-compile's.
    Compile(Vec<String>),
}

impl Command {
    /// The log level that the command line asks for.
    #[must_use]
    pub fn log_level(&self) -> &str {
        match self {
            Self::Up(p) | Self::Demo(p) | Self::Run(p, _) => &p.log_level,
            Self::Compile(_) => "error",
        }
    }
}

/// A pipeline to run.
#[derive(Debug, Default)]
pub struct Submission {
    /// The compiled pipeline.
    pub file: PathBuf,
    /// Its parameters as `name=value`, values in JSON or else text.
    pub parameters: Vec<(String, String)>,
}

/// Settings of the platform.
#[derive(Clone, Debug)]
pub struct Platform {
    /// Everything that is kept.
    pub data_dir: PathBuf,
    /// Address of all ports.
    pub host: IpAddr,
    /// REST port; 0 picks a free one, here and below.
    pub rest_port: u16,
    /// gRPC port.
    pub grpc_port: u16,
    /// Metadata gRPC and gRPC-Web port.
    pub metadata_port: u16,
    /// Kubernetes API port.
    pub kubernetes_port: u16,
    /// What runs containers.
    pub runner: Runner,
    /// How processes are kept apart.
    pub isolation: Isolation,
    /// Pods at the same time; 0 chooses by the number of cores.
    pub max_pods: usize,
    /// Log level.
    pub log_level: String,
    /// Written with the REST address when everything serves.
    pub ready_file: Option<PathBuf>,
    /// Interpreter for Python components.
    pub python: Option<PathBuf>,
    /// The launcher program; beside this program when not given.
    pub launcher: Option<PathBuf>,
}

const ABOUT: &str = "Kubeflow Pipelines on one machine";

const HELP: &str = "kfp-local: Kubeflow Pipelines on one machine

Usage:
  kfp-local up [flags]              serve until interrupted
  kfp-local demo [flags]            serve, run the bundled ML pipeline, print its results, exit
  kfp-local run [flags] FILE        serve, run a compiled pipeline, print its results, exit
  kfp-local compile FILE [flags]    print the Argo Workflow of a compiled pipeline (see kfp-compile --help)
  kfp-local version

kfp-local COMMAND --help lists the flags of a command.";

fn flags(command: &'static str, quiet: bool) -> Flags {
    Flags::new(command, ABOUT)
        .text("data-dir", "", "where everything is kept (default $KFP_LOCAL_DATA, else ~/.local/share/kfp-local)")
        .text("host", "127.0.0.1", "address of all ports; there is no login, so keep it on this machine")
        .int("rest-port", 8888, "REST port of the API server; 0 picks a free one, as for every port")
        .int("grpc-port", 8887, "gRPC port of the API server")
        .int("metadata-port", 8080, "gRPC and gRPC-Web port of the metadata store")
        .int("kubernetes-port", 6445, "port of the embedded Kubernetes API")
        .text("runner", "process", "what runs the containers: process, podman or docker")
        .text("isolation", "auto", "how processes are kept apart: auto, namespaces or mapped")
        .int("max-pods", 0, "pods at the same time; 0 means four for each core")
        .text("python", "", "interpreter of Python components (default: python3 of the path)")
        .text("launcher", "", "the launcher-v2 program (default: beside this program)")
        .text("log-level", if quiet { "error" } else { "info" }, "error, warn, info, debug or trace")
        .text("ready-file", "", "file that gets the REST address when everything serves")
}

/// Reads the words after the program's name.
///
/// # Errors
/// Help, version, or what is wrong.
pub fn parse(words: &[String]) -> Result<Command, Stop> {
    let (command, words) = words.split_first().ok_or_else(|| Stop::Wrong(HELP.to_owned()))?;
    match command.as_str() {
        "up" => {
            let values = flags("kfp-local up", false).parse(words.iter().cloned())?;
            no_more(&values, 0)?;
            Ok(Command::Up(platform(&values)?))
        }
        "demo" => {
            let values = flags("kfp-local demo", true).parse(words.iter().cloned())?;
            no_more(&values, 0)?;
            Ok(Command::Demo(platform(&values)?))
        }
        "run" => run(words),
        "compile" => Ok(Command::Compile(words.to_vec())),
        "version" | "--version" | "-version" => Err(Stop::Info(format!("kfp-local {}", env!("CARGO_PKG_VERSION")))),
        "help" | "--help" | "-h" | "-help" => Err(Stop::Info(HELP.to_owned())),
        other => Err(Stop::Wrong(format!("unknown command {other:?}\n\n{HELP}"))),
    }
}

/// `--param name=value` may stand several times, which Go's flags cannot express: those words are taken out first.
fn run(words: &[String]) -> Result<Command, Stop> {
    let mut parameters = Vec::new();
    let mut rest = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = word.trim_start_matches('-');
        let pair = match name.strip_prefix("param") {
            Some("") if word.starts_with('-') => words.next().cloned().unwrap_or_default(),
            Some(pair) if word.starts_with('-') && pair.starts_with('=') => pair.trim_start_matches('=').to_owned(),
            _ => {
                rest.push(word.clone());
                continue;
            }
        };
        let (name, value) = pair
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| Stop::Wrong(format!("--param {pair:?}: want name=value")))?;
        parameters.push((name.to_owned(), value.to_owned()));
    }
    let known = flags("kfp-local run", true);
    // Flags may stand before and after the file.
    let first = known.parse(rest.iter().cloned())?;
    let Some((file, after)) = first.rest().split_first() else {
        return Err(Stop::Wrong("kfp-local run: name the compiled pipeline file".to_owned()));
    };
    let before = rest.len() - first.rest().len();
    let all = rest.iter().take(before).chain(after).cloned();
    let values = known.parse(all)?;
    no_more(&values, 0)?;
    Ok(Command::Run(platform(&values)?, Submission { file: PathBuf::from(file), parameters }))
}

fn no_more(values: &Values, allowed: usize) -> Result<(), Stop> {
    match values.rest().get(allowed) {
        None => Ok(()),
        Some(word) => Err(Stop::Wrong(format!("unexpected word {word:?}"))),
    }
}

fn platform(v: &Values) -> Result<Platform, Stop> {
    let wrong = |text: String| Stop::Wrong(text);
    let port = |name: &str| {
        u16::try_from(v.int(name)).map_err(|_| wrong(format!("--{name} {}: not a port (0 to 65535)", v.int(name))))
    };
    let path = |name: &str| Some(v.text(name)).filter(|t| !t.is_empty()).map(PathBuf::from);
    let host = v.text("host");
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    Ok(Platform {
        data_dir: path("data-dir").unwrap_or_else(default_data_dir),
        host: host.parse().map_err(|_| wrong(format!("--host {host:?}: not an IP address")))?,
        rest_port: port("rest-port")?,
        grpc_port: port("grpc-port")?,
        metadata_port: port("metadata-port")?,
        kubernetes_port: port("kubernetes-port")?,
        runner: match v.text("runner") {
            "process" => Runner::Process,
            "podman" => Runner::Podman,
            "docker" => Runner::Docker,
            other => return Err(wrong(format!("--runner {other:?}: want process, podman or docker"))),
        },
        isolation: match v.text("isolation") {
            "auto" => Isolation::Auto,
            "namespaces" => Isolation::Namespaces,
            "mapped" => Isolation::Mapped,
            other => return Err(wrong(format!("--isolation {other:?}: want auto, namespaces or mapped"))),
        },
        max_pods: usize::try_from(v.int("max-pods"))
            .map_err(|_| wrong(format!("--max-pods {}: must not be negative", v.int("max-pods"))))?,
        log_level: v.text("log-level").to_owned(),
        ready_file: path("ready-file"),
        python: path("python"),
        launcher: path("launcher"),
    })
}

fn default_data_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("KFP_LOCAL_DATA")
        .or_else(|| set("XDG_DATA_HOME").map(|dir| dir.join("kfp-local")))
        .or_else(|| set("HOME").map(|dir| dir.join(".local/share/kfp-local")))
        .unwrap_or_else(|| PathBuf::from("kfp-local-data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Command, Stop> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&words)
    }

    #[test]
    fn run_takes_flags_and_parameters_around_the_file() {
        let command = of("run --rest-port 0 --param a=1 p.yaml --param=b=x=y --max-pods=3");
        let Ok(Command::Run(platform, submission)) = command else { panic!("{command:?}") };
        assert_eq!((platform.rest_port, platform.max_pods), (0, 3));
        assert_eq!(submission.file, PathBuf::from("p.yaml"));
        let want = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "x=y".to_owned())];
        assert_eq!(submission.parameters, want);
    }

    #[test]
    fn wrong_words_are_named() {
        for (line, text) in [
            ("", "Usage"),
            ("upp", "unknown command \"upp\""),
            ("up --rest-port 70000", "70000"),
            ("up --host here", "\"here\""),
            ("up --runner vm", "process, podman or docker"),
            ("up extra", "\"extra\""),
            ("run", "name the compiled pipeline file"),
            ("run p.yaml --param x", "want name=value"),
            ("demo --max-pods=-1", "negative"),
        ] {
            match of(line) {
                Err(Stop::Wrong(message)) => assert!(message.contains(text), "{line}: {message}"),
                other => panic!("{line}: {other:?}"),
            }
        }
    }
}
