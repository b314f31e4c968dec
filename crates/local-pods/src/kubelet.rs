//! Watches pods and gives each a task of its own.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kfp_core::objects::Opener;
use kfp_core::shutdown::{CancellationToken, TaskTracker};
use serde_json::Value;
use tokio::sync::{Semaphore, watch};

use crate::Error;
use crate::api::resources::{PERSISTENT_VOLUME_CLAIMS, PODS, WORKFLOWS};
use crate::api::{Api, ApiError, EventKind, RawObject, Resource};
use crate::dirs::Dirs;
use crate::logs::Logs;
use crate::options::Options;
use crate::pod::{self, Stop, Wish};
use crate::process::Spawner;
use crate::python::{Ahead, Base, Store};
use crate::spare::Spares;
use crate::spec::Pod;
use crate::{gc, recovery};

/// Drivers in this process cost little; so many may run for each process slot.
const DRIVERS_PER_SLOT: usize = 4;
/// Waits between attempts to list and watch.
const RETRY: Duration = Duration::from_millis(500);
/// Waits between attempts to fail a pod.
const WRITE_RETRIES: [Duration; 3] = [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(5)];
/// At a shutdown nobody waits half a minute.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// What a pod says that ran when an earlier server ended.
const RESTARTED: &str = "kfp-local was restarted while the pod was running";

/// What containers get from this machine.
#[derive(Debug, Default)]
pub(crate) struct Host {
    /// Variables passed through.
    pub(crate) env: Vec<(String, String)>,
    /// Contents of `/etc/hosts`.
    pub(crate) hosts: String,
    /// What `sh` is in containers; images often have one that accepts `[[`.
    pub(crate) shell: Option<PathBuf>,
    /// Credentials for package indexes.
    pub(crate) netrc: Option<PathBuf>,
}

/// Everything pods need, made once.
pub(crate) struct Kubelet {
    pub(crate) api: Arc<dyn Api>,
    pub(crate) options: Options,
    pub(crate) dirs: Dirs,
    pub(crate) spares: Spares,
    /// How many pods have ended.
    pub(crate) ended: watch::Sender<usize>,
    /// Where artifacts of workflows are kept.
    pub(crate) objects: Opener,
    pub(crate) logs: Arc<Logs>,
    pub(crate) spawner: Spawner,
    pub(crate) namespaces: bool,
    pub(crate) python: Result<Base, String>,
    pub(crate) host: Host,
    pub(crate) processes: Arc<Semaphore>,
    pub(crate) drivers: Arc<Semaphore>,
    pub(crate) shutdown_grace: Duration,
}

impl Host {
    /// Reads what this process's environment and home directory offer.
    pub(crate) fn read() -> Self {
        let passed = |name: &str| {
            name.starts_with("PIP_")
                || name.to_ascii_lowercase().ends_with("_proxy")
                || ["LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
                    .contains(&name)
        };
        let mut env: Vec<(String, String)> =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
        env.retain(|(name, _)| passed(name));
        if !env.iter().any(|(name, _)| name == "LANG" || name == "LC_ALL") {
            env.push(("LANG".into(), "C.UTF-8".into()));
        }
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let config =
            std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or(home.as_ref().map(|h| h.join(".config")));
        // The home directory of containers is another one, so pip's settings are named to it.
        let pip = [config.map(|c| c.join("pip/pip.conf")), home.as_ref().map(|h| h.join(".pip/pip.conf"))];
        if let Some(pip) = pip.into_iter().flatten().find(|p| p.is_file())
            && !env.iter().any(|(name, _)| name == "PIP_CONFIG_FILE")
        {
            env.push(("PIP_CONFIG_FILE".into(), pip.display().to_string()));
        }
        let netrc = home.map(|h| h.join(".netrc")).filter(|p| p.is_file());
        let shell = ["bash", "dash"].iter().find_map(|name| {
            ["/bin", "/usr/bin", "/usr/local/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|p| p.is_file())
        });
        Self { shell, env, hosts: std::fs::read_to_string("/etc/hosts").unwrap_or_default(), netrc }
    }
}

struct Known {
    wish: watch::Sender<Wish>,
}

/// Serves until shutdown.
pub(crate) async fn serve(kubelet: Arc<Kubelet>, shutdown: CancellationToken) -> Result<(), Error> {
    let tasks = TaskTracker::new();
    let ahead = Arc::new(Ahead::default());
    if kubelet.options.prepare_python
        && let Ok(base) = kubelet.python.clone()
    {
        let (store, ahead, stopped) = (Store::new(kubelet.dirs.python()), ahead.clone(), shutdown.clone());
        // Not waited for here: whoever needs the environment next finds it half-built and builds it anew.
        tokio::task::spawn_blocking(move || {
            if let Err(message) = store.prepare_base(&base, &ahead)
                && !stopped.is_cancelled()
            {
                tracing::warn!("{message}");
            }
        });
    }
    let mut pods: HashMap<String, Known> = HashMap::new();
    let cleaner = tasks.spawn(clean(kubelet.clone(), shutdown.clone()));
    let mut first = true;
    while !shutdown.is_cancelled() {
        let (items, version) = kubelet.api.list(&PODS);
        if first {
            for object in recover(&kubelet, &items).await {
                begin(&kubelet, &mut pods, &object, &tasks);
            }
            first = false;
            // What was listed is out of date for the pods that were failed.
            continue;
        }
        let present: HashSet<&str> = items.iter().filter_map(RawObject::uid).collect();
        let gone: Vec<String> = pods.keys().filter(|u| !present.contains(u.as_str())).cloned().collect();
        for uid in gone {
            forget(&kubelet, &mut pods, &uid, None, &tasks);
        }
        let seen = items.iter().filter(|pod| !is_over(pod)).try_for_each(|pod| {
            see(&kubelet, &mut pods, &pod.parse()?, &tasks);
            Ok::<_, ApiError>(())
        });
        drop(items);
        match seen {
            Ok(()) => follow(&kubelet, version, &mut pods, &tasks, &shutdown).await,
            Err(error) => {
                tracing::warn!(%error, "cannot read pods");
                tokio::select! { () = tokio::time::sleep(RETRY) => {}, () = shutdown.cancelled() => {} }
            }
        }
    }
    // The process ends no sooner than its threads.
    ahead.stop();
    for known in pods.values() {
        known.wish.send_modify(|wish| wish.stop = Some(Stop::Shutdown));
    }
    tasks.close();
    tasks.wait().await;
    drop(cleaner);
    Ok(())
}

async fn follow(
    kubelet: &Arc<Kubelet>,
    version: u64,
    pods: &mut HashMap<String, Known>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let mut changes = kubelet.api.watch(&PODS, version);
    loop {
        let event = tokio::select! {
            event = changes.next() => event,
            () = shutdown.cancelled() => return,
        };
        match event {
            Some(Ok(event)) => match event.kind {
                EventKind::Added | EventKind::Modified => see(kubelet, pods, &event.object, tasks),
                EventKind::Deleted => {
                    if let Some(uid) = uid(&event.object) {
                        let text = |path| event.object.pointer(path).and_then(Value::as_str).map(str::to_string);
                        let name = text("/metadata/namespace").zip(text("/metadata/name"));
                        forget(kubelet, pods, uid, name, tasks);
                    }
                }
                EventKind::Bookmark => {}
            },
            Some(Err(error)) => {
                tracing::debug!(%error, "the watch of pods ended");
                return;
            }
            None => {
                tokio::select! { () = tokio::time::sleep(RETRY) => {}, () = shutdown.cancelled() => {} }
                return;
            }
        }
    }
}

fn uid(object: &Value) -> Option<&str> {
    object.pointer("/metadata/uid").and_then(Value::as_str)
}

/// Whether the pod has ended.
pub(crate) fn is_over(pod: &RawObject) -> bool {
    matches!(pod.field("status.phase"), "Succeeded" | "Failed")
}

fn phase(object: &Value) -> &str {
    object.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default()
}

fn see(kubelet: &Arc<Kubelet>, pods: &mut HashMap<String, Known>, object: &Arc<Value>, tasks: &TaskTracker) {
    let Some(uid) = uid(object) else { return };
    let deleted = object.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null());
    let deadline = deadline(object);
    if let Some(known) = pods.get(uid) {
        let stop = deleted.then_some(Stop::Deleted);
        known.wish.send_if_modified(|wish| {
            let new = Wish { stop: wish.stop.or(stop), deadline };
            std::mem::replace(wish, new) != new
        });
        return;
    }
    if deleted || !matches!(phase(object), "" | "Pending") {
        return;
    }
    begin(kubelet, pods, object, tasks);
}

fn deadline(object: &Value) -> Option<i64> {
    object.pointer("/spec/activeDeadlineSeconds").and_then(Value::as_i64)
}

fn begin(kubelet: &Arc<Kubelet>, pods: &mut HashMap<String, Known>, object: &Arc<Value>, tasks: &TaskTracker) {
    let Some(uid) = uid(object) else { return };
    let (wish, receiver) = watch::channel(Wish { stop: None, deadline: deadline(object) });
    pods.insert(uid.to_string(), Known { wish });
    match Pod::parse(object) {
        Ok(pod) => {
            tasks.spawn(pod::live(kubelet.clone(), Arc::new(pod), receiver));
        }
        Err(message) => {
            tasks.spawn(mark_failed(kubelet.clone(), object.clone(), message));
        }
    }
}

/// Cleans up after a deleted pod. `name` is its namespace and name, where they are known still.
fn forget(
    kubelet: &Arc<Kubelet>,
    pods: &mut HashMap<String, Known>,
    uid: &str,
    name: Option<(String, String)>,
    tasks: &TaskTracker,
) {
    let known = pods.remove(uid);
    let dirs = [kubelet.dirs.pod(uid), Store::new(kubelet.dirs.python()).private(uid)];
    let logs = kubelet.logs.clone();
    tasks.spawn(async move {
        if let Some(known) = known {
            known.wish.send_modify(|wish| wish.stop = Some(Stop::Deleted));
            // The receiver goes with the pod's task, and with that everything that uses the files.
            known.wish.closed().await;
        }
        let removed = tokio::task::spawn_blocking(move || {
            dirs.iter().for_each(|dir| recovery::remove(dir));
            if let Some((namespace, name)) = name {
                logs.archive_pod(&namespace, &name);
            }
        });
        if let Err(error) = removed.await {
            tracing::warn!(%error, "cannot remove the directory of a pod");
        }
    });
}

/// Ends what an earlier server left running, fails its pods and removes directories of none. Gives the pods to begin
/// anew: drivers may be run twice.
async fn recover(kubelet: &Arc<Kubelet>, items: &[RawObject]) -> Vec<Arc<Value>> {
    let known: HashSet<String> = items.iter().filter_map(|o| o.uid().map(str::to_string)).collect();
    let (pods, private) = (kubelet.dirs.pods(), kubelet.dirs.python().join("private"));
    let (engine, data) = (crate::engine::program(kubelet.options.runner), kubelet.dirs.data.clone());
    let cleaned = tokio::task::spawn_blocking(move || {
        let killed = recovery::kill_marked(&pods);
        if killed > 0 {
            tracing::info!(killed, "ended processes of an earlier run of kfp-local");
        }
        if let Some(program) = engine {
            match crate::engine::remove_left(program, &data) {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "removed containers of an earlier run of kfp-local"),
                Err(message) => tracing::warn!("{message}"),
            }
        }
        recovery::remove_unknown(&[pods, private], &|uid| known.contains(uid));
    })
    .await;
    if let Err(error) = cleaned {
        tracing::warn!(%error, "cannot clean up after an earlier run");
    }
    let mut again = Vec::new();
    for pod in items {
        let begun = pod.uid().is_some_and(|uid| kubelet.dirs.pod(uid).exists());
        if is_over(pod) || !(begun || pod.field("status.phase") == "Running") {
            continue;
        }
        let object = match pod.parse() {
            Ok(object) => object,
            Err(error) => {
                tracing::warn!(pod = pod.name(), %error, "cannot read a pod");
                continue;
            }
        };
        if Pod::parse(&object).is_ok_and(|pod| pod.is_driver()) {
            pod.uid().into_iter().for_each(|uid| recovery::remove(&kubelet.dirs.pod(uid)));
            again.push(object);
        } else {
            mark_failed(kubelet.clone(), object, RESTARTED.into()).await;
        }
    }
    again
}

async fn mark_failed(kubelet: Arc<Kubelet>, object: Arc<Value>, message: String) {
    let text = |path| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_string();
    let (namespace, name, uid) = (text("/metadata/namespace"), text("/metadata/name"), text("/metadata/uid"));
    for wait in WRITE_RETRIES {
        let (uid, message) = (uid.clone(), message.clone());
        let change = Box::new(move |object: &mut Value| {
            if object.pointer("/metadata/uid").and_then(Value::as_str) == Some(uid.as_str()) {
                crate::status::fail(object, &message);
            }
            Ok(())
        });
        let result: Result<(), ApiError> = kubelet.api.modify(&PODS, &namespace, &name, change).await;
        match result {
            Ok(()) => return,
            Err(error) if error.code == 404 => return,
            Err(error) => tracing::warn!(pod = %name, %error, "cannot write the status of a pod"),
        }
        tokio::time::sleep(wait).await;
    }
}

/// Removes logs with their Workflow, files with their claim, and pods that ended long ago.
async fn clean(kubelet: Arc<Kubelet>, shutdown: CancellationToken) {
    tokio::join!(
        gc::collect(&kubelet, &shutdown),
        deletions(&kubelet, &WORKFLOWS, &shutdown, |namespace, name| kubelet.logs.remove_workflow(namespace, name)),
        deletions(&kubelet, &PERSISTENT_VOLUME_CLAIMS, &shutdown, |namespace, name| {
            let path: &Path = &kubelet.dirs.claims().join(namespace).join(name);
            recovery::remove(path);
        }),
    );
}

async fn deletions(kubelet: &Kubelet, resource: &Resource, shutdown: &CancellationToken, remove: impl Fn(&str, &str)) {
    while !shutdown.is_cancelled() {
        let (_, version) = kubelet.api.list(resource);
        let mut changes = kubelet.api.watch_raw(resource, version);
        loop {
            let event = tokio::select! {
                event = changes.next() => event,
                () = shutdown.cancelled() => return,
            };
            let Some(Ok(event)) = event else { break };
            if event.kind == EventKind::Deleted {
                remove(event.object.namespace(), event.object.name());
            }
        }
        tokio::select! { () = tokio::time::sleep(RETRY) => {}, () = shutdown.cancelled() => {} }
    }
}

/// Slots for pods.
pub(crate) fn slots(options: &Options) -> (Arc<Semaphore>, Arc<Semaphore>) {
    let processes = options.max_parallel.max(1);
    (Arc::new(Semaphore::new(processes)), Arc::new(Semaphore::new(processes * DRIVERS_PER_SLOT)))
}

/// How long containers get at a shutdown.
pub(crate) fn shutdown_grace(options: &Options) -> Duration {
    SHUTDOWN_GRACE.min(Duration::from_secs(options.grace_seconds))
}
