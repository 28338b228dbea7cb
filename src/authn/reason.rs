//! Why a credential proves nothing: a word of its own for each cause, for the audit and for metrics.

/// Why a credential proves nothing. Callers are told none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum Reason {
    /// No credential in the request.
    #[error("no credential")]
    Missing,
    /// More than one credential in the request.
    #[error("more than one credential")]
    Ambiguous,
    /// Not in a form that any method knows.
    #[error("credential of unknown form")]
    UnknownForm,
    /// The credential is larger than any that is accepted.
    #[error("credential too large")]
    TooLarge,
    /// A password came over a connection that others can read.
    #[error("password without TLS")]
    Insecure,
    /// The server does not accept credentials of this method.
    #[error("method is not enabled")]
    MethodDisabled,
    /// No key with this id, or no imported key like it.
    #[error("unknown key")]
    UnknownKey,
    /// The id is known and the secret is wrong.
    #[error("wrong key")]
    WrongKey,
    /// The key is switched off.
    #[error("disabled key")]
    Disabled,
    /// The credential was revoked.
    #[error("revoked credential")]
    Revoked,
    /// The credential has expired.
    #[error("expired credential")]
    Expired,
    /// The key does not name this server.
    #[error("key of another server")]
    OtherServer,
    /// The key is not accepted from this address.
    #[error("address not allowed")]
    Address,
    /// The caller is on the server's list of those to be refused.
    #[error("blocked caller")]
    Blocked,
    /// Too many failures from this address or for this user lately.
    #[error("too many failed attempts")]
    Throttled,
    /// Too much is being verified at the moment.
    #[error("too many verifications at a time")]
    Overloaded,
    /// No user of this name, or a wrong password.
    #[error("wrong user name or password")]
    WrongPassword,
    /// A token is not in the form of RFC 7515.
    #[error("malformed token")]
    MalformedToken,
    /// The header of a token names an algorithm that its key does not have, or none.
    #[error("wrong algorithm")]
    Algorithm,
    /// The type of a token is not that of an access token.
    #[error("wrong type of token")]
    TokenType,
    /// The header of a token has parameters that must be understood and are not.
    #[error("critical header parameter")]
    CriticalHeader,
    /// No trusted issuer has this name.
    #[error("unknown issuer")]
    UnknownIssuer,
    /// The issuer has no key of this id.
    #[error("unknown signing key")]
    UnknownSigningKey,
    /// The issuer's keys are not at hand.
    #[error("keys of the issuer are not available")]
    IssuerUnavailable,
    /// The signature does not fit.
    #[error("wrong signature")]
    Signature,
    /// A claim that must be there is missing or has the wrong type.
    #[error("missing or mistyped claim")]
    Claim,
    /// The token was made for somebody else.
    #[error("wrong audience")]
    Audience,
    /// The token is not valid yet.
    #[error("token not valid yet")]
    NotYetValid,
    /// The token lasts longer than tokens may.
    #[error("lifetime too long")]
    Lifetime,
    /// The API server did not confirm the token.
    #[error("token not confirmed by the API server")]
    NotConfirmed,
    /// The API server could not be asked.
    #[error("the API server could not be asked")]
    ReviewFailed,
    /// The certificate does not name anybody in the way that the server asks for.
    #[error("certificate without the name that is asked for")]
    CertificateName,
    /// The certificate does not name the one tenant that the server asks for.
    #[error("certificate without the one tenant that is asked for")]
    CertificateTenant,
}

impl Reason {
    /// Fixed word for audit and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Reason::Missing => "missing",
            Reason::Ambiguous => "ambiguous",
            Reason::UnknownForm => "unknown_form",
            Reason::TooLarge => "too_large",
            Reason::Insecure => "insecure",
            Reason::MethodDisabled => "method_disabled",
            Reason::UnknownKey => "unknown_key",
            Reason::WrongKey => "wrong_key",
            Reason::Disabled => "disabled",
            Reason::Revoked => "revoked",
            Reason::Expired => "expired",
            Reason::OtherServer => "other_server",
            Reason::Address => "address",
            Reason::Blocked => "blocked",
            Reason::Throttled => "throttled",
            Reason::Overloaded => "overloaded",
            Reason::WrongPassword => "wrong_password",
            Reason::MalformedToken => "malformed_token",
            Reason::Algorithm => "algorithm",
            Reason::TokenType => "token_type",
            Reason::CriticalHeader => "critical_header",
            Reason::UnknownIssuer => "unknown_issuer",
            Reason::UnknownSigningKey => "unknown_signing_key",
            Reason::IssuerUnavailable => "issuer_unavailable",
            Reason::Signature => "signature",
            Reason::Claim => "claim",
            Reason::Audience => "audience",
            Reason::NotYetValid => "not_yet_valid",
            Reason::Lifetime => "lifetime",
            Reason::NotConfirmed => "not_confirmed",
            Reason::ReviewFailed => "review_failed",
            Reason::CertificateName => "certificate_name",
            Reason::CertificateTenant => "certificate_tenant",
        }
    }
}
