//! `api.VisualizationService`: HTML that the visualization server makes.

use std::time::Duration;

use api::visualization::Type;
use api::visualization_service_server::VisualizationService;
use axum::body::Body;
use kfp_core::https;
use kfp_proto::api;

use crate::config::Config;
use crate::domain::names;
use crate::error::{Error, Result, Wrap as _};
use crate::services::{Answer, Handle, answer, required};

/// Limit of one exchange; drawing may take a while.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Largest page that is passed on.
const LIMIT: usize = 64 << 20;

/// Serves visualizations.
#[derive(Clone, Debug)]
pub struct Service(pub Handle);

/// Where visualization servers are.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    /// Address of the installation's (`ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_HOST`, `..._PORT`).
    pub shared: Option<String>,
    /// Name and port of the service that each namespace has in multi-user mode (`VisualizationService.Name`, `.Port`).
    pub own: Option<(String, String)>,
}

impl Servers {
    /// From upstream's settings.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        let part = |key: String| Some(config.text(&key, "")).filter(|value| !value.is_empty());
        let shared = |name: &str| part(format!("ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_{name}"));
        let own = |name: &str| part(format!("VisualizationService.{name}"));
        Servers {
            shared: shared("HOST").zip(shared("PORT")).map(|(host, port)| format!("http://{host}:{port}")),
            own: own("Name").zip(own("Port")),
        }
    }

    /// Address of the server that draws for a namespace; for none, the installation's.
    ///
    /// # Errors
    /// Code 3 when the namespace cannot be one, 14 when there is no server.
    fn address(&self, namespace: &str) -> Result<String> {
        let missing = |settings: &str| {
            let cause = format!("{settings} are not set");
            Error::unavailable("visualization unavailable", cause)
        };
        if namespace.is_empty() {
            let shared = self.shared.clone();
            return shared.ok_or_else(|| missing("ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_HOST and _PORT"));
        }
        // It becomes part of an address.
        if !names::is_label(namespace) {
            return Err(Error::invalid(format!("{namespace:?} is not the name of a namespace")));
        }
        let (name, port) = self.own.as_ref().ok_or_else(|| missing("VisualizationService.Name and .Port"))?;
        Ok(format!("http://{name}.{namespace}:{port}"))
    }
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
        // Only there each namespace has a server of its own.
        let namespace = if self.0.access.multi_user { request.namespace.as_str() } else { "" };
        let server = self.0.visualizations.address(namespace)?;
        given.html = draw(&server, &given).await?;
        Ok(given)
    }
}

async fn draw(server: &str, given: &api::Visualization) -> Result<String> {
    let failed = |cause: String| Error::internal("Unable to generate the visualization", cause);
    let client = https::Client::<Body>::plain(TIMEOUT).map_err(|error| failed(error.to_string()))?;
    let alive = http::Request::get(server).body(Body::empty()).map_err(|error| failed(error.to_string()))?;
    let alive = client.send(alive).await;
    if !alive.as_ref().is_ok_and(|answer| answer.status().is_success()) {
        let cause = alive.map_or_else(|error| error.to_string(), |answer| answer.status().to_string());
        return Err(Error::unavailable(format!("the visualization server at {server} does not answer"), cause));
    }
    let kind = given.r#type().as_str_name().to_lowercase();
    let form = [field("arguments", &given.arguments), field("source", &given.source), field("type", &kind)].join("&");
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

#[tonic::async_trait]
impl VisualizationService for Service {
    async fn create_visualization_v1(
        &self,
        request: tonic::Request<api::CreateVisualizationRequest>,
    ) -> Answer<api::Visualization> {
        answer(self.create(request.into_inner()).await.wrap(|| "Failed to create a visualization".to_owned()))
    }
}
