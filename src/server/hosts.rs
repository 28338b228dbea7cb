//! Which Host and which Origin may speak to the endpoint: against DNS rebinding and foreign web pages.
//!
//! Pure. The Host must be a name of this endpoint. An Origin says that a web page asks, and must be one that the
//! `McpServer` names; a page of the same machine may ask an endpoint on the same machine.

use std::net::IpAddr;

use http::{HeaderMap, Uri, header};

use crate::api::{McpServerSpec, names};

/// Names of the endpoint that do not come from its spec.
#[derive(Clone, Debug)]
pub(super) struct OwnHosts(Vec<String>);

/// Why a request may not speak to the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Foreign {
    /// The Host is not a name of the endpoint.
    #[error("host not allowed")]
    Host,
    /// The Origin is not allowed.
    #[error("origin not allowed")]
    Origin,
}

impl Foreign {
    /// Fixed word for the audit.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Foreign::Host => "host_not_allowed",
            Foreign::Origin => "origin_not_allowed",
        }
    }
}

impl OwnHosts {
    /// Names of the Service in every length, and the address of the pod.
    pub(super) fn new(namespace: &str, server: &str, pod_ip: Option<IpAddr>) -> Self {
        let service = names::workload(server);
        let mut own = vec![
            format!("{service}.{namespace}"),
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.cluster.local"),
            service,
        ];
        own.extend(pod_ip.map(|ip| ip.to_string()));
        Self(own)
    }

    /// Checks Host and Origin of a request. Returns the origin to which the answer may be shown.
    pub(super) fn check<'a>(
        &self,
        uri: &Uri,
        headers: &'a HeaderMap,
        spec: &McpServerSpec,
    ) -> Result<Option<&'a str>, Foreign> {
        let authority = authority(uri, headers).ok_or(Foreign::Host)?;
        let (host, _) = split_port(authority).ok_or(Foreign::Host)?;
        let loopback = is_loopback(host);
        let own = self.0.iter().map(String::as_str);
        let named = own.chain(spec.tls.hosts.iter().map(String::as_str)).any(|name| same(name, host));
        let allowed = || spec.network.allowed_hosts.iter().any(|entry| matches(entry, authority));
        if !loopback && !named && !allowed() {
            return Err(Foreign::Host);
        }
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let (Some(origin), next) = (origins.next(), origins.next()) else { return Ok(None) };
        let origin = origin.to_str().ok().filter(|_| next.is_none()).ok_or(Foreign::Origin)?;
        let listed = || spec.network.allowed_origins.iter().any(|entry| entry.eq_ignore_ascii_case(origin));
        let local = || loopback && origin_host(origin).is_some_and(is_loopback);
        if listed() || local() { Ok(Some(origin)) } else { Err(Foreign::Origin) }
    }
}

/// The one authority of a request: `:authority` of HTTP/2 or Host. Two different ones are none.
fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host.to_str().ok()?),
        (None, _) => None,
        (Some(_), Some(_)) => return None,
    };
    match (uri.authority().map(http::uri::Authority::as_str), host) {
        (Some(authority), Some(host)) => authority.eq_ignore_ascii_case(host).then_some(host),
        (authority, host) => authority.or(host),
    }
}

/// Host without brackets and port, and the port.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port.parse().ok()?))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    match authority.split_once(':') {
        Some((host, port)) => Some((host, Some(port.parse().ok()?))),
        None => Some((authority, None)),
    }
}

fn is_loopback(host: &str) -> bool {
    same("localhost", host) || host == "127.0.0.1" || host == "::1"
}

fn same(name: &str, host: &str) -> bool {
    !name.is_empty() && name.eq_ignore_ascii_case(host.strip_suffix('.').unwrap_or(host))
}

/// Whether an entry of `allowedHosts` names the authority. Without a port, any port is meant.
fn matches(entry: &str, authority: &str) -> bool {
    match (split_port(entry), split_port(authority)) {
        (Some((name, None)), Some((host, _))) => same(name, host),
        (Some((name, port)), Some((host, given))) => same(name, host) && port == given,
        _ => false,
    }
}

fn origin_host(origin: &str) -> Option<&str> {
    let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))?;
    split_port(rest).map(|(host, _)| host)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn outcome(host: &str, origin: Option<&str>) -> Result<Option<String>, Foreign> {
        let spec: McpServerSpec = serde_json::from_value(json!({
            "tls": {"hosts": ["mcp.example.com"]},
            "network": {"allowedHosts": ["proxy.example.com:8443", "any.example.com"],
                "allowedOrigins": ["https://console.example.com"]},
        }))
        .expect("a spec");
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().expect("a value"));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().expect("a value"));
        }
        let own = OwnHosts::new("agents", "ops", "10.0.0.7".parse().ok());
        own.check(&Uri::from_static("/mcp"), &headers, &spec).map(|origin| origin.map(str::to_owned))
    }

    #[test]
    fn every_name_of_the_endpoint_is_a_host() {
        for host in [
            "ops-mcp",
            "ops-mcp.agents:443",
            "OPS-mcp.agents.svc",
            "ops-mcp.agents.svc.cluster.local.",
            "10.0.0.7:8443",
            "localhost:8443",
            "127.0.0.1",
            "[::1]:8443",
            "mcp.example.com",
            "proxy.example.com:8443",
            "any.example.com:1",
        ] {
            assert_eq!(outcome(host, None), Ok(None), "{host}");
        }
    }

    #[test]
    fn another_host_is_refused() {
        for host in [
            "evil.example.com",
            "ops-mcp.other",
            "localhost.evil.com",
            "proxy.example.com",
            "proxy.example.com:1",
            "[::1",
            "a:b:c",
            "",
        ] {
            assert_eq!(outcome(host, None), Err(Foreign::Host), "{host}");
        }
    }

    #[test]
    fn a_web_page_must_be_allowed_or_of_the_same_machine() {
        let console = "https://console.example.com";
        assert_eq!(outcome("ops-mcp", Some(console)), Ok(Some(console.to_owned())));
        assert!(outcome("localhost:8443", Some("http://localhost:3000")).is_ok());
        assert_eq!(outcome("ops-mcp", Some("http://localhost:3000")), Err(Foreign::Origin));
        for origin in
            ["http://evil.example.com", "null", "https://console.example.com.evil.com", "file://localhost"]
        {
            assert_eq!(outcome("localhost", Some(origin)), Err(Foreign::Origin), "{origin}");
        }
    }

    #[test]
    fn two_hosts_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(header::HOST, "localhost".parse().expect("a value"));
        headers.append(header::HOST, "localhost".parse().expect("a value"));
        let own = OwnHosts::new("agents", "ops", None);
        let spec = McpServerSpec::default();
        assert_eq!(own.check(&Uri::from_static("/mcp"), &headers, &spec), Err(Foreign::Host));
        headers.remove(header::HOST);
        headers.append(header::HOST, "localhost".parse().expect("a value"));
        let other = Uri::from_static("https://evil.example.com/mcp");
        assert_eq!(own.check(&other, &headers, &spec), Err(Foreign::Host));
    }
}
