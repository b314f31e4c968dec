//! Pipeline packages by URL: which URLs are allowed, and the download itself.

use std::net::IpAddr;
use std::time::Duration;

use kfp_core::https;

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
    /// Limit of a whole download.
    pub timeout: Duration,
}

/// Seconds of a download when the setting is absent or senseless.
const TIMEOUT: i64 = 30;

impl Policy {
    /// Reads the settings.
    ///
    /// # Errors
    /// When a truth value is none.
    pub fn from_config(config: &Config) -> std::result::Result<Self, config::Error> {
        let domains = config.text("PIPELINE_URL_ALLOWED_DOMAINS", "");
        let domains = domains.split(',').map(str::trim).filter(|domain| !domain.is_empty());
        let seconds = config.int("PIPELINE_URL_TIMEOUT", TIMEOUT)?;
        let seconds = if seconds < 1 { TIMEOUT } else { seconds };
        Ok(Policy {
            timeout: Duration::from_secs(seconds.unsigned_abs()),
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

/// Redirects that are followed; each target is checked like the first URL.
const REDIRECTS: u32 = 10;
/// Limit of a name look-up.
const LOOKUP: Duration = Duration::from_secs(5);

/// Addresses that a pipeline URL must not lead to: this machine, private networks, link-local ones.
fn is_internal(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_internal(IpAddr::V4(v4)),
            None => v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local(),
        },
    }
}

impl Policy {
    /// Checks where the host's name leads. The connection looks the name up again, so a name server that changes its
    /// mind in between gets through; the list of allowed hosts is what protects against that.
    async fn check_addresses(&self, uri: &http::Uri) -> Result<()> {
        let (true, Some(host)) = (self.validate, uri.host()) else { return Ok(()) };
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let bad = |cause: String| Error::invalid_because("Pipeline URL validation failed", cause);
        let found = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((host, port))).await;
        let found = found.map_err(|_| bad(format!("looking up {host} took too long")))?;
        for address in found.map_err(|error| bad(format!("cannot look up {host}: {error}")))? {
            if is_internal(address.ip()) {
                return Err(bad(format!("{host} leads to an internal address")));
            }
        }
        Ok(())
    }
}

/// Downloads a package and returns it with its file name. `refused` words the error for an answer other than 200, from
/// the URL and the status.
///
/// # Errors
/// Code 3 for URLs that the policy refuses, for answers other than 200 and for files that are too large; 13 when the
/// transfer fails.
pub async fn fetch(policy: &Policy, url: &str, refused: impl Fn(&str, &str) -> String) -> Result<(Vec<u8>, String)> {
    let limited = tokio::time::timeout(policy.timeout, follow(policy, url, refused)).await;
    limited.unwrap_or_else(|_| {
        Err(Error::internal(
            format!("cannot download {url}"),
            format!("not finished within {} s", policy.timeout.as_secs()),
        ))
    })
}

async fn follow(policy: &Policy, url: &str, refused: impl Fn(&str, &str) -> String) -> Result<(Vec<u8>, String)> {
    let failed = |cause: String| Error::internal(format!("cannot download {url}"), cause);
    let client = https::Client::<axum::body::Body>::new(&https::Tls::default(), policy.timeout)
        .map_err(|error| failed(error.to_string()))?;
    let mut target = url.to_owned();
    for _ in 0..=REDIRECTS {
        policy.check(&target)?;
        let uri: http::Uri =
            target.parse().map_err(|_| Error::invalid(format!("invalid pipeline spec URL: {target}")))?;
        policy.check_addresses(&uri).await?;
        let request = http::Request::get(uri.clone())
            .header(http::header::USER_AGENT, "kfp-apiserver")
            .body(axum::body::Body::empty())
            .map_err(|error| failed(error.to_string()))?;
        let answer = client.send(request).await.map_err(|error| failed(error.to_string()))?;
        if answer.status().is_redirection()
            && let Some(location) = answer.headers().get(http::header::LOCATION)
        {
            let location = location.to_str().map_err(|error| failed(error.to_string()))?;
            target = resolve(&uri, location);
            continue;
        }
        if answer.status() != http::StatusCode::OK {
            return Err(Error::invalid(refused(url, &answer.status().to_string())));
        }
        let bytes = https::collect(answer.into_body(), kfp_compiler::package::MAX_BYTES)
            .await
            .map_err(|cause| Error::invalid_because(format!("cannot read the pipeline at {url}"), cause))?;
        // The name decides the file type, so it comes from the URL that the user gave, without its query.
        let path = url.split(['?', '#']).next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        return Ok((bytes.to_vec(), name));
    }
    Err(failed(format!("more than {REDIRECTS} redirects")))
}

fn resolve(base: &http::Uri, location: &str) -> String {
    let (scheme, authority) = (base.scheme_str().unwrap_or("https"), base.authority().map_or("", |a| a.as_str()));
    if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{location}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_hosts_over_https_are_allowed() {
        let policy =
            Policy { validate: true, allow_http: false, domains: vec!["*.example.com".into()], ..Policy::default() };
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

    #[test]
    fn internal_addresses_are_recognised() {
        for internal in [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "::1",
            "fd00:ec2::254",
            "::ffff:10.0.0.1",
        ] {
            assert!(is_internal(internal.parse().unwrap()), "{internal}");
        }
        assert!(!is_internal("140.82.112.3".parse().unwrap()));
    }

    #[test]
    fn redirects_are_resolved_against_their_page() {
        let base: http::Uri = "https://github.com/a/b.yaml".parse().unwrap();
        for (location, expected) in [
            ("https://x.com/y", "https://x.com/y"),
            ("/c", "https://github.com/c"),
            ("c.yaml", "https://github.com/a/c.yaml"),
            ("//x.com/y", "https://x.com/y"),
        ] {
            assert_eq!(resolve(&base, location), expected);
        }
    }
}
