//! Pipelines that a new installation comes with (`--sampleconfig`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::Handle;
use super::pipelines::{Draft, Service};
use crate::error::{Error, Result};
use crate::store::{pipelines, samples};
use crate::workflows::template::Template;

/// Times of rows are in seconds: versions of one pipeline that follow each other closer would have no order.
const APART: Duration = Duration::from_secs(1);

/// One pipeline with a version.
#[derive(Debug, Default, PartialEq)]
struct Sample {
    name: String,
    display_name: String,
    description: String,
    file: String,
    version_name: String,
    version_display_name: String,
    version_description: String,
}

/// The list, and whether it counts for databases that have been filled before.
#[derive(Debug, Default, PartialEq)]
struct Samples {
    reload: bool,
    pipelines: Vec<Sample>,
}

/// A member of an object, whatever its case.
fn member<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let fields = object.as_object()?;
    fields.get(name).or_else(|| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
}

fn parse(text: &str) -> std::result::Result<Samples, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let (list, reload) = match &value {
        // The old form, which never reloads.
        Value::Array(list) => (Some(list), false),
        object => {
            let reload = member(object, "loadSamplesOnRestart").and_then(Value::as_bool).unwrap_or_default();
            (member(object, "pipelines").and_then(Value::as_array), reload)
        }
    };
    let list = list.ok_or("it has no list of pipelines")?;
    let one = |entry: &Value| {
        let text = |name: &str| member(entry, name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Sample {
            name: text("name"),
            display_name: text("displayName"),
            description: text("description"),
            file: text("file"),
            version_name: text("versionName"),
            version_display_name: text("versionDisplayName"),
            version_description: text("versionDescription"),
        }
    };
    Ok(Samples { reload, pipelines: list.iter().map(one).collect() })
}

/// Tags of loaded pipelines, written `k=v,k2=v2` (`MANAGED_PIPELINES_UPLOAD_TAGS`).
///
/// # Errors
/// Names the part that is no pair.
pub fn tags(text: &str) -> std::result::Result<BTreeMap<String, String>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (key, value) = part.split_once('=').filter(|(key, _)| !key.trim().is_empty())?;
            Some((key.trim().to_owned(), value.trim().to_owned()))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| format!("{text:?} is not of the form key=value,key=value"))
}

/// Loads the samples that `config` lists, unless they were loaded before.
///
/// # Errors
/// When the list or one of its files cannot be read. What exists already and what cannot be stored is only logged.
pub async fn load(app: &Handle, config: &Path, tags: &BTreeMap<String, String>) -> Result<()> {
    let unusable = |cause: String| Error::internal(format!("cannot load samples from {}", config.display()), cause);
    let text = match tokio::fs::read_to_string(config).await {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::info!(file = %config.display(), "no samples to load");
            return Ok(());
        }
        Err(error) => return Err(unusable(error.to_string())),
    };
    let list = parse(&text).map_err(unusable)?;
    let mut tx = app.db.read().await?;
    let loaded = samples::loaded(&mut tx).await?;
    drop(tx);
    if loaded && !list.reload {
        return Ok(());
    }
    let mut last = String::new();
    for sample in &list.pipelines {
        let bytes = tokio::fs::read(&sample.file).await;
        let bytes = bytes.map_err(|error| unusable(format!("cannot read {}: {error}", sample.file)))?;
        if last == sample.name {
            tokio::time::sleep(APART).await;
        }
        last.clone_from(&sample.name);
        match store(app, sample, &bytes, tags).await {
            Ok(()) => tracing::info!(name = %sample.name, "sample pipeline loaded"),
            Err(error) if error.code() == tonic::Code::AlreadyExists => {}
            Err(error) => tracing::warn!(name = %sample.name, %error, "cannot load a sample pipeline"),
        }
    }
    let mut tx = app.db.write().await?;
    samples::mark_loaded(&mut tx).await?;
    tx.commit().await
}

async fn store(app: &Handle, sample: &Sample, bytes: &[u8], tags: &BTreeMap<String, String>) -> Result<()> {
    let template = Template::from_file(bytes, &sample.file)?;
    let service = Service(app.clone());
    let mut tx = app.db.read().await?;
    let known = pipelines::by_name(&mut tx, &sample.name, app.wanted("")).await;
    drop(tx);
    let pipeline = match known {
        Err(error) if error.is_not_found() => {
            let draft = Draft {
                name: sample.name.clone(),
                display_name: sample.display_name.clone(),
                description: sample.description.clone(),
                tags: tags.clone(),
                ..Draft::default()
            };
            service.create(&draft).await?
        }
        other => other?,
    };
    let first = |texts: [&String; 2]| texts.into_iter().find(|text| !text.is_empty()).cloned();
    let draft = Draft {
        name: first([&sample.version_name, &sample.name]).unwrap_or_default(),
        display_name: first([&sample.version_display_name, &sample.version_name])
            .unwrap_or_else(|| pipeline.display_name.clone()),
        description: sample.version_description.clone(),
        ..Draft::default()
    };
    service.create_version(&pipeline.id, &draft, &template).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_whatever_the_case() {
        let new =
            parse(r#"{"LoadSamplesOnRestart": true, "pipelines": [{"Name": "a", "file": "f", "versionname": "v"}]}"#);
        let new = new.unwrap();
        assert!(new.reload);
        assert_eq!((new.pipelines[0].name.as_str(), new.pipelines[0].version_name.as_str()), ("a", "v"));
        let old = parse(r#"[{"name": "a", "description": "d", "file": "f"}]"#).unwrap();
        assert!(!old.reload);
        assert_eq!(old.pipelines[0].description, "d");
        for bad in ["", "{}", "1", r#"{"pipelines": 1}"#] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tags_are_pairs() {
        assert_eq!(tags("a=1, b=2=3,").unwrap(), [("a", "1"), ("b", "2=3")].map(|(k, v)| (k.into(), v.into())).into());
        assert!(tags("").unwrap().is_empty());
        assert!(tags("a").is_err());
        assert!(tags("=1").is_err());
    }
}
