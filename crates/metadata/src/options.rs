//! Flags of upstream's `metadata_store_server`, and our own.

use std::net::TcpListener;
use std::path::PathBuf;

use kfp_core::flags::{Flags, Values};

use crate::Error;

/// Where the metadata lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// An SQLite file, created when missing.
    Sqlite(PathBuf),
    /// Nowhere: it ends with the process.
    Memory,
}

/// What the server needs to run.
#[derive(Debug)]
pub struct Options {
    /// Address to listen on when no listener is given.
    pub host: String,
    /// Port for gRPC and gRPC-Web; 0 lets the system choose.
    pub port: u16,
    /// The database.
    pub storage: Storage,
    /// A bound socket to serve on instead of `host` and `port`. Connections made before the server runs wait in it.
    pub listener: Option<TcpListener>,
    /// Told the address once the server accepts calls.
    pub ready: Option<tokio::sync::oneshot::Sender<std::net::SocketAddr>>,
}

impl Options {
    /// A server on `host` and `port` over `storage`.
    #[must_use]
    pub fn new(host: &str, port: u16, storage: Storage) -> Self {
        Self { host: host.to_owned(), port, storage, listener: None, ready: None }
    }

    /// The flags with their defaults.
    #[must_use]
    pub fn flags() -> Flags {
        let mut flags = Flags::new("kfp-metadata", "Metadata store: ML Metadata over gRPC and gRPC-Web on one port.")
            .ignoring_glog()
            .text("host", "0.0.0.0", "Address to listen on")
            .int("grpc_port", 8080, "Port for gRPC and gRPC-Web")
            .int("port", 0, "The same as grpc_port, which it overrides")
            .text("sqlite_path", "", "SQLite file that holds the metadata; created when missing")
            .text("log_level", "info", "error, warn, info, debug or trace")
            .text("grpc_channel_arguments", "", "Accepted and ignored: message sizes up to 100 MiB are always allowed")
            .text("metadata_source_config_type", "default", "default, mysql or postgresql")
            .text("metadata_store_server_config_file", "", "Not supported")
            .int("metadata_store_connection_retries", 5, "Accepted and ignored")
            .bool("enable_database_upgrade", false, "Accepted; only schema version 10 is understood")
            .int("downgrade_db_schema_version", -1, "Not supported")
            .text("mysql_config_host", "", "MySQL host")
            .int("mysql_config_port", 0, "MySQL port")
            .text("mysql_config_database", "", "MySQL database")
            .text("mysql_config_user", "", "MySQL user")
            .text("mysql_config_password", "", "MySQL password")
            .bool("postgres_config_skip_db_creation", false, "Accepted and ignored");
        for name in [
            "postgres_config_host",
            "postgres_config_hostaddr",
            "postgres_config_port",
            "postgres_config_user",
            "postgres_config_password",
            "postgres_config_passfile",
            "postgres_config_dbname",
            "postgres_config_sslmode",
            "postgres_config_sslcert",
            "postgres_config_sslkey",
            "postgres_config_sslpassword",
            "postgres_config_sslrootcert",
        ] {
            flags = flags.text(name, "", "PostgreSQL connection");
        }
        flags
    }

    /// Typed options from parsed flags.
    ///
    /// # Errors
    /// [`Error::Options`] names the flag that is wrong or not implemented.
    pub fn from_values(values: &Values) -> Result<Self, Error> {
        let wrong = |message: String| Err(Error::Options(message));
        if let Some(word) = values.rest().first() {
            return wrong(format!("unexpected argument {word:?}"));
        }
        let flag = if values.given("port") { "port" } else { "grpc_port" };
        let Ok(port) = u16::try_from(values.int(flag)) else {
            return wrong(format!("--{flag} must be between 0 and 65535, not {}", values.int(flag)));
        };
        for flag in ["metadata_store_server_config_file", "downgrade_db_schema_version"] {
            if values.given(flag) {
                return wrong(format!("--{flag} is not implemented"));
            }
        }
        let path = values.text("sqlite_path");
        let named = |flag: &str| !values.text(flag).is_empty();
        let kind = values.text("metadata_source_config_type");
        let storage = match kind {
            "default" | "mysql" | "postgresql" if !path.is_empty() => Storage::Sqlite(PathBuf::from(path)),
            "mysql" => return wrong(format!("MySQL {NOT_YET}")),
            "postgresql" => return wrong(format!("PostgreSQL {NOT_YET}")),
            "default" if named("mysql_config_host") || named("mysql_config_database") => {
                return wrong(format!("MySQL {NOT_YET}"));
            }
            "default" if named("postgres_config_host") || named("postgres_config_dbname") => {
                return wrong(format!("PostgreSQL {NOT_YET}"));
            }
            "default" => Storage::Memory,
            other => return wrong(format!("--metadata_source_config_type={other} is not implemented")),
        };
        Ok(Self::new(values.text("host"), port, storage))
    }
}

const NOT_YET: &str = "is not implemented yet; give --sqlite_path=FILE";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, String> {
        let values = Options::flags().parse(words.iter().copied()).map_err(|stop| format!("{stop:?}"))?;
        Options::from_values(&values).map_err(|error| error.to_string())
    }

    #[test]
    fn the_flags_of_upstreams_manifest_parse() {
        let error = parse(&[
            "--grpc_port=8080",
            "--mysql_config_database=metadb",
            "--mysql_config_host=mysql",
            "--mysql_config_port=3306",
            "--mysql_config_user=root",
            "--mysql_config_password=",
            "--enable_database_upgrade=true",
            "--grpc_channel_arguments=grpc.max_metadata_size=16384,grpc.max_receive_message_length=104857600",
        ]);
        assert!(error.unwrap_err().contains("MySQL is not implemented yet"));
    }

    #[test]
    fn a_file_is_chosen_by_sqlite_path() {
        let options = parse(&["--grpc_port=9", "--port", "0", "--sqlite_path", "a.db", "--host=::1"]).unwrap();
        assert_eq!((options.host.as_str(), options.port), ("::1", 0));
        assert_eq!(options.storage, Storage::Sqlite("a.db".into()));
        assert_eq!(parse(&[]).unwrap().storage, Storage::Memory);
        assert!(parse(&["--grpc_port=70000"]).unwrap_err().contains("65535"));
        assert!(parse(&["--downgrade_db_schema_version=3"]).unwrap_err().contains("not implemented"));
    }
}
