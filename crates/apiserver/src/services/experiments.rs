//! `ExperimentService` of v2beta1, and what both API versions do with experiments.

use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use serde_json::json;
use v2::experiment_service_server::ExperimentService;

use super::{Answer, Handle, answer, new_id, paging, required};
use crate::domain::names;
use crate::domain::state::{Storage, timestamp};
use crate::error::{Error, Result, Wrap as _};
use crate::store::{Tx, experiments, jobs, list, now};
use crate::workflows::cluster::{Failure, Kind};

/// Serves experiments.
#[derive(Clone, Debug)]
pub struct Service(pub Handle);

const DEFAULT_NAME: &str = "Default";
const DEFAULT_DESCRIPTION: &str = "All runs created without specifying an experiment will be grouped here.";

fn shown(row: experiments::Experiment) -> v2::Experiment {
    v2::Experiment {
        experiment_id: row.id,
        display_name: row.name,
        description: row.description,
        created_at: Some(timestamp(row.created_at)),
        namespace: row.namespace,
        storage_state: row.storage.number(),
        last_run_created_at: Some(timestamp(row.last_run_created_at)),
    }
}

/// Id of the default experiment; makes or adopts one when none is recorded.
///
/// # Errors
/// When the database fails.
pub async fn ensure_default(tx: &mut Tx) -> Result<String> {
    let known = experiments::default_id(tx).await?;
    if !known.is_empty() {
        return Ok(known);
    }
    let id = match experiments::by_name(tx, DEFAULT_NAME, "").await? {
        Some(existing) => existing.id,
        None => {
            let experiment = experiments::Experiment {
                id: new_id(),
                name: DEFAULT_NAME.to_owned(),
                description: DEFAULT_DESCRIPTION.to_owned(),
                created_at: now(),
                last_run_created_at: 0,
                namespace: String::new(),
                storage: Storage::Available,
            };
            experiments::insert(tx, &experiment).await?;
            experiment.id
        }
    };
    experiments::set_default_id(tx, &id).await?;
    Ok(id)
}

impl Service {
    /// Creates an experiment.
    ///
    /// # Errors
    /// Code 3 for bad names, 6 when the name is taken.
    pub(super) async fn create(
        &self,
        name: String,
        description: String,
        namespace: &str,
    ) -> Result<experiments::Experiment> {
        if name.is_empty() {
            return Err(Error::invalid("Experiment must have a non-empty name"));
        }
        names::length("Experiment.Name", &name, 128)?;
        names::length("Experiment.Description", &description, names::SHORT)?;
        names::length("Experiment.Namespace", namespace, 63)?;
        let experiment = experiments::Experiment {
            id: new_id(),
            name,
            description,
            created_at: now(),
            last_run_created_at: 0,
            namespace: self.0.access.stored_namespace(namespace),
            storage: Storage::Available,
        };
        let mut tx = self.0.db.write().await?;
        experiments::insert(&mut tx, &experiment).await?;
        tx.commit().await?;
        Ok(experiment)
    }

    async fn create_v2(&self, request: v2::CreateExperimentRequest) -> Result<v2::Experiment> {
        let given = required(request.experiment, "experiment")?;
        Ok(shown(self.create(given.display_name, given.description, &given.namespace).await?))
    }

    /// One page of a namespace's experiments.
    ///
    /// # Errors
    /// Code 3 for bad paging.
    pub(super) async fn page(
        &self,
        namespace: &str,
        paging: list::Request<'_>,
    ) -> Result<list::Page<experiments::Experiment>> {
        let options = list::Options::parse(paging, &experiments::LISTABLE)?;
        let mut tx = self.0.db.read().await?;
        experiments::list(&mut tx, &self.0.access.stored_namespace(namespace), &options).await
    }

    async fn list(&self, request: v2::ListExperimentsRequest) -> Result<v2::ListExperimentsResponse> {
        let paging = paging(&request.page_token, request.page_size, &request.sort_by, &request.filter);
        let page = self.page(&request.namespace, paging).await?;
        Ok(v2::ListExperimentsResponse {
            experiments: page.items.into_iter().map(shown).collect(),
            next_page_token: page.next,
            total_size: page.total,
        })
    }

    pub(super) async fn archive(&self, id: &str) -> Result<()> {
        let mut tx = self.0.db.read().await?;
        experiments::get(&mut tx, id).await?;
        let schedules = jobs::of_experiment(&mut tx, id).await?;
        drop(tx);
        for (namespace, name) in schedules {
            let patch = json!({"spec": {"enabled": false}});
            match self.0.cluster.merge(Kind::ScheduledWorkflow, &namespace, &name, &patch).await {
                Ok(_) | Err(Failure::NotFound(_)) => {}
                Err(failure) => {
                    return Err(Error::internal(
                        format!("Failed to disable recurring run {name} of experiment {id}"),
                        failure,
                    ));
                }
            }
        }
        let mut tx = self.0.db.write().await?;
        experiments::archive(&mut tx, id, now()).await?;
        tx.commit().await
    }

    pub(super) async fn unarchive(&self, id: &str) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        experiments::set_storage(&mut tx, id, Storage::Available).await?;
        tx.commit().await
    }

    pub(super) async fn delete(&self, id: &str) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        if experiments::default_id(&mut tx).await? == id {
            return Err(Error::bad_request(
                format!("Failed to delete experiment {id}. The default experiment cannot be deleted"),
                "it is the default experiment",
            ));
        }
        experiments::delete(&mut tx, id).await?;
        tx.commit().await
    }

    /// The experiment with this id.
    ///
    /// # Errors
    /// Code 5 when there is none.
    pub(super) async fn get(&self, id: &str) -> Result<experiments::Experiment> {
        let mut tx = self.0.db.read().await?;
        experiments::get(&mut tx, id).await
    }
}

#[tonic::async_trait]
impl ExperimentService for Service {
    async fn create_experiment(&self, request: tonic::Request<v2::CreateExperimentRequest>) -> Answer<v2::Experiment> {
        answer(self.create_v2(request.into_inner()).await.wrap(|| "Failed to create a new experiment".to_owned()))
    }

    async fn get_experiment(&self, request: tonic::Request<v2::GetExperimentRequest>) -> Answer<v2::Experiment> {
        let found = self.get(&request.get_ref().experiment_id).await.map(shown);
        answer(found.wrap(|| "Failed to get an experiment".to_owned()))
    }

    async fn list_experiments(
        &self,
        request: tonic::Request<v2::ListExperimentsRequest>,
    ) -> Answer<v2::ListExperimentsResponse> {
        answer(self.list(request.into_inner()).await.wrap(|| "Failed to list experiments".to_owned()))
    }

    async fn archive_experiment(&self, request: tonic::Request<v2::ArchiveExperimentRequest>) -> Answer<()> {
        answer(
            self.archive(&request.get_ref().experiment_id).await.wrap(|| "Failed to archive an experiment".to_owned()),
        )
    }

    async fn unarchive_experiment(&self, request: tonic::Request<v2::UnarchiveExperimentRequest>) -> Answer<()> {
        let done = self.unarchive(&request.get_ref().experiment_id).await;
        answer(done.wrap(|| "Failed to unarchive an experiment".to_owned()))
    }

    async fn delete_experiment(&self, request: tonic::Request<v2::DeleteExperimentRequest>) -> Answer<()> {
        answer(self.delete(&request.get_ref().experiment_id).await.wrap(|| "Failed to delete an experiment".to_owned()))
    }
}
