//! `api.ExperimentService`.

use api::experiment_service_server::ExperimentService;
use api::{Relationship, ResourceType};
use kfp_proto::api;

use super::{paging, refer, referenced, scope};
use crate::domain::state::{Storage, timestamp};
use crate::error::{Error, Result, Wrap as _};
use crate::services::experiments::Service;
use crate::services::{Answer, answer, required};
use crate::store::experiments;

fn shown(row: experiments::Experiment) -> api::Experiment {
    use api::experiment::StorageState;
    let state = match row.storage {
        Storage::Available => StorageState::StoragestateAvailable,
        Storage::Archived => StorageState::StoragestateArchived,
    };
    api::Experiment {
        // Upstream refers to the namespace even when there is none.
        resource_references: vec![refer(ResourceType::Namespace, &row.namespace, Relationship::Owner)],
        id: row.id,
        name: row.name,
        description: row.description,
        created_at: Some(timestamp(row.created_at)),
        storage_state: state as i32,
    }
}

impl Service {
    async fn create_v1(&self, request: api::CreateExperimentRequest) -> Result<api::Experiment> {
        let given = required(request.experiment, "experiment")?;
        let namespace = referenced(&given.resource_references, ResourceType::Namespace, None);
        Ok(shown(self.create(given.name, given.description, &namespace).await?))
    }

    async fn list_v1(&self, request: api::ListExperimentsRequest) -> Result<api::ListExperimentsResponse> {
        let namespace = match scope(request.resource_reference_key.as_ref())? {
            None => "",
            Some((ResourceType::Namespace, id)) => id,
            Some((kind, _)) => {
                return Err(Error::invalid(format!(
                    "Invalid resource references for experiment: {}",
                    kind.as_str_name()
                )));
            }
        };
        let paging = paging(&request.page_token, request.page_size, &request.sort_by, &request.filter);
        let page = self.page(namespace, paging).await?;
        Ok(api::ListExperimentsResponse {
            experiments: page.items.into_iter().map(shown).collect(),
            total_size: page.total,
            next_page_token: page.next,
        })
    }
}

#[tonic::async_trait]
impl ExperimentService for Service {
    async fn create_experiment_v1(
        &self,
        request: tonic::Request<api::CreateExperimentRequest>,
    ) -> Answer<api::Experiment> {
        answer(self.create_v1(request.into_inner()).await.wrap(|| "Failed to create a v1beta1 experiment".to_owned()))
    }

    async fn get_experiment_v1(&self, request: tonic::Request<api::GetExperimentRequest>) -> Answer<api::Experiment> {
        let found = self.get(&request.get_ref().id).await.map(shown);
        answer(found.wrap(|| "Failed to fetch a v1beta1 experiment".to_owned()))
    }

    async fn list_experiments_v1(
        &self,
        request: tonic::Request<api::ListExperimentsRequest>,
    ) -> Answer<api::ListExperimentsResponse> {
        answer(self.list_v1(request.into_inner()).await.wrap(|| "Failed to list v1beta1 experiments".to_owned()))
    }

    async fn delete_experiment_v1(&self, request: tonic::Request<api::DeleteExperimentRequest>) -> Answer<()> {
        answer(self.delete(&request.get_ref().id).await.wrap(|| "Failed to delete a v1beta1 experiment".to_owned()))
    }

    async fn archive_experiment_v1(&self, request: tonic::Request<api::ArchiveExperimentRequest>) -> Answer<()> {
        answer(self.archive(&request.get_ref().id).await.wrap(|| "Failed to archive a v1beta1 experiment".to_owned()))
    }

    async fn unarchive_experiment_v1(&self, request: tonic::Request<api::UnarchiveExperimentRequest>) -> Answer<()> {
        let done = self.unarchive(&request.get_ref().id).await;
        answer(done.wrap(|| "Failed to unarchive a v1beta1 experiment".to_owned()))
    }
}
