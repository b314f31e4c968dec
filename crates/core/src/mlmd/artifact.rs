//! Artifacts: lookups by execution and URI, and the way to and from the artifacts of the pipeline spec.

use std::collections::BTreeMap;

use kfp_proto::ml_metadata as pb;
use kfp_proto::ml_pipelines::{ArtifactTypeSchema, RuntimeArtifact, artifact_type_schema};
use prost_types::Struct;

use super::convert::{property_from_value, value_from_property};
use super::{Client, Error, Execution, names, rpc, text};

/// A live artifact at `uri` with `metadata` as properties; `display_name` and `session` (the text of
/// `store_session_info`) are added unless the metadata has them. Nulls and the workspace mark are left out. The caller
/// sets `type_id`.
#[must_use]
pub fn artifact_from_metadata(
    uri: &str,
    metadata: Option<&Struct>,
    display_name: Option<&str>,
    session: Option<&str>,
) -> pb::Artifact {
    let mut custom_properties: BTreeMap<_, _> = metadata
        .into_iter()
        .flat_map(|metadata| &metadata.fields)
        .filter(|(key, _)| key.as_str() != names::WORKSPACE_METADATA)
        .filter_map(|(key, value)| Some((key.clone(), property_from_value(value)?)))
        .collect();
    for (key, value) in [(names::DISPLAY_NAME, display_name), (names::STORE_SESSION_INFO, session)] {
        if let Some(value) = value {
            custom_properties.entry(key.to_owned()).or_insert_with(|| text(value));
        }
    }
    pb::Artifact {
        uri: Some(uri.to_owned()),
        state: Some(pb::artifact::State::Live.into()),
        custom_properties,
        ..Default::default()
    }
}

/// A stored artifact as an input of a task: its name is the decimal id, its metadata all properties. `with_type` adds
/// the empty type that upstream gives to artifacts which come from a task's outputs.
///
/// # Errors
/// When a property is of a kind that has no JSON form.
pub fn runtime_artifact(artifact: &pb::Artifact, with_type: bool) -> Result<RuntimeArtifact, Error> {
    let mut fields = BTreeMap::new();
    for (key, value) in artifact.properties.iter().chain(&artifact.custom_properties) {
        let value = value_from_property(value)
            .ok_or_else(|| Error::Invalid(format!("artifact {}: property {key:?} has no value", artifact.id())))?;
        fields.insert(key.clone(), value);
    }
    let schema = artifact_type_schema::Kind::InstanceSchema(String::new());
    Ok(RuntimeArtifact {
        name: artifact.id().to_string(),
        uri: artifact.uri().to_owned(),
        r#type: with_type.then(|| ArtifactTypeSchema { kind: Some(schema), ..Default::default() }),
        metadata: (!fields.is_empty()).then_some(Struct { fields }),
        ..Default::default()
    })
}

/// Name of the input or output that an event belongs to.
fn event_name(event: &pb::Event) -> Option<&str> {
    match event.path.as_ref()?.steps.first()?.value.as_ref()? {
        pb::event::path::step::Value::Key(key) => Some(key),
        pb::event::path::step::Value::Index(_) => None,
    }
}

impl Client {
    /// Id of an artifact type, created if it does not exist. The title is that of the artifact's schema, for instance
    /// `system.Model`.
    ///
    /// # Errors
    /// When the title is empty or the store fails.
    pub async fn artifact_type(&self, title: &str) -> Result<i64, Error> {
        if title.is_empty() {
            return Err(Error::Invalid("artifact type without schema title".to_owned()));
        }
        if let Some(id) = self.known_type(title) {
            return Ok(id);
        }
        let kind = pb::ArtifactType { name: Some(title.to_owned()), ..Default::default() };
        let request = pb::PutArtifactTypeRequest { artifact_type: Some(kind), ..Default::default() };
        let id = rpc!(self, put_artifact_type, request).await?.type_id();
        self.learn_type(title, id);
        Ok(id)
    }

    /// Creates artifacts (or updates those with an id) outside of any execution; returns their ids in order.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_artifacts(&self, artifacts: Vec<pb::Artifact>) -> Result<Vec<i64>, Error> {
        let request = pb::PutArtifactsRequest { artifacts, ..Default::default() };
        Ok(rpc!(self, put_artifacts, request).await?.artifact_ids)
    }

    /// Artifacts by id; ids that do not exist are missing from the map.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn artifacts(&self, ids: &[i64]) -> Result<BTreeMap<i64, pb::Artifact>, Error> {
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let request = pb::GetArtifactsByIdRequest { artifact_ids: ids.to_vec(), ..Default::default() };
        let found = rpc!(self, get_artifacts_by_id, request).await?.artifacts;
        Ok(found.into_iter().map(|artifact| (artifact.id(), artifact)).collect())
    }

    /// Artifacts with exactly this URI.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn artifacts_by_uri(&self, uri: &str) -> Result<Vec<pb::Artifact>, Error> {
        let request = pb::GetArtifactsByUriRequest { uris: vec![uri.to_owned()], ..Default::default() };
        Ok(rpc!(self, get_artifacts_by_uri, request).await?.artifacts)
    }

    /// Contexts that an artifact belongs to; none is not an error.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn contexts_of_artifact(&self, id: i64) -> Result<Vec<pb::Context>, Error> {
        let request = pb::GetContextsByArtifactRequest { artifact_id: Some(id), ..Default::default() };
        match rpc!(self, get_contexts_by_artifact, request).await {
            Err(error) if error.code() == Some(tonic::Code::NotFound) => Ok(Vec::new()),
            answer => Ok(answer?.contexts),
        }
    }

    /// An artifact like `wanted` (same type, URI and state, and all of `wanted`'s custom properties) that belongs to
    /// the same pipeline: what an importer without `reimport` uses instead of a new one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn find_equal_artifact(
        &self,
        pipeline: &pb::Context,
        wanted: &pb::Artifact,
    ) -> Result<Option<pb::Artifact>, Error> {
        for found in self.artifacts_by_uri(wanted.uri()).await? {
            let equal = found.type_id == wanted.type_id
                && found.state() == wanted.state()
                && wanted.custom_properties.iter().all(|(key, value)| found.custom_properties.get(key) == Some(value));
            if equal && self.contexts_of_artifact(found.id()).await?.iter().any(|c| c.id == pipeline.id) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Input artifacts of an execution in order, by input.
    ///
    /// # Errors
    /// When the store fails or lacks a recorded artifact.
    pub async fn input_artifacts(&self, execution: &Execution) -> Result<BTreeMap<String, Vec<pb::Artifact>>, Error> {
        let recorded = execution.text(names::INPUT_ARTIFACTS);
        let ids: BTreeMap<String, Vec<i64>> = if recorded.is_empty() {
            self.artifact_ids(execution.id(), pb::event::Type::Input).await?
        } else {
            serde_json::from_str(recorded).map_err(|error| {
                let property = names::INPUT_ARTIFACTS;
                Error::Invalid(format!("execution {}: property {property:?}: {error}", execution.id()))
            })?
        };
        self.fill(ids).await
    }

    /// Output artifacts of an execution, by output; the newest if an output was published more than once.
    ///
    /// # Errors
    /// When the store fails or lacks a recorded artifact.
    pub async fn output_artifacts(&self, execution: i64) -> Result<BTreeMap<String, pb::Artifact>, Error> {
        let mut ids = self.artifact_ids(execution, pb::event::Type::Output).await?;
        for list in ids.values_mut() {
            let newest = list.iter().copied().max();
            *list = newest.into_iter().collect();
        }
        let filled = self.fill(ids).await?;
        Ok(filled.into_iter().filter_map(|(name, mut list)| Some((name, list.pop()?))).collect())
    }

    async fn artifact_ids(&self, execution: i64, kind: pb::event::Type) -> Result<BTreeMap<String, Vec<i64>>, Error> {
        let request = pb::GetEventsByExecutionIDsRequest { execution_ids: vec![execution], ..Default::default() };
        let events = rpc!(self, get_events_by_execution_i_ds, request).await?.events;
        let mut ids: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for event in events.iter().filter(|event| event.r#type() == kind) {
            if let Some(name) = event_name(event) {
                ids.entry(name.to_owned()).or_default().push(event.artifact_id());
            }
        }
        Ok(ids)
    }

    async fn fill(&self, ids: BTreeMap<String, Vec<i64>>) -> Result<BTreeMap<String, Vec<pb::Artifact>>, Error> {
        let mut wanted: Vec<i64> = ids.values().flatten().copied().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let found = self.artifacts(&wanted).await?;
        let one = |id: &i64| found.get(id).cloned().ok_or_else(|| Error::NotFound(format!("artifact {id}")));
        ids.into_iter().map(|(name, ids)| Ok((name, ids.iter().map(one).collect::<Result<_, Error>>()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{from_json, to_json};
    use serde_json::json;

    #[test]
    fn metadata_survives_the_store_in_upstreams_shape() {
        let metadata: BTreeMap<_, _> =
            [("n", json!(3)), ("b", json!(true)), ("l", json!([1])), ("o", json!({"k": "v"})), ("z", json!(null))]
                .into_iter()
                .chain([("_kfp_workspace", json!(true))])
                .map(|(key, value)| (key.to_owned(), from_json(&value)))
                .collect();
        let mut stored =
            artifact_from_metadata("s3://b/k", Some(&Struct { fields: metadata }), Some("out"), Some("{}"));
        stored.id = Some(17);
        let runtime = runtime_artifact(&stored, false).unwrap();
        let fields: BTreeMap<_, _> =
            runtime.metadata.unwrap().fields.iter().map(|(k, v)| (k.clone(), to_json(v))).collect();
        assert_eq!(
            json!(fields),
            json!({"n": 3, "b": 1, "l": {"list": [1]}, "o": {"struct": {"k": "v"}}, "display_name": "out",
                   "store_session_info": "{}"})
        );
        assert_eq!((runtime.name.as_str(), runtime.uri.as_str(), runtime.r#type), ("17", "s3://b/k", None));
    }
}
