//! `PipelineService` of v2beta1, and the creation that v1beta1 and uploads share with it.

use std::collections::BTreeMap;

use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use v2::pipeline_service_server::PipelineService;

use super::{Answer, Handle, answer, new_id, paging, required, shown_spec};
use crate::domain::names;
use crate::domain::state::timestamp;
use crate::error::{Error, Result, Wrap as _};
use crate::store::specs::Specs;
use crate::store::{list, now, pipelines, versions};
use crate::workflows::fetch;
use crate::workflows::template::Template;

/// Serves pipelines and their versions.
#[derive(Clone, Debug)]
pub struct Service(pub Handle);

/// Metadata key that tells an update without tags to remove them all; REST sends it for a literal `"tags": {}`.
const CLEAR_TAGS: &str = "x-clear-tags";

/// What a caller chose for a new pipeline or version.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Resource name; empty takes the display name.
    pub name: String,
    /// Display name; empty takes the name.
    pub display_name: String,
    /// Free text.
    pub description: String,
    /// Ignored in single-user mode.
    pub namespace: String,
    /// Labels.
    pub tags: BTreeMap<String, String>,
    /// Where the source of the version lives.
    pub code_source_url: String,
    /// Where the package came from.
    pub package_url: String,
}

/// As shown by the API.
#[must_use]
pub fn shown(row: pipelines::Pipeline) -> v2::Pipeline {
    v2::Pipeline {
        pipeline_id: row.id,
        display_name: row.display_name,
        description: row.description,
        created_at: Some(timestamp(row.created_at)),
        namespace: row.namespace,
        error: None,
        name: row.name,
        tags: row.tags,
    }
}

/// As shown by the API; a spec that cannot be read any more leaves ids and the error.
#[must_use]
pub fn shown_version(row: versions::Version) -> v2::PipelineVersion {
    let pipeline_spec = match shown_spec(Some(&Specs { pipeline: row.spec, ..Specs::default() })) {
        Ok(spec) => spec,
        Err(error) => {
            return v2::PipelineVersion {
                pipeline_id: row.pipeline_id,
                pipeline_version_id: row.id,
                error: Some(error.to_rpc()),
                ..v2::PipelineVersion::default()
            };
        }
    };
    v2::PipelineVersion {
        pipeline_id: row.pipeline_id,
        pipeline_version_id: row.id,
        display_name: row.display_name,
        description: row.description,
        created_at: Some(timestamp(row.created_at)),
        package_url: (!row.spec_uri.is_empty()).then_some(v2::Url { pipeline_url: row.spec_uri }),
        pipeline_spec,
        error: None,
        code_source_url: row.code_source_url,
        name: row.name,
        tags: row.tags,
    }
}

fn no_version() -> Error {
    Error::invalid("Failed to create a pipeline version. Pipeline version is nil")
}

fn no_url() -> Error {
    Error::invalid("Failed to create a pipeline version. Package URL is nil")
}

fn url_of(draft: &Draft) -> Result<&str> {
    if draft.package_url.is_empty() {
        return Err(Error::invalid("Failed to create a pipeline version. Package URL is empty"));
    }
    Ok(&draft.package_url)
}

impl Service {
    fn version(draft: &Draft, pipeline_id: String, package: &Template) -> Result<versions::Version> {
        let (name, display_name) = names::pair(&draft.name, &draft.display_name)?;
        names::length("PipelineVersion.Name", &name, 127)?;
        names::length("PipelineVersion.DisplayName", &display_name, names::SHORT)?;
        names::length("PipelineVersion.CodeSourceUrl", &draft.code_source_url, names::SHORT)?;
        names::tags(&draft.tags)?;
        Ok(versions::Version {
            id: new_id(),
            created_at: now(),
            name,
            display_name,
            pipeline_id,
            code_source_url: draft.code_source_url.clone(),
            description: draft.description.clone(),
            spec_uri: draft.package_url.clone(),
            parameters: package.parameters(),
            spec: package.text(),
            tags: draft.tags.clone(),
        })
    }

    fn pipeline(&self, draft: &Draft) -> Result<pipelines::Pipeline> {
        let (name, display_name) = names::pair(&draft.name, &draft.display_name)?;
        names::length("Pipeline.Name", &name, 128)?;
        names::length("Pipeline.DisplayName", &display_name, names::SHORT)?;
        names::length("Pipeline.Namespace", &draft.namespace, 63)?;
        names::tags(&draft.tags)?;
        Ok(pipelines::Pipeline {
            id: new_id(),
            created_at: now(),
            name,
            display_name,
            description: draft.description.clone(),
            namespace: self.0.access.stored_namespace(&draft.namespace),
            tags: draft.tags.clone(),
        })
    }

    /// Stores a pipeline and its first version, which share name, display name and description.
    ///
    /// # Errors
    /// Code 3 for bad names or tags, 6 when the name is taken.
    pub async fn create_both(
        &self,
        draft: &Draft,
        version_tags: BTreeMap<String, String>,
        package: &Template,
    ) -> Result<(pipelines::Pipeline, versions::Version)> {
        let pipeline = self.pipeline(draft)?;
        package.check_storable(self.namespace(&pipeline), &self.0.live.get().rules)?;
        let version = Draft { tags: version_tags, ..draft.clone() };
        let version = Self::version(&version, pipeline.id.clone(), package)?;
        self.0.catalog.create_both(pipeline, version).await
    }

    /// Kubernetes namespace that stands for a pipeline's.
    fn namespace<'a>(&'a self, pipeline: &'a pipelines::Pipeline) -> &'a str {
        if pipeline.namespace.is_empty() { &self.0.namespace } else { &pipeline.namespace }
    }

    /// Stores another version of a pipeline.
    ///
    /// # Errors
    /// Code 3 for bad names or tags, 5 when there is no such pipeline, 6 when the name is taken.
    pub async fn create_version(
        &self,
        pipeline_id: &str,
        draft: &Draft,
        package: &Template,
    ) -> Result<versions::Version> {
        let version = Self::version(draft, pipeline_id.to_owned(), package)?;
        let pipeline = self.0.catalog.get(pipeline_id).await?;
        package.check_storable(self.namespace(&pipeline), &self.0.live.get().rules)?;
        self.0.catalog.create_version(&pipeline, version).await
    }

    /// Stores a pipeline without a version.
    ///
    /// # Errors
    /// Code 3 for bad names or tags, 6 when the name is taken.
    pub async fn create(&self, draft: &Draft) -> Result<pipelines::Pipeline> {
        self.0.catalog.create(self.pipeline(draft)?).await
    }

    async fn create_v2(&self, request: v2::CreatePipelineRequest) -> Result<v2::Pipeline> {
        let given = required(request.pipeline, "pipeline")?;
        let draft = Draft {
            name: given.name,
            display_name: given.display_name,
            description: given.description,
            namespace: given.namespace,
            tags: given.tags,
            ..Draft::default()
        };
        Ok(shown(self.create(&draft).await?))
    }

    /// Stores a pipeline and its first version from the package at `draft.package_url`, whose file name is the name when
    /// there is no other.
    ///
    /// # Errors
    /// As [`Service::create_both`]; code 3 for URLs that are refused, 13 when the download fails.
    pub async fn create_from_url(
        &self,
        mut draft: Draft,
        version_tags: BTreeMap<String, String>,
    ) -> Result<(pipelines::Pipeline, versions::Version)> {
        let refused =
            |url: &str, status: &str| format!("error fetching pipeline spec from {url} - request returned {status}");
        let (bytes, file) = fetch::fetch(&self.0.live.get().urls, url_of(&draft)?, refused).await?;
        let package = Template::from_file(&bytes, &file)?;
        if draft.name.is_empty() && draft.display_name.is_empty() {
            draft.name = file;
        }
        self.create_both(&draft, version_tags, &package).await
    }

    /// Stores another version of a pipeline from the package at `draft.package_url`.
    ///
    /// # Errors
    /// As [`Service::create_version`]; code 3 for URLs that are refused, 13 when the download fails.
    pub async fn create_version_from_url(&self, pipeline_id: &str, draft: &Draft) -> Result<versions::Version> {
        let url = url_of(draft)?;
        if pipeline_id.is_empty() {
            return Err(Error::invalid("Failed to create a pipeline version. Parent pipeline id is empty"));
        }
        let refused = |url: &str, status: &str| {
            format!("Failed to fetch pipeline spec with url: {url}. Request returned {status}")
        };
        let (bytes, file) = fetch::fetch(&self.0.live.get().urls, url, refused).await?;
        let package = Template::from_file(&bytes, &file)?;
        self.create_version(pipeline_id, draft, &package).await
    }

    async fn create_and_version(&self, request: v2::CreatePipelineAndVersionRequest) -> Result<v2::Pipeline> {
        let given = required(request.pipeline, "pipeline")?;
        let version = request.pipeline_version.ok_or_else(no_version)?;
        let draft = Draft {
            name: given.name,
            display_name: given.display_name,
            description: given.description,
            namespace: given.namespace,
            tags: given.tags,
            code_source_url: version.code_source_url,
            package_url: version.package_url.ok_or_else(no_url)?.pipeline_url,
        };
        Ok(shown(self.create_from_url(draft, version.tags).await?.0))
    }

    async fn create_another(&self, request: v2::CreatePipelineVersionRequest) -> Result<v2::PipelineVersion> {
        let given = request.pipeline_version.ok_or_else(no_version)?;
        // Both have to be there; the one in the path counts.
        let parent = if given.pipeline_id.is_empty() { "" } else { request.pipeline_id.as_str() };
        let draft = Draft {
            name: given.name,
            display_name: given.display_name,
            description: given.description,
            tags: given.tags,
            code_source_url: given.code_source_url,
            package_url: given.package_url.ok_or_else(no_url)?.pipeline_url,
            ..Draft::default()
        };
        Ok(shown_version(self.create_version_from_url(parent, &draft).await?))
    }

    async fn get(&self, id: &str) -> Result<v2::Pipeline> {
        if id.is_empty() {
            return Err(Error::invalid("Failed to get a pipeline. Pipeline id cannot be empty"));
        }
        Ok(shown(self.0.catalog.get(id).await?))
    }

    async fn by_name(&self, request: v2::GetPipelineByNameRequest) -> Result<v2::Pipeline> {
        let namespace = self.0.access.stored_namespace(&request.namespace);
        Ok(shown(self.0.catalog.by_name(&request.name, self.0.wanted(&namespace)).await?))
    }

    async fn list(&self, request: v2::ListPipelinesRequest) -> Result<v2::ListPipelinesResponse> {
        let paging = paging(&request.page_token, request.page_size, &request.sort_by, &request.filter);
        let options = list::Options::parse(paging, &pipelines::LISTABLE)?;
        let namespace = self.0.access.stored_namespace(&request.namespace);
        let page = self.0.catalog.list(&namespace, &options).await?;
        Ok(v2::ListPipelinesResponse {
            pipelines: page.items.into_iter().map(shown).collect(),
            total_size: page.total,
            next_page_token: page.next,
        })
    }

    async fn update(&self, given: Option<v2::Pipeline>, clear: bool) -> Result<v2::Pipeline> {
        let given = required(given, "pipeline")?;
        names::tags(&given.tags)?;
        let tags = (clear || !given.tags.is_empty()).then_some(&given.tags);
        names::length("Pipeline.DisplayName", &given.display_name, names::SHORT)?;
        Ok(shown(self.0.catalog.update(&given.pipeline_id, &given.display_name, tags).await?))
    }

    async fn list_versions(
        &self,
        request: v2::ListPipelineVersionsRequest,
    ) -> Result<v2::ListPipelineVersionsResponse> {
        let paging = paging(&request.page_token, request.page_size, &request.sort_by, &request.filter);
        let options = list::Options::parse(paging, &versions::LISTABLE)?;
        let page = self.0.catalog.versions(&request.pipeline_id, &options, true).await?;
        Ok(v2::ListPipelineVersionsResponse {
            pipeline_versions: page.items.into_iter().map(shown_version).collect(),
            next_page_token: page.next,
            total_size: page.total,
        })
    }

    async fn update_version(&self, given: Option<v2::PipelineVersion>, clear: bool) -> Result<v2::PipelineVersion> {
        let given = required(given, "pipeline_version")?;
        if given.pipeline_id.is_empty() {
            return Err(Error::invalid("pipeline_id is required"));
        }
        names::tags(&given.tags)?;
        let tags = (clear || !given.tags.is_empty()).then_some(&given.tags);
        let id = &given.pipeline_version_id;
        names::length("PipelineVersion.DisplayName", &given.display_name, names::SHORT)?;
        Ok(shown_version(self.0.catalog.update_version(id, &given.display_name, tags).await?))
    }
}

fn clears<T>(request: &tonic::Request<T>) -> bool {
    request.metadata().get(CLEAR_TAGS).is_some_and(|value| value.as_bytes() == b"true")
}

#[tonic::async_trait]
impl PipelineService for Service {
    async fn create_pipeline(&self, request: tonic::Request<v2::CreatePipelineRequest>) -> Answer<v2::Pipeline> {
        answer(self.create_v2(request.into_inner()).await.wrap(|| "Failed to create a pipeline".to_owned()))
    }

    async fn create_pipeline_and_version(
        &self,
        request: tonic::Request<v2::CreatePipelineAndVersionRequest>,
    ) -> Answer<v2::Pipeline> {
        let done = self.create_and_version(request.into_inner()).await;
        answer(done.wrap(|| "Failed to create a pipeline and a pipeline version".to_owned()))
    }

    async fn get_pipeline(&self, request: tonic::Request<v2::GetPipelineRequest>) -> Answer<v2::Pipeline> {
        answer(self.get(&request.get_ref().pipeline_id).await.wrap(|| "Failed to get a pipeline".to_owned()))
    }

    async fn get_pipeline_by_name(
        &self,
        request: tonic::Request<v2::GetPipelineByNameRequest>,
    ) -> Answer<v2::Pipeline> {
        answer(self.by_name(request.into_inner()).await.wrap(|| "Failed to get a pipeline by name".to_owned()))
    }

    async fn list_pipelines(
        &self,
        request: tonic::Request<v2::ListPipelinesRequest>,
    ) -> Answer<v2::ListPipelinesResponse> {
        answer(self.list(request.into_inner()).await.wrap(|| "Failed to list pipelines".to_owned()))
    }

    async fn update_pipeline(&self, request: tonic::Request<v2::UpdatePipelineRequest>) -> Answer<v2::Pipeline> {
        let clear = clears(&request);
        let done = self.update(request.into_inner().pipeline, clear).await;
        answer(done.wrap(|| "Failed to update a pipeline".to_owned()))
    }

    async fn delete_pipeline(&self, request: tonic::Request<v2::DeletePipelineRequest>) -> Answer<()> {
        let request = request.into_inner();
        let done = self.0.catalog.delete(&request.pipeline_id, request.cascade).await;
        answer(done.wrap(|| "Failed to delete a pipeline".to_owned()))
    }

    async fn create_pipeline_version(
        &self,
        request: tonic::Request<v2::CreatePipelineVersionRequest>,
    ) -> Answer<v2::PipelineVersion> {
        let done = self.create_another(request.into_inner()).await;
        answer(done.wrap(|| "Failed to create a pipeline version".to_owned()))
    }

    async fn get_pipeline_version(
        &self,
        request: tonic::Request<v2::GetPipelineVersionRequest>,
    ) -> Answer<v2::PipelineVersion> {
        let done = self.0.catalog.version(&request.get_ref().pipeline_version_id).await.map(shown_version);
        answer(done.wrap(|| "Failed to get a pipeline version".to_owned()))
    }

    async fn list_pipeline_versions(
        &self,
        request: tonic::Request<v2::ListPipelineVersionsRequest>,
    ) -> Answer<v2::ListPipelineVersionsResponse> {
        let done = self.list_versions(request.into_inner()).await;
        answer(done.wrap(|| "Failed to list pipeline versions".to_owned()))
    }

    async fn update_pipeline_version(
        &self,
        request: tonic::Request<v2::UpdatePipelineVersionRequest>,
    ) -> Answer<v2::PipelineVersion> {
        let clear = clears(&request);
        let done = self.update_version(request.into_inner().pipeline_version, clear).await;
        answer(done.wrap(|| "Failed to update a pipeline version".to_owned()))
    }

    async fn delete_pipeline_version(&self, request: tonic::Request<v2::DeletePipelineVersionRequest>) -> Answer<()> {
        let done = self.0.catalog.delete_version(&request.get_ref().pipeline_version_id).await;
        answer(done.wrap(|| "Failed to delete a pipeline version".to_owned()))
    }
}
