//! Which database is used and how it is reached, by upstream's setting names.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{Config, Error};

/// How long start-up waits for the database when nothing is set; upstream ships the same.
const PATIENCE: Duration = Duration::from_secs(360);
/// How old a connection may become when nothing is set; upstream ships the same.
const LIFETIME: Duration = Duration::from_secs(120);

/// Where the API server keeps its rows.
#[derive(Clone, Debug)]
pub enum Database {
    /// A SQLite file, created when it does not exist.
    Sqlite(PathBuf),
    /// MySQL or MariaDB.
    MySql(Server),
    /// PostgreSQL.
    Postgres(Server),
}

/// A database server. Its `Debug` form hides the password.
#[derive(Clone)]
pub struct Server {
    /// Host name or address; always reached through TCP, `localhost` too.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User.
    pub user: String,
    /// Password, possibly empty.
    pub password: String,
    /// Database; created when it does not exist and the user may do so.
    pub name: String,
    /// Whether and how the connection is encrypted.
    pub tls: Tls,
    /// PEM file of the authorities that the server's certificate may come from, instead of the system's.
    pub authorities: Option<PathBuf>,
    /// Session variables and their values as SQL, set on each new connection.
    pub session: BTreeMap<String, String>,
    /// How old a connection may become (`DBConfig.ConMaxLifeTime`).
    pub lifetime: Duration,
    /// How long start-up waits for the server (`InitConnectionTimeout`).
    pub patience: Duration,
}

/// Encryption of the connection to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Never.
    Off,
    /// If the server offers it; certificates are not checked.
    Preferred,
    /// Always; certificates are not checked.
    Unverified,
    /// Always; the certificate must come from a known authority.
    Authority,
    /// Always; the certificate must come from a known authority and carry the host's name.
    Verified,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("name", &self.name)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// What is shown to operators: never the password.
impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Database::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Database::MySql(server) => write!(f, "mysql://{server}"),
            Database::Postgres(server) => write!(f, "postgres://{server}"),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}/{}", self.user, self.host, self.port, self.name)
    }
}

/// Settings of Go's MySQL driver that say nothing to ours: it always counts matched rows, speaks utf8mb4 and leaves
/// times, of which the tables have none, alone.
const IGNORED: [&str; 21] = [
    "allowallfiles",
    "allowcleartextpasswords",
    "allowfallbacktoplaintext",
    "allownativepasswords",
    "allowoldpasswords",
    "charset",
    "checkconnliveness",
    "clientfoundrows",
    "collation",
    "columnswithalias",
    "connectionattributes",
    "interpolateparams",
    "loc",
    "maxallowedpacket",
    "multistatements",
    "parsetime",
    "readtimeout",
    "rejectreadonly",
    "serverpubkey",
    "timeout",
    "writetimeout",
];

/// A duration in Go's spelling; a bare number counts nanoseconds, as upstream reads it.
fn duration(config: &Config, key: &str, default: Duration) -> Result<Duration, Error> {
    let Some(text) = config.get(key).filter(|text| !text.is_empty()) else { return Ok(default) };
    let nanos = text.parse::<i64>().ok().or_else(|| kfp_core::duration::parse(text).ok());
    let nanos = nanos.and_then(|nanos| u64::try_from(nanos).ok());
    nanos.map(Duration::from_nanos).ok_or_else(|| Error::Value {
        key: key.to_owned(),
        value: text.to_owned(),
        expected: "a duration such as 120s",
    })
}

fn tls(key: &str, text: &str) -> Result<Tls, Error> {
    Ok(match text.to_lowercase().as_str() {
        "false" | "0" | "disable" => Tls::Off,
        "preferred" | "prefer" => Tls::Preferred,
        "skip-verify" | "require" => Tls::Unverified,
        "verify-ca" => Tls::Authority,
        "true" | "1" | "verify-full" => Tls::Verified,
        _ => {
            return Err(Error::Value {
                key: key.to_owned(),
                value: text.to_owned(),
                expected: "one of true, false, skip-verify, preferred, disable, require, verify-ca and verify-full",
            });
        }
    })
}

/// Upstream has no such setting; the file is looked at now, as a connection that fails is tried for minutes.
fn authorities(config: &Config, key: &str) -> Result<Option<PathBuf>, Error> {
    let Some(file) = config.get(key).filter(|file| !file.is_empty()) else { return Ok(None) };
    if std::fs::File::open(file).is_err() {
        return Err(Error::Value { key: key.to_owned(), value: file.to_owned(), expected: "a readable PEM file" });
    }
    Ok(Some(file.into()))
}

impl Server {
    fn from_config(config: &Config, section: &str, defaults: (&str, u16, &str, &str)) -> Result<Self, Error> {
        let key = |name: &str| format!("DBConfig.{section}.{name}");
        let (host, port, user, password) = defaults;
        let number = config.text(&key("Port"), &port.to_string());
        let port =
            number.parse().map_err(|_| Error::Value { key: key("Port"), value: number, expected: "a port number" })?;
        let name = config.text(&key("DBName"), "");
        if name.is_empty() {
            return Err(Error::Missing(key("DBName")));
        }
        Ok(Server {
            host: config.text(&key("Host"), host),
            port,
            user: config.text(&key("User"), user),
            password: config.text(&key("Password"), password),
            name,
            tls: Tls::Off,
            authorities: authorities(config, &key("SSLRootCert"))?,
            session: BTreeMap::new(),
            lifetime: duration(config, "DBConfig.ConMaxLifeTime", LIFETIME)?,
            patience: duration(config, "InitConnectionTimeout", PATIENCE)?,
        })
    }

    fn mysql(config: &Config) -> Result<Self, Error> {
        let mut server = Self::from_config(config, "MySQLConfig", ("mysql", 3306, "root", ""))?;
        // MySQL 8 sends passwords only through an encrypted connection, which it offers by default.
        server.tls = Tls::Preferred;
        let key = "DBConfig.MySQLConfig.ExtraParams";
        for (name, value) in config.map(key)? {
            let lower = name.to_lowercase();
            if lower == "tls" {
                server.tls = tls(&format!("{key}.tls"), &value)?;
            } else if !IGNORED.contains(&lower.as_str()) {
                if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                    return Err(Error::Value { key: key.to_owned(), value: name, expected: "the name of a variable" });
                }
                server.session.insert(name, value);
            }
        }
        Ok(server)
    }

    fn postgres(config: &Config) -> Result<Self, Error> {
        let mut server = Self::from_config(config, "PostgreSQLConfig", ("postgresql", 5432, "user", "password"))?;
        let key = "DBConfig.PostgreSQLConfig.SSLMode";
        if let Some(mode) = config.get(key).filter(|mode| !mode.is_empty()) {
            server.tls = tls(key, mode)?;
        }
        Ok(server)
    }
}

impl Database {
    /// Reads `DBDriverName` (environment: `DBDRIVERNAME`, or `DB_DRIVER_NAME`, which upstream's manifests set) and the
    /// section of that driver.
    ///
    /// # Errors
    /// Names the setting that is wrong or missing.
    pub fn from_config(config: &Config) -> Result<Self, Error> {
        let key = "DBDriverName";
        let driver = config.env("DBDRIVERNAME").or_else(|| config.env("DB_DRIVER_NAME")).or_else(|| config.get(key));
        match driver.unwrap_or("sqlite") {
            "sqlite" | "sqlite3" => {
                Ok(Database::Sqlite(config.text("DBConfig.SQLiteConfig.Path", "mlpipeline.sqlite").into()))
            }
            "mysql" | "mariadb" => Ok(Database::MySql(Server::mysql(config)?)),
            "pgx" | "postgres" | "postgresql" => Ok(Database::Postgres(Server::postgres(config)?)),
            other => Err(Error::Value {
                key: key.to_owned(),
                value: other.to_owned(),
                expected: "\"mysql\" for MySQL, \"pgx\" for PostgreSQL, or \"sqlite\"",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The database part of the `config.json` that upstream ships.
    fn shipped(env: &[(&str, &str)]) -> Config {
        let file = json!({
            "DBConfig": {
                "MySQLConfig": {"DataSourceName": "", "DBName": "mlpipeline", "GroupConcatMaxLen": "4194304"},
                "PostgreSQLConfig": {"DBName": "mlpipeline"},
                "ConMaxLifeTime": "120s",
            },
            "DBDriverName": "mysql",
            "InitConnectionTimeout": "6m",
        });
        Config::new(file, env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_shipped_configuration_means_mysql() {
        let Database::MySql(server) = Database::from_config(&shipped(&[])).unwrap() else { panic!() };
        assert_eq!(server.to_string(), "root@mysql:3306/mlpipeline");
        assert_eq!((server.password.as_str(), server.tls), ("", Tls::Preferred));
        assert_eq!((server.lifetime.as_secs(), server.patience.as_secs()), (120, 360));
    }

    #[test]
    fn environment_overrides_and_never_shows_the_password() {
        let config = shipped(&[
            ("DB_DRIVER_NAME", "postgres"),
            ("DBCONFIG_POSTGRESQLCONFIG_HOST", "db"),
            ("DBCONFIG_POSTGRESQLCONFIG_USER", "kfp"),
            ("DBCONFIG_POSTGRESQLCONFIG_PASSWORD", "s3cret"),
            ("DBCONFIG_CONMAXLIFETIME", "5000000000"),
        ]);
        let database = Database::from_config(&config).unwrap();
        assert_eq!(database.to_string(), "postgres://kfp@db:5432/mlpipeline");
        assert!(!format!("{database:?} {database}").contains("s3cret"));
        let Database::Postgres(server) = database else { panic!() };
        assert_eq!((server.password.as_str(), server.tls, server.lifetime.as_secs()), ("s3cret", Tls::Off, 5));
    }

    #[test]
    fn the_read_name_of_the_driver_wins_over_the_documented_one() {
        let config = shipped(&[("DBDRIVERNAME", "pgx"), ("DB_DRIVER_NAME", "mysql")]);
        assert!(matches!(Database::from_config(&config).unwrap(), Database::Postgres(_)));
    }

    #[test]
    fn extra_parameters_choose_tls_and_session_variables() {
        let params = r#"{"tls":"skip-verify","parseTime":"true","max_statement_time":"60"}"#;
        let config = shipped(&[("DBCONFIG_MYSQLCONFIG_EXTRAPARAMS", params)]);
        let Database::MySql(server) = Database::from_config(&config).unwrap() else { panic!() };
        assert_eq!(server.tls, Tls::Unverified);
        assert_eq!(server.session, BTreeMap::from([("max_statement_time".to_owned(), "60".to_owned())]));
    }

    #[test]
    fn mistakes_are_named() {
        for (name, value, text) in [
            ("DBDRIVERNAME", "oracle", "\"oracle\", which is not \"mysql\" for MySQL"),
            ("DBCONFIG_MYSQLCONFIG_DBNAME", "", "DBConfig.MySQLConfig.DBName is not set"),
            ("DBCONFIG_MYSQLCONFIG_PORT", "x", "a port number"),
            ("DBCONFIG_CONMAXLIFETIME", "soon", "a duration"),
            (
                "DBCONFIG_MYSQLCONFIG_SSLROOTCERT",
                "/nonexistent.pem",
                "\"/nonexistent.pem\", which is not a readable PEM file",
            ),
            ("DBCONFIG_MYSQLCONFIG_EXTRAPARAMS", "[]", "a JSON object"),
            ("DBCONFIG_MYSQLCONFIG_EXTRAPARAMS", r#"{"tls":"custom"}"#, "skip-verify"),
            ("DBCONFIG_MYSQLCONFIG_EXTRAPARAMS", r#"{"a=1, b":"2"}"#, "the name of a variable"),
        ] {
            let error = Database::from_config(&shipped(&[(name, value)])).unwrap_err().to_string();
            assert!(error.contains(text), "{name}={value}: {error}");
        }
    }
}
