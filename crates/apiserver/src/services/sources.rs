//! Where runs and recurring runs take their pipeline from, and the experiment that they belong to.

use serde_json::Value;

use super::Handle;
use super::experiments::ensure_default;
use crate::error::{Error, Result, Wrap as _};
use crate::store::specs::Specs;
use crate::store::{Tx, experiments, jobs, versions};
use crate::workflows::template::Template;

/// What a request says about its pipeline; the first that is set counts.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// A version.
    pub version_id: String,
    /// A pipeline, for its newest version.
    pub pipeline_id: String,
    /// A spec in the request itself.
    pub inline: Option<Inline>,
}

/// A spec in a request.
#[derive(Clone, Debug)]
pub enum Inline {
    /// As an object; stored in canonical form.
    Json(Value),
    /// As text; stored as it is.
    Text(String),
}

/// A pipeline that was found.
#[derive(Debug)]
pub struct Source {
    /// The package.
    pub template: Template,
    /// Its text in the column where it belongs.
    pub specs: Specs,
    /// Pipeline, version and version name; empty for inline specs.
    pub pipeline_id: String,
    /// See `pipeline_id`.
    pub version_id: String,
    /// See `pipeline_id`.
    pub name: String,
}

/// Upstream's word for a request without any spec.
fn missing() -> Error {
    Error::invalid("Failed to fetch a template with an empty pipeline spec manifest")
}

impl Origin {
    /// Only a version.
    #[must_use]
    pub fn version(id: &str) -> Self {
        Origin { version_id: id.to_owned(), ..Origin::default() }
    }

    /// Whether it names one spec for good, rather than whatever is newest.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        !self.version_id.is_empty() || (self.pipeline_id.is_empty() && self.inline.is_some())
    }

    /// True when nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.version_id.is_empty() && self.pipeline_id.is_empty() && self.inline.is_none()
    }

    /// Loads the package.
    ///
    /// # Errors
    /// Code 5 for what does not exist, 3 for what cannot be read.
    pub async fn resolve(&self, tx: &mut Tx) -> Result<Source> {
        if self.version_id.is_empty() && self.pipeline_id.is_empty() {
            return self.inline.as_ref().ok_or_else(missing)?.read();
        }
        let version = if self.version_id.is_empty() {
            versions::latest(tx, &self.pipeline_id).await?
        } else {
            versions::get(tx, &self.version_id).await?
        };
        if !self.pipeline_id.is_empty() && version.pipeline_id != self.pipeline_id {
            return Err(Error::invalid(format!(
                "Pipeline version {} belongs to pipeline {} (not {})",
                version.id, version.pipeline_id, self.pipeline_id
            )));
        }
        let template = Template::from_text(version.spec.as_bytes())?;
        Ok(Source {
            specs: template.specs(version.spec),
            template,
            pipeline_id: version.pipeline_id,
            version_id: version.id,
            name: version.name,
        })
    }
}

impl Inline {
    fn read(&self) -> Result<Source> {
        let (template, text) = match self {
            Inline::Json(value) => {
                let template = Template::from_json(value.clone())?;
                let text = template.text();
                (template, text)
            }
            Inline::Text(text) => (Template::from_text(text.as_bytes())?, text.clone()),
        };
        let specs = template.specs(text);
        Ok(Source { template, specs, pipeline_id: String::new(), version_id: String::new(), name: String::new() })
    }
}

/// The package that a recurring run pins.
///
/// # Errors
/// Code 3 when it pins none.
pub async fn pinned(tx: &mut Tx, job: &jobs::Job) -> Result<Source> {
    let specs = jobs::specs(tx, &job.id).await?;
    let text = if specs.pipeline.is_empty() { &specs.workflow } else { &specs.pipeline };
    if text.is_empty() {
        return Err(missing());
    }
    Ok(Source {
        template: Template::from_text(text.as_bytes())?,
        specs,
        pipeline_id: job.pipeline_id.clone(),
        version_id: job.version_id.clone(),
        name: job.pipeline_name.clone(),
    })
}

/// The experiment that a run belongs to, and the namespace that the run then has as requests and rows write it: the given
/// experiment, which must exist, else the default one.
///
/// # Errors
/// Code 5 when there is no such experiment, 3 when it is in another namespace than the request says, or when none is
/// given where each namespace has its own.
pub async fn experiment(app: &Handle, given: &str, namespace: &str) -> Result<(String, String)> {
    let multi_user = app.access.multi_user;
    if multi_user && given.is_empty() {
        return Err(Error::invalid("Experiment id can not be empty in multi-user mode"));
    }
    let mut tx = app.db.read().await?;
    if !given.is_empty() {
        let found = experiments::get(&mut tx, given).await?;
        // Experiments of single-user mode have no namespace; the installation's own one means the same.
        let own = !multi_user && namespace == app.namespace;
        if !namespace.is_empty() && namespace != found.namespace && !own {
            return Err(Error::invalid(format!(
                "Experiment {given} belongs to namespace '{}' instead of '{namespace}'",
                found.namespace
            )));
        }
        let namespace = if multi_user { found.namespace } else { namespace.to_owned() };
        return Ok((found.id, namespace));
    }
    let known = experiments::default_id(&mut tx).await?;
    drop(tx);
    if !known.is_empty() {
        return Ok((known, namespace.to_owned()));
    }
    let mut tx = app.db.write().await?;
    let id = ensure_default(&mut tx).await.wrap(|| "Failed to create the default experiment".to_owned())?;
    tx.commit().await?;
    Ok((id, namespace.to_owned()))
}
