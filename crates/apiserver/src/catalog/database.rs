//! Pipelines in tables: each call is one transaction.

use std::collections::BTreeMap;

use super::has_versions;
use crate::error::Result;
use crate::store::Db;
use crate::store::list::{Options, Page};
use crate::store::pipelines::{self, Pipeline};
use crate::store::tagged::Tags;
use crate::store::versions::{self, Version};

pub async fn create(db: &Db, pipeline: Pipeline) -> Result<Pipeline> {
    let mut tx = db.write().await?;
    pipelines::insert(&mut tx, &pipeline, "already exist").await?;
    tx.commit().await?;
    Ok(pipeline)
}

pub async fn create_both(db: &Db, pipeline: Pipeline, version: Version) -> Result<(Pipeline, Version)> {
    let mut tx = db.write().await?;
    pipelines::insert(&mut tx, &pipeline, "already exists").await?;
    versions::insert(&mut tx, &version).await?;
    tx.commit().await?;
    Ok((pipeline, version))
}

pub async fn create_version(db: &Db, _pipeline: &Pipeline, version: Version) -> Result<Version> {
    let mut tx = db.write().await?;
    versions::insert(&mut tx, &version).await?;
    tx.commit().await?;
    Ok(version)
}

pub async fn get(db: &Db, id: &str) -> Result<Pipeline> {
    pipelines::get(&mut db.read().await?, id).await
}

pub async fn by_name(db: &Db, name: &str, namespace: Option<&str>) -> Result<Pipeline> {
    pipelines::by_name(&mut db.read().await?, name, namespace).await
}

pub async fn list(db: &Db, namespace: &str, options: &Options) -> Result<Page<Pipeline>> {
    pipelines::list(&mut db.read().await?, namespace, options).await
}

pub async fn latest_of(db: &Db, ids: &[String]) -> Result<BTreeMap<String, Version>> {
    versions::latest_of(&mut db.read().await?, ids).await
}

pub async fn update(db: &Db, id: &str, display_name: &str, tags: Option<&Tags>) -> Result<Pipeline> {
    let mut tx = db.write().await?;
    let pipeline = pipelines::update(&mut tx, id, display_name, tags).await?;
    tx.commit().await?;
    Ok(pipeline)
}

pub async fn delete(db: &Db, id: &str, cascade: bool) -> Result<()> {
    let mut tx = db.write().await?;
    pipelines::get(&mut tx, id).await?;
    if !cascade && let Some(version) = versions::any(&mut tx, id).await? {
        return Err(has_versions(id, &version));
    }
    pipelines::delete(&mut tx, id).await?;
    tx.commit().await
}

pub async fn version(db: &Db, id: &str) -> Result<Version> {
    versions::get(&mut db.read().await?, id).await
}

pub async fn parent(db: &Db, id: &str) -> Result<String> {
    versions::parent(&mut db.read().await?, id).await
}

pub async fn latest(db: &Db, pipeline_id: &str) -> Result<Version> {
    versions::latest(&mut db.read().await?, pipeline_id).await
}

pub async fn versions(db: &Db, pipeline_id: &str, options: &Options, specs: bool) -> Result<Page<Version>> {
    let mut tx = db.read().await?;
    let mut page = versions::list(&mut tx, pipeline_id, options).await?;
    // An unknown pipeline is told apart from one without versions only when the page is empty.
    if page.items.is_empty() {
        pipelines::get(&mut tx, pipeline_id).await?;
    }
    if specs {
        let ids: Vec<String> = page.items.iter().map(|version| version.id.clone()).collect();
        let mut specs = versions::specs(&mut tx, &ids).await?;
        for version in &mut page.items {
            version.spec = specs.remove(&version.id).unwrap_or_default();
        }
    }
    Ok(page)
}

pub async fn update_version(db: &Db, id: &str, display_name: &str, tags: Option<&Tags>) -> Result<Version> {
    let mut tx = db.write().await?;
    let version = versions::update(&mut tx, id, display_name, tags).await?;
    tx.commit().await?;
    Ok(version)
}

pub async fn delete_version(db: &Db, id: &str) -> Result<()> {
    let mut tx = db.write().await?;
    versions::delete(&mut tx, id).await?;
    tx.commit().await
}

pub async fn set_default(db: &Db, id: &str, version_id: &str) -> Result<()> {
    let mut tx = db.write().await?;
    versions::parent(&mut tx, version_id).await?;
    pipelines::set_default(&mut tx, id, version_id).await?;
    tx.commit().await
}
