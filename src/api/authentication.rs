//! `McpServer.spec.authentication`: every way in which callers may prove who they are.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Every way in which callers may prove who they are. A credential is judged by the one method that its form
/// belongs to; more than one credential in a request is refused.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AuthenticationSpec {
    /// URL by which clients know this endpoint: the audience that tokens must be made for, and the resource of its
    /// OAuth metadata. Default: the endpoint's address inside the cluster, `https://<name>-mcp.<namespace>.svc/mcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 9, max = 512), pattern("^https://[^#?\\s]+$"))]
    pub resource: Option<String>,
    /// Keys made from `McpApiKey`s.
    #[serde(default)]
    pub api_keys: ApiKeysSpec,
    /// Issuers whose JSON Web Tokens are accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub jwt: Vec<JwtIssuerSpec>,
    /// Tokens of Kubernetes ServiceAccounts.
    #[serde(default)]
    pub service_accounts: ServiceAccountsSpec,
    /// User name and password.
    #[serde(default)]
    pub basic: BasicSpec,
    /// Certificates of clients.
    #[serde(default)]
    pub client_certificates: ClientCertificatesSpec,
    /// Short tokens of the endpoint's own, in exchange for another credential.
    #[serde(default)]
    pub tokens: TokensSpec,
    /// Callers without any credential.
    #[serde(default)]
    pub anonymous: AnonymousSpec,
    /// Callers who are refused from now on, whatever they prove. It takes effect at once on every replica and ends
    /// their open streams.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub blocked: Vec<BlockedSubject>,
}

/// Keys made from `McpApiKey`s.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeysSpec {
    /// Whether they are accepted.
    #[serde(default = "yes")]
    pub enabled: bool,
}

impl Default for ApiKeysSpec {
    fn default() -> Self {
        Self { enabled: true }
    }
}

fn yes() -> bool {
    true
}

/// One issuer whose tokens are accepted. Its keys come from OpenID Connect discovery unless one of `jwksUrl`, `jwks` and
/// `hmacSecret` says otherwise. `exp`, `iss`, `aud` and the claim of the user are required; the algorithm is the
/// key's, never the token's.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.jwksUrl) ? 1 : 0) + (has(self.jwks) ? 1 : 0) + (has(self.hmacSecret) ? 1 : 0) <= 1").message("at most one of jwksUrl, jwks and hmacSecret may be set"),
    validation = Rule::new("has(self.jwks) || has(self.hmacSecret) || has(self.jwksUrl) || self.issuer.startsWith('https://')").message("issuer must be an https URL when its keys are discovered"),
    validation = Rule::new("!(self.issuer in ['kubernetes', 'basic', 'certificate', 'anonymous', 'portcullis'])").message("issuer is the name of another method")
)]
pub struct JwtIssuerSpec {
    /// The `iss` of its tokens, compared exactly.
    #[schemars(length(min = 1, max = 512))]
    pub issuer: String,
    /// What `aud` must name, one of these. Default: the endpoint's own resource URL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 512)))]
    pub audiences: Vec<String>,
    /// Where its key set is, without discovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 9, max = 512), pattern("^https://[^#\\s]+$"))]
    pub jwks_url: Option<String>,
    /// A ConfigMap or Secret that holds its key set (RFC 7517).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<MaterialReference>,
    /// A Secret with the key of HS256, at least 32 bytes. Whoever holds it can make tokens for anybody: prefer an
    /// issuer with public keys. The server's condition `Accepted` warns of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hmac_secret: Option<SecretKeyReference>,
    /// Certificate authorities in PEM that the issuer's address is verified with. Default: those that browsers trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<MaterialReference>,
    /// Whether the issuer may be at a private, loopback or link-local address.
    #[serde(default)]
    pub allow_private_addresses: bool,
    /// Algorithms that its keys may have. Default: every asymmetric one, or HS256 with `hmacSecret`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub algorithms: Vec<JwtAlgorithm>,
    /// Which claims say who the caller is.
    #[serde(default)]
    pub claims: ClaimsSpec,
    /// Whether a token must carry scopes such as `k8s:pods:list`. Such scopes narrow what the roles grant in any case.
    #[serde(default)]
    pub scopes: ScopesMode,
}

/// Algorithm of a signature (RFC 7518, RFC 8037).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JwtAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    RS384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    RS512,
    /// RSASSA-PSS with SHA-256.
    PS256,
    /// RSASSA-PSS with SHA-384.
    PS384,
    /// RSASSA-PSS with SHA-512.
    PS512,
    /// ECDSA with P-256.
    ES256,
    /// ECDSA with P-384.
    ES384,
    /// Ed25519.
    EdDSA,
    /// HMAC with SHA-256; only with `hmacSecret`.
    HS256,
}

/// Which claims say who the caller is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClaimsSpec {
    /// Claim with the name of the user.
    #[serde(default = "sub")]
    #[schemars(length(min = 1, max = 128))]
    pub user: String,
    /// Claim with the groups: a list of texts, or one text.
    #[serde(default = "groups")]
    #[schemars(length(min = 1, max = 128))]
    pub groups: String,
    /// Claim with the tenant. Default: tokens of this issuer belong to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub tenant: Option<String>,
    /// Claim with the scopes: one text with spaces, or a list.
    #[serde(default = "scope")]
    #[schemars(length(min = 1, max = 128))]
    pub scopes: String,
}

impl Default for ClaimsSpec {
    fn default() -> Self {
        Self { user: sub(), groups: groups(), tenant: None, scopes: scope() }
    }
}

fn sub() -> String {
    "sub".to_owned()
}

fn groups() -> String {
    "groups".to_owned()
}

fn scope() -> String {
    "scope".to_owned()
}

/// Whether a token must carry scopes of ours.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScopesMode {
    /// A token without them is not narrowed.
    #[default]
    Optional,
    /// A token without them may do nothing.
    Required,
}

/// Tokens of Kubernetes ServiceAccounts, proved by the API server (TokenReview).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountsSpec {
    /// Whether they are accepted.
    #[serde(default)]
    pub enabled: bool,
    /// What a token must be made for (`kubectl create token --audience`). Default: the endpoint's own resource URL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 512)))]
    pub audiences: Vec<String>,
}

/// User name and password.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!self.enabled || has(self.users)").message("users is required when basic.enabled is true"))]
pub struct BasicSpec {
    /// Whether they are accepted.
    #[serde(default)]
    pub enabled: bool,
    /// A Secret with a line per user, `name:$argon2id$...`, optionally followed by `:group,group`. `portcullis key hash`
    /// makes the second part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<SecretKeyReference>,
}

/// Certificates of clients. A request with a certificate and another credential is the other credential's.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(self.mode in ['VerifyIfGiven', 'RequireAndVerify']) || has(self.ca)").message("ca is required when client certificates are verified"))]
pub struct ClientCertificatesSpec {
    /// What is asked of clients in the handshake.
    #[serde(default)]
    pub mode: ClientCertificateMode,
    /// Certificate authorities in PEM that clients are verified with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<MaterialReference>,
    /// Which part of a verified certificate names the caller.
    #[serde(default)]
    pub identity: CertificateIdentity,
    /// Which part of the subject of a verified certificate names the tenant; a certificate without it, or with several,
    /// proves nothing. Default: callers with certificates belong to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<CertificateTenant>,
}

/// What is asked of clients in the handshake.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificateMode {
    /// No certificate.
    #[default]
    None,
    /// A certificate is asked for and not verified: it proves nothing and its fingerprint is on record.
    Request,
    /// A certificate is needed and not verified: it proves nothing and its fingerprint is on record.
    RequireAny,
    /// A certificate that is shown must be valid; it names the caller.
    VerifyIfGiven,
    /// A valid certificate is needed; it names the caller.
    RequireAndVerify,
}

impl ClientCertificateMode {
    /// Whether certificates are verified, and so prove something.
    pub fn verifies(self) -> bool {
        matches!(self, Self::VerifyIfGiven | Self::RequireAndVerify)
    }
}

/// Which part of a certificate names the caller.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CertificateIdentity {
    /// The common name of the subject; its organizations are the groups, as in Kubernetes.
    #[default]
    CommonName,
    /// The first DNS name among the subject alternative names.
    DnsName,
    /// The first URI among them, for example a SPIFFE ID.
    Uri,
    /// The first e-mail address among them.
    Email,
}

/// Which part of the subject of a certificate names the tenant.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateTenant {
    /// The organization, `O`.
    Organization,
    /// The organizational unit, `OU`.
    OrganizationalUnit,
}

/// Short tokens of the endpoint's own: `POST /auth/token` gives one for an API key, a password or the token of a
/// ServiceAccount. They are signed with Ed25519, for this endpoint only, and last an hour at most.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TokensSpec {
    /// Whether they are made and accepted.
    #[serde(default)]
    pub enabled: bool,
    /// How long a token lasts, in seconds.
    #[serde(default = "fifteen_minutes")]
    #[schemars(range(min = 60, max = 3600))]
    pub lifetime_seconds: i32,
    /// How long a signing key signs, in hours. A key that has signed verifies until its last token has ended.
    #[serde(default = "thirty_days")]
    #[schemars(range(min = 1, max = 8760))]
    pub rotation_hours: i32,
}

impl Default for TokensSpec {
    fn default() -> Self {
        Self { enabled: false, lifetime_seconds: fifteen_minutes(), rotation_hours: thirty_days() }
    }
}

fn fifteen_minutes() -> i32 {
    900
}

fn thirty_days() -> i32 {
    720
}

/// Callers without any credential. They are the user `system:anonymous` of the issuer `anonymous` and may do what the
/// roles say that name it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AnonymousSpec {
    /// Whether they are let in. Anybody who reaches the endpoint is one.
    #[serde(default)]
    pub unsafe_enabled: bool,
}

/// A caller who is refused.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BlockedSubject {
    /// What the name stands for.
    pub kind: BlockedKind,
    /// The name: of a user or group, `<namespace>/<name>` of a ServiceAccount, or the id of a credential: the `jti` of a
    /// token, the id of a key, the fingerprint of a certificate.
    #[schemars(length(min = 1, max = 512))]
    pub name: String,
    /// Only those of this issuer. Default: of any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub issuer: Option<String>,
}

/// What is blocked.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockedKind {
    /// A user, however proved.
    User,
    /// Every member of a group.
    Group,
    /// A ServiceAccount.
    ServiceAccount,
    /// One credential by its id, with every token that was made from it.
    Credential,
}

/// One entry of a Secret or ConfigMap of the same namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct MaterialReference {
    /// Kind of the object.
    #[serde(default)]
    pub kind: MaterialKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253), pattern("^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// The entry.
    #[schemars(length(min = 1, max = 253), pattern("^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// Kind of an object that holds keys or certificates.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord,
)]
pub enum MaterialKind {
    /// A ConfigMap.
    #[default]
    ConfigMap,
    /// A Secret.
    Secret,
}

/// One entry of a Secret of the same namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), pattern("^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// The entry.
    #[schemars(length(min = 1, max = 253), pattern("^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

impl From<SecretKeyReference> for MaterialReference {
    fn from(reference: SecretKeyReference) -> Self {
        Self { kind: MaterialKind::Secret, name: reference.name, key: reference.key }
    }
}

impl AuthenticationSpec {
    /// Every entry that the spec refers to, with the path of the field that does.
    pub fn references(&self) -> Vec<(String, MaterialReference)> {
        let mut found = Vec::new();
        for (index, issuer) in self.jwt.iter().enumerate() {
            let field = |name: &str| format!("spec.authentication.jwt[{index}].{name}");
            found.extend(issuer.jwks.clone().map(|reference| (field("jwks"), reference)));
            found.extend(issuer.hmac_secret.clone().map(|reference| (field("hmacSecret"), reference.into())));
            found.extend(issuer.ca.clone().map(|reference| (field("ca"), reference)));
        }
        let users = self.basic.users.clone().filter(|_| self.basic.enabled);
        found.extend(users.map(|users| ("spec.authentication.basic.users".to_owned(), users.into())));
        let ca = self.client_certificates.ca.clone();
        found.extend(ca.map(|ca| ("spec.authentication.clientCertificates.ca".to_owned(), ca)));
        found
    }
}

/// What the operator has made for an endpoint's own tokens.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AuthenticationStatus {
    /// The signing keys, newest last.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub signing_keys: Vec<SigningKeyStatus>,
    /// Value of the annotation `portcullis.dev/rotate` that was last carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handled_rotate: Option<String>,
    /// Value of the annotation `portcullis.dev/revoke` that was last carried out. Until it is, no token of the
    /// endpoint's own is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handled_revoke: Option<String>,
}

/// One signing key.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SigningKeyStatus {
    /// Its id, the `kid` of tokens.
    pub kid: String,
    /// When it was made.
    pub created_at: Time,
    /// Where it is in its life.
    pub state: SigningKeyState,
}

/// Life of a signing key.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningKeyState {
    /// Every replica learns to verify with it; none signs with it.
    Pending,
    /// It signs.
    Active,
    /// It verifies until its last token has ended.
    Retiring,
}
