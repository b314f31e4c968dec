//! The life of one container.

use std::path::PathBuf;
use std::sync::Arc;

use kfp_core::argo::Template;
use tokio::sync::mpsc;

use crate::container::{self, Work};
use crate::init::{NOT_FOUND, SETUP_FAILED};
use crate::kubelet::Kubelet;
use crate::logs::LogWriter;
use crate::process::{self, Exit, Order, Supervision};
use crate::spec::{Container, Pod};
use crate::{engine, log_reader, recovery, resource, termination};

/// Code of a container in this process that was told to stop.
pub(crate) const TERMINATED: i32 = 143;
/// Code with which Argo's executor ends when a resource template fails.
const RESOURCE_FAILED: i32 = 64;

/// One container while it runs.
pub(crate) struct Job {
    pub(crate) kubelet: Arc<Kubelet>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: Container,
    /// The template that the pod was made from.
    pub(crate) contract: Option<Arc<Template>>,
    pub(crate) log: LogWriter,
}

impl Job {
    /// Runs it to its end, however that comes.
    pub(crate) async fn run(self, plan: container::Plan, mut orders: mpsc::Receiver<Order>) -> Exit {
        let (pod, log) = (&self.pod, &self.log);
        let mut exit = match plan.work {
            Work::CopyLauncher { to } => copy_launcher(&self.kubelet, to).await,
            Work::Resource => {
                let contract = self.contract.clone().unwrap_or_default();
                tokio::select! {
                    result = resource::run(&*self.kubelet.api, pod, &contract, log) => match result {
                        Ok(parameters) => Exit { parameters, ..Exit::with_code(0) },
                        Err(message) => {
                            log.line(&message);
                            Exit { message, ..Exit::with_code(RESOURCE_FAILED) }
                        }
                    },
                    Some(_) = orders.recv() => Exit::with_code(TERMINATED),
                }
            }
            Work::Driver { args } => self.drive(args, plan.env, plan.paths, &mut orders).await,
            Work::Process(launch) => {
                let command = launch.command();
                let supervision = match engine::program(self.kubelet.options.runner) {
                    Some(program) if !container::runs_here(&self.kubelet, &self.container) => {
                        Supervision::Engine { program, name: engine::name(pod, &self.container) }
                    }
                    _ if self.kubelet.namespaces => Supervision::Namespace,
                    _ => Supervision::Supervisor,
                };
                let spawner = &self.kubelet.spawner;
                let input = launch.input.clone();
                let result =
                    process::run(spawner, command, input, log, &supervision, &mut orders, plan.result.as_deref()).await;
                self.after(result, &launch.program, &supervision)
            }
        };
        if !exit.report.is_empty() {
            log.line(&exit.report);
            exit.message.clone_from(&exit.report);
        }
        self.kubelet.logs.end(&pod.metadata.namespace, &pod.metadata.name, &self.container.name, log);
        match plan.termination {
            Some(file) if exit.message.is_empty() => {
                let from_log = (exit.code != 0 && self.container.termination_message_policy == termination::FROM_LOG)
                    .then(|| self.kubelet.logs.path(&pod.metadata.namespace, &pod.metadata.name, &self.container.name));
                let data = (exit.code != 0).then(|| self.kubelet.dirs.data.clone());
                let read = move || match termination::message(&file, from_log.as_deref()) {
                    text if text.is_empty() => data.and_then(|data| termination::full_disk(&data)).unwrap_or_default(),
                    text => text,
                };
                exit.message = tokio::task::spawn_blocking(read).await.unwrap_or_default();
            }
            _ => exit.message = termination::shortened(exit.message),
        }
        exit
    }

    fn after(&self, result: std::io::Result<Exit>, program: &[String], supervision: &Supervision) -> Exit {
        let mut exit = result.unwrap_or_else(|e| {
            let name = program.first().map_or("", String::as_str);
            let code = if e.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { SETUP_FAILED };
            Exit::failed(code, format!("start {name}: {e}"))
        });
        match supervision {
            Supervision::Engine { program, name } => {
                if exit.torn {
                    engine::remove_unfinished(program, name);
                }
                if exit.report.is_empty() && engine::may_be_its_own(exit.code) {
                    let (meta, container) = (&self.pod.metadata, &self.container.name);
                    let log = self.kubelet.logs.path(&meta.namespace, &meta.name, container);
                    exit.message = engine::failure(&log_reader::last_lines(&log, 5, 4096).unwrap_or_default());
                }
            }
            Supervision::Supervisor if exit.torn => {
                recovery::kill_marked(&self.kubelet.dirs.pod(&self.pod.metadata.uid));
            }
            Supervision::Supervisor | Supervision::Namespace => {}
        }
        exit
    }
}

async fn copy_launcher(kubelet: &Arc<Kubelet>, to: PathBuf) -> Exit {
    let from = kubelet.dirs.launcher();
    let copied = tokio::task::spawn_blocking(move || {
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::remove_file(&to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        crate::python::link_or_copy(&from, &to)
    })
    .await
    .unwrap_or_else(|e| Err(std::io::Error::other(e)));
    match copied {
        Ok(()) => Exit::with_code(0),
        Err(e) => Exit::failed(1, format!("copy the launcher: {e}")),
    }
}
