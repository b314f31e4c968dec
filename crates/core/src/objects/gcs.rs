//! Google Cloud Storage: a service account in a Secret, else application default credentials.

use std::sync::Arc;

use object_store::gcp::GoogleCloudStorageBuilder;

use super::error::Error;
use super::service::{Connector, retries, secret};
use super::session::Session;
use super::store::Store;
use super::uri::Uri;

pub(super) async fn open(uri: &Uri, session: Option<&Session>, authorities: &[u8]) -> Result<Store, Error> {
    let bucket = uri.bucket_url();
    let mut builder = GoogleCloudStorageBuilder::new();
    let own_key = session.filter(|s| s.provider == "gs" && s.flag("fromEnv") == Some(false));
    if let Some(session) = own_key {
        let key = secret(session, &["tokenKey"]).await?.concat();
        builder = builder.with_service_account_key(key);
    } else if let Ok(path) = std::env::var("GOOGLE_APPLICATION_CREDENTIALS") {
        builder = builder.with_application_credentials(path);
    }
    let service = builder
        .with_bucket_name(&uri.bucket)
        .with_retry(retries(session))
        .with_http_connector(Connector::new(&bucket, authorities, false)?)
        .build()
        .map_err(|e| Error::Settings { bucket: bucket.clone(), reason: e.to_string() })?;
    Ok(Store::with_service(&bucket, Arc::new(service)))
}
