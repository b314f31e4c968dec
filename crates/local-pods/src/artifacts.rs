//! Artifacts of Argo templates: what the pod's contract (the template in its annotation) names is brought in before
//! the main container starts and stored after it has ended, as Argo's own init and wait containers do.

use std::path::{Path, PathBuf};

use kfp_core::argo::{Artifact, Template};
use kfp_core::objects::{Opener, Store};
use serde_json::{Value, json};

use crate::archive;
use crate::outputs::TEMPLATE;
use crate::paths::Paths;
use crate::recovery;
use crate::spec::Pod;
use crate::volumes::Mounted;

/// Where a script is in its container.
pub(crate) const SCRIPT: &str = "/argo/staging/script";
/// Kinds of location that are kept in the object store, with the scheme of their address.
const KINDS: [(&str, &str); 2] = [("s3", "s3"), ("gcs", "gs")];
/// Kinds of location that Argo has and this runner has not.
const FOREIGN: [&str; 7] = ["http", "git", "hdfs", "oss", "azure", "artifactory", "plugin"];

/// The template a pod was made from; `None` for pods without one.
///
/// # Errors
/// When the annotation cannot be read.
pub(crate) fn contract(pod: &Pod) -> Result<Option<Template>, String> {
    let Some(text) = pod.metadata.annotations.get(TEMPLATE) else { return Ok(None) };
    serde_json::from_str(text).map(Some).map_err(|e| format!("annotation {TEMPLATE} cannot be read: {e}"))
}

/// Brings the script and the input artifacts to `dir` and says where the main container shall see them.
///
/// # Errors
/// A sentence that names the artifact.
pub(crate) async fn bring(template: &Template, opener: &Opener, dir: &Path) -> Result<Vec<Mounted>, String> {
    let mut mounts = Vec::new();
    if let Some(source) = template.script.as_ref().map(|script| script["source"].as_str().unwrap_or_default()) {
        let place = dir.join("script");
        write(&place, source.as_bytes()).await.map_err(|e| format!("write the script: {e}"))?;
        mounts.push(Mounted { path: SCRIPT.into(), place, read_only: false });
    }
    for (number, artifact) in template.inputs.artifacts.iter().enumerate() {
        let name = &artifact.name;
        let Some(path) = artifact.path.as_deref().filter(|path| path.starts_with('/')) else {
            return Err(format!("artifact {name} has no absolute path"));
        };
        let place = dir.join(format!("input-{number}"));
        let failed = |why: String| format!("artifact {name} failed to load: {why}");
        if !load(artifact, template, opener, &place).await.map_err(failed)? {
            if artifact.optional {
                continue;
            }
            return Err(failed("nothing is stored at its location".into()));
        }
        let (mode, deep) = (artifact.extra.get("mode").and_then(Value::as_u64), artifact.extra.get("recurseMode"));
        if let Some(mode) = mode.and_then(|mode| u32::try_from(mode).ok()) {
            change_mode(&place, mode, deep == Some(&Value::Bool(true)))
                .map_err(|e| format!("artifact {name}: change its mode: {e}"))?;
        }
        mounts.push(Mounted { path: Path::new(path).components().collect(), place, read_only: false });
    }
    mounts.sort_by_key(|mount| mount.path.components().count());
    Ok(mounts)
}

async fn write(place: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = place.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    tokio::fs::write(place, bytes).await
}

/// Fetches an artifact to `place`; false when there is none.
async fn load(artifact: &Artifact, template: &Template, opener: &Opener, place: &Path) -> Result<bool, String> {
    if let Some(raw) = artifact.extra.get("raw") {
        let data = raw["data"].as_str().unwrap_or_default();
        return write(place, data.as_bytes()).await.map(|()| true).map_err(|e| e.to_string());
    }
    let Some(uri) = address(artifact, template)? else { return Ok(false) };
    let store = open(opener, &uri).await?;
    let fetched = place.with_extension("fetched");
    let done = store.download(&uri, &fetched).await.map_err(|e| e.to_string())?;
    if done.files == 0 {
        return Ok(false);
    }
    let (archive, place) = (artifact.extra.get("archive").cloned().unwrap_or_default(), place.to_path_buf());
    blocking(move || {
        let scratch = place.with_extension("unpacked");
        let explicit = |kind: &str| !archive[kind].is_null();
        let plain = explicit("none") || fetched.is_dir();
        if !plain && explicit("zip") {
            archive::unzip(&fetched, &scratch, &place)?;
        } else if !plain && (explicit("tar") || archive::is_tar(&fetched)?) {
            archive::untar(&fetched, &scratch, &place)?;
        } else {
            return std::fs::rename(&fetched, &place);
        }
        std::fs::remove_file(&fetched)
    })
    .await?;
    Ok(true)
}

/// Stores the output artifacts; `logs` are the names and texts of container logs to keep beside them. Gives what
/// the engine shall record, and what went wrong with artifacts that are not optional.
pub(crate) async fn keep(
    template: &Template,
    opener: &Opener,
    paths: &Paths,
    dir: &Path,
    logs: Vec<(String, PathBuf)>,
) -> (Vec<Value>, Result<(), String>) {
    let (mut kept, mut errors) = (Vec::new(), Vec::new());
    for artifact in &template.outputs.artifacts {
        match keep_one(artifact, template, opener, paths, dir).await {
            Ok(Some(record)) => kept.push(record),
            Ok(None) => {}
            Err(why) => errors.push(format!("artifact {} failed to save: {why}", artifact.name)),
        }
    }
    for (name, file) in logs {
        let artifact = Artifact { name, ..Artifact::default() };
        let base = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match upload(&artifact, template, opener, &base, vec![(String::new(), file)]).await {
            Ok(record) => kept.push(record),
            Err(why) => errors.push(format!("{} failed to save: {why}", artifact.name)),
        }
    }
    (kept, if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) })
}

/// Stores one artifact; `None` when it is optional and not there.
async fn keep_one(
    artifact: &Artifact,
    template: &Template,
    opener: &Opener,
    paths: &Paths,
    dir: &Path,
) -> Result<Option<Value>, String> {
    let path = artifact.path.clone().unwrap_or_default();
    let base = Path::new(&path).file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !path.starts_with('/') || base.is_empty() {
        return Err(format!("\"{path}\" is no absolute path of a file or directory"));
    }
    let place = paths.resolve(path.as_ref()).map_err(|e| e.to_string())?;
    if !place.exists() {
        return if artifact.optional { Ok(None) } else { Err(format!("{path} no such file or directory")) };
    }
    let strategy = artifact.extra.get("archive").cloned().unwrap_or_default();
    if !strategy["none"].is_null() {
        let (paths, top) = (paths.clone(), path.clone());
        let files = blocking(move || files(&paths, Path::new(&top))).await?;
        return upload(artifact, template, opener, &base, files).await.map(Some);
    }
    let zipped = !strategy["zip"].is_null();
    let file = format!("{}.{}", artifact.name, if zipped { "zip" } else { "tgz" });
    let level = strategy["tar"]["compressionLevel"].as_u64().and_then(|level| u32::try_from(level).ok()).unwrap_or(6);
    let packed = dir.join(format!("output-{file}"));
    let to = packed.clone();
    blocking(move || {
        std::fs::create_dir_all(to.parent().unwrap_or(Path::new("/")))?;
        if zipped { archive::zip(&place, &base, &to) } else { archive::tar(&place, &base, level, &to) }
    })
    .await?;
    let record = upload(artifact, template, opener, &file, vec![(String::new(), packed.clone())]).await;
    recovery::remove(&packed);
    record.map(Some)
}

/// The regular files at and below a path of the container, each with the place of its content; links are followed as
/// the container would follow them.
fn files(paths: &Paths, top: &Path) -> std::io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), top.to_path_buf(), 0)];
    while let Some((relative, path, depth)) = open.pop() {
        let place = paths.resolve(&path)?;
        let Ok(kind) = std::fs::metadata(&place) else { continue };
        if kind.is_file() {
            found.push((relative, place));
        } else if kind.is_dir() && depth < 64 {
            for entry in std::fs::read_dir(&place)? {
                let name = entry?.file_name();
                let below = [relative.as_str(), &name.to_string_lossy()].iter().filter(|part| !part.is_empty()).fold(
                    String::new(),
                    |all, part| {
                        if all.is_empty() { (*part).to_string() } else { format!("{all}/{part}") }
                    },
                );
                open.push((below, path.join(name), depth + 1));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Stores files at the artifact's location, or under `name` at the default one.
async fn upload(
    artifact: &Artifact,
    template: &Template,
    opener: &Opener,
    name: &str,
    files: Vec<(String, PathBuf)>,
) -> Result<Value, String> {
    let mut record = artifact.clone();
    let uri = match address(artifact, template)? {
        Some(uri) => uri,
        None => {
            let prefix = template.extra.get("archiveLocation").and_then(|location| location["s3"]["key"].as_str());
            let Some(prefix) = prefix else { return Err("no location is set and there is no default one".into()) };
            let key = format!("{}/{name}", prefix.trim_end_matches('/'));
            record.extra.insert("s3".into(), json!({"key": key}));
            address(&record, template)?.unwrap_or_default()
        }
    };
    let store = open(opener, &uri).await?;
    for (relative, file) in files {
        let uri = if relative.is_empty() { uri.clone() } else { format!("{uri}/{relative}") };
        store.upload(&file, &uri).await.map_err(|e| e.to_string())?;
    }
    serde_json::to_value(record).map_err(|e| e.to_string())
}

/// Address of an artifact in the object store; `None` when it has no location.
fn address(artifact: &Artifact, template: &Template) -> Result<Option<String>, String> {
    if let Some(kind) = FOREIGN.iter().find(|kind| artifact.extra.contains_key(**kind)) {
        return Err(format!("locations of kind '{kind}' are not supported"));
    }
    for (kind, scheme) in KINDS {
        let Some(location) = artifact.extra.get(kind) else { continue };
        let Some(key) = location["key"].as_str().filter(|key| !key.is_empty()) else { continue };
        let default = template.extra.get("archiveLocation").and_then(|location| location["s3"]["bucket"].as_str());
        let bucket = location["bucket"].as_str().filter(|bucket| !bucket.is_empty()).or(default);
        let Some(bucket) = bucket else { return Err("its location has no bucket and there is no default one".into()) };
        return Ok(Some(format!("{scheme}://{bucket}/{}", key.trim_matches('/'))));
    }
    Ok(None)
}

async fn open(opener: &Opener, uri: &str) -> Result<Store, String> {
    if opener.dir.is_none() {
        return Err("no object store is set up for artifacts of workflows".into());
    }
    opener.open(uri, None).await.map_err(|e| e.to_string())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, String> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|e| Err(std::io::Error::other(e))).map_err(|e| e.to_string())
}

fn change_mode(place: &Path, mode: u32, deep: bool) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut open = vec![place.to_path_buf()];
    while let Some(path) = open.pop() {
        let kind = std::fs::symlink_metadata(&path)?;
        if kind.is_symlink() {
            continue;
        }
        if deep && kind.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}
