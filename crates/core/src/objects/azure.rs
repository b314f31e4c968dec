//! Azure Blob Storage, with the credentials of the environment: an account's key or SAS token, a client's secret, workload
//! identity, or the machine's managed identity. Upstream has no support for it; the scheme is that of the blob library
//! that it uses for the others.

use std::sync::Arc;

use object_store::azure::MicrosoftAzureBuilder;

use super::error::Error;
use super::service::{Connector, retries};
use super::session::Session;
use super::store::Store;
use super::uri::Uri;

pub(super) async fn open(uri: &Uri, session: Option<&Session>, authorities: &[u8]) -> Result<Store, Error> {
    let bucket = uri.bucket_url();
    let mut builder = MicrosoftAzureBuilder::from_env();
    // The names that Azure's own tools and the blob library read.
    for (name, key) in [("AZURE_STORAGE_ACCOUNT", "account_name"), ("AZURE_STORAGE_KEY", "access_key")] {
        if let (Ok(value), Ok(key)) = (std::env::var(name), format!("azure_storage_{key}").parse()) {
            builder = builder.with_config(key, value);
        }
    }
    let service = builder
        .with_container_name(&uri.bucket)
        .with_retry(retries(session))
        .with_http_connector(Connector::new(&bucket, authorities, false)?)
        .build()
        .map_err(|e| Error::Settings { bucket: bucket.clone(), reason: e.to_string() })?;
    Ok(Store::with_service(&bucket, Arc::new(service)))
}
