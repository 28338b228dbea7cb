//! The endpoint as an OAuth resource server: its metadata (RFC 9728) and its challenges (RFC 6750).
//!
//! Pure. There is metadata where there is an issuer to get tokens from. A challenge depends on the spec of the server
//! alone: it is the same for every credential that proves nothing.

use http::{HeaderValue, Uri};
use serde_json::{Value, json};

use crate::api::{AuthenticationSpec, McpServerSpec};
use crate::authz::Permission;

/// Where metadata is, before the path of the resource.
pub(super) const METADATA: &str = "/.well-known/oauth-protected-resource";
/// What a client should ask its issuer for at first; it is told when it needs more.
const SCOPE: &str = "k8s:*:list";
const REALM: &str = "portcullis";

/// The issuers that clients can get tokens from.
fn issuers(spec: &AuthenticationSpec) -> Vec<&str> {
    let issuers = spec.jwt.iter().map(|issuer| issuer.issuer.as_str());
    issuers.filter(|issuer| issuer.starts_with("https://")).collect()
}

/// Whether metadata of the endpoint is at this path.
pub(super) fn is_metadata(spec: &McpServerSpec, resource: &str, path: &str) -> bool {
    path.strip_prefix(METADATA).is_some_and(|rest| {
        ["", "/", &spec.transports.streamable_http.path].contains(&rest) || rest == path_of(resource)
    })
}

/// The metadata, if there is an issuer to get tokens from.
pub(super) fn metadata(spec: &AuthenticationSpec, resource: &str, name: &str) -> Option<Value> {
    let issuers = issuers(spec);
    (!issuers.is_empty()).then(|| {
        json!({
            "resource": resource,
            "resource_name": format!("Portcullis {name}"),
            "authorization_servers": issuers,
            "scopes_supported": [SCOPE],
            "bearer_methods_supported": ["header"],
        })
    })
}

/// The challenges to a credential that proves nothing.
pub(super) fn challenges(spec: &AuthenticationSpec, resource: &str) -> Vec<HeaderValue> {
    let bearer = match metadata_parameter(spec, resource) {
        Some(metadata) => format!(r#"Bearer realm="{REALM}", {metadata}, scope="{SCOPE}""#),
        None => format!(r#"Bearer realm="{REALM}""#),
    };
    let basic = spec.basic.enabled.then(|| format!(r#"Basic realm="{REALM}", charset="UTF-8""#));
    let texts = std::iter::once(bearer).chain(basic);
    texts.filter_map(|text| HeaderValue::try_from(text).ok()).collect()
}

/// The challenge to a credential whose scopes do not reach.
pub(super) fn insufficient_scope(
    spec: &AuthenticationSpec,
    resource: &str,
    needed: Permission,
) -> Option<HeaderValue> {
    let metadata = metadata_parameter(spec, resource).map_or(String::new(), |text| format!(", {text}"));
    let scope = format!(r#"error="insufficient_scope", scope="{needed}""#);
    HeaderValue::try_from(format!(r#"Bearer realm="{REALM}", {scope}{metadata}"#)).ok()
}

/// Where the metadata is, as a parameter of a challenge.
fn metadata_parameter(spec: &AuthenticationSpec, resource: &str) -> Option<String> {
    if issuers(spec).is_empty() {
        return None;
    }
    let authority = resource.parse::<Uri>().ok()?.authority()?.clone();
    Some(format!(r#"resource_metadata="https://{authority}{METADATA}{}""#, path_of(resource)))
}

/// The path of the resource, as it stands behind that of the metadata.
fn path_of(resource: &str) -> String {
    let uri: Result<Uri, _> = resource.parse();
    uri.map_or(String::new(), |uri| uri.path().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::from_value;

    use super::*;

    const RESOURCE: &str = "https://gate.example.com/ops/mcp";

    fn spec(authentication: Value) -> McpServerSpec {
        from_value(json!({"authentication": authentication})).expect("a spec")
    }

    fn issuer() -> Value {
        json!([{"issuer": "https://id.example.com"}, {"issuer": "local", "hmacSecret": {"name": "a", "key": "b"}}])
    }

    fn texts(authentication: Value) -> Vec<String> {
        let challenges = challenges(&spec(authentication).authentication, RESOURCE);
        challenges.iter().map(|text| text.to_str().expect("text").to_owned()).collect()
    }

    #[test]
    fn metadata_is_at_the_root_at_the_path_of_the_endpoint_and_where_the_challenge_says() {
        let spec = spec(json!({"jwt": issuer()}));
        for (path, there) in [
            ("/.well-known/oauth-protected-resource", true),
            ("/.well-known/oauth-protected-resource/", true),
            ("/.well-known/oauth-protected-resource/mcp", true),
            ("/.well-known/oauth-protected-resource/ops/mcp", true),
            ("/.well-known/oauth-protected-resource/other", false),
            ("/.well-known/oauth-protected-resourcemcp", false),
            ("/mcp", false),
        ] {
            assert_eq!(is_metadata(&spec, RESOURCE, path), there, "{path}");
        }
        let metadata = metadata(&spec.authentication, RESOURCE, "agents/ops").expect("an issuer");
        assert_eq!(metadata["resource"], RESOURCE);
        assert_eq!(metadata["authorization_servers"], json!(["https://id.example.com"]));
        assert_eq!(metadata["bearer_methods_supported"], json!(["header"]));
    }

    #[test]
    fn without_an_issuer_to_get_tokens_from_there_is_no_metadata() {
        let plain = spec(json!({}));
        assert_eq!(metadata(&plain.authentication, RESOURCE, "agents/ops"), None);
        assert_eq!(texts(json!({})), [r#"Bearer realm="portcullis""#]);
    }

    #[test]
    fn a_challenge_names_the_metadata_the_scope_and_the_other_scheme() {
        let users = json!({"enabled": true, "users": {"name": "users", "key": "users"}});
        let bearer = "Bearer realm=\"portcullis\", resource_metadata=\"https://gate.example.com/.well-known/\
            oauth-protected-resource/ops/mcp\", scope=\"k8s:*:list\"";
        let basic = "Basic realm=\"portcullis\", charset=\"UTF-8\"";
        assert_eq!(texts(json!({"jwt": issuer(), "basic": users})), [bearer, basic]);
        let needed = Permission::of("pods", "delete");
        let challenge = insufficient_scope(&spec(json!({"jwt": issuer()})).authentication, RESOURCE, needed);
        let challenge = challenge.expect("a header");
        let text = challenge.to_str().expect("text");
        assert!(
            text.contains(r#"error="insufficient_scope", scope="k8s:pods:delete", resource_metadata="#),
            "{text}"
        );
    }
}
