//! `api.VisualizationService`: HTML that the visualization server makes.

use std::time::Duration;

use api::visualization::Type;
use api::visualization_service_server::VisualizationService;
use axum::body::Body;
use kfp_core::https;
use kfp_proto::api;

use crate::config::Config;
use crate::error::{Error, Result, Wrap as _};
use crate::services::{Answer, Handle, answer, required};

/// Limit of one exchange; drawing may take a while.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Largest page that is passed on.
const LIMIT: usize = 64 << 20;

/// Serves visualizations.
#[derive(Clone, Debug)]
pub struct Service(pub Handle);

/// Address of the visualization server (`ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_HOST`, `..._PORT`), if there is one.
#[must_use]
pub fn server(config: &Config) -> Option<String> {
    let part = |name: &str| {
        let value = config.text(&format!("ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_{name}"), "");
        Some(value).filter(|value| !value.is_empty())
    };
    Some(format!("http://{}:{}", part("HOST")?, part("PORT")?))
}

/// A form field, percent-encoded.
fn field(name: &str, value: &str) -> String {
    let mut out = format!("{name}=");
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

impl Service {
    async fn create(&self, request: api::CreateVisualizationRequest) -> Result<api::Visualization> {
        let mut given = required(request.visualization, "visualization")?;
        if given.source.is_empty() && given.r#type() != Type::Custom {
            return Err(Error::invalid(format!(
                "A visualization requires a Source to be provided. Received {}",
                given.source
            )));
        }
        if given.arguments.is_empty() {
            "{}".clone_into(&mut given.arguments);
        }
        if serde_json::from_str::<serde_json::Value>(&given.arguments).is_err() {
            return Err(Error::invalid(format!(
                "A visualization requires valid JSON to be provided as Arguments. Received {}",
                given.arguments
            )));
        }
        given.html = self.draw(&given).await?;
        Ok(given)
    }

    async fn draw(&self, given: &api::Visualization) -> Result<String> {
        let Some(server) = &self.0.visualizations else {
            return Err(Error::unavailable(
                "visualization unavailable",
                "ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_HOST and _PORT are not set",
            ));
        };
        let failed = |cause: String| Error::internal("Unable to generate the visualization", cause);
        let client = https::Client::<Body>::plain(TIMEOUT).map_err(|error| failed(error.to_string()))?;
        let alive = http::Request::get(server).body(Body::empty()).map_err(|error| failed(error.to_string()))?;
        let alive = client.send(alive).await;
        if !alive.as_ref().is_ok_and(|answer| answer.status().is_success()) {
            let cause = alive.map_or_else(|error| error.to_string(), |answer| answer.status().to_string());
            return Err(Error::unavailable(format!("the visualization server at {server} does not answer"), cause));
        }
        let kind = given.r#type().as_str_name().to_lowercase();
        let form =
            [field("arguments", &given.arguments), field("source", &given.source), field("type", &kind)].join("&");
        let request = http::Request::post(server)
            .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Body::from(form))
            .map_err(|error| failed(error.to_string()))?;
        let answer = client.send(request).await.map_err(|error| failed(error.to_string()))?;
        if answer.status() != http::StatusCode::OK {
            return Err(failed(format!("the visualization server answered {}", answer.status())));
        }
        let page = https::collect(answer.into_body(), LIMIT).await.map_err(|cause| failed(cause.to_string()))?;
        Ok(String::from_utf8_lossy(&page).into_owned())
    }
}

#[tonic::async_trait]
impl VisualizationService for Service {
    async fn create_visualization_v1(
        &self,
        request: tonic::Request<api::CreateVisualizationRequest>,
    ) -> Answer<api::Visualization> {
        answer(self.create(request.into_inner()).await.wrap(|| "Failed to create a visualization".to_owned()))
    }
}
