//! Flags of upstream's `metadata_store_server`, and our own.

use std::net::TcpListener;
use std::path::PathBuf;

use kfp_core::flags::{Flags, Values};
use kfp_core::grpc::Transport;

use crate::Error;
use crate::config_file::{self, File, ServerTls};

/// Flag with the file that replaces the others.
const FILE: &str = "metadata_store_server_config_file";

/// Where the metadata lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// An SQLite file, created when missing.
    Sqlite(PathBuf),
    /// Nowhere: it ends with the process.
    Memory,
    /// A database of a MySQL or MariaDB server.
    MySql(Remote),
    /// A database of a PostgreSQL server.
    Postgres(Remote),
}

/// A database of a server.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Remote {
    /// Name or address; for PostgreSQL also the folder of its socket, which begins with a slash.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The database, created when missing.
    pub database: String,
    /// The user.
    pub user: String,
    /// The user's password; empty for none.
    pub password: String,
    /// A file in libpq's format that holds the password; PostgreSQL only, empty for none.
    pub password_file: String,
    /// Never create the database.
    pub skip_creation: bool,
    /// How to protect the connection.
    pub tls: Tls,
}

/// Protection of a connection to a database: libpq's words, empty for its defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// `disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`.
    pub mode: String,
    /// File with the authorities to trust.
    pub authorities: String,
    /// File with the client's certificate.
    pub certificate: String,
    /// File with the certificate's key.
    pub key: String,
}

/// Without the password.
impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
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
    /// How often to try again when the database cannot be opened at the start.
    pub retries: u32,
    /// TLS of the server; plain text without.
    pub tls: Option<ServerTls>,
    /// A bound socket to serve on instead of `host` and `port`. Connections made before the server runs wait in it.
    pub listener: Option<TcpListener>,
    /// Told how to reach the server once it accepts calls.
    pub ready: Option<tokio::sync::oneshot::Sender<Ready>>,
}

/// How to reach a server that accepts calls.
#[derive(Debug)]
pub struct Ready {
    /// Where it listens.
    pub address: std::net::SocketAddr,
    /// The way for callers in the same process, without a connection.
    pub transport: Transport,
}

impl Options {
    /// A server on `host` and `port` over `storage`.
    #[must_use]
    pub fn new(host: &str, port: u16, storage: Storage) -> Self {
        Self { host: host.to_owned(), port, storage, retries: 0, tls: None, listener: None, ready: None }
    }

    /// The flags with their defaults.
    #[must_use]
    pub fn flags() -> Flags {
        Flags::new("kfp-metadata", "Metadata store: ML Metadata over gRPC and gRPC-Web on one port.")
            .ignoring_glog()
            .text("host", "0.0.0.0", "Address to listen on")
            .int("grpc_port", 8080, "Port for gRPC and gRPC-Web")
            .int("port", 0, "The same as grpc_port, which it overrides")
            .text("sqlite_path", "", "SQLite file that holds the metadata; created when missing")
            .text("log_level", "info", "error, warn, info, debug or trace")
            .text("grpc_channel_arguments", "", "Accepted and ignored: message sizes up to 100 MiB are always allowed")
            .text("metadata_source_config_type", "default", "default, mysql or postgresql")
            .text(FILE, "", "File that says all about the database and TLS, instead of flags")
            .int("metadata_store_connection_retries", 5, "How often to try again to open the database at the start")
            .bool("enable_database_upgrade", false, "Accepted; only schema version 10 is understood")
            .int("downgrade_db_schema_version", -1, "Not supported")
            .text("mysql_config_host", "", "Host of MySQL or MariaDB")
            .int("mysql_config_port", 0, "Its port")
            .text("mysql_config_database", "", "Its database; created when missing")
            .text("mysql_config_user", "", "Its user; root by default")
            .text("mysql_config_password", "", "The user's password")
            .text("postgres_config_host", "", "Host of PostgreSQL, or the folder of its socket")
            .text("postgres_config_hostaddr", "", "Address of PostgreSQL, instead of its host")
            .text("postgres_config_port", "", "Its port")
            .text("postgres_config_dbname", "", "Its database; created when missing")
            .bool("postgres_config_skip_db_creation", false, "Never create the database")
            .text("postgres_config_user", "", "Its user")
            .text("postgres_config_password", "", "The user's password")
            .text("postgres_config_passfile", "", "File in libpq's format that holds the password")
            .text("postgres_config_sslmode", "", "disable, allow, prefer, require, verify-ca or verify-full")
            .text("postgres_config_sslrootcert", "", "File with the certificate authorities to trust")
            .text("postgres_config_sslcert", "", "File with the client's certificate")
            .text("postgres_config_sslkey", "", "File with the key of the client's certificate")
            .text("postgres_config_sslpassword", "", "Not supported: keys must not be encrypted")
    }

    /// Typed options from parsed flags.
    ///
    /// # Errors
    /// [`Error::Options`] names the flag that is wrong or not implemented.
    pub fn from_values(values: &Values) -> Result<Self, Error> {
        if let Some(word) = values.rest().first() {
            return wrong(format!("unexpected argument {word:?}"));
        }
        let port = port(values, if values.given("port") { "port" } else { "grpc_port" })?;
        if !values.text("postgres_config_sslpassword").is_empty() {
            return wrong("--postgres_config_sslpassword is not implemented".to_owned());
        }
        let retries = u32::try_from(values.int("metadata_store_connection_retries")).unwrap_or_default();
        let file = values.text(FILE);
        if !file.is_empty() {
            let text = std::fs::read_to_string(file).map_err(|error| error.to_string());
            return match text.and_then(|text| config_file::parse(&text)) {
                Ok(File { storage, retries: own, tls }) => {
                    Ok(Self { retries: own.unwrap_or(retries), tls, ..Self::new(values.text("host"), port, storage) })
                }
                Err(reason) => wrong(format!("--{FILE} {file}: {reason}")),
            };
        }
        if values.int("downgrade_db_schema_version") >= 0 {
            return wrong("--downgrade_db_schema_version is not implemented".to_owned());
        }
        let path = values.text("sqlite_path");
        let storage = match values.text("metadata_source_config_type") {
            "default" | "mysql" | "postgresql" if !path.is_empty() => Storage::Sqlite(PathBuf::from(path)),
            "mysql" => Storage::MySql(mysql(values)?),
            "postgresql" => Storage::Postgres(postgres(values)?),
            "default" if names_mysql(values) => Storage::MySql(mysql(values)?),
            // Upstream would not look at these and store nothing.
            "default" if names_postgres(values) => Storage::Postgres(postgres(values)?),
            "default" => Storage::Memory,
            other => return wrong(format!("--metadata_source_config_type={other} is not implemented")),
        };
        Ok(Self { retries, ..Self::new(values.text("host"), port, storage) })
    }
}

fn wrong<T>(message: String) -> Result<T, Error> {
    Err(Error::Options(message))
}

fn port(values: &Values, flag: &str) -> Result<u16, Error> {
    match values.text(flag).parse() {
        Ok(port) => Ok(port),
        Err(_) => wrong(format!("--{flag} must be between 0 and 65535, not {}", values.text(flag))),
    }
}

fn names_mysql(values: &Values) -> bool {
    let text = ["mysql_config_host", "mysql_config_database"].iter().any(|flag| !values.text(flag).is_empty());
    text || values.int("mysql_config_port") != 0
}

fn names_postgres(values: &Values) -> bool {
    ["postgres_config_host", "postgres_config_hostaddr", "postgres_config_dbname"]
        .iter()
        .any(|flag| !values.text(flag).is_empty())
}

fn required(values: &Values, flags: &[&str]) -> Result<(), Error> {
    match flags.iter().find(|flag| matches!(values.text(flag), "" | "0")) {
        Some(flag) => wrong(format!("--{flag} must be given: all of --{} are needed", flags.join(", --"))),
        None => Ok(()),
    }
}

fn mysql(values: &Values) -> Result<Remote, Error> {
    required(values, &["mysql_config_host", "mysql_config_port", "mysql_config_database"])?;
    let text = |name: &str| values.text(&format!("mysql_config_{name}")).to_owned();
    Ok(Remote {
        host: text("host"),
        port: port(values, "mysql_config_port")?,
        database: text("database"),
        user: Some(text("user")).filter(|user| !user.is_empty()).unwrap_or_else(|| "root".to_owned()),
        password: text("password"),
        ..Remote::default()
    })
}

fn postgres(values: &Values) -> Result<Remote, Error> {
    let text = |name: &str| values.text(&format!("postgres_config_{name}")).to_owned();
    let host = match (text("host"), text("hostaddr")) {
        (host, address) if host.is_empty() != address.is_empty() => host + &address,
        _ => {
            return wrong("exactly one of --postgres_config_host and --postgres_config_hostaddr is needed".to_owned());
        }
    };
    required(values, &["postgres_config_port", "postgres_config_user", "postgres_config_dbname"])?;
    let modes = ["", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
    if !modes.contains(&text("sslmode").as_str()) {
        return wrong(format!("--postgres_config_sslmode must be one of{}", modes.join(" ")));
    }
    Ok(Remote {
        host,
        port: port(values, "postgres_config_port")?,
        database: text("dbname"),
        user: text("user"),
        password: text("password"),
        password_file: text("passfile"),
        skip_creation: values.bool("postgres_config_skip_db_creation"),
        tls: Tls {
            mode: text("sslmode"),
            authorities: text("sslrootcert"),
            certificate: text("sslcert"),
            key: text("sslkey"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, String> {
        let values = Options::flags().parse(words.iter().copied()).map_err(|stop| format!("{stop:?}"))?;
        Options::from_values(&values).map_err(|error| error.to_string())
    }

    #[test]
    fn the_flags_of_upstreams_manifest_parse() {
        let options = parse(&[
            "--grpc_port=8080",
            "--mysql_config_database=metadb",
            "--mysql_config_host=mysql",
            "--mysql_config_port=3306",
            "--mysql_config_user=root",
            "--mysql_config_password=",
            "--enable_database_upgrade=true",
            "--grpc_channel_arguments=grpc.max_metadata_size=16384,grpc.max_receive_message_length=104857600",
        ])
        .unwrap();
        let remote = Remote {
            host: "mysql".to_owned(),
            port: 3306,
            database: "metadb".to_owned(),
            user: "root".to_owned(),
            ..Remote::default()
        };
        assert_eq!(options.storage, Storage::MySql(remote));
        assert_eq!(options.retries, 5);
    }

    #[test]
    fn the_flags_of_upstreams_postgres_overlay_parse() {
        let words = [
            "--metadata_source_config_type=postgresql",
            "--postgres_config_host=metadata-postgres-db",
            "--postgres_config_port=5432",
            "--postgres_config_dbname=mlmdpostgres",
            "--postgres_config_user=root",
            "--postgres_config_password=secret",
            "--postgres_config_sslmode=verify-full",
        ];
        let options = parse(&words).unwrap();
        assert!(!format!("{options:?}").contains("secret"));
        let Storage::Postgres(remote) = options.storage else { panic!("{:?}", options.storage) };
        assert_eq!((remote.port, remote.password.as_str(), remote.tls.mode.as_str()), (5432, "secret", "verify-full"));
        for (without, named) in [(1, "hostaddr"), (2, "port"), (3, "dbname"), (4, "user")] {
            let mut words = words.to_vec();
            words.remove(without);
            let error = parse(&words).unwrap_err();
            assert!(error.contains(&format!("--postgres_config_{named}")), "{error}");
        }
        assert!(parse(&[&words[..6], &["--postgres_config_sslmode=yes"]].concat()).unwrap_err().contains("verify-ca"));
    }

    #[test]
    fn incomplete_databases_are_refused() {
        assert!(parse(&["--mysql_config_host=a"]).unwrap_err().contains("--mysql_config_port must be given"));
        assert!(parse(&["--metadata_source_config_type=mysql"]).unwrap_err().contains("--mysql_config_host"));
        assert!(parse(&["--metadata_source_config_type=config_file"]).unwrap_err().contains("not implemented"));
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
