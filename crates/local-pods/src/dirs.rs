//! The data directory:
//!
//! ```text
//! pods/<uid>/root         private root directory of a pod (/tmp, /kfp-home, ...)
//! pods/<uid>/volumes      its own volumes
//! pods/<uid>/hosts        its /etc/hosts
//! pods/<uid>/termination  termination messages of its containers
//! pods/<uid>/artifacts    its script and artifacts on their way in and out
//! pods-spare              directories of ended pods, for pods to come
//! volumes/<ns>/<claim>    persistent volume claims
//! logs/<ns>/<pod>         logs
//! python                  Python environments
//! pod-shared              what every container may read: launcher, kubeconfig, service accounts
//! links                   symbolic links that pods share
//! pod-view                what containers see instead of the data directory: mount points only
//! ```

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::init::Bind;
use crate::links::Links;
use crate::options::Options;
use crate::spread::spread;
use crate::volumes::TOKEN;

/// Variable with the directory of the local object store.
const OBJECTS: &str = "KFP_OBJECT_STORE_DIR";

/// Directory of the local object store, if there is one.
pub(crate) fn objects(options: &Options) -> Option<PathBuf> {
    options.extra_env.get(OBJECTS).map(PathBuf::from)
}

/// Paths below the data directory, absolute and without symbolic links.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    pub(crate) data: PathBuf,
    /// Mounts that every container has.
    pub(crate) common: Vec<Bind>,
    pub(crate) links: Links,
}

impl Dirs {
    /// Makes the directories and copies what containers need into them.
    pub(crate) fn create(options: &Options) -> Result<Self, crate::Error> {
        let fail = |path: &Path| {
            let path = path.to_path_buf();
            move |source| crate::Error::DataDir { path, source }
        };
        std::fs::create_dir_all(&options.data_dir).map_err(fail(&options.data_dir))?;
        let data = options.data_dir.canonicalize().map_err(fail(&options.data_dir))?;
        let links = Links::create(data.join("links")).map_err(fail(&data))?;
        let mut dirs = Self { data, common: Vec::new(), links };
        for name in ["pods", "volumes", "logs", "pod-shared", "pod-view", "python"] {
            let path = dirs.data.join(name);
            std::fs::create_dir_all(&path).map_err(fail(&path))?;
        }
        spread(&dirs.pods());
        install(&options.launcher, &dirs.launcher()).map_err(fail(&options.launcher))?;
        install(&options.pod_init, &dirs.pod_init()).map_err(fail(&options.pod_init))?;
        match std::fs::copy(&options.kubeconfig, dirs.kubeconfig()) {
            Err(error) => {
                tracing::warn!(%error, path = %options.kubeconfig.display(), "no kubeconfig for containers");
            }
            Ok(_) => {
                let _ = std::fs::set_permissions(dirs.kubeconfig(), std::fs::Permissions::from_mode(0o644));
            }
        }
        dirs.mount_common(options).map_err(fail(&dirs.data.clone()))?;
        Ok(dirs)
    }

    fn mount_common(&mut self, options: &Options) -> std::io::Result<()> {
        let view = self.data.join("pod-view");
        let mut shown = vec![(self.data.join("pod-shared"), true), (self.python(), true)];
        for path in options.writable.iter().chain(&objects(options)) {
            std::fs::create_dir_all(path)?;
            shown.push((path.canonicalize()?, false));
        }
        for (path, _) in &shown {
            if let Ok(relative) = path.strip_prefix(&self.data) {
                std::fs::create_dir_all(view.join(relative))?;
            }
        }
        self.common.push(Bind { source: view, target: self.data.clone(), read_only: true });
        let bind = |(path, read_only): (PathBuf, bool)| Bind { source: path.clone(), target: path, read_only };
        self.common.extend(shown.into_iter().map(bind));
        Ok(())
    }

    pub(crate) fn pods(&self) -> PathBuf {
        self.data.join("pods")
    }

    pub(crate) fn spare_pods(&self) -> PathBuf {
        self.data.join("pods-spare")
    }

    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    pub(crate) fn claims(&self) -> PathBuf {
        self.data.join("volumes")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    pub(crate) fn python(&self) -> PathBuf {
        self.data.join("python")
    }

    pub(crate) fn launcher(&self) -> PathBuf {
        self.data.join("pod-shared/launcher-v2")
    }

    pub(crate) fn pod_init(&self) -> PathBuf {
        self.data.join("pod-shared/kfp-pod-init")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data.join("pod-shared/kubeconfig")
    }

    /// Files of the service account, made for a namespace when first needed.
    pub(crate) fn service_account(&self, namespace: &str) -> std::io::Result<PathBuf> {
        let dir = self.data.join("pod-shared/serviceaccount").join(namespace);
        if !dir.join("token").exists() {
            std::fs::create_dir_all(&dir)?;
            std::fs::write(dir.join("namespace"), namespace)?;
            std::fs::write(dir.join("token"), TOKEN)?;
        }
        Ok(dir)
    }
}

/// Copies a program unless the same one is there: containers get hard links to it, which the
/// original may not allow (another owner, another file system).
fn install(from: &Path, to: &Path) -> std::io::Result<()> {
    let (new, old) = (std::fs::metadata(from)?, std::fs::metadata(to));
    if old.is_ok_and(|old| old.len() == new.len() && old.modified().ok() == new.modified().ok()) {
        return Ok(());
    }
    let part = to.with_extension("new");
    let _ = std::fs::remove_file(&part);
    std::fs::copy(from, &part)?;
    let file = std::fs::File::open(&part)?;
    file.set_modified(new.modified()?)?;
    std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o555))?;
    std::fs::rename(part, to)
}
