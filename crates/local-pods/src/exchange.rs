//! What a pod exchanges with its workflow: script and artifacts in, parameters, result, artifacts and logs out.

use std::path::PathBuf;
use std::sync::Arc;

use kfp_core::argo::Template;

use crate::artifacts;
use crate::outputs::{self, Outputs};
use crate::pod::{Early, Life, Stop};
use crate::spec::MAIN;
use crate::status::Phase;

impl Life {
    /// The pod fails because of what a container of Argo would have done, not because of its own.
    pub(crate) fn trouble(&mut self, message: String) {
        self.fail(message.clone());
        self.trouble = Some(message);
    }

    /// Directory of artifacts on their way in and out.
    fn staging(&self) -> PathBuf {
        self.kubelet.dirs.pod(&self.pod.metadata.uid).join("artifacts")
    }

    /// Brings in script and artifacts.
    pub(crate) async fn bring(&mut self) -> Result<Result<(), String>, Early> {
        self.contract = match artifacts::contract(&self.pod) {
            Ok(contract) => contract.map(Arc::new),
            Err(message) => return Ok(Err(message)),
        };
        let Some(contract) = &self.contract else { return Ok(Ok(())) };
        let (dir, mut wish) = (self.staging(), self.wish.clone());
        let brought = tokio::select! {
            brought = artifacts::bring(contract, &self.kubelet.objects, &dir) => brought,
            ended = wish.wait_for(|wish| wish.stop.is_some()) => {
                let stop = ended.ok().and_then(|wish| wish.stop);
                return Err(Early::Stop(stop.unwrap_or(Stop::Shutdown)));
            }
        };
        Ok(brought.map(|mounts| self.artifacts = mounts))
    }

    /// Collects parameters, result and artifacts, as JSON for the engine.
    pub(crate) async fn outputs(&mut self, code: Option<i32>) -> Option<String> {
        let contract = self.contract.take()?;
        let mut found = Outputs { exit_code: code, ..Outputs::default() };
        if let Some(paths) = self.paths.clone() {
            let (declared, read, result) = (contract.clone(), paths.clone(), self.result.clone());
            let collected = tokio::task::spawn_blocking(move || {
                (outputs::parameters(&declared, &read), result.and_then(|file| std::fs::read(file).ok()))
            });
            let (parameters, result) = collected.await.unwrap_or_else(|e| (Err(e.to_string()), None));
            let mut errors = Vec::new();
            match parameters {
                Ok(parameters) => found.parameters = [parameters, std::mem::take(&mut self.parameters)].concat(),
                Err(message) => errors.push(message),
            }
            found.result = result.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let logs = self.archived_logs(&contract).await;
            let (kept, ended) = artifacts::keep(&contract, &self.kubelet.objects, &paths, &self.staging(), logs).await;
            found.artifacts = kept;
            errors.extend(ended.err());
            // What the container itself did wrong counts more than what is missing because of it.
            if self.report.phase == Phase::Succeeded && !errors.is_empty() {
                self.trouble(format!("wait: Error (exit code 64): {}", errors.join("; ")));
            }
        } else {
            found.parameters = std::mem::take(&mut self.parameters);
        }
        found.message.clone_from(&self.trouble);
        Some(found.json())
    }

    /// The main container's log as plain text, if the engine wants it kept.
    async fn archived_logs(&self, contract: &Template) -> Vec<(String, PathBuf)> {
        if contract.extra.get("archiveLocation").is_none_or(|location| location["archiveLogs"] != true) {
            return Vec::new();
        }
        let (meta, dir, to) = (self.pod.metadata.clone(), self.kubelet.dirs.data.clone(), self.staging());
        let written = tokio::task::spawn_blocking(move || {
            let text = match crate::logs::plain_text(&dir, &meta.namespace, &meta.name, MAIN) {
                // It said nothing.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
                text => text?,
            };
            std::fs::create_dir_all(&to)?;
            let file = to.join(format!("{MAIN}.log"));
            std::fs::write(&file, text).map(|()| file)
        });
        match written.await.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
            Ok(file) => vec![(format!("{MAIN}-logs"), file)],
            Err(error) => {
                tracing::warn!(pod = %self.pod.metadata.name, %error, "cannot archive a log");
                Vec::new()
            }
        }
    }
}
