//! The variables `MCP_AUTH_*`: what the environment says of authentication, before it meets the documents.
//!
//! A secret may stand in the variable or in the file that the variable with `_FILE` names, never in both. Files are read
//! again whenever the directory is, so a mounted Secret may change. `Debug` shows names only.

use std::fmt;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use super::environment::{Environment, FILE_SUFFIX, read_value};
use crate::api::JwtAlgorithm;

/// What every variable begins with.
const PREFIX: &str = "MCP_AUTH_";
/// Issuer of tokens where no variable names one.
const DEFAULT_ISSUER: &str = "mcp-server";
/// Every variable, and whether its value is a secret, which may be in a file.
const NAMES: &[(&str, bool)] = &[
    ("MCP_AUTH_ENABLED", false),
    ("MCP_AUTH_MODE", false),
    ("MCP_AUTH_API_KEY", true),
    ("MCP_AUTH_BEARER_TOKEN", true),
    ("MCP_AUTH_USERNAME", false),
    ("MCP_AUTH_PASSWORD", true),
    ("MCP_AUTH_JWT_SECRET", true),
    ("MCP_AUTH_JWT_ALGORITHM", false),
    ("MCP_AUTH_JWT_ISSUER", false),
    ("MCP_AUTH_JWT_AUDIENCE", false),
    ("MCP_AUTH_ROLES", false),
];

/// What `serve --help` says of them.
pub(crate) const HELP: &str = "\
Environment, with --from only; it takes the place of what the files say:
  MCP_AUTH_ENABLED        false lets callers in without a credential, on loopback or with --unsafe-anonymous
  MCP_AUTH_MODE           the methods that stay on: apikey, bearer, basic, or several with commas between them
  MCP_AUTH_API_KEY        a key that is accepted, as McpApiKey env-api-key
  MCP_AUTH_BEARER_TOKEN   another one, as McpApiKey env-bearer-token
  MCP_AUTH_USERNAME       a user, with MCP_AUTH_PASSWORD
  MCP_AUTH_PASSWORD       the password, of 12 characters or more
  MCP_AUTH_JWT_SECRET     what tokens are verified with: 32 bytes or more for HS256, else a public key in PEM
  MCP_AUTH_JWT_ALGORITHM  HS256 (default), RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or EdDSA
  MCP_AUTH_JWT_ISSUER     the iss of those tokens [default: mcp-server]
  MCP_AUTH_JWT_AUDIENCE   their aud, one of these [default: the resource URL of the server]
  MCP_AUTH_ROLES          roles of the keys and the user above, with commas between them [default: none]

  Secrets may be in files: MCP_AUTH_API_KEY_FILE, MCP_AUTH_BEARER_TOKEN_FILE, MCP_AUTH_PASSWORD_FILE and
  MCP_AUTH_JWT_SECRET_FILE name one. Users and groups of tokens get their roles by the subjects of McpRoles.

  In the files ${NAME} stands for a variable inside a text, or for the content of the file that NAME_FILE names;
  ${NAME:-text} has a default, and $${ is the text ${. A variable never changes the structure of a document.

  MCP_AUTH_API_KEY_FILE=/run/secrets/api-key MCP_AUTH_ROLES=viewer portcullis serve --from ./policy
  MCP_AUTH_MODE=basic MCP_AUTH_USERNAME=ann MCP_AUTH_PASSWORD_FILE=./password portcullis serve --from ./policy";

/// What the variables say.
#[derive(Debug, Default)]
pub(crate) struct Variables {
    /// `MCP_AUTH_ENABLED`.
    pub(super) enabled: Option<bool>,
    /// `MCP_AUTH_MODE`.
    pub(super) modes: Option<Modes>,
    /// `MCP_AUTH_API_KEY`.
    pub(super) api_key: Option<Given>,
    /// `MCP_AUTH_BEARER_TOKEN`.
    pub(super) bearer_token: Option<Given>,
    /// `MCP_AUTH_USERNAME` and `MCP_AUTH_PASSWORD`.
    pub(super) user: Option<(String, Given)>,
    /// `MCP_AUTH_JWT_*`.
    pub(super) jwt: Option<JwtVariables>,
    /// `MCP_AUTH_ROLES`.
    pub(super) roles: Vec<String>,
    /// Variables that look like ours and are not.
    pub(super) unknown: Vec<String>,
}

/// The methods that stay on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Modes {
    /// API keys.
    pub(super) api_key: bool,
    /// Tokens.
    pub(super) bearer: bool,
    /// User name and password.
    pub(super) basic: bool,
}

/// What tokens are verified with.
#[derive(Debug)]
pub(super) struct JwtVariables {
    /// The shared secret, or the public key.
    pub(super) secret: Given,
    /// The only algorithm.
    pub(super) algorithm: JwtAlgorithm,
    /// Their `iss`.
    pub(super) issuer: String,
    /// Their `aud`. Empty: the endpoint's own resource URL.
    pub(super) audiences: Vec<String>,
}

/// A secret and the variable that says it.
pub(super) struct Given {
    /// The variable, with `_FILE` if a file holds the secret.
    pub(super) variable: String,
    source: Source,
}

enum Source {
    Value(SecretString),
    File(PathBuf),
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Given({})", self.variable)
    }
}

impl Given {
    /// The secret of now.
    ///
    /// # Errors
    /// A text for people that begins with the variable.
    pub(super) fn read(&self) -> Result<SecretString, String> {
        let secret = match &self.source {
            Source::Value(secret) => secret.clone(),
            Source::File(path) => {
                SecretString::from(read_value(path).map_err(|error| format!("{}: {error}", self.variable))?)
            }
        };
        match secret.expose_secret().is_empty() {
            true => Err(format!("{}: is empty", self.variable)),
            false => Ok(secret),
        }
    }

    /// The file that holds the secret, if one does.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        match &self.source {
            Source::Value(_) => None,
            Source::File(path) => Some(path),
        }
    }
}

impl Variables {
    /// Reads the variables.
    ///
    /// # Errors
    /// A text for people that begins with the variable and never shows a secret.
    pub(super) fn parse(environment: &Environment) -> Result<Self, String> {
        let plain = |name: &str| match environment.value(name)? {
            Some("") => Err(format!("{name}: is empty; unset it or give it a value")),
            value => Ok(value.map(str::to_owned)),
        };
        let list = |name: &str| Ok::<_, String>(plain(name)?.map(|text| words(&text)).unwrap_or_default());
        let secret = |name: &str| given(environment, name);
        let enabled = plain("MCP_AUTH_ENABLED")?;
        let enabled = enabled.map(|text| match text.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(format!("MCP_AUTH_ENABLED: must be true or false, not {other:?}")),
        });
        let user = match (plain("MCP_AUTH_USERNAME")?, secret("MCP_AUTH_PASSWORD")?) {
            (Some(user), Some(password)) => Some((user, password)),
            (None, None) => None,
            (Some(_), None) => {
                return Err("MCP_AUTH_USERNAME: needs MCP_AUTH_PASSWORD or MCP_AUTH_PASSWORD_FILE".to_owned());
            }
            (None, Some(password)) => return Err(format!("{}: needs MCP_AUTH_USERNAME", password.variable)),
        };
        Ok(Self {
            enabled: enabled.transpose()?,
            modes: plain("MCP_AUTH_MODE")?.map(|text| modes(&text)).transpose()?,
            api_key: secret("MCP_AUTH_API_KEY")?,
            bearer_token: secret("MCP_AUTH_BEARER_TOKEN")?,
            user,
            jwt: jwt(plain, secret("MCP_AUTH_JWT_SECRET")?)?,
            roles: list("MCP_AUTH_ROLES")?,
            unknown: unknown(environment),
        })
    }

    /// The first variable of ours that is set.
    pub(crate) fn first(environment: &Environment) -> Option<String> {
        environment.names(PREFIX).find(|name| is_known(name)).map(str::to_owned)
    }

    /// Whether callers without a credential are let in by a variable.
    pub(super) fn lets_everybody_in(&self) -> bool {
        self.enabled == Some(false)
    }

    /// The files that hold secrets.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let user = self.user.as_ref().map(|(_, password)| password);
        let jwt = self.jwt.as_ref().map(|jwt| &jwt.secret);
        [self.api_key.as_ref(), self.bearer_token.as_ref(), user, jwt]
            .into_iter()
            .flatten()
            .filter_map(Given::file)
    }
}

fn is_known(variable: &str) -> bool {
    NAMES.iter().any(|(name, secret)| {
        variable == *name || *secret && variable.strip_suffix(FILE_SUFFIX).is_some_and(|base| base == *name)
    })
}

/// What begins like ours and is not, such as a name with a letter too few. Kubernetes itself sets some for a Service of
/// the name `mcp-auth`; those are nobody's mistake.
fn unknown(environment: &Environment) -> Vec<String> {
    let by_kubernetes =
        |name: &str| name.starts_with("MCP_AUTH_PORT") || name.starts_with("MCP_AUTH_SERVICE_");
    let names = environment.names(PREFIX).filter(|name| !is_known(name) && !by_kubernetes(name));
    names.map(str::to_owned).collect()
}

fn words(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn modes(text: &str) -> Result<Modes, String> {
    let mut modes = Modes::default();
    for word in text.split(',').map(str::trim) {
        match word {
            "apikey" => modes.api_key = true,
            "bearer" => modes.bearer = true,
            "basic" => modes.basic = true,
            other => {
                return Err(format!(
                    "MCP_AUTH_MODE: must be apikey, bearer, basic or several of them with commas between, not {other:?}"
                ));
            }
        }
    }
    Ok(modes)
}

/// A secret that one of two variables says.
fn given(environment: &Environment, name: &str) -> Result<Option<Given>, String> {
    let in_file = format!("{name}{FILE_SUFFIX}");
    let (value, file) = (environment.value(name)?, environment.value(&in_file)?);
    let (variable, source) = match (value, file) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(format!("{name}: {in_file} is set as well; unset one of them")),
        (Some(value), None) => (name.to_owned(), Source::Value(SecretString::from(value.to_owned()))),
        (None, Some(path)) => (in_file, Source::File(PathBuf::from(path))),
    };
    let empty = value.or(file).is_some_and(str::is_empty);
    match empty {
        true => Err(format!("{variable}: is empty; unset it or give it a value")),
        false => Ok(Some(Given { variable, source })),
    }
}

fn jwt(
    plain: impl Fn(&str) -> Result<Option<String>, String>,
    secret: Option<Given>,
) -> Result<Option<JwtVariables>, String> {
    let (algorithm, issuer) = (plain("MCP_AUTH_JWT_ALGORITHM")?, plain("MCP_AUTH_JWT_ISSUER")?);
    let audience = plain("MCP_AUTH_JWT_AUDIENCE")?;
    let Some(secret) = secret else {
        let lonely = [
            ("MCP_AUTH_JWT_ALGORITHM", algorithm.is_some()),
            ("MCP_AUTH_JWT_ISSUER", issuer.is_some()),
            ("MCP_AUTH_JWT_AUDIENCE", audience.is_some()),
        ];
        return match lonely.iter().find(|(_, is_set)| *is_set) {
            Some((name, _)) => Err(format!("{name}: needs MCP_AUTH_JWT_SECRET or MCP_AUTH_JWT_SECRET_FILE")),
            None => Ok(None),
        };
    };
    let name = algorithm.unwrap_or_else(|| "HS256".to_owned());
    let algorithm = serde_json::from_value(name.as_str().into()).map_err(|_| {
        format!(
            "MCP_AUTH_JWT_ALGORITHM: must be HS256, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or EdDSA, not {name:?}"
        )
    })?;
    Ok(Some(JwtVariables {
        secret,
        algorithm,
        issuer: issuer.unwrap_or_else(|| DEFAULT_ISSUER.to_owned()),
        audiences: audience.map(|text| words(&text)).unwrap_or_default(),
    }))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
    }

    fn parsed(variables: &[(&str, &str)]) -> Result<Variables, String> {
        Variables::parse(&environment(variables))
    }

    #[test]
    fn a_mode_is_one_word_or_a_list() {
        let modes = |text| parsed(&[("MCP_AUTH_MODE", text)]).map(|variables| variables.modes);
        let all = Modes { api_key: true, bearer: true, basic: true };
        assert_eq!(modes("apikey"), Ok(Some(Modes { api_key: true, ..Modes::default() })));
        assert_eq!(modes("basic, bearer,apikey"), Ok(Some(all)));
        let error = "MCP_AUTH_MODE: must be apikey, bearer, basic or several of them with commas between, not \"oauth\"";
        assert_eq!(modes("apikey,oauth"), Err(error.to_owned()));
        assert!(parsed(&[]).expect("nothing").modes.is_none());
    }

    #[test]
    fn mistakes_name_the_variable() {
        for (variables, error) in [
            (vec![("MCP_AUTH_ENABLED", "no")], "MCP_AUTH_ENABLED: must be true or false, not \"no\""),
            (vec![("MCP_AUTH_MODE", "")], "MCP_AUTH_MODE: is empty; unset it or give it a value"),
            (vec![("MCP_AUTH_API_KEY", "")], "MCP_AUTH_API_KEY: is empty; unset it or give it a value"),
            (
                vec![("MCP_AUTH_API_KEY", "x"), ("MCP_AUTH_API_KEY_FILE", "/x")],
                "MCP_AUTH_API_KEY: MCP_AUTH_API_KEY_FILE is set as well; unset one of them",
            ),
            (
                vec![("MCP_AUTH_USERNAME", "ann")],
                "MCP_AUTH_USERNAME: needs MCP_AUTH_PASSWORD or MCP_AUTH_PASSWORD_FILE",
            ),
            (vec![("MCP_AUTH_PASSWORD_FILE", "/p")], "MCP_AUTH_PASSWORD_FILE: needs MCP_AUTH_USERNAME"),
            (
                vec![("MCP_AUTH_JWT_ISSUER", "me")],
                "MCP_AUTH_JWT_ISSUER: needs MCP_AUTH_JWT_SECRET or MCP_AUTH_JWT_SECRET_FILE",
            ),
            (
                vec![("MCP_AUTH_JWT_SECRET", "x"), ("MCP_AUTH_JWT_ALGORITHM", "none")],
                "MCP_AUTH_JWT_ALGORITHM: must be HS256, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or \
                 EdDSA, not \"none\"",
            ),
        ] {
            assert_eq!(parsed(&variables).expect_err("refused"), error);
        }
    }

    #[test]
    fn tokens_are_of_the_issuer_mcp_server_unless_a_variable_names_one() {
        let jwt = parsed(&[("MCP_AUTH_JWT_SECRET", "x")]).expect("read").jwt.expect("there");
        assert_eq!((jwt.issuer.as_str(), jwt.algorithm), ("mcp-server", JwtAlgorithm::HS256));
        assert!(jwt.audiences.is_empty());
    }

    #[test]
    fn what_is_no_variable_of_ours_is_told() {
        let set = [
            ("MCP_AUTH_APIKEY", "x"),
            ("MCP_AUTH_ENABLED_FILE", "x"),
            ("MCP_AUTH_PORT_443_TCP", "x"),
            ("MCP_AUTH_SERVICE_HOST", "x"),
            ("MCP_AUTH_API_KEY_FILE", "/x"),
        ];
        let variables = parsed(&set).expect("read");
        assert_eq!(variables.unknown, ["MCP_AUTH_APIKEY", "MCP_AUTH_ENABLED_FILE"]);
        assert_eq!(Variables::first(&environment(&set)), Some("MCP_AUTH_API_KEY_FILE".to_owned()));
        assert_eq!(Variables::first(&environment(&[("MCP_AUTH_PORT", "x")])), None);
    }

    #[test]
    fn no_secret_is_shown() {
        let set = [
            ("MCP_AUTH_API_KEY", "hidden-1"),
            ("MCP_AUTH_BEARER_TOKEN", "hidden-2"),
            ("MCP_AUTH_USERNAME", "ann"),
            ("MCP_AUTH_PASSWORD", "hidden-3"),
            ("MCP_AUTH_JWT_SECRET", "hidden-4"),
        ];
        let variables = parsed(&set).expect("read");
        let shown = format!("{variables:?} {:?}", environment(&set));
        assert!(!shown.contains("hidden") && shown.contains("MCP_AUTH_API_KEY"), "{shown}");
    }

    #[test]
    fn the_help_names_every_variable() {
        for (name, secret) in NAMES {
            assert!(HELP.contains(&format!("\n  {name} ")), "{name}");
            assert!(!secret || HELP.contains(&format!("{name}{FILE_SUFFIX}")), "{name}");
        }
    }
}
