//! Keys and tokens that documents have published are nobody's credentials: each is refused like any other guess.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::StatusCode;

use crate::local::Local;

const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";
const CLAIMS: &str = "eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ";
const SIGNATURE: &str = "SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c";

/// The examples of both source documents: rows 5, 6 and 216, and the server's own form beside them.
const KEYS: [&str; 9] = [
    "Abc123!@#Xyz789!@#",
    "Abc123Xyz789Abc123",
    "ABC123!@#XYZ789!@#",
    "Abc123!@#",
    "abcdefgh12345678",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "mcp-admin-key-12345",
    "mcp-viewer-key-67890",
    "pcl_0123456789abcdef_0000000000000000000000000000000000000000000000000",
];

#[tokio::test(flavor = "multi_thread")]
async fn published_examples_prove_nothing_and_get_the_answer_of_every_failure() {
    let local = Local::start("published", |namespace| {
        format!(
            r"
apiVersion: portcullis.dev/v1alpha1
kind: McpServer
metadata: {{name: ops, namespace: {namespace}}}
spec:
  authentication:
    tokens: {{enabled: true}}
    jwt: [{{issuer: mcp-server, hmacSecret: {{name: hmac, key: secret}}}}]
---
apiVersion: v1
kind: Secret
metadata: {{name: hmac, namespace: {namespace}}}
stringData: {{secret: 'k2J9s7XqvT4mZ1wR8eYbN3uHcA6fLdP0'}}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {{name: viewer, namespace: {namespace}}}
spec: {{permissions: ['k8s:pods:list'], subjects: [{{kind: User, name: '1234567890'}}]}}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {{name: me, namespace: {namespace}}}
spec: {{identity: me, servers: [ops], roles: [{{name: viewer}}]}}
"
        )
    })
    .await;
    let missing = local.wire.list_as(&[]).await.expect("an answer");
    assert_eq!(missing.status(), StatusCode::UNAUTHORIZED);
    let tokens = [
        format!("{HEADER}.{CLAIMS}.{SIGNATURE}"),
        "abcdefgh12345678abcdefgh12345678".to_owned(),
        format!("{HEADER}.{CLAIMS}"),
        format!("{HEADER}.{CLAIMS}.{SIGNATURE}$"),
    ];
    let mut shown: Vec<(&str, String)> = Vec::new();
    for key in KEYS {
        shown.push(("x-api-key", key.to_owned()));
        shown.push(("authorization", format!("ApiKey {key}")));
        shown.push(("authorization", format!("Bearer {key}")));
    }
    shown.extend(tokens.iter().map(|token| ("authorization", format!("Bearer {token}"))));
    shown.push(("authorization", format!("Basic {}", BASE64_STANDARD.encode("admin:secret"))));
    for (name, value) in shown {
        let answer = local.wire.list_as(&[(name, &value)]).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{name}: {value}");
        assert_eq!(answer.body(), missing.body(), "{name}: {value}");
        let challenge = answer.headers().get("www-authenticate");
        assert_eq!(challenge, missing.headers().get("www-authenticate"), "{name}: {value}");
    }
}
