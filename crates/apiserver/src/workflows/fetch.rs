//! Pipeline packages by URL: which URLs are allowed, and the download itself.

use crate::config::{self, Config};
use crate::error::{Error, Result};

/// Hosts that are always allowed.
const HOSTS: [&str; 4] = ["storage.googleapis.com", "s3.amazonaws.com", "github.com", "raw.githubusercontent.com"];

/// Which URLs may be fetched (`PIPELINE_URL_*`).
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Whether anything is checked.
    pub validate: bool,
    /// Whether plain HTTP is allowed.
    pub allow_http: bool,
    /// More hosts, with `*` for any characters.
    pub domains: Vec<String>,
}

impl Policy {
    /// Reads the settings.
    ///
    /// # Errors
    /// When a truth value is none.
    pub fn from_config(config: &Config) -> std::result::Result<Self, config::Error> {
        let domains = config.text("PIPELINE_URL_ALLOWED_DOMAINS", "");
        let domains = domains.split(',').map(str::trim).filter(|domain| !domain.is_empty());
        Ok(Policy {
            validate: config.bool("PIPELINE_URL_VALIDATION_ENABLED", true)?,
            allow_http: config.bool("PIPELINE_URL_ALLOW_HTTP", false)?,
            domains: domains.map(str::to_lowercase).collect(),
        })
    }

    /// Checks a URL before anything is fetched.
    ///
    /// # Errors
    /// Code 3, `Pipeline URL validation failed`.
    pub fn check(&self, url: &str) -> Result<()> {
        let bad = |cause: &str| Err(Error::invalid_because("Pipeline URL validation failed", cause));
        let Ok(uri) = url.parse::<http::Uri>() else { return bad("it is not a URL") };
        let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else { return bad("it is not a URL") };
        if !matches!(scheme, "http" | "https") {
            return bad("only https is allowed");
        }
        if !self.validate {
            return Ok(());
        }
        if scheme == "http" && !self.allow_http {
            return bad("only https is allowed");
        }
        let default_port = if scheme == "http" { 80 } else { 443 };
        if uri.port_u16().is_some_and(|port| port != default_port) {
            return bad("the port is not the default one");
        }
        let host = host.trim_end_matches('.').to_lowercase();
        let allowed = HOSTS.contains(&host.as_str()) || self.domains.iter().any(|pattern| matches(pattern, &host));
        if allowed { Ok(()) } else { bad(&format!("host {host} is not allowed")) }
    }
}

fn matches(pattern: &str, host: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == host,
        Some((before, after)) => host
            .strip_prefix(before)
            .is_some_and(|rest| (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(after, &rest[at..]))),
    }
}

/// Downloads a package and returns it with its file name.
///
/// # Errors
/// Code 3 for URLs that the policy refuses, 12 otherwise: downloads are not built yet.
pub async fn fetch(policy: &Policy, url: &str) -> Result<(Vec<u8>, String)> {
    policy.check(url)?;
    Err(Error::unimplemented(format!(
        "downloading pipeline packages by URL is not supported yet; download {url} and upload the file"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_hosts_over_https_are_allowed() {
        let policy = Policy { validate: true, allow_http: false, domains: vec!["*.example.com".into()] };
        for good in ["https://github.com/a/b.yaml", "https://x.example.com/p.yaml", "https://GitHub.com:443/x"] {
            assert!(policy.check(good).is_ok(), "{good}");
        }
        for bad in [
            "http://github.com/a",
            "https://github.com:8443/a",
            "https://evil.com/",
            "file:///etc/passwd",
            "nonsense",
            "",
        ] {
            assert!(policy.check(bad).is_err(), "{bad}");
        }
    }
}
