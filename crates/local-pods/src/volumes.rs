//! Volumes of a pod as directories of this machine.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use serde_json::Value;

use crate::api::{Api, resources};
use crate::env::{self, Data, Sources};
use crate::paths::is_pods_own;
use crate::spec::{Container, Downward, FilesRef, Mount, Pod, Volume};

/// Token of every service account; the embedded API accepts any.
pub(crate) const TOKEN: &str = "kfp-local";

/// A volume that is in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ready {
    place: PathBuf,
    read_only: bool,
}

/// A volume mount that is in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) path: PathBuf,
    pub(crate) place: PathBuf,
    pub(crate) read_only: bool,
}

/// Volumes by name.
pub(crate) type Volumes = BTreeMap<String, Ready>;

/// Reads every ConfigMap and Secret the pod mentions and checks its claims.
///
/// # Errors
/// A claim that does not exist. Absent ConfigMaps and Secrets are found out where they are used.
pub(crate) async fn lookup(api: &dyn Api, pod: &Pod) -> Result<Sources, String> {
    let mut config_maps: Vec<&str> = Vec::new();
    let mut secrets: Vec<&str> = Vec::new();
    for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
        for from in &container.env_from {
            config_maps.extend(from.config_map_ref.as_ref().map(|r| r.name.as_str()));
            secrets.extend(from.secret_ref.as_ref().map(|r| r.name.as_str()));
        }
        for from in container.env.iter().filter_map(|e| e.value_from.as_ref()) {
            config_maps.extend(from.config_map_key_ref.as_ref().map(|r| r.name.as_str()));
            secrets.extend(from.secret_key_ref.as_ref().map(|r| r.name.as_str()));
        }
    }
    for volume in &pod.spec.volumes {
        config_maps.extend(volume.config_map.as_ref().map(|r| r.name.as_str()));
        secrets.extend(volume.secret.as_ref().map(|r| r.name.as_str()));
        for source in volume.projected.iter().flat_map(|p| &p.sources) {
            config_maps.extend(source.config_map.as_ref().map(|r| r.name.as_str()));
            secrets.extend(source.secret.as_ref().map(|r| r.name.as_str()));
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            let name = &claim.claim_name;
            let found = api.get(&resources::PERSISTENT_VOLUME_CLAIMS, &pod.metadata.namespace, name).await;
            found.map_err(|e| {
                if e.code == 404 { format!("persistentvolumeclaim \"{name}\" not found") } else { e.to_string() }
            })?;
        }
    }
    let namespace = &pod.metadata.namespace;
    let mut sources = Sources::default();
    for name in config_maps {
        if let Ok(object) = api.get(&resources::CONFIG_MAPS, namespace, name).await {
            let mut data = texts(&object, "data");
            data.extend(decoded(&object, "binaryData"));
            sources.config_maps.insert(name.into(), data);
        }
    }
    for name in secrets {
        if let Ok(object) = api.get(&resources::SECRETS, namespace, name).await {
            let mut data = decoded(&object, "data");
            data.extend(texts(&object, "stringData"));
            sources.secrets.insert(name.into(), data);
        }
    }
    Ok(sources)
}

fn entries<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a str)> {
    object.get(field).and_then(Value::as_object).into_iter().flatten().filter_map(|(k, v)| Some((k, v.as_str()?)))
}

fn texts(object: &Value, field: &str) -> Data {
    entries(object, field).map(|(k, v)| (k.clone(), v.as_bytes().to_vec())).collect()
}

fn decoded(object: &Value, field: &str) -> Data {
    let engine = base64::engine::general_purpose::STANDARD;
    entries(object, field).filter_map(|(k, v)| Some((k.clone(), engine.decode(v).ok()?))).collect()
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> String + '_ {
    move |e| format!("make {}: {e}", path.display())
}

/// Makes the pod's volumes: its own below `own` or, where nothing needs to be mounted then, in its `root`; claims
/// below `claims`.
///
/// # Errors
/// A kind of volume that does not exist here, or something it refers to that does not.
pub(crate) fn make(pod: &Pod, sources: &Sources, own: &Path, root: &Path, claims: &Path) -> Result<Volumes, String> {
    let mut out = Volumes::new();
    for volume in &pod.spec.volumes {
        let place = match in_place(pod, volume) {
            Some(path) => root.join(path),
            None => own.join(safe(&volume.name)?),
        };
        let ready = one(pod, volume, sources, place, claims).map_err(|e| format!("volume \"{}\": {e}", volume.name))?;
        out.insert(volume.name.clone(), ready);
    }
    Ok(out)
}

/// Where an empty directory belongs, relative to the root that the pod's containers share, if it can be a plain
/// directory there: every launcher has half a dozen, and a directory is cheaper than two and a mount.
fn in_place<'a>(pod: &'a Pod, volume: &Volume) -> Option<&'a Path> {
    volume.empty_dir.as_ref()?;
    let containers = pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let (own, others): (Vec<_>, Vec<_>) =
        containers.flat_map(|container| &container.volume_mounts).partition(|mount| mount.name == volume.name);
    let path = Path::new(&own.first()?.mount_path);
    let plain = |mount: &&Mount| {
        Path::new(&mount.mount_path) == path
            && !mount.read_only
            && mount.sub_path.is_empty()
            && mount.sub_path_expr.is_empty()
    };
    let apart = |mount: &&Mount| {
        let other = Path::new(&mount.mount_path);
        !other.starts_with(path) && !path.starts_with(other)
    };
    let relative = path.strip_prefix("/").ok().filter(|path| safe_path(path))?;
    let top = relative.components().next()?.as_os_str().to_str()?;
    (is_pods_own(top) && own.iter().all(plain) && others.iter().all(apart)).then_some(relative)
}

fn one(pod: &Pod, volume: &Volume, sources: &Sources, place: PathBuf, claims: &Path) -> Result<Ready, String> {
    let mut read_only = true;
    if let Some(claim) = &volume.persistent_volume_claim {
        let place = claims.join(&pod.metadata.namespace).join(safe(&claim.claim_name)?);
        std::fs::create_dir_all(&place).map_err(failed(&place))?;
        return Ok(Ready { place, read_only: claim.read_only });
    }
    if let Some(host) = &volume.host_path {
        // Nothing outside the data directory is ever written.
        return Ok(Ready { place: host.path.clone().into(), read_only: true });
    }
    std::fs::create_dir_all(&place).map_err(failed(&place))?;
    if let Some(files) = &volume.config_map {
        write_files("configmap", &sources.config_maps, files, None, &place)?;
    } else if let Some(files) = &volume.secret {
        write_files("secret", &sources.secrets, files, None, &place)?;
    } else if let Some(downward) = &volume.downward_api {
        write_downward(pod, downward, None, &place)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode;
        for source in &projected.sources {
            if let Some(files) = &source.config_map {
                write_files("configmap", &sources.config_maps, files, mode, &place)?;
            }
            if let Some(files) = &source.secret {
                write_files("secret", &sources.secrets, files, mode, &place)?;
            }
            if let Some(downward) = &source.downward_api {
                write_downward(pod, downward, mode, &place)?;
            }
            if let Some(token) = &source.service_account_token {
                write(&place, &token.path, TOKEN.as_bytes(), mode)?;
            }
        }
    } else if let (Some(kind), None, None) = (volume.other.keys().next(), &volume.empty_dir, &volume.ephemeral) {
        return Err(format!("volumes of kind {kind} do not exist in kfp-local"));
    } else {
        read_only = false;
    }
    Ok(Ready { place, read_only })
}

fn write_files(
    kind: &str,
    all: &BTreeMap<String, Data>,
    files: &FilesRef,
    mode: Option<u32>,
    place: &Path,
) -> Result<(), String> {
    let Some(data) = all.get(&files.name) else {
        return if files.optional { Ok(()) } else { Err(format!("{kind} \"{}\" not found", files.name)) };
    };
    let mode = files.default_mode.or(mode);
    if files.items.is_empty() {
        return data.iter().try_for_each(|(key, value)| write(place, key, value, mode));
    }
    for item in &files.items {
        match data.get(&item.key) {
            Some(value) => write(place, &item.path, value, item.mode.or(mode))?,
            None if files.optional => {}
            None => return Err(format!("references non-existent {kind} key: {}", item.key)),
        }
    }
    Ok(())
}

fn write_downward(pod: &Pod, downward: &Downward, mode: Option<u32>, place: &Path) -> Result<(), String> {
    for item in &downward.items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => env::field(pod, &field.field_path)?,
            (None, Some(resource)) => {
                pod.spec.containers.first().map(|c| env::resource(c, &resource.resource)).unwrap_or_default()
            }
            (None, None) => String::new(),
        };
        write(place, &item.path, value.as_bytes(), item.mode.or(downward.default_mode).or(mode))?;
    }
    Ok(())
}

fn write(place: &Path, path: &str, value: &[u8], mode: Option<u32>) -> Result<(), String> {
    let file = place.join(safe(path)?);
    let write = || {
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&file, value)?;
        mode.map_or(Ok(()), |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode & 0o777)))
    };
    write().map_err(failed(&file))
}

/// A relative path that stays where it is put.
fn safe(path: &str) -> Result<&Path, String> {
    let path = Path::new(path);
    if safe_path(path) {
        Ok(path)
    } else {
        Err(format!("path {} must be relative and must not contain '..'", path.display()))
    }
}

fn safe_path(path: &Path) -> bool {
    path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

/// The mounts of one container; a missing `subPath` is made as a directory.
///
/// # Errors
/// A mount of a volume that the pod does not have, or a path that leaves it.
pub(crate) fn mounts(
    container: &Container,
    volumes: &Volumes,
    env: &BTreeMap<String, String>,
) -> Result<Vec<Mounted>, String> {
    let mut out = Vec::new();
    for mount in &container.volume_mounts {
        let Some(volume) = volumes.get(&mount.name) else {
            return Err(format!(
                "container \"{}\" mounts volume \"{}\", which the pod does not have",
                container.name, mount.name
            ));
        };
        let mut place = volume.place.clone();
        let sub = if mount.sub_path_expr.is_empty() {
            mount.sub_path.clone()
        } else {
            env::expand(&mount.sub_path_expr, env)
        };
        if !sub.is_empty() {
            place = place.join(safe(&sub)?);
            if !place.exists() {
                std::fs::create_dir_all(&place).map_err(failed(&place))?;
            }
        }
        if !mount.mount_path.starts_with('/') {
            return Err(format!("mountPath \"{}\" of volume \"{}\" must start with /", mount.mount_path, mount.name));
        }
        out.push(Mounted {
            path: PathBuf::from(&mount.mount_path).components().collect(),
            place,
            read_only: mount.read_only || volume.read_only,
        });
    }
    // Outer mounts first, so that they do not hide inner ones.
    out.sort_by_key(|m| m.path.components().count());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volumes_are_rendered() {
        let dir = tempfile::tempdir().unwrap();
        let pod = Pod::parse(&json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {
            "containers": [{"name": "main", "volumeMounts": [
                {"name": "pvc", "mountPath": "/data/x", "subPath": "a/b"}, {"name": "all", "mountPath": "/data/"}]}],
            "volumes": [
            {"name": "all", "secret": {"secretName": "s", "defaultMode": 256}},
            {"name": "some", "configMap": {"name": "c", "items": [{"key": "k", "path": "deep/er"}]}},
            {"name": "maybe", "configMap": {"name": "none", "optional": true}},
            {"name": "proj", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}},
                {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}},
            {"name": "pvc", "persistentVolumeClaim": {"claimName": "cl"}}, {"name": "bare"}]}}))
        .unwrap();
        let data = || BTreeMap::from([("k".to_string(), b"v".to_vec())]);
        let sources = Sources {
            config_maps: BTreeMap::from([("c".into(), data())]),
            secrets: BTreeMap::from([("s".into(), data())]),
        };
        let own = dir.path().join("own");
        let volumes = make(&pod, &sources, &own, &dir.path().join("root"), &dir.path().join("claims")).unwrap();
        let read = |p: &str| std::fs::read_to_string(own.join(p)).unwrap();
        assert_eq!(read("all/k"), "v");
        assert_eq!(std::fs::metadata(own.join("all/k")).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(read("some/deep/er"), "v");
        assert_eq!(read("proj/token"), TOKEN);
        assert_eq!(read("proj/name"), "p");
        assert!(!volumes["bare"].read_only && volumes["all"].read_only);
        let mounts = mounts(&pod.spec.containers[0], &volumes, &BTreeMap::new()).unwrap();
        assert_eq!(mounts[0].path, Path::new("/data"));
        assert_eq!(mounts[1].place, dir.path().join("claims/n/cl/a/b"));
        assert!(mounts[1].place.is_dir());
    }

    #[test]
    fn empty_directories_are_where_they_are_mounted_unless_that_would_change_something() {
        let dir = tempfile::tempdir().unwrap();
        let (own, root) = (dir.path().join("own"), dir.path().join("root"));
        let volume = |name: &str| json!({"name": name, "emptyDir": {}});
        let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
        let all = ["both", "moved", "tmp", "host", "work", "outer", "inner", "part", "odd", "unused"];
        let pod = Pod::parse(&json!({"spec": {
            "initContainers": [{"name": "i", "volumeMounts": [mount("both", "/kfp-launcher"), mount("moved", "/gcs")]}],
            "containers": [{"name": "main", "volumeMounts": [
                mount("both", "/kfp-launcher"), mount("moved", "/s3/"), mount("tmp", "/tmp"), mount("host", "/usr/x"),
                mount("work", "/kfp-work"), mount("outer", "/.cache"), mount("inner", "/.cache/pip"),
                {"name": "part", "mountPath": "/.config", "subPath": "a"}, mount("odd", "/minio/../usr")]}],
            "volumes": all.map(volume)}}))
        .unwrap();
        let volumes = make(&pod, &Sources::default(), &own, &root, dir.path()).unwrap();
        let in_root: Vec<_> = volumes.iter().filter(|(_, v)| v.place.starts_with(&root)).map(|(n, _)| n).collect();
        assert_eq!(in_root, ["both"]);
        assert!(root.join("kfp-launcher").is_dir() && own.join("work").is_dir());
    }

    #[test]
    fn bad_volumes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for (volume, want) in [
            (
                json!({"name": "v", "nfs": {"server": "x"}}),
                "volume \"v\": volumes of kind nfs do not exist in kfp-local",
            ),
            (json!({"name": "v", "secret": {"secretName": "s"}}), "volume \"v\": secret \"s\" not found"),
        ] {
            let pod = Pod::parse(&json!({"spec": {"volumes": [volume]}})).unwrap();
            assert_eq!(make(&pod, &Sources::default(), dir.path(), dir.path(), dir.path()), Err(want.into()));
        }
    }
}
