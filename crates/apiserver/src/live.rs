//! Settings that `config.json` changes while the server runs: those of what is done from now on. Addresses, databases and
//! users are settled at start.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use crate::config::Config;
use crate::domain::plugins::Limits;
use crate::options::Options;
use crate::workflows::fetch::Policy;
use crate::workflows::template::{self, Rules};

/// How often the file is looked at, at most.
const FRESH: Duration = Duration::from_secs(1);

/// The settings of one moment.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What compiled Workflows carry.
    pub compiler: kfp_compiler::Options,
    /// Seconds before a Workflow without a run is deleted.
    pub grace_seconds: i64,
    /// Which pipelines may be downloaded.
    pub urls: Policy,
    /// How Argo Workflows as pipelines are treated.
    pub rules: Rules,
    /// Limits of what plugins are given.
    pub plugins: Limits,
}

impl Settings {
    /// The installation's part in Workflows.
    #[must_use]
    pub fn template(&self) -> template::Settings<'_> {
        template::Settings { compiler: &self.compiler, rules: &self.rules }
    }
}

/// When a file was last written, and how long it is.
type Stamp = (SystemTime, u64);

#[derive(Debug)]
struct Current {
    settings: Arc<Settings>,
    changed: Option<Stamp>,
    looked: Instant,
}

/// The settings of now.
#[derive(Debug)]
pub struct Live {
    /// Directory with the file; `None` when there is no file.
    directory: Option<PathBuf>,
    current: RwLock<Current>,
}

impl Live {
    /// Begins with `settings`, and follows `config.json` in `directory`.
    #[must_use]
    pub fn new(settings: Settings, directory: Option<PathBuf>) -> Self {
        let live = Current { settings: Arc::new(settings), changed: None, looked: Instant::now() };
        let live = Live { directory, current: RwLock::new(live) };
        // What is read at start is not read again.
        let changed = live.changed();
        live.current.write().unwrap_or_else(PoisonError::into_inner).changed = changed;
        live
    }

    /// What tells that the file is another one; Kubernetes swaps links, which shows here too.
    fn changed(&self) -> Option<Stamp> {
        let meta = std::fs::metadata(self.directory.as_ref()?.join("config.json")).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    }

    fn read(&self, tls: bool) -> Result<Settings, String> {
        let directory = self.directory.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let config = Config::load(&directory).map_err(|error| error.to_string())?;
        let options = Options::from_config(&config).map_err(|error| error.to_string())?;
        let Options { mut compiler, grace_seconds, urls, rules, plugins, .. } = options;
        // Said by a flag.
        compiler.ml_pipeline_tls = tls;
        Ok(Settings { compiler, grace_seconds, urls, rules, plugins })
    }

    /// The settings of now. A file that cannot be used leaves them as they are.
    #[must_use]
    pub fn get(&self) -> Arc<Settings> {
        {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            if self.directory.is_none() || current.looked.elapsed() < FRESH {
                return current.settings.clone();
            }
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.looked = Instant::now();
        let changed = self.changed();
        if changed != current.changed {
            current.changed = changed;
            match self.read(current.settings.compiler.ml_pipeline_tls) {
                Ok(settings) => {
                    tracing::info!("the changed config.json is in use");
                    current.settings = Arc::new(settings);
                }
                // Perhaps only half of it is written; the next change tells.
                Err(error) => tracing::warn!(error, "the changed config.json cannot be used; the old settings stay"),
            }
        }
        current.settings.clone()
    }
}
