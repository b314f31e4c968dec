//! TLS of both listeners: the certificate is read again when its files change, so that renewals need no restart.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at, at most.
const FRESH: Duration = Duration::from_secs(1);

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Certificate and key belong together.
    #[error("flags --tlsCertPath and --tlsCertKeyPath must be set together")]
    Half,
    /// A flag has a wrong value.
    #[error("flag --{flag} is {value:?}: {reason}")]
    Flag {
        /// Its name.
        flag: &'static str,
        /// What it says.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// A file cannot be used.
    #[error("cannot use {path} for TLS: {reason}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The library refuses the settings.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

/// What is served with TLS.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Certificate chain in PEM.
    pub certificate: PathBuf,
    /// Key in PEM.
    pub key: PathBuf,
    /// Refuses TLS 1.2.
    pub only_13: bool,
    /// Cipher suites of TLS 1.2; empty for all that are good.
    pub suites: Vec<SupportedCipherSuite>,
}

impl Settings {
    /// Reads the flags; `None` without a certificate.
    ///
    /// # Errors
    /// Names the flag that is wrong.
    pub fn from_flags(certificate: &str, key: &str, minimum: &str, suites: &str) -> Result<Option<Self>, Error> {
        match (certificate.is_empty(), key.is_empty()) {
            (true, true) => return Ok(None),
            (false, false) => {}
            _ => return Err(Error::Half),
        }
        let only_13 = match minimum {
            "VersionTLS12" => false,
            "VersionTLS13" => true,
            other => {
                let reason = "want VersionTLS12 or VersionTLS13".to_owned();
                return Err(Error::Flag { flag: "tlsMinVersion", value: other.to_owned(), reason });
            }
        };
        let wrong = |reason: String| Error::Flag { flag: "tlsCipherSuites", value: suites.to_owned(), reason };
        let names: Vec<&str> = suites.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        if !suites.is_empty() && names.is_empty() {
            return Err(wrong("it names no suite".to_owned()));
        }
        if only_13 && !names.is_empty() {
            return Err(wrong("cipher suites of TLS 1.3 cannot be chosen".to_owned()));
        }
        let known = |name: &&str| {
            let found = ring::ALL_CIPHER_SUITES
                .iter()
                .find(|suite| suite.version() == &rustls::version::TLS12 && suite.suite().as_str() == Some(*name));
            found.copied().ok_or_else(|| wrong(format!("{name} is not known or not safe")))
        };
        let suites = names.iter().map(known).collect::<Result<_, _>>()?;
        Ok(Some(Settings { certificate: certificate.into(), key: key.into(), only_13, suites }))
    }

    /// The server's side of handshakes that offer `protocol`.
    ///
    /// # Errors
    /// When certificate and key cannot be used.
    pub fn acceptor(&self, protocol: &str) -> Result<TlsAcceptor, Error> {
        const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
        let mut provider = ring::default_provider();
        if !self.suites.is_empty() {
            let chosen = |suite: &SupportedCipherSuite| {
                suite.version() == &rustls::version::TLS13 || self.suites.contains(suite)
            };
            provider.cipher_suites.retain(chosen);
        }
        let provider = Arc::new(provider);
        let files = Files { certificate: self.certificate.clone(), key: self.key.clone(), provider: provider.clone() };
        let current = Current { key: Arc::new(files.read()?), changed: files.changed(), looked: Instant::now() };
        let versions = if self.only_13 { &BOTH[..1] } else { BOTH };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Renewed { files, current: RwLock::new(current) }));
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
}

impl Files {
    fn read(&self) -> Result<CertifiedKey, Error> {
        let unusable = |path: &PathBuf| {
            let path = path.clone();
            move |error: rustls::pki_types::pem::Error| Error::File { path, reason: error.to_string() }
        };
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(unusable(&self.certificate))?;
        if chain.is_empty() {
            return Err(Error::File { path: self.certificate.clone(), reason: "it holds no certificate".to_owned() });
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(unusable(&self.key))?;
        let key = CertifiedKey::from_der(chain, key, &self.provider);
        key.map_err(|error| Error::File { path: self.key.clone(), reason: error.to_string() })
    }

    /// When the files were last written; Kubernetes swaps links, which shows here too.
    fn changed(&self) -> [Option<SystemTime>; 2] {
        [&self.certificate, &self.key].map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
    }
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    changed: [Option<SystemTime>; 2],
    looked: Instant,
}

/// Hands out the newest certificate; one that cannot be read leaves the old one in use.
#[derive(Debug)]
struct Renewed {
    files: Files,
    current: RwLock<Current>,
}

impl Renewed {
    fn key(&self) -> Arc<CertifiedKey> {
        {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            if current.looked.elapsed() < FRESH {
                return current.key.clone();
            }
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.looked = Instant::now();
        let changed = self.files.changed();
        if changed != current.changed {
            match self.files.read() {
                Ok(key) => {
                    tracing::info!(certificate = %self.files.certificate.display(), "the renewed certificate is in use");
                    current.key = Arc::new(key);
                    current.changed = changed;
                }
                // Perhaps only half of it is written; the next look tells.
                Err(error) => tracing::warn!(%error, "the renewed certificate cannot be used; the old one stays"),
            }
        }
        current.key.clone()
    }
}

impl ResolvesServerCert for Renewed {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_checked_as_upstream_checks_them() {
        let read = |minimum, suites| Settings::from_flags("c", "k", minimum, suites);
        assert!(Settings::from_flags("", "", "nonsense", "x").unwrap().is_none());
        assert!(matches!(Settings::from_flags("c", "", "VersionTLS12", ""), Err(Error::Half)));
        assert!(matches!(Settings::from_flags("", "k", "VersionTLS12", ""), Err(Error::Half)));
        assert!(read("VersionTLS13", "").unwrap().unwrap().only_13);
        let two = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
        assert_eq!(read("VersionTLS12", two).unwrap().unwrap().suites.len(), 2);
        for (minimum, suites) in [
            ("VersionTLS11", ""),
            ("VersionTLS12", ","),
            ("VersionTLS12", "TLS_RSA_WITH_RC4_128_SHA"),
            ("VersionTLS12", "TLS_AES_128_GCM_SHA256"),
            ("VersionTLS13", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
        ] {
            assert!(read(minimum, suites).is_err(), "{minimum} {suites}");
        }
    }
}
