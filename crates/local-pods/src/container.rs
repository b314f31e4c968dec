//! What is needed to start one container, computed before it starts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kfp_core::argo::Template;
use tokio::process::Command;

use crate::artifacts::SCRIPT;
use crate::env::{self, Sources};
use crate::init::{Bind, OUTER, Spec};
use crate::kubelet::Kubelet;
use crate::options::Runner;
use crate::paths::Paths;
use crate::recovery::MARK;
use crate::spec::{Container, Pod};
use crate::volumes::{self, Mounted, Volumes};
use crate::{driver, engine, python, recovery, resource, retry, termination};

/// What containers of this project's own images do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Work {
    /// The driver, called in this process.
    Driver {
        /// Arguments after the program name.
        args: Vec<String>,
    },
    /// `launcher-v2 --copy DEST`, done in this process.
    CopyLauncher {
        /// Where to, on this machine.
        to: PathBuf,
    },
    /// The action of a resource template, done in this process.
    Resource,
    /// A process.
    Process(Box<Launch>),
}

/// A process about to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Program and arguments.
    pub(crate) program: Vec<String>,
    /// Environment of `program`.
    pub(crate) env: Vec<(String, String)>,
    /// What it reads from standard input.
    pub(crate) input: Vec<u8>,
}

/// A container about to start.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) work: Work,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) paths: Paths,
    /// Where the container leaves its termination message; a driver gives it itself.
    pub(crate) termination: Option<PathBuf>,
    /// Whether the end of its standard output is wanted.
    pub(crate) result: Option<PathBuf>,
}

/// Directories every pod has in its root.
const OWN_DIRS: [&str; 4] = ["tmp", "kfp-home", "kfp-work", "run/secrets/kubernetes.io"];
/// The launcher in its own image, and where it copies itself to in the pods of tasks.
const LAUNCHERS: [&str; 2] = ["launcher-v2", "/kfp-launcher/launch"];
/// Variable of Argo: true where the engine wants the standard output as `outputs.result`.
const RESULT_WANTED: &str = "ARGO_INCLUDE_SCRIPT_OUTPUT";
/// Where the end of the standard output is left, below the pod's root.
const RESULT: &str = "kfp-home/.result";
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the pod's root and volumes; `earlier` are the other attempts of its task.
pub(crate) fn prepare_pod(
    kubelet: &Kubelet,
    pod: &Pod,
    sources: &Sources,
    earlier: &[String],
) -> Result<Volumes, String> {
    let dir = kubelet.dirs.pod(&pod.metadata.uid);
    let root = dir.join("root");
    kubelet.spares.take(&dir);
    let make = || -> std::io::Result<()> {
        retry::take_over(&kubelet.dirs.pods(), earlier, &root)?;
        if pod.is_driver() {
            return std::fs::create_dir_all(root.join("tmp"));
        }
        for name in OWN_DIRS {
            std::fs::create_dir_all(root.join(name))?;
        }
        let account = kubelet.dirs.service_account(&pod.metadata.namespace)?;
        kubelet.dirs.links.make(&account, &root.join("run/secrets/kubernetes.io/serviceaccount"))?;
        if let Some(netrc) = &kubelet.host.netrc {
            kubelet.dirs.links.make(netrc, &root.join("kfp-home/.netrc"))?;
        }
        std::fs::write(dir.join("hosts"), format!("{}\n127.0.0.1 {}\n", kubelet.host.hosts, hostname(pod)))
    };
    make().map_err(|e| format!("make the pod's directory {}: {e}", dir.display()))?;
    volumes::make(pod, sources, &dir.join("volumes"), &root, &kubelet.dirs.claims())
}

fn hostname(pod: &Pod) -> &str {
    let name = if pod.spec.hostname.is_empty() { &pod.metadata.name } else { &pod.spec.hostname };
    // Limit of the kernel; Kubernetes cuts here, too.
    let end = name.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|i| *i <= 63).last().unwrap_or(0);
    name.get(..end).unwrap_or_default().trim_end_matches(['-', '.'])
}

/// Plans one container; `artifacts` are mounted beside its volumes, `outputs` are paths it is said to write.
///
/// # Errors
/// A sentence that says what is wrong with the container's definition.
#[allow(clippy::too_many_arguments)] // everything that a container is made of
pub(crate) fn plan(
    kubelet: &Kubelet,
    pod: &Pod,
    container: &Container,
    volumes: &Volumes,
    sources: &Sources,
    artifacts: &[Mounted],
    outputs: &[String],
) -> Result<Plan, String> {
    let dir = kubelet.dirs.pod(&pod.metadata.uid);
    let root = dir.join("root");
    let here = runs_here(kubelet, container);
    let base = base_env(kubelet, pod, container, &root);
    let mut env = env::environment(pod, container, &base, sources)?;
    let mut mounts = volumes::mounts(container, volumes, &env)?;
    let last_words = termination::locate(&dir, container)?;
    let termination = last_words.place.clone();
    mounts.push(last_words);
    // After the volumes: an artifact may lie in one of them.
    mounts.extend(artifacts.iter().cloned());
    let paths = Paths::new(root.clone(), mounts.iter().map(|m| (m.path.clone(), m.place.clone())));
    let paths = paths.sharing(kubelet.dirs.common.iter().map(|b| b.target.clone())).declaring(outputs);
    let mut argv: Vec<String> = container.command.iter().chain(&container.args).map(|w| env::expand(w, &env)).collect();
    if argv.first().is_some_and(|program| LAUNCHERS.contains(&program.as_str())) {
        hold(&mut argv, &kubelet.options.launcher_flags);
    }
    let (program, rest) = argv.split_first().map_or(("", [].as_slice()), |(p, r)| (p.as_str(), r));
    if argv.iter().map(String::as_str).take(2).eq(resource::COMMAND) {
        return Ok(Plan { work: Work::Resource, env, paths, termination: Some(termination), result: None });
    }
    let name = Path::new(program).file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if program == driver::PROGRAM {
        return Ok(Plan { work: Work::Driver { args: rest.to_vec() }, env, paths, termination: None, result: None });
    }
    if name == "launcher-v2"
        && let Some(to) = copy_target(rest)
    {
        let to = paths.resolve(to.as_ref()).map_err(|e| format!("--copy {to}: {e}"))?;
        return Ok(Plan { work: Work::CopyLauncher { to }, env, paths, termination: Some(termination), result: None });
    }
    if here && let Some(path) = env.get("PATH").filter(|p| !p.starts_with(&python_path(kubelet, container, &root))) {
        let path = format!("{}:{path}", python_path(kubelet, container, &root));
        env.insert("PATH".into(), path);
    }
    termination::make(&termination)?;
    let result = env.get(RESULT_WANTED).is_some_and(|value| value == "true").then(|| root.join(RESULT));
    let launch = match engine::program(kubelet.options.runner) {
        Some(program) if !here => engine::command(program, kubelet, pod, container, &env, &mounts),
        _ => process(kubelet, pod, container, argv, &base, &env, &mounts, &paths, result.is_some())?,
    };
    Ok(Plan { work: Work::Process(Box::new(launch)), env, paths, termination: Some(termination), result })
}

/// Gives the launcher's flags, which end where the user's command begins, the values that hold now.
fn hold(argv: &mut [String], flags: &BTreeMap<String, String>) {
    let mut words = argv.iter_mut().skip(1).take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        let (name, joined) = name.split_once('=').map_or((name, false), |(name, _)| (name, true));
        match (flags.get(name), joined) {
            (Some(value), true) => *word = format!("--{name}={value}"),
            (Some(value), false) => {
                if let Some(next) = words.next() {
                    next.clone_from(value);
                }
            }
            (None, _) => {}
        }
    }
}

/// Whether a container is a process of this machine: all are without an engine, importers always.
pub(crate) fn runs_here(kubelet: &Kubelet, container: &Container) -> bool {
    kubelet.options.runner == Runner::Process || container.command.first().is_some_and(|w| w == "launcher-v2")
}

/// Files and directories that a template says its main container writes.
pub(crate) fn declared(template: &Template) -> Vec<String> {
    let parameters = template.outputs.parameters.iter().filter_map(|p| p.value_from.as_ref()?.path.clone());
    let artifacts = template.outputs.artifacts.iter().filter_map(|a| a.path.clone());
    parameters.chain(artifacts).filter(|path| path.starts_with('/')).collect()
}

fn copy_target(args: &[String]) -> Option<&str> {
    args.iter().enumerate().find_map(|(at, arg)| {
        let arg = arg.trim_start_matches('-');
        if arg == "copy" { args.get(at + 1).map(String::as_str) } else { arg.strip_prefix("copy=") }
    })
}

/// The container's Python environment as the container sees it.
fn python_state(kubelet: &Kubelet, container: &Container, root: &Path) -> PathBuf {
    let top = if kubelet.namespaces { Path::new("/") } else { root };
    top.join("kfp-home/.kfp-python").join(&container.name)
}

fn python_path(kubelet: &Kubelet, container: &Container, root: &Path) -> String {
    let state = python_state(kubelet, container, root);
    format!("{0}/bin:{0}/env/bin", state.display())
}

fn base_env(kubelet: &Kubelet, pod: &Pod, container: &Container, root: &Path) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| env.push((name.to_string(), value));
    if runs_here(kubelet, container) {
        for (name, value) in &kubelet.host.env {
            set(name, value.clone());
        }
        let top = if kubelet.namespaces { PathBuf::from("/") } else { root.to_path_buf() };
        set("HOME", top.join("kfp-home").display().to_string());
        set("PATH", format!("{}:{SYSTEM_PATH}", python_path(kubelet, container, root)));
        set("KUBECONFIG", kubelet.dirs.kubeconfig().display().to_string());
        set(python::STATE, python_state(kubelet, container, root).display().to_string());
        set(MARK, kubelet.dirs.pod(&pod.metadata.uid).display().to_string());
        if !kubelet.namespaces {
            set("TMPDIR", root.join("tmp").display().to_string());
            set("KFP_POD_ROOT", root.display().to_string());
            set("POD_NAMESPACE", pod.metadata.namespace.clone());
        }
    }
    set("HOSTNAME", hostname(pod).to_string());
    for (name, value) in &kubelet.options.extra_env {
        set(name, value.clone());
    }
    env
}

#[allow(clippy::too_many_arguments)]
fn process(
    kubelet: &Kubelet,
    pod: &Pod,
    container: &Container,
    mut argv: Vec<String>,
    base: &[(String, String)],
    env: &BTreeMap<String, String>,
    mounts: &[Mounted],
    paths: &Paths,
    result: bool,
) -> Result<Launch, String> {
    let root = paths.root();
    let Some(program) = argv.first() else {
        return Err(format!(
            "container \"{}\" has no command: processes have no image whose entry point could be used; give the component a command, or run images with --runner podman or docker",
            container.name
        ));
    };
    let own = (program == "launcher-v2").then(|| kubelet.dirs.launcher().display().to_string());
    let host_state = root.join("kfp-home/.kfp-python").join(&container.name);
    let store = python::Store::new(kubelet.dirs.python());
    let config = python::Config {
        store: kubelet.dirs.python(),
        private: store.private(&pod.metadata.uid).join(&container.name),
        base: kubelet.python.clone(),
    };
    python::prepare_container(&store, &kubelet.dirs.links, &config, &host_state)
        .map_err(|e| format!("make the Python environment {}: {e}", host_state.display()))?;
    if let Some(shell) = &kubelet.host.shell {
        let sh = host_state.join("bin/sh");
        kubelet.dirs.links.make(shell, &sh).map_err(|e| format!("make {}: {e}", sh.display()))?;
    }
    let mut env: Vec<(String, String)> = env.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut cwd =
        if container.working_dir.is_empty() { "/kfp-work".to_string() } else { container.working_dir.clone() };
    let mut binds = Vec::new();
    if kubelet.namespaces {
        // First, as the data directory may lie below it.
        if Path::new("/var/tmp").is_dir() {
            binds.push(Bind { source: root.join("tmp"), target: "/var/tmp".into(), read_only: false });
        }
        binds.extend(kubelet.dirs.common.iter().cloned());
        let hosts = kubelet.dirs.pod(&pod.metadata.uid).join("hosts");
        binds.push(Bind { source: hosts, target: "/etc/hosts".into(), read_only: false });
        let elsewhere = mounts.iter().filter(|m| m.place != root.join(m.path.strip_prefix("/").unwrap_or(&m.path)));
        binds.extend(elsewhere.map(|m| Bind {
            source: m.place.clone(),
            target: m.path.clone(),
            read_only: m.read_only,
        }));
    } else {
        let data = Bind { source: kubelet.dirs.data.clone(), target: kubelet.dirs.data.clone(), read_only: false };
        binds.push(data);
        binds.extend(kubelet.dirs.common.iter().filter(|bind| !bind.read_only).cloned());
        link_mounts(root, mounts)?;
        for word in &mut argv {
            *word = paths.rewrite(word);
        }
        for (name, value) in &mut env {
            if !base.iter().any(|(n, v)| n == name && v == value) && name != "PATH" {
                *value = paths.rewrite(value);
            }
        }
        cwd = paths.rewrite(&cwd);
        if let Some(script) = mounts.iter().find(|mount| mount.path == Path::new(SCRIPT)) {
            let failed = |e: std::io::Error| format!("rewrite the script: {e}");
            let text = std::fs::read_to_string(&script.place).map_err(failed)?;
            std::fs::write(&script.place, paths.rewrite(&text)).map_err(failed)?;
        }
    }
    if let (Some(own), Some(program)) = (own, argv.first_mut()) {
        *program = own;
    }
    let spec = Spec {
        namespaces: kubelet.namespaces,
        server: std::process::id(),
        root: root.to_path_buf(),
        binds,
        hostname: hostname(pod).to_string(),
        argv,
        env,
        cwd,
        result: result.then(|| if kubelet.namespaces { Path::new("/").join(RESULT) } else { root.join(RESULT) }),
    };
    let input = serde_json::to_vec(&spec).map_err(|e| e.to_string())?;
    Ok(Launch {
        program: vec![kubelet.dirs.pod_init().display().to_string(), OUTER.into()],
        env: vec![(MARK.into(), kubelet.dirs.pod(&pod.metadata.uid).display().to_string())],
        input,
    })
}

/// Without a mount tree, links in the pod's root lead to its volumes. Other containers of the pod may be running already:
/// a link that they share is there at every moment.
fn link_mounts(root: &Path, mounts: &[Mounted]) -> Result<(), String> {
    for mount in mounts {
        let link = root.join(mount.path.strip_prefix("/").unwrap_or(&mount.path));
        if link == mount.place || std::fs::read_link(&link).is_ok_and(|place| place == mount.place) {
            continue;
        }
        let make = || {
            if let Some(parent) = link.parent() {
                std::fs::create_dir_all(parent)?;
            }
            if link.is_dir() && !link.is_symlink() {
                recovery::remove(&link);
            }
            let fresh = link.with_extension(format!("kfp-{}", uuid::Uuid::new_v4()));
            std::os::unix::fs::symlink(&mount.place, &fresh)?;
            std::fs::rename(&fresh, &link)
        };
        make().map_err(|e| format!("mount {}: {e}", mount.path.display()))?;
    }
    Ok(())
}

impl Launch {
    /// The command that starts it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.program.first().map_or("", String::as_str));
        command.args(self.program.get(1..).unwrap_or_default());
        if !self.env.is_empty() {
            command.env_clear();
        }
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn links_to_volumes_stay_while_other_containers_start() {
        let dir = tempfile::tempdir().unwrap();
        let (root, link) = (dir.path().join("root"), dir.path().join("root/deep/share"));
        let mounts = |place: &str| {
            [Mounted { path: "/deep/share".into(), place: dir.path().join(place), read_only: false }].to_vec()
        };
        std::fs::create_dir_all(link.join("of the image")).unwrap();
        link_mounts(&root, &mounts("a")).unwrap();
        let made = std::fs::symlink_metadata(&link).unwrap();
        // The same inode: it was not removed and made again, which a running container could notice.
        link_mounts(&root, &mounts("a")).unwrap();
        assert_eq!(std::fs::symlink_metadata(&link).unwrap().ino(), made.ino());
        link_mounts(&root, &mounts("b")).unwrap();
        assert_eq!(std::fs::read_link(&link).unwrap(), dir.path().join("b"));
        assert_eq!(std::fs::read_dir(root.join("deep")).unwrap().count(), 1);
    }

    #[test]
    fn flags_of_the_launcher_hold_and_words_of_the_user_do_not_change() {
        let flags: BTreeMap<String, String> =
            [("port", "7"), ("host", "here")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let mut argv = words("launch --port 1 --host=there --name port -port 2 -- prog --port 1 --host=there");
        hold(&mut argv, &flags);
        assert_eq!(argv, words("launch --port 7 --host=here --name port -port 7 -- prog --port 1 --host=there"));
        let mut argv = words("launch --port");
        hold(&mut argv, &flags);
        assert_eq!(argv, words("launch --port"));
    }
}
