//! What a call is about, and in which namespace that is.

use super::plain_namespace;
use super::rules::{EXPERIMENTS, JOBS, PIPELINES, RUNS, Right};
use crate::catalog::Catalog;
use crate::error::{Error, Result, Wrap as _};
use crate::services::Handle;
use crate::store::pipelines::Pipeline;
use crate::store::{Tx, experiments, jobs, runs};

/// What a call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing that a user owns: not even the caller's name is asked for.
    Nobody,
    /// Nothing that a user owns, but only known users may ask.
    AnyUser,
    /// The whole cluster.
    Cluster,
    /// A list of a namespace, or something new in it.
    Namespace {
        /// As the request says.
        namespace: String,
        /// Name of the new object, or empty.
        name: String,
    },
    /// The pipeline with this id.
    Pipeline(String),
    /// The pipeline of the version with this id.
    Version(String),
    /// The experiment with this id.
    Experiment(String),
    /// The run with this id.
    Run(String),
    /// The recurring run with this id.
    Job(String),
    /// The runs or recurring runs of an experiment, or else of a namespace.
    Within {
        /// Id, or empty.
        experiment: String,
        /// As the request says.
        namespace: String,
    },
    /// A new run or recurring run.
    Start {
        /// Id of the experiment that it belongs to.
        experiment: String,
        /// Name of the new object, or empty.
        name: String,
        /// Id of the pipeline that it is made from, or empty.
        pipeline: String,
        /// Id of the version that it is made from, or empty.
        version: String,
        /// Id of the recurring run that makes it, or empty.
        job: String,
    },
    /// A recurring run that may get another pipeline.
    Revise {
        /// Its id.
        job: String,
        /// Id of the pipeline that it is to run, or empty.
        pipeline: String,
        /// Id of the version that it is to run, or empty.
        version: String,
    },
    /// A question about a right itself.
    Question {
        /// The right.
        right: Right,
        /// Where.
        namespace: String,
    },
}

/// One question to Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// What is to be done to which kind of object.
    pub right: Right,
    /// Empty for the whole cluster.
    pub namespace: String,
    /// Empty for objects that have no name yet.
    pub name: String,
}

/// Refuses ids that no object has; services would say the same.
fn given(id: &str, what: &str) -> Result<()> {
    if id.is_empty() { Err(Error::invalid(format!("{what} id cannot be empty"))) } else { Ok(()) }
}

async fn of_experiment(tx: &mut Tx, id: &str) -> Result<experiments::Experiment> {
    experiments::get(tx, id).await.wrap(|| "Failed to authorize with the experiment ID".to_owned())
}

/// Namespace of a run or recurring run; rows of single-user mode have none of their own.
async fn of_child(tx: &mut Tx, namespace: String, experiment: &str) -> Result<String> {
    if !plain_namespace(&namespace).is_empty() {
        return Ok(namespace);
    }
    match experiments::get(tx, experiment).await {
        Ok(found) => Ok(found.namespace),
        Err(error) if error.is_not_found() => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// Questions that a call about a pipeline raises: none for reading one that everybody sees.
fn of_pipeline(app: &Handle, right: Right, namespace: &str, name: String) -> Result<Vec<Attributes>> {
    let namespace = plain_namespace(namespace);
    if !namespace.is_empty() {
        return Ok(vec![Attributes { right, namespace: namespace.to_owned(), name }]);
    }
    if right.verb == "create" && app.access.namespace_required {
        return Err(Error::invalid("Namespace is required for pipeline operations"));
    }
    if right.is_read() {
        return Ok(Vec::new());
    }
    Ok(vec![Attributes { right, namespace: app.namespace.clone(), name }])
}

/// Refuses to do without a namespace.
fn in_namespace(right: Right, namespace: &str, name: String) -> Result<Vec<Attributes>> {
    let namespace = plain_namespace(namespace);
    if !namespace.is_empty() {
        return Ok(vec![Attributes { right, namespace: namespace.to_owned(), name }]);
    }
    Err(Error::invalid(match right.resource {
        EXPERIMENTS => "An experiment cannot have an empty namespace in multi-user mode",
        RUNS => "A run cannot have an empty namespace in multi-user mode",
        JOBS => "a recurring run cannot have an empty namespace in multi-user mode",
        _ => "Namespace is empty. Please specify a valid namespace",
    }))
}

/// The questions to Kubernetes that decide about a call; all have to be answered with yes.
///
/// # Errors
/// Code 3 without a namespace, 5 when the call is about something that does not exist, 7 for what no question can allow.
pub async fn questions(app: &Handle, right: Right, target: Target) -> Result<Vec<Attributes>> {
    match target {
        Target::Nobody | Target::AnyUser => Ok(Vec::new()),
        Target::Cluster => Ok(vec![Attributes { right, namespace: String::new(), name: String::new() }]),
        Target::Namespace { namespace, name } if right.resource == PIPELINES => {
            if app.access.namespace_required && plain_namespace(&namespace).is_empty() {
                return Err(Error::invalid("Namespace is required for pipeline operations"));
            }
            of_pipeline(app, right, &namespace, name)
        }
        Target::Namespace { namespace, name } => in_namespace(right, &namespace, name),
        Target::Question { right, namespace } => in_namespace(right, &namespace, String::new()),
        Target::Pipeline(id) => {
            given(&id, "Pipeline")?;
            let found = app.catalog.get(&id).await;
            let found = found.wrap(|| format!("Failed to access pipeline {id}. Check if it exists"))?;
            of_pipeline(app, right, &found.namespace, found.name)
        }
        Target::Version(id) => {
            given(&id, "Pipeline version")?;
            let missing = || format!("Failed to access pipeline version {id}. Check if it exists");
            let parent = app.catalog.parent(&id).await.wrap(missing)?;
            let found = app.catalog.get(&parent).await.wrap(missing)?;
            of_pipeline(app, right, &found.namespace, found.name)
        }
        Target::Experiment(id) => {
            given(&id, "Experiment")?;
            let found = of_experiment(&mut app.db.read().await?, &id).await?;
            in_namespace(right, &found.namespace, found.name)
        }
        Target::Run(id) => {
            given(&id, "Run")?;
            let mut tx = app.db.read().await?;
            let run = runs::get(&mut tx, &id).await.wrap(|| format!("Failed to authorize with the run ID {id}"))?;
            let namespace = of_child(&mut tx, run.namespace, &run.experiment_id).await?;
            in_namespace(right, &namespace, run.workflow)
        }
        Target::Job(id) => {
            given(&id, "Recurring run")?;
            let (job, namespace) = of_job(&mut app.db.read().await?, &id).await?;
            in_namespace(right, &namespace, job.display_name)
        }
        Target::Revise { job, pipeline, version } => {
            given(&job, "Recurring run")?;
            let (job, namespace) = of_job(&mut app.db.read().await?, &job).await?;
            let mut all = in_namespace(right, &namespace, job.display_name)?;
            let known = Some(job.pipeline_id.as_str());
            all.extend(of_source(app, right, (&pipeline, &version), &namespace, known).await?);
            Ok(all)
        }
        Target::Within { experiment, namespace } if experiment.is_empty() => {
            in_namespace(right, &namespace, String::new())
        }
        Target::Within { experiment, .. } => {
            let found = of_experiment(&mut app.db.read().await?, &experiment).await?;
            in_namespace(right, &found.namespace, String::new())
        }
        Target::Start { experiment, name, pipeline, version, job } => {
            if experiment.is_empty() {
                return Err(Error::invalid("Experiment id can not be empty in multi-user mode"));
            }
            let mut tx = app.db.read().await?;
            let found = of_experiment(&mut tx, &experiment).await?;
            let mut all = in_namespace(right, &found.namespace, name)?;
            let made_by = made_by(&mut tx, &job, &found.namespace).await?;
            drop(tx);
            let source = (pipeline.as_str(), version.as_str());
            all.extend(of_source(app, right, source, &found.namespace, made_by.as_deref()).await?);
            Ok(all)
        }
    }
}

/// A recurring run and its namespace.
async fn of_job(tx: &mut Tx, id: &str) -> Result<(jobs::Job, String)> {
    let job = jobs::get(tx, id).await.wrap(|| "Failed to authorize with the recurring run ID".to_owned())?;
    let namespace = of_child(tx, job.namespace.clone(), &job.experiment_id).await?;
    Ok((job, namespace))
}

/// What has to be allowed for running the pipeline and version with these ids in a namespace; nothing for the pipeline
/// `known`, which somebody was allowed to run there.
async fn of_source(
    app: &Handle,
    right: Right,
    (pipeline, version): (&str, &str),
    namespace: &str,
    known: Option<&str>,
) -> Result<Vec<Attributes>> {
    let read = Right { resource: PIPELINES, verb: "get", ..right };
    match source(&app.catalog, pipeline, version).await? {
        Some(found) if known == Some(found.id.as_str()) => Ok(Vec::new()),
        Some(other) if other.namespace != namespace => of_pipeline(app, read, &other.namespace, other.name),
        _ => Ok(Vec::new()),
    }
}

/// Id of the pipeline of the recurring run that makes a run. Without this, a run could be hung on another namespace's
/// schedule.
async fn made_by(tx: &mut Tx, job: &str, namespace: &str) -> Result<Option<String>> {
    if job.is_empty() {
        return Ok(None);
    }
    let job = match jobs::get(tx, job).await {
        Ok(job) => job,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    if job.namespace != namespace {
        return Err(Error::permission_denied(
            format!("Recurring run {} belongs to another namespace than the experiment", job.id),
            "both have to be in the same namespace",
        ));
    }
    Ok(Some(job.pipeline_id))
}

/// The pipeline that a run is made from; `None` for specs in the request and for what does not exist.
async fn source(catalog: &Catalog, pipeline: &str, version: &str) -> Result<Option<Pipeline>> {
    let known = |error: Error| if error.is_not_found() { Ok(None) } else { Err(error) };
    let parent = match (version, pipeline) {
        ("", "") => return Ok(None),
        ("", pipeline) => pipeline.to_owned(),
        (version, _) => match catalog.parent(version).await {
            Ok(parent) => parent,
            Err(error) => return known(error),
        },
    };
    catalog.get(&parent).await.map_or_else(known, |found| Ok(Some(found)))
}
