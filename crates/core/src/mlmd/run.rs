//! The two contexts that everything of a run belongs to: its pipeline and the run itself.

use kfp_proto::ml_metadata as pb;
use kfp_proto::ml_metadata::value::Value as Kind;

use super::{Client, Error, names, rpc, text};

/// What the root driver records on a run's context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunProperties {
    /// Kubernetes namespace of the run.
    pub namespace: String,
    /// Where the run's artifacts go.
    pub pipeline_root: String,
    /// JSON text that says how to open the bucket.
    pub store_session_info: String,
}

/// Contexts of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// `system.Pipeline`.
    pub pipeline: pb::Context,
    /// `system.PipelineRun`.
    pub run: pb::Context,
}

impl Run {
    fn property(&self, name: &str) -> &str {
        match self.run.custom_properties.get(name).and_then(|v| v.value.as_ref()) {
            Some(Kind::StringValue(value)) => value,
            _ => "",
        }
    }

    /// Where the run's artifacts go; empty if never recorded.
    #[must_use]
    pub fn pipeline_root(&self) -> &str {
        self.property(names::PIPELINE_ROOT)
    }

    /// JSON text that says how to open the bucket; empty if never recorded.
    #[must_use]
    pub fn store_session_info(&self) -> &str {
        self.property(names::STORE_SESSION_INFO)
    }

    /// Kubernetes namespace of the run; empty if never recorded.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.property(names::NAMESPACE)
    }

    /// Id of the run's context.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.run.id()
    }

    pub(super) fn contexts(&self) -> Vec<pb::Context> {
        vec![self.pipeline.clone(), self.run.clone()]
    }
}

impl Client {
    /// The contexts of a run, created if they do not exist. `properties` are recorded only when the run's context is
    /// created (the root driver knows them; callers that come later pass the default).
    ///
    /// # Errors
    /// When the store fails or the run already belongs to another pipeline.
    pub async fn ensure_run(&self, pipeline: &str, run_id: &str, properties: &RunProperties) -> Result<Run, Error> {
        let pipeline = self.ensure_context(names::PIPELINE, pipeline, &[]).await?;
        let recorded = [
            (names::NAMESPACE, properties.namespace.as_str()),
            (names::RESOURCE_NAME, names::RUN_RESOURCE),
            (names::PIPELINE_ROOT, &properties.pipeline_root),
            (names::STORE_SESSION_INFO, &properties.store_session_info),
        ];
        let run = self.ensure_context(names::PIPELINE_RUN, run_id, &recorded).await?;
        self.ensure_parent(&pipeline, &run).await?;
        Ok(Run { pipeline, run })
    }

    /// The contexts of a run that the root driver has recorded; if it has not, they are created without properties.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn run(&self, pipeline: &str, run_id: &str) -> Result<Run, Error> {
        let found =
            tokio::try_join!(self.context(names::PIPELINE, pipeline), self.context(names::PIPELINE_RUN, run_id))?;
        match found {
            (Some(pipeline), Some(run)) => Ok(Run { pipeline, run }),
            _ => self.ensure_run(pipeline, run_id, &RunProperties::default()).await,
        }
    }

    async fn ensure_context(&self, kind: &str, name: &str, properties: &[(&str, &str)]) -> Result<pb::Context, Error> {
        if let Some(found) = self.context(kind, name).await? {
            return Ok(found);
        }
        let type_id = self.context_type(kind).await?;
        let custom_properties = properties.iter().map(|(key, value)| ((*key).to_owned(), text(*value))).collect();
        let context = pb::Context {
            type_id: Some(type_id),
            name: Some(name.to_owned()),
            custom_properties,
            ..pb::Context::default()
        };
        let request = pb::PutContextsRequest { contexts: vec![context], ..Default::default() };
        match rpc!(self, put_contexts, request).await {
            // Somebody else was faster, which is just as well.
            Err(error) if error.is_already_exists() => {}
            other => drop(other?),
        }
        self.context(kind, name).await?.ok_or_else(|| Error::NotFound(format!("context {kind} {name:?}")))
    }

    async fn context(&self, kind: &str, name: &str) -> Result<Option<pb::Context>, Error> {
        let request = pb::GetContextByTypeAndNameRequest {
            type_name: Some(kind.to_owned()),
            context_name: Some(name.to_owned()),
            ..Default::default()
        };
        Ok(rpc!(self, get_context_by_type_and_name, request).await?.context)
    }

    async fn context_type(&self, name: &str) -> Result<i64, Error> {
        let kind = pb::ContextType { name: Some(name.to_owned()), ..Default::default() };
        let request = pb::PutContextTypeRequest { context_type: Some(kind), ..Default::default() };
        Ok(rpc!(self, put_context_type, request).await?.type_id())
    }

    async fn ensure_parent(&self, pipeline: &pb::Context, run: &pb::Context) -> Result<(), Error> {
        let get = pb::GetParentContextsByContextRequest { context_id: run.id, ..Default::default() };
        let parents = rpc!(self, get_parent_contexts_by_context, get).await?.contexts;
        match parents.as_slice() {
            [] => {}
            [parent] if parent.id == pipeline.id => return Ok(()),
            _ => {
                return Err(Error::Invalid(format!(
                    "run {:?} already belongs to another pipeline than {:?}",
                    run.name(),
                    pipeline.name()
                )));
            }
        }
        let link = pb::ParentContext { child_id: run.id, parent_id: pipeline.id, ..Default::default() };
        let put = pb::PutParentContextsRequest { parent_contexts: vec![link], ..Default::default() };
        match rpc!(self, put_parent_contexts, put).await {
            Err(error) if error.is_already_exists() => Ok(()),
            other => other.map(drop),
        }
    }
}
