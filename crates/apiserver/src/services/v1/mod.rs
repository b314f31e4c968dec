//! The v1beta1 services: other messages around the same resources. Conversions are here, everything else is shared with
//! v2beta1.

pub mod experiments;
pub mod jobs;
pub mod pipelines;
pub mod runs;
pub mod visualizations;

use kfp_proto::api;
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;

use super::sources::{Inline, Origin};
use super::{Answer, answer, reports};
use crate::domain::argo;
use crate::error::{Error, Result};
use crate::store::filter::Generation;
use crate::store::list;
use crate::store::specs::Specs;
use api::{
    Relationship, ResourceKey, ResourceReference, ResourceType, auth_service_server::AuthService,
    report_service_server::ReportService,
};

/// Paging fields of a v1beta1 list request.
fn paging<'a>(token: &'a str, size: i32, sort_by: &'a str, filter: &'a str) -> list::Request<'a> {
    list::Request { token, size, sort_by, filter, generation: Generation::V1 }
}

/// A reference to another resource.
fn refer(kind: ResourceType, id: &str, relationship: Relationship) -> ResourceReference {
    let key = ResourceKey { r#type: kind as i32, id: id.to_owned() };
    ResourceReference { key: Some(key), name: String::new(), relationship: relationship as i32 }
}

/// References to what has an id.
fn references(all: &[(ResourceType, &str, Relationship)]) -> Vec<ResourceReference> {
    let set = all.iter().filter(|(_, id, _)| !id.is_empty());
    set.map(|(kind, id, relationship)| refer(*kind, id, *relationship)).collect()
}

/// Id of the first reference to a resource of this kind, with this relationship if one is asked for; else empty.
pub(crate) fn referenced(
    references: &[ResourceReference],
    kind: ResourceType,
    relationship: Option<Relationship>,
) -> String {
    let fits = |reference: &&ResourceReference| {
        relationship.is_none_or(|wanted| reference.relationship() == wanted)
            && reference.key.as_ref().is_some_and(|key| key.r#type() == kind)
    };
    let found = references.iter().find(fits);
    found.and_then(|reference| reference.key.as_ref()).map(|key| key.id.clone()).unwrap_or_default()
}

/// What a list request is about; `None` for everything.
///
/// # Errors
/// Code 3 for unknown kinds of resources.
fn scope(key: Option<&ResourceKey>) -> Result<Option<(ResourceType, &str)>> {
    let Some(key) = key else { return Ok(None) };
    match key.r#type() {
        ResourceType::UnknownResourceType => Err(Error::invalid(format!(
            "Failed to convert unsupported v1beta1 API resource type {}",
            ResourceType::UnknownResourceType.as_str_name()
        ))
        .wrap("Unrecognized resource reference type")),
        kind => Ok(Some((kind, key.id.as_str()))),
    }
}

/// Where a run or job takes its pipeline from.
pub(crate) fn origin(spec: Option<&api::PipelineSpec>, references: &[ResourceReference]) -> Origin {
    let spec = spec.cloned().unwrap_or_default();
    let text = if spec.pipeline_manifest.is_empty() { spec.workflow_manifest } else { spec.pipeline_manifest };
    let pipeline_id = match spec.pipeline_id {
        id if id.is_empty() => referenced(references, ResourceType::Pipeline, None),
        id => id,
    };
    Origin {
        version_id: referenced(references, ResourceType::PipelineVersion, Some(Relationship::Creator)),
        pipeline_id,
        inline: (!text.is_empty()).then_some(Inline::Text(text)),
    }
}

/// v1 parameters as stored; empty when there are none.
fn stored_parameters(parameters: &[api::Parameter]) -> String {
    if parameters.is_empty() {
        return String::new();
    }
    let one = |parameter: &api::Parameter| argo::Parameter {
        name: parameter.name.clone(),
        value: Some(parameter.value.clone()),
        default: None,
    };
    serde_json::json!(parameters.iter().map(one).collect::<Vec<_>>()).to_string()
}

/// Stored v1 parameters for the API.
///
/// # Errors
/// Code 13 when the text is damaged.
fn shown_parameters(json: &str) -> Result<Vec<api::Parameter>> {
    let parameters = argo::stored_parameters(json)
        .ok_or_else(|| Error::internal("Failed to parse pipeline spec parameters", "they are not a list"))?;
    let one = |parameter: argo::Parameter| api::Parameter {
        name: parameter.name,
        value: parameter.value.unwrap_or_default(),
    };
    Ok(parameters.into_iter().map(one).collect())
}

/// v2 parameters and pipeline root of a request, as stored.
fn stored_config(spec: Option<&api::PipelineSpec>) -> (String, String) {
    let Some(config) = spec.and_then(|spec| spec.runtime_config.as_ref()) else { return Default::default() };
    let config =
        v2::RuntimeConfig { parameters: config.parameters.clone(), pipeline_root: config.pipeline_root.clone() };
    (super::parameters_json(Some(&config)), config.pipeline_root)
}

/// The pipeline of a run or job for the API: v1 parameters win over the runtime config.
///
/// # Errors
/// Code 13 when stored parameters are damaged.
fn shown_pipeline(
    (id, name): (&str, &str),
    specs: &Specs,
    (v1, runtime, root): (&str, &str, &str),
) -> Result<api::PipelineSpec> {
    let parameters = shown_parameters(v1)?;
    let config = if parameters.is_empty() { super::runtime_config(runtime, "", root) } else { None };
    Ok(api::PipelineSpec {
        pipeline_id: id.to_owned(),
        pipeline_name: name.to_owned(),
        workflow_manifest: specs.workflow.clone(),
        pipeline_manifest: specs.pipeline.clone(),
        parameters,
        runtime_config: config.map(|config| api::pipeline_spec::RuntimeConfig {
            parameters: config.parameters,
            pipeline_root: config.pipeline_root,
        }),
    })
}

/// Serves authorization, which single-user mode always grants.
#[derive(Clone, Copy, Debug)]
pub struct Auth;

#[tonic::async_trait]
impl AuthService for Auth {
    async fn authorize_v1(&self, _request: tonic::Request<api::AuthorizeRequest>) -> Answer<()> {
        Ok(tonic::Response::new(()))
    }
}

/// Upstream declares it and serves only the one of v1beta1.
#[tonic::async_trait]
impl v2::auth_service_server::AuthService for Auth {
    async fn authorize(&self, _request: tonic::Request<v2::AuthorizeRequest>) -> Answer<()> {
        Ok(tonic::Response::new(()))
    }
}

#[tonic::async_trait]
impl ReportService for reports::Service {
    async fn report_workflow_v1(&self, request: tonic::Request<api::ReportWorkflowRequest>) -> Answer<()> {
        answer(self.workflow(&request.get_ref().workflow).await)
    }

    async fn report_scheduled_workflow_v1(
        &self,
        request: tonic::Request<api::ReportScheduledWorkflowRequest>,
    ) -> Answer<()> {
        answer(self.schedule(&request.get_ref().scheduled_workflow).await)
    }
}
