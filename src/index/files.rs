//! Reads the kinds from YAML files instead of a cluster: for a laptop, for tests and for measuring.
//!
//! Whoever writes the directory is its administrator, so `ClusterMcpRole`s count. A key without a generation in its
//! status gets one: imported, or generated once into `.portcullis/keys/<name>`, for its owner's eyes. Errors name file,
//! document and field, never a secret, and a directory with an error changes nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::mem::take;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use kube::ResourceExt;
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::documents::{Found, Placed, by_name, places, yaml_files};
use self::entries::Place;
use self::keys::{Import, Kept};
use super::{Objects, Policy, Subject};
use crate::api::{KeyGeneration, MaterialKind, MaterialReference, McpApiKey, McpServer, names};
use crate::authz::role::InvalidRole;

mod documents;
mod entries;
mod environment;
mod keys;
mod overrides;
mod public_key;
mod rules;
mod schema;
mod signing;
mod survey;
mod variables;

pub(crate) use environment::Environment;
pub(crate) use keys::{KeyFile, write_private};
pub(crate) use schema::check as check_schema;
pub(crate) use variables::{HELP as VARIABLES_HELP, Variables};

/// Directory inside the served one for what is generated.
pub(crate) const GENERATED: &str = ".portcullis";
/// Time between two looks at the files.
const POLL: Duration = Duration::from_secs(2);
/// Time until signing keys are looked at again after a look that failed.
const RETRY: Duration = Duration::from_secs(60);
const DEFAULT_NAMESPACE: &str = "default";

/// What is served and what it is read with.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The directory.
    pub(crate) directory: PathBuf,
    /// Namespace of the operator, which patterns of namespaces leave out.
    pub(crate) operator_namespace: String,
    /// The variables.
    pub(crate) environment: Environment,
    /// Where the endpoint listens.
    pub(crate) listen: SocketAddr,
    /// Whether callers without a credential may come from other machines.
    pub(crate) unsafe_anonymous: bool,
}

/// Entries of Secrets and ConfigMaps by path, as [`names::material_path`] makes it.
pub(crate) type Materials = BTreeMap<String, Arc<[u8]>>;

/// What a directory holds.
#[derive(Clone)]
pub(crate) struct Loaded {
    /// The server and its namespace.
    pub(crate) subject: Subject,
    /// Its objects.
    pub(crate) objects: Objects,
    /// Where each generated key has its plaintext.
    pub(crate) keys: Vec<KeyFile>,
    /// Each imported key and where it came from, in words.
    pub(crate) imported: Vec<(String, String)>,
    /// The entries that the server refers to, and no others.
    pub(crate) materials: Materials,
    /// The methods by which callers can prove who they are, in words.
    pub(crate) methods: Vec<String>,
    /// What people should know.
    pub(crate) warnings: Vec<String>,
    /// When the keys of own tokens are to be looked at again.
    due: Option<Timestamp>,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("subject", &self.subject).finish_non_exhaustive()
    }
}

/// Why a directory cannot be served. The text names file, document and field.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadFiles {
    /// A file or the directory cannot be read.
    #[error("read {path}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not YAML.
    #[error("{path}: not YAML: {text}")]
    Syntax {
        /// Which one.
        path: PathBuf,
        /// Where and why.
        text: String,
    },
    /// A document is not one of the kinds.
    #[error("{path}, document {document}: {text}")]
    Document {
        /// Which file.
        path: PathBuf,
        /// Which document of it, counted from 1.
        document: usize,
        /// The field and what is wrong with it.
        text: String,
    },
    /// Not exactly one server.
    #[error("{path}: one McpServer is needed, and there are {count}")]
    Servers {
        /// The directory.
        path: PathBuf,
        /// How many there are.
        count: usize,
    },
    /// A variable of the environment cannot be used.
    #[error("{0}")]
    Variable(String),
    /// Who could come in would be anybody, or nobody.
    #[error("{0}")]
    Exposed(String),
    /// An object cannot be used beside the others, or its generated key cannot.
    #[error("{path}: {text}")]
    Object {
        /// The directory, or the file of the key.
        path: PathBuf,
        /// What is wrong.
        text: String,
    },
}

/// Reads a directory without variables, for an endpoint of this machine.
///
/// # Errors
/// [`LoadFiles`] names the file, the document and the field.
#[cfg(test)]
pub(crate) fn load(directory: &Path, operator_namespace: &str) -> Result<Loaded, LoadFiles> {
    let source = Source {
        directory: directory.to_owned(),
        operator_namespace: operator_namespace.to_owned(),
        environment: Environment::default(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        unsafe_anonymous: false,
    };
    source.load(&mut Kept::default())
}

impl Source {
    /// Reads the directory, and generates what keys it lacks.
    fn load(&self, kept: &mut Kept) -> Result<Loaded, LoadFiles> {
        let variables = Variables::parse(&self.environment).map_err(LoadFiles::Variable)?;
        let mut found = Found::default();
        let read = found.read(&self.directory, &self.environment);
        kept.read = variables.files().chain(&found.files).cloned().collect();
        read?;
        let Placed { object: mut server, place } = self.server(&mut found)?;
        let namespace = server.namespace().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        found.entries.check_namespace(&namespace)?;
        let subject = Subject {
            namespace: namespace.clone(),
            server: server.name_any(),
            operator_namespace: self.operator_namespace.clone(),
        };
        let applied =
            overrides::apply(&variables, &mut server, &mut found, kept).map_err(LoadFiles::Variable)?;
        let refuse = |text: String| match &place {
            Some(place) => place.refuse(text),
            None => LoadFiles::Object { path: self.directory.clone(), text },
        };
        rules::server(&server, &found.entries).map_err(refuse)?;
        self.check_anonymous(&server, variables.lets_everybody_in())?;
        let roles = self.roles(&namespace, &mut found)?;
        let keys = self.keys(&mut found, applied.imports, kept)?;
        let mut materials: Materials = BTreeMap::new();
        for (_, reference) in server.spec.authentication.references() {
            let entry = found.entries.find(&reference).map_err(refuse)?;
            let path = names::material_path(reference.kind, &reference.name, &reference.key);
            materials.insert(path, entry.content.clone());
        }
        if let Some(json) = keys.hashes {
            let secret = names::imported_secret(&subject.server);
            let path = names::material_path(MaterialKind::Secret, &secret, names::IMPORTED_DATA);
            materials.insert(path, json.into());
        }
        let mut due = None;
        if server.spec.authentication.tokens.enabled {
            let signing = signing::keys(&self.directory, &mut server, Timestamp::now())?;
            let secret = names::signing_secret(&subject.server);
            let path = names::material_path(MaterialKind::Secret, &secret, names::SIGNING_DATA);
            materials.insert(path, signing.json.into());
            due = Some(signing.due);
        }
        let methods = rules::methods(&server, found.keys.iter().map(|key| &key.object));
        let objects = self.objects(roles, &namespace, server, found.keys)?;
        Ok(Loaded {
            subject,
            objects,
            keys: keys.files,
            imported: keys.imported,
            materials,
            methods,
            warnings: applied.warnings,
            due,
        })
    }

    /// The one server.
    fn server(&self, found: &mut Found) -> Result<Placed<McpServer>, LoadFiles> {
        let count = found.servers.len();
        match (found.servers.pop(), count) {
            (Some(server), 1) => Ok(server),
            _ => Err(LoadFiles::Servers { path: self.directory.clone(), count }),
        }
    }

    /// Refuses callers without a credential where other machines could be such callers.
    fn check_anonymous(&self, server: &McpServer, by_variable: bool) -> Result<(), LoadFiles> {
        let anonymous = server.spec.authentication.anonymous.unsafe_enabled;
        if !anonymous || self.unsafe_anonymous || self.listen.ip().is_loopback() {
            return Ok(());
        }
        let (why, off) = match by_variable {
            true => ("MCP_AUTH_ENABLED=false", "unset the variable"),
            false => ("spec.authentication.anonymous.unsafeEnabled", "switch it off"),
        };
        Err(LoadFiles::Exposed(format!(
            "{why} lets anybody in who reaches {}: {off}, listen on 127.0.0.1, or give --unsafe-anonymous",
            self.listen
        )))
    }

    /// Refuses an endpoint for other machines that would let nobody in.
    fn check_methods(&self, loaded: &Loaded) -> Result<(), LoadFiles> {
        let server = loaded.objects.server.as_ref();
        let anonymous = server.is_some_and(|server| server.spec.authentication.anonymous.unsafe_enabled);
        if anonymous || !loaded.methods.is_empty() || self.listen.ip().is_loopback() {
            return Ok(());
        }
        Err(LoadFiles::Exposed(format!(
            "nobody could prove who they are at {}: add an McpApiKey for the server or another method of \
             spec.authentication, set MCP_AUTH_API_KEY_FILE, or listen on 127.0.0.1",
            self.listen
        )))
    }

    /// Gives every key its generation.
    fn keys(
        &self,
        found: &mut Found,
        from_variables: Vec<(Import, String)>,
        kept: &mut Kept,
    ) -> Result<Keys, LoadFiles> {
        let mut keys = Keys::default();
        let mut imports = Vec::new();
        for (import, variable) in from_variables {
            keys.imported.push((import.key.clone(), variable));
            imports.push(import);
        }
        let named: Vec<String> = imports.iter().map(|import| import.key.clone()).collect();
        let Found { keys: objects, entries, .. } = found;
        for Placed { object: key, place } in &mut *objects {
            let Some(place) = place else { continue };
            rules::key(key).map_err(|text| place.refuse(text))?;
            let name = key.name_any();
            if named.contains(&name) {
                return Err(place.refuse(format!("metadata.name: {name:?} is the name of a variable's key")));
            }
            if let Some(reference) = key.spec.import.clone().map(|import| import.secret_ref) {
                let from = format!("Secret {}, {}", reference.name, reference.key);
                let plaintext = imported_text(entries, reference, place, &name)?;
                keys.imported.push((name.clone(), from));
                imports.push(Import { key: name, plaintext });
            } else if key.status.as_ref().is_none_or(|status| status.keys.is_empty()) {
                keys.files.push(keys::generated(&self.directory, key)?);
            }
        }
        self.check_distinct(&imports)?;
        let (generations, hashes) = kept.import(&self.directory, &imports)?;
        keys.hashes = hashes;
        for (import, generation) in imports.iter().zip(generations) {
            let object = objects.iter_mut().find(|key| key.object.name_any() == import.key);
            object.into_iter().for_each(|key| push(&mut key.object, generation.clone()));
        }
        Ok(keys)
    }

    /// One text that is the key of two objects would be neither's.
    fn check_distinct(&self, imports: &[Import]) -> Result<(), LoadFiles> {
        for (index, import) in imports.iter().enumerate() {
            let same = |other: &&Import| other.plaintext.expose_secret() == import.plaintext.expose_secret();
            if let Some(other) = imports[..index].iter().find(same) {
                return Err(LoadFiles::Object {
                    path: self.directory.clone(),
                    text: format!("McpApiKeys {} and {} import the same key", other.key, import.key),
                });
            }
        }
        Ok(())
    }

    /// The roles by name, and the namespaces that they name. In a cluster the condition of a role says why it grants
    /// nothing; here only an error can.
    fn roles(&self, namespace: &str, found: &mut Found) -> Result<Objects, LoadFiles> {
        let (roles, cluster_roles) = (take(&mut found.roles), take(&mut found.cluster_roles));
        let named = cluster_roles.iter().flat_map(|role| &role.object.spec.namespaces);
        let literal = named.filter(|name| !name.contains('*')).cloned();
        let namespaces = literal.map(|name| (name, BTreeMap::new())).collect();
        let (places, cluster_places) = (places(&roles), places(&cluster_roles));
        let mut objects = Objects {
            namespaces,
            roles: by_name(roles, Some(namespace), &self.directory)?,
            cluster_roles: by_name(cluster_roles, None, &self.directory)?,
            ..Objects::default()
        };
        admit(&mut objects, namespace);
        let invalid = |place: Option<&Place>, kind: &str, name: &str, invalid: InvalidRole| {
            let text = format!("{kind} {name} grants nothing: {invalid}");
            let error = match place {
                Some(place) => place.refuse(text),
                None => LoadFiles::Object { path: self.directory.clone(), text },
            };
            (invalid.is_inherited(), error)
        };
        let local = objects.converted_roles().filter_map(|(name, converted)| {
            converted.err().map(|error| invalid(places.get(name), "McpRole", name, error))
        });
        let cluster = objects.converted_cluster_roles(&self.operator_namespace);
        let cluster = cluster.filter_map(|(name, converted)| {
            converted.err().map(|error| invalid(cluster_places.get(name), "ClusterMcpRole", name, error))
        });
        // What is wrong with a role is wrong with all that inherit from it: it is told of the role itself.
        match local.chain(cluster).min_by_key(|(is_inherited, _)| *is_inherited) {
            Some((_, error)) => Err(error),
            None => Ok(objects),
        }
    }

    /// All objects by name. The server has its namespace from here on.
    fn objects(
        &self,
        roles: Objects,
        namespace: &str,
        mut server: McpServer,
        keys: Vec<Placed<McpApiKey>>,
    ) -> Result<Objects, LoadFiles> {
        let keys = by_name(keys, Some(namespace), &self.directory)?;
        server.metadata.namespace = Some(namespace.to_owned());
        Ok(Objects { server: Some(Arc::new(server)), keys, ..roles })
    }
}

/// What came of the keys.
#[derive(Default)]
struct Keys {
    files: Vec<KeyFile>,
    imported: Vec<(String, String)>,
    hashes: Option<Vec<u8>>,
}

fn push(key: &mut McpApiKey, generation: KeyGeneration) {
    key.status.get_or_insert_default().keys.push(generation);
}

/// The text that a key imports, if it is fit to be a key.
fn imported_text(
    entries: &entries::Entries,
    reference: crate::api::ImportReference,
    place: &entries::Place,
    key: &str,
) -> Result<SecretString, LoadFiles> {
    let reference =
        MaterialReference { kind: MaterialKind::Secret, name: reference.name, key: reference.key };
    let entry =
        entries.find(&reference).map_err(|error| place.refuse(format!("spec.import.secretRef: {error}")))?;
    let refuse = |error: String| {
        let text = format!("{}: {error} (McpApiKey {key} imports it)", entry.field);
        entry.place.as_ref().unwrap_or(place).refuse(text)
    };
    let text = std::str::from_utf8(&entry.content).map_err(|_| refuse("is not UTF-8".to_owned()))?;
    // Files that people make end with a newline.
    let text = text.strip_suffix('\n').unwrap_or(text);
    keys::judge(text).map_err(refuse)?;
    Ok(SecretString::from(text.to_owned()))
}

/// Follows a directory until told to stop. Namespaces come from the cluster if there is one, else from the roles. The
/// entries of Secrets and ConfigMaps go to `publish`, always before the policy that refers to them.
///
/// # Errors
/// [`LoadFiles`] if the directory cannot be served at the start; later errors are logged and change nothing.
pub(crate) fn follow(
    source: Source,
    cluster: Option<kube::Client>,
    publish: impl Fn(Materials) + Send + 'static,
    stop: CancellationToken,
) -> Result<(Policy, Loaded, impl Future<Output = ()> + Send + 'static), LoadFiles> {
    // Taken before reading, so that an edit in between is noticed.
    let seen = fingerprint(&source.directory, &[]);
    let mut kept = Kept::default();
    let loaded = source.load(&mut kept)?;
    source.check_methods(&loaded)?;
    publish(loaded.materials.clone());
    let policy = Policy::local(loaded.subject.snapshot(&loaded.objects));
    let following = Following {
        source: Arc::new(source),
        kept,
        policy: policy.clone(),
        loaded: loaded.clone(),
        publish,
        seen,
    };
    let namespaces = match cluster {
        Some(client) => super::watch::namespaces(client).boxed(),
        None => futures::stream::pending().boxed(),
    };
    Ok((policy, loaded, following.run(namespaces, stop)))
}

/// A directory that is being followed.
struct Following<P> {
    source: Arc<Source>,
    kept: Kept,
    policy: Policy,
    loaded: Loaded,
    publish: P,
    seen: Fingerprint,
}

impl<P: Fn(Materials)> Following<P> {
    async fn run(
        mut self,
        mut namespaces: impl Stream<Item = BTreeMap<String, BTreeMap<String, String>>> + Unpin,
        stop: CancellationToken,
    ) {
        let mut poll = tokio::time::interval(POLL);
        let mut cluster = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(known) = namespaces.next() => cluster = Some(known),
                _ = poll.tick() => {
                    let now = fingerprint(&self.source.directory, &self.kept.read);
                    let is_due = self.loaded.due.is_some_and(|due| due <= Timestamp::now());
                    if now == self.seen && !is_due {
                        continue;
                    }
                    self.seen = now;
                    self.reload().await;
                }
            }
            let mut objects = self.loaded.objects.clone();
            objects.namespaces.extend(cluster.clone().unwrap_or_default());
            admit(&mut objects, &self.loaded.subject.namespace);
            self.policy.publish(self.loaded.subject.snapshot(&objects));
        }
    }

    async fn reload(&mut self) {
        // New imported keys are hashed, which is no work for a thread that serves others.
        let (source, mut kept) = (self.source.clone(), std::mem::take(&mut self.kept));
        let read = tokio::task::spawn_blocking(move || (source.load(&mut kept), kept)).await;
        let Ok((outcome, kept)) = read else { return };
        self.kept = kept;
        match outcome {
            Ok(loaded) if loaded.subject == self.loaded.subject => {
                for key in loaded.keys.iter().filter(|key| key.generated) {
                    info!(key = key.key, path = %key.path.display(), "key generated");
                }
                for warning in loaded.warnings.iter().filter(|text| !self.loaded.warnings.contains(text)) {
                    warn!("{warning}");
                }
                info!(directory = %self.source.directory.display(), "files changed and are in use");
                (self.publish)(loaded.materials.clone());
                self.loaded = loaded;
            }
            Ok(_) => warn!("the McpServer has another name or namespace now; restart to serve it"),
            Err(error) => {
                warn!(%error, "files changed and cannot be used; the last good ones stay in use");
                self.loaded.due = self.loaded.due.map(|_| Timestamp::now() + RETRY);
            }
        }
    }
}

/// Names, sizes and times of the files: enough to notice an edit.
type Fingerprint = Vec<(PathBuf, Option<std::time::SystemTime>, u64)>;

fn fingerprint(directory: &Path, others: &[PathBuf]) -> Fingerprint {
    let files = yaml_files(directory).unwrap_or_default();
    let described = files.into_iter().chain(others.iter().cloned()).map(|path| {
        let metadata = fs::metadata(&path).ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        (path, modified, metadata.map_or(0, |metadata| metadata.len()))
    });
    described.collect()
}

/// Lets `ClusterMcpRole`s count: the writer of the files is the administrator.
fn admit(objects: &mut Objects, namespace: &str) {
    let labels = objects.namespaces.entry(namespace.to_owned()).or_default();
    labels.insert(names::NAMESPACE_LABEL.to_owned(), names::NAMESPACE_CLUSTER.to_owned());
}

fn read_error(path: &Path, source: io::Error) -> LoadFiles {
    LoadFiles::Read { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
