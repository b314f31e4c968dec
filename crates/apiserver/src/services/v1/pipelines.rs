//! `api.PipelineService`.

use std::collections::BTreeMap;

use api::pipeline_service_server::PipelineService;
use api::{Relationship, ResourceType};
use kfp_proto::api;

use super::{paging, referenced, references, scope, shown_parameters};
use crate::domain::state::timestamp;
use crate::error::{Error, Result, Wrap as _};
use crate::services::pipelines::{Draft, Service};
use crate::services::{Answer, answer, required};
use crate::store::{list, pipelines, versions};

fn url(text: &str) -> Option<api::Url> {
    (!text.is_empty()).then(|| api::Url { pipeline_url: text.to_owned() })
}

/// As shown by the API.
#[must_use]
pub fn shown_version(row: versions::Version) -> api::PipelineVersion {
    api::PipelineVersion {
        // Damaged parameters hide neither the version nor the list that it is in.
        parameters: shown_parameters(&row.parameters).unwrap_or_default(),
        package_url: url(&row.code_source_url),
        resource_references: references(&[(ResourceType::Pipeline, &row.pipeline_id, Relationship::Owner)]),
        id: row.id,
        name: row.name,
        created_at: Some(timestamp(row.created_at)),
        code_source_url: row.code_source_url,
        description: row.description,
    }
}

/// As shown by the API, with its newest version.
#[must_use]
pub fn shown(row: pipelines::Pipeline, version: versions::Version) -> api::Pipeline {
    let error = shown_parameters(&version.parameters).err().map(|error| error.to_string()).unwrap_or_default();
    let version = shown_version(version);
    api::Pipeline {
        resource_references: references(&[(ResourceType::Namespace, &row.namespace, Relationship::Owner)]),
        id: row.id,
        created_at: Some(timestamp(row.created_at)),
        name: row.name,
        description: row.description,
        parameters: version.parameters.clone(),
        error,
        url: version.package_url.clone(),
        default_version: Some(version),
    }
}

/// A pipeline without versions.
fn bare(row: pipelines::Pipeline) -> api::Pipeline {
    let references = references(&[(ResourceType::Namespace, &row.namespace, Relationship::Owner)]);
    api::Pipeline {
        id: row.id,
        created_at: Some(timestamp(row.created_at)),
        name: row.name,
        description: row.description,
        resource_references: references,
        ..api::Pipeline::default()
    }
}

impl Service {
    async fn create_v1(&self, request: api::CreatePipelineRequest) -> Result<api::Pipeline> {
        let given = required(request.pipeline, "pipeline")?;
        let draft = Draft {
            namespace: referenced(&given.resource_references, ResourceType::Namespace, None),
            name: given.name,
            description: given.description,
            package_url: given.url.map(|url| url.pipeline_url).unwrap_or_default(),
            ..Draft::default()
        };
        let (pipeline, version) = self.create_from_url(draft, BTreeMap::new()).await?;
        Ok(shown(pipeline, version))
    }

    async fn get_v1(&self, id: &str) -> Result<api::Pipeline> {
        let mut tx = self.0.db.read().await?;
        let pipeline = pipelines::get(&mut tx, id).await?;
        Ok(shown(pipeline, versions::latest(&mut tx, id).await?))
    }

    async fn by_name_v1(&self, request: api::GetPipelineByNameRequest) -> Result<api::Pipeline> {
        let namespace = self.0.access.stored_namespace(&request.namespace);
        let mut tx = self.0.db.read().await?;
        let pipeline = pipelines::by_name(&mut tx, &request.name, self.0.wanted(&namespace)).await?;
        let version = versions::latest(&mut tx, &pipeline.id).await?;
        Ok(shown(pipeline, version))
    }

    async fn list_v1(&self, request: api::ListPipelinesRequest) -> Result<api::ListPipelinesResponse> {
        let namespace = match scope(request.resource_reference_key.as_ref())? {
            None => "",
            Some((ResourceType::Namespace, id)) => id,
            Some((kind, _)) => {
                return Err(Error::invalid(format!(
                    "Failed to list pipelines (v1beta1) due to invalid resource references for pipelines: {}",
                    kind.as_str_name()
                )));
            }
        };
        let paging = paging(&request.page_token, request.page_size, &request.sort_by, &request.filter);
        let options = list::Options::parse(paging, &pipelines::LISTABLE)?;
        let mut tx = self.0.db.read().await?;
        let page = pipelines::list(&mut tx, &self.0.access.stored_namespace(namespace), &options).await?;
        let ids: Vec<String> = page.items.iter().map(|pipeline| pipeline.id.clone()).collect();
        let mut newest = versions::latest_of(&mut tx, &ids).await?;
        let shown = page.items.into_iter().map(|pipeline| match newest.remove(&pipeline.id) {
            Some(version) => shown(pipeline, version),
            None => bare(pipeline),
        });
        Ok(api::ListPipelinesResponse {
            pipelines: shown.collect(),
            total_size: page.total,
            next_page_token: page.next,
        })
    }

    async fn template(&self, pipeline_id: &str) -> Result<api::GetTemplateResponse> {
        let mut tx = self.0.db.read().await?;
        pipelines::get(&mut tx, pipeline_id).await?;
        Ok(api::GetTemplateResponse { template: versions::latest(&mut tx, pipeline_id).await?.spec })
    }

    async fn create_version_v1(&self, request: api::CreatePipelineVersionRequest) -> Result<api::PipelineVersion> {
        let given = required(request.version, "version")?;
        let package_url = given.package_url.map(|url| url.pipeline_url).unwrap_or_default();
        if package_url.is_empty() {
            return Err(Error::invalid(
                "Failed to convert v1beta1 API pipeline version to its internal representation due to missing pipeline URL",
            ));
        }
        let parent = referenced(&given.resource_references, ResourceType::Pipeline, Some(Relationship::Owner));
        let draft = Draft {
            name: given.name,
            description: given.description,
            code_source_url: given.code_source_url,
            package_url,
            ..Draft::default()
        };
        Ok(shown_version(self.create_version_from_url(&parent, &draft).await?))
    }

    async fn get_version_v1(&self, id: &str) -> Result<versions::Version> {
        let mut tx = self.0.db.read().await?;
        versions::get(&mut tx, id).await
    }

    async fn list_versions_v1(
        &self,
        request: api::ListPipelineVersionsRequest,
    ) -> Result<api::ListPipelineVersionsResponse> {
        let parent = request
            .resource_key
            .map(|key| key.id)
            .ok_or_else(|| Error::invalid("Failed to list pipeline versions (v1beta1) due to missing pipeline id"))?;
        let paging = paging(&request.page_token, request.page_size, &request.sort_by, &request.filter);
        let options = list::Options::parse(paging, &versions::LISTABLE)?;
        let mut tx = self.0.db.read().await?;
        let page = Self::version_page(&mut tx, &parent, &options).await?;
        Ok(api::ListPipelineVersionsResponse {
            versions: page.items.into_iter().map(shown_version).collect(),
            next_page_token: page.next,
            total_size: page.total,
        })
    }

    async fn set_default_version(&self, request: &api::UpdatePipelineDefaultVersionRequest) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        versions::get(&mut tx, &request.version_id).await?;
        pipelines::set_default(&mut tx, &request.pipeline_id, &request.version_id).await?;
        tx.commit().await
    }
}

#[tonic::async_trait]
impl PipelineService for Service {
    async fn create_pipeline_v1(&self, request: tonic::Request<api::CreatePipelineRequest>) -> Answer<api::Pipeline> {
        answer(self.create_v1(request.into_inner()).await.wrap(|| "Failed to create a pipeline (v1beta1)".to_owned()))
    }

    async fn get_pipeline_v1(&self, request: tonic::Request<api::GetPipelineRequest>) -> Answer<api::Pipeline> {
        let id = &request.get_ref().id;
        answer(self.get_v1(id).await.wrap(|| format!("Failed to get a pipeline (v1beta1) {id}")))
    }

    async fn get_pipeline_by_name_v1(
        &self,
        request: tonic::Request<api::GetPipelineByNameRequest>,
    ) -> Answer<api::Pipeline> {
        let found = self.by_name_v1(request.into_inner()).await;
        answer(found.wrap(|| "Failed to get a pipeline (v1beta1) by name".to_owned()))
    }

    async fn list_pipelines_v1(
        &self,
        request: tonic::Request<api::ListPipelinesRequest>,
    ) -> Answer<api::ListPipelinesResponse> {
        answer(self.list_v1(request.into_inner()).await.wrap(|| "Failed to list pipelines (v1beta1)".to_owned()))
    }

    async fn delete_pipeline_v1(&self, request: tonic::Request<api::DeletePipelineRequest>) -> Answer<()> {
        let done = self.delete(&request.get_ref().id, false).await;
        answer(done.wrap(|| "Failed to delete a pipeline (v1beta1)".to_owned()))
    }

    async fn get_template(&self, request: tonic::Request<api::GetTemplateRequest>) -> Answer<api::GetTemplateResponse> {
        let id = &request.get_ref().id;
        answer(self.template(id).await.wrap(|| format!("Failed to get a pipeline template (v1beta1) of pipeline {id}")))
    }

    async fn create_pipeline_version_v1(
        &self,
        request: tonic::Request<api::CreatePipelineVersionRequest>,
    ) -> Answer<api::PipelineVersion> {
        let done = self.create_version_v1(request.into_inner()).await;
        answer(done.wrap(|| "Failed to create a pipeline version (v1beta1)".to_owned()))
    }

    async fn get_pipeline_version_v1(
        &self,
        request: tonic::Request<api::GetPipelineVersionRequest>,
    ) -> Answer<api::PipelineVersion> {
        let found = self.get_version_v1(&request.get_ref().version_id).await.map(shown_version);
        answer(found.wrap(|| "Failed to get a pipeline version (v1beta1)".to_owned()))
    }

    async fn list_pipeline_versions_v1(
        &self,
        request: tonic::Request<api::ListPipelineVersionsRequest>,
    ) -> Answer<api::ListPipelineVersionsResponse> {
        let found = self.list_versions_v1(request.into_inner()).await;
        answer(found.wrap(|| "Failed to list pipeline versions (v1beta1)".to_owned()))
    }

    async fn delete_pipeline_version_v1(
        &self,
        request: tonic::Request<api::DeletePipelineVersionRequest>,
    ) -> Answer<()> {
        let done = self.delete_version(&request.get_ref().version_id).await;
        answer(done.wrap(|| "Failed to delete a pipeline version (v1beta1)".to_owned()))
    }

    async fn get_pipeline_version_template(
        &self,
        request: tonic::Request<api::GetPipelineVersionTemplateRequest>,
    ) -> Answer<api::GetTemplateResponse> {
        let found = self.get_version_v1(&request.get_ref().version_id).await;
        let template = found.map(|version| api::GetTemplateResponse { template: version.spec });
        answer(template.wrap(|| "Failed to get a pipeline version template (v1beta1)".to_owned()))
    }

    async fn update_pipeline_default_version_v1(
        &self,
        request: tonic::Request<api::UpdatePipelineDefaultVersionRequest>,
    ) -> Answer<()> {
        let done = self.set_default_version(request.get_ref()).await;
        answer(done.wrap(|| "Failed to update a pipeline's default version (v1beta1)".to_owned()))
    }
}
