//! The configuration file of upstream's server, in protobuf's text format. Upstream's manifests with TLS use it.

use std::fmt;
use std::path::PathBuf;

use kfp_proto::ml_metadata as pb;
use pb::connection_config::Config;
use prost::Name as _;
use prost_reflect::DynamicMessage;

use crate::options::{Remote, Storage, Tls};

/// TLS of the server itself; all texts are PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// The server's certificate chain.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Authorities of clients' certificates; empty when clients need none.
    pub client_authorities: String,
    /// Whether clients must have a certificate.
    pub verify_clients: bool,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerTls(clients must have a certificate: {})", self.verify_clients)
    }
}

/// What a file says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) storage: Storage,
    pub(crate) retries: Option<u32>,
    pub(crate) tls: Option<ServerTls>,
}

/// Reads the text of a file.
///
/// # Errors
/// What is wrong or not implemented. The text holds passwords and keys, so nothing of it is repeated.
pub(crate) fn parse(text: &str) -> Result<File, String> {
    let name = pb::MetadataStoreServerConfig::full_name();
    let descriptor = kfp_proto::POOL.get_message_by_name(&name).ok_or_else(|| format!("{name} is not known"))?;
    let config: pb::MetadataStoreServerConfig = DynamicMessage::parse_text_format(descriptor, text)
        .ok()
        .and_then(|message| message.transcode_to().ok())
        .ok_or_else(|| format!("it is not the text form of {name}"))?;
    let connection = config.connection_config.unwrap_or_default();
    if config.migration_options.is_some_and(|options| options.downgrade_to_schema_version() >= 0) {
        return Err("migration_options.downgrade_to_schema_version is not implemented".to_owned());
    }
    let retries = connection.retry_options.map(|options| options.max_num_retries());
    Ok(File {
        storage: match connection.config {
            Some(Config::Mysql(config)) => Storage::MySql(mysql(config)?),
            Some(Config::Postgresql(config)) => Storage::Postgres(postgres(config)?),
            Some(Config::Sqlite(config)) => sqlite(&config)?,
            Some(Config::FakeDatabase(_)) => Storage::Memory,
            None => return Err("connection_config names no database".to_owned()),
        },
        retries: retries.map(|retries| u32::try_from(retries).unwrap_or_default()),
        tls: config.ssl_config.map(server).transpose()?,
    })
}

/// The first of some settings that is there although it is not implemented.
fn refused(settings: &[(&str, bool)]) -> Result<(), String> {
    match settings.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(format!("{name} is not implemented")),
        None => Ok(()),
    }
}

fn mysql(config: pb::MySqlDatabaseConfig) -> Result<Remote, String> {
    refused(&[("mysql.socket", !config.socket().is_empty())])?;
    let tls = config.ssl_options.clone().unwrap_or_default();
    refused(&[
        ("mysql.ssl_options.capath", !tls.capath().is_empty()),
        ("mysql.ssl_options.cipher", !tls.cipher().is_empty()),
    ])?;
    if config.host().is_empty() || config.database().is_empty() {
        return Err("mysql needs host and database".to_owned());
    }
    let mode = match (&config.ssl_options, tls.verify_server_cert()) {
        (None, _) => "",
        (Some(_), true) => "verify-full",
        (Some(_), false) => "require",
    };
    Ok(Remote {
        host: config.host().to_owned(),
        port: config.port.map_or(Ok(3306), u16::try_from).map_err(|_| "mysql.port is not a port".to_owned())?,
        database: config.database().to_owned(),
        user: Some(config.user()).filter(|user| !user.is_empty()).unwrap_or("root").to_owned(),
        password: config.password().to_owned(),
        skip_creation: config.skip_db_creation(),
        tls: Tls {
            mode: mode.to_owned(),
            authorities: tls.ca().to_owned(),
            certificate: tls.cert().to_owned(),
            key: tls.key().to_owned(),
        },
        ..Remote::default()
    })
}

fn postgres(config: pb::PostgreSqlDatabaseConfig) -> Result<Remote, String> {
    let tls = config.ssloption.clone().unwrap_or_default();
    refused(&[("postgresql.ssloption.sslpassword", !tls.sslpassword().is_empty())])?;
    let host = if config.hostaddr().is_empty() { config.host() } else { config.hostaddr() };
    if host.is_empty() || config.dbname().is_empty() || config.user().is_empty() {
        return Err("postgresql needs host, dbname and user".to_owned());
    }
    let port = if config.port().is_empty() { "5432" } else { config.port() };
    Ok(Remote {
        host: host.to_owned(),
        port: port.parse().map_err(|_| "postgresql.port is not a port".to_owned())?,
        database: config.dbname().to_owned(),
        user: config.user().to_owned(),
        password: config.password().to_owned(),
        password_file: config.passfile().to_owned(),
        skip_creation: config.skip_db_creation(),
        tls: Tls {
            mode: tls.sslmode().to_owned(),
            authorities: tls.sslrootcert().to_owned(),
            certificate: tls.sslcert().to_owned(),
            key: tls.sslkey().to_owned(),
        },
    })
}

fn sqlite(config: &pb::SqliteMetadataSourceConfig) -> Result<Storage, String> {
    use pb::sqlite_metadata_source_config::ConnectionMode;
    let read_only = config.connection_mode() == ConnectionMode::Readonly;
    refused(&[("sqlite.connection_mode READONLY", read_only)])?;
    let uri = config.filename_uri();
    Ok(match uri.strip_prefix("file:").unwrap_or(uri) {
        "" => Storage::Memory,
        path if path.contains('?') => return Err("sqlite.filename_uri with options is not implemented".to_owned()),
        path => Storage::Sqlite(PathBuf::from(path)),
    })
}

fn server(config: pb::metadata_store_server_config::SslConfig) -> Result<ServerTls, String> {
    if config.server_cert().is_empty() || config.server_key().is_empty() {
        return Err("ssl_config needs server_cert and server_key".to_owned());
    }
    if config.client_verify() && config.custom_ca().is_empty() {
        return Err("ssl_config.client_verify needs custom_ca".to_owned());
    }
    Ok(ServerTls {
        certificate: config.server_cert().to_owned(),
        key: config.server_key().to_owned(),
        client_authorities: config.custom_ca().to_owned(),
        verify_clients: config.client_verify(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_upstreams_manifests_is_read() {
        let file = parse(
            r#"connection_config {
                 mysql { host: "mysql" port: 3306 database: "metadb" user: "root" password: "p\"w"
                         ssl_options { ca: "/ca.pem" verify_server_cert: true } }
                 retry_options { max_num_retries: 7 }
               }
               ssl_config { server_cert: "-----BEGIN\nCERT\n" server_key: "-----BEGIN\nKEY\n" client_verify: false }
               migration_options { enable_upgrade_migration: true }"#,
        )
        .unwrap();
        let Storage::MySql(remote) = &file.storage else { panic!("{:?}", file.storage) };
        assert_eq!((remote.host.as_str(), remote.port, remote.database.as_str()), ("mysql", 3306, "metadb"));
        assert_eq!((remote.password.as_str(), remote.tls.mode.as_str()), ("p\"w", "verify-full"));
        assert_eq!(file.retries, Some(7));
        let tls = file.tls.unwrap();
        assert_eq!((tls.certificate.as_str(), tls.verify_clients), ("-----BEGIN\nCERT\n", false));
        assert!(!format!("{tls:?}").contains("KEY"));
    }

    #[test]
    fn other_databases_are_named_as_well() {
        let storage = |text: &str| parse(text).map(|file| file.storage);
        let path = storage(r#"connection_config { sqlite { filename_uri: "/data/m.db" connection_mode: READWRITE } }"#);
        assert_eq!(path, Ok(Storage::Sqlite("/data/m.db".into())));
        assert_eq!(storage("connection_config { fake_database {} }"), Ok(Storage::Memory));
        let text = r#"connection_config { postgresql { host: "h" port: "5433" user: "u" dbname: "d" } }"#;
        let Ok(Storage::Postgres(remote)) = storage(text) else { panic!("no PostgreSQL") };
        assert_eq!((remote.host.as_str(), remote.port), ("h", 5433));
    }

    #[test]
    fn what_is_wrong_is_named_and_secrets_are_not() {
        for (text, reason) in [
            ("", "connection_config names no database"),
            (
                r#"connection_config { mysql { host: "h" database: "d" socket: "/s" } }"#,
                "mysql.socket is not implemented",
            ),
            (r#"connection_config { mysql { password: "secret" } }"#, "mysql needs host and database"),
            (r#"connection_config { mysql { password: "secret" }"#, "it is not the text form of"),
            (
                r#"connection_config { fake_database {} } ssl_config { server_key: "secret" }"#,
                "server_cert and server_key",
            ),
            (
                "connection_config { fake_database {} } migration_options { downgrade_to_schema_version: 9 }",
                "downgrade",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
