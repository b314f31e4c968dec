//! Private database servers for tests, started from the installed programs of MariaDB and PostgreSQL.
//!
//! ```no_run
//! # use kfp_testdb::Engine;
//! let Some(server) = Engine::MariaDb.shared() else { return };
//! let url = server.fresh(); // mysql://root@127.0.0.1:PORT/test1: a new, empty database
//! ```
//!
//! Where the programs are missing, `None` is answered and a line on the standard error says so; with
//! `KFP_REQUIRE_DATABASES=1` in the environment that is a failure. Everything else that goes wrong panics, as in a test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Used by tests only.

mod guarded;

use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::guarded::Guarded;

/// PostgreSQL refuses to run as root; this is the number of the user `nobody` on Debian and most others.
const NOBODY: u32 = 65534;
/// How often a start is tried, as another program can take the free port that was found.
const TRIES: usize = 5;

/// What can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// MariaDB 10.5 or later; Debian's package `mariadb-server`.
    MariaDb,
    /// PostgreSQL 12 or later; Debian's package `postgresql`.
    Postgres,
}

/// A running server with its data in a temporary directory. It ends, and the directory goes, when this is dropped or
/// the process ends, however that happens.
#[derive(Debug)]
pub struct Server {
    engine: Engine,
    port: u16,
    programs: Programs,
    running: Option<Guarded>,
    databases: AtomicU32,
    tls: bool,
    // Last, so that it is removed after the server ended.
    folder: TempDir,
}

#[derive(Debug)]
struct Programs {
    initialise: PathBuf,
    serve: PathBuf,
    client: PathBuf,
}

impl Engine {
    /// Starts a server of one's own, or answers `None` when its programs are not installed.
    #[must_use]
    pub fn start(self) -> Option<Server> {
        self.start_with(None)
    }

    /// Starts a server that only speaks TLS, with a certificate and its key in PEM.
    #[must_use]
    pub fn start_with_tls(self, certificate: &str, key: &str) -> Option<Server> {
        self.start_with(Some((certificate, key)))
    }

    fn start_with(self, tls: Option<(&str, &str)>) -> Option<Server> {
        let Some(programs) = self.programs() else {
            let package = match self {
                Self::MariaDb => "mariadb-server",
                Self::Postgres => "postgresql",
            };
            let line = format!("SKIPPED: tests over {self:?}, because {package} is not installed\n");
            assert!(std::env::var_os("KFP_REQUIRE_DATABASES").is_none(), "{line}");
            // Not eprintln, which the test harness keeps to itself when a test passes.
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            return None;
        };
        Some(Server::start(self, programs, tls))
    }

    /// The server that all tests of this process share; started on first use.
    #[must_use]
    pub fn shared(self) -> Option<&'static Server> {
        static SERVERS: [OnceLock<Option<Server>>; 2] = [OnceLock::new(), OnceLock::new()];
        SERVERS[self as usize].get_or_init(|| self.start()).as_ref()
    }

    fn programs(self) -> Option<Programs> {
        let [initialise, serve, client] = match self {
            Self::MariaDb => ["mariadb-install-db", "mariadbd", "mariadb"],
            Self::Postgres => ["initdb", "postgres", "psql"],
        };
        Some(Programs { initialise: find(initialise)?, serve: find(serve)?, client: find(client)? })
    }
}

/// A program on the path or where distributions keep servers; of several versions the newest.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/libexec", "/usr/local/sbin"].map(PathBuf::from));
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    versions.sort_by_key(|folder| folder.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    folders.extend(versions.into_iter().rev().map(|folder| folder.join("bin")));
    folders.into_iter().map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    fn start(engine: Engine, programs: Programs, tls: Option<(&str, &str)>) -> Self {
        let folder = tempfile::Builder::new().prefix("testdb").tempdir().unwrap();
        let databases = AtomicU32::new(0);
        let mut server = Self { engine, port: 0, programs, running: None, databases, folder, tls: tls.is_some() };
        server.initialise();
        if let Some((certificate, key)) = tls {
            server.write_tls(certificate, key);
        }
        for _ in 0..TRIES {
            server.port = free_port();
            match server.serve() {
                Ok(running) => {
                    server.running = Some(running);
                    return server;
                }
                Err(log) if log.contains("in use") => {}
                Err(log) => panic!("{engine:?} did not start:\n{log}"),
            }
        }
        panic!("{engine:?} found no free port");
    }

    /// A program of the engine: PostgreSQL's run as an ordinary user.
    fn command(&self, program: &Path) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        if self.engine == Engine::Postgres && is_root() {
            let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".to_owned()];
            words.push("setpriv".to_owned());
            words.extend(user);
        }
        words.push(program.display().to_string());
        words
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    fn initialise(&self) {
        let data = self.data();
        std::fs::create_dir(&data).unwrap();
        if self.engine == Engine::Postgres && is_root() {
            for folder in [self.folder.path(), Path::new(&data)] {
                std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let mut words = self.command(&self.programs.initialise);
        words.extend(match self.engine {
            Engine::MariaDb => vec![
                "--no-defaults".to_owned(),
                "--auth-root-authentication-method=normal".to_owned(),
                "--skip-test-db".to_owned(),
                "--innodb-log-file-size=8M".to_owned(),
                format!("--datadir={data}"),
            ],
            Engine::Postgres => ["--auth=trust", "--username=root", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"]
                .map(str::to_owned)
                .into_iter()
                .chain([data])
                .collect(),
        });
        if self.engine == Engine::MariaDb && is_root() {
            words.push("--user=root".to_owned());
        }
        run(&words, self.folder.path());
    }

    /// Certificate and key where [`Self::serve`] expects them, and no way around them.
    fn write_tls(&self, certificate: &str, key: &str) {
        let file = |name: &str| self.folder.path().join(name);
        std::fs::write(file("certificate.pem"), certificate).unwrap();
        std::fs::write(file("key.pem"), key).unwrap();
        // PostgreSQL takes no key that others may read.
        std::fs::set_permissions(file("key.pem"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        if self.engine == Engine::Postgres {
            std::fs::write(file("data").join("pg_hba.conf"), "hostssl all all all trust\n").unwrap();
            if is_root() {
                std::os::unix::fs::chown(file("key.pem"), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
    }

    fn serve(&self) -> Result<Guarded, String> {
        let mut words = self.command(&self.programs.serve);
        let socket = self.folder.path().display();
        let port = self.port;
        let data = self.data();
        let ready = match self.engine {
            Engine::MariaDb => {
                words.extend([
                    "--no-defaults".to_owned(),
                    format!("--datadir={data}"),
                    format!("--socket={socket}/socket"),
                    format!("--pid-file={socket}/pid"),
                    format!("--port={port}"),
                ]);
                let settings = [
                    "--bind-address=127.0.0.1",
                    "--character-set-server=utf8mb4",
                    "--innodb-log-file-size=8M",
                    // Commits outlive the process, not the machine.
                    "--innodb-flush-log-at-trx-commit=2",
                    "--skip-log-bin",
                    "--max-connections=400",
                ];
                words.extend(settings.map(str::to_owned));
                if is_root() {
                    words.push("--user=root".to_owned());
                }
                if self.tls {
                    words.extend([
                        format!("--ssl-cert={socket}/certificate.pem"),
                        format!("--ssl-key={socket}/key.pem"),
                        "--require-secure-transport=ON".to_owned(),
                    ]);
                }
                "ready for connections"
            }
            Engine::Postgres => {
                words.extend(["-D".to_owned(), data, "-k".to_owned(), socket.to_string()]);
                words.extend(["-p".to_owned(), port.to_string()]);
                for setting in
                    ["listen_addresses=127.0.0.1", "fsync=off", "max_connections=400", "log_destination=stderr"]
                {
                    words.extend(["-c".to_owned(), setting.to_owned()]);
                }
                if self.tls {
                    let (certificate, key) =
                        (format!("ssl_cert_file={socket}/certificate.pem"), format!("ssl_key_file={socket}/key.pem"));
                    words.extend(["-c", "ssl=on", "-c", &certificate, "-c", &key].map(str::to_owned));
                }
                "ready to accept connections"
            }
        };
        // Neither leaves its children or shared memory behind when ended this way, and both recover when started again.
        let signal = if self.engine == Engine::Postgres { "QUIT" } else { "KILL" };
        Guarded::start(&words, signal, self.folder.path(), ready)
    }

    /// Which engine this is.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The port on 127.0.0.1. The user is `root` without a password.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of a database, which need not exist.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let scheme = match self.engine {
            Engine::MariaDb => "mysql",
            Engine::Postgres => "postgres",
        };
        format!("{scheme}://root@127.0.0.1:{}/{database}", self.port)
    }

    /// Creates an empty database and answers its name.
    #[must_use]
    pub fn fresh_name(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed) + 1);
        self.execute("", &format!("CREATE DATABASE {name}"));
        name
    }

    /// Creates an empty database and answers its address.
    #[must_use]
    pub fn fresh(&self) -> String {
        self.url(&self.fresh_name())
    }

    /// Runs statements in a database ("" for none in particular) and answers what the engine's own client prints:
    /// rows as lines with tabs between their columns, without headings.
    pub fn execute(&self, database: &str, sql: &str) -> String {
        let mut words = self.command(&self.programs.client);
        let port = self.port;
        match self.engine {
            Engine::MariaDb => {
                words.extend(["--no-defaults", "--host=127.0.0.1", "--user=root", "--batch"].map(str::to_owned));
                words.extend(["--skip-column-names".to_owned(), format!("--port={port}")]);
                if self.tls {
                    words.extend(["--ssl", "--skip-ssl-verify-server-cert"].map(str::to_owned));
                }
                words.extend(["-e".to_owned(), sql.to_owned(), database.to_owned()]);
            }
            Engine::Postgres => {
                words.extend(["-X", "-q", "-A", "-t", "-F\t", "-v", "ON_ERROR_STOP=1"].map(str::to_owned));
                words.extend(["-h", "127.0.0.1", "-U", "root"].map(str::to_owned));
                words.extend(["-p".to_owned(), port.to_string(), "-c".to_owned(), sql.to_owned()]);
                words.extend(["-d".to_owned(), if database.is_empty() { "postgres" } else { database }.to_owned()]);
            }
        }
        words.retain(|word| !word.is_empty());
        run(&words, self.folder.path())
    }

    /// Ends the server as a crash does; the data stays.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }

    /// Starts a stopped server again on the same port.
    pub fn resume(&mut self) {
        if self.running.is_none() {
            let started = self.serve();
            self.running = Some(started.unwrap_or_else(|log| panic!("{:?} did not start again:\n{log}", self.engine)));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a program to its end and answers its output.
fn run(words: &[String], folder: &Path) -> String {
    let (program, arguments) = words.split_first().unwrap();
    let done = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        // A MariaDB server that starts removes every temporary table that it finds in the common folder, also those
        // of the servers beside it.
        .env("TMPDIR", folder)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let output = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{words:?} ended with {}:\n{output}{}", done.status, {
        String::from_utf8_lossy(&done.stderr)
    });
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeps_data_over_a_crash(engine: Engine) {
        let Some(mut server) = engine.start() else { return };
        let name = server.fresh_name();
        assert_ne!(name, server.fresh_name());
        server.execute(&name, "CREATE TABLE a (b INT, c INT); INSERT INTO a VALUES (7, 8)");
        server.stop();
        assert!(std::net::TcpStream::connect(("127.0.0.1", server.port())).is_err());
        server.resume();
        assert_eq!(server.execute(&name, "SELECT b, c FROM a"), "7\t8\n");
        let folder = server.folder.path().to_owned();
        drop(server);
        assert!(!folder.exists());
    }

    #[test]
    fn mariadb_starts_stops_and_leaves_nothing() {
        keeps_data_over_a_crash(Engine::MariaDb);
    }

    #[test]
    fn a_taken_port_is_reported() {
        for engine in [Engine::MariaDb, Engine::Postgres] {
            let Some(mut server) = engine.start() else { continue };
            server.stop();
            let _taken = TcpListener::bind(("127.0.0.1", server.port())).unwrap();
            let log = server.serve().unwrap_err();
            assert!(log.contains("in use"), "{log}");
        }
    }

    #[test]
    fn postgres_starts_stops_and_leaves_nothing() {
        keeps_data_over_a_crash(Engine::Postgres);
    }
}
