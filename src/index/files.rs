//! Reads the kinds from YAML files instead of a cluster: for a laptop, for tests and for measuring.
//!
//! Whoever writes the directory is its administrator, so `ClusterMcpRole`s count. A key without a generation in its
//! status gets one: generated once into `.portcullis/keys/<name>`, for its owner's eyes. Errors name file, document
//! and field, and a directory with an error changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResourceExt, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Objects, Policy, Subject};
use crate::api::{self, ClusterMcpRole, KeyGeneration, KeyState, McpApiKey, McpRole, McpServer, names};
use crate::authn::{ApiKey, api_key};

mod schema;

/// Directory inside the served one for what is generated.
pub(crate) const GENERATED: &str = ".portcullis";
/// Time between two looks at the files.
const POLL: Duration = Duration::from_secs(2);
const DEFAULT_NAMESPACE: &str = "default";

/// What a directory holds.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The server and its namespace.
    pub(crate) subject: Subject,
    /// Its objects.
    pub(crate) objects: Objects,
    /// Where each key without a digest of its own has its plaintext.
    pub(crate) keys: Vec<KeyFile>,
}

/// The file with the plaintext of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyFile {
    /// Name of the `McpApiKey`.
    pub(crate) key: String,
    /// Where the plaintext is.
    pub(crate) path: PathBuf,
    /// Whether it was generated just now.
    pub(crate) generated: bool,
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
    /// An object cannot be used beside the others, or its generated key cannot.
    #[error("{path}: {text}")]
    Object {
        /// The directory, or the file of the key.
        path: PathBuf,
        /// What is wrong.
        text: String,
    },
}

/// Reads a directory, and generates what keys it lacks.
///
/// # Errors
/// [`LoadFiles`] names the file, the document and the field.
pub(crate) fn load(directory: &Path, operator_namespace: &str) -> Result<Loaded, LoadFiles> {
    let mut found = Found::default();
    for path in yaml_files(directory)? {
        let text = fs::read_to_string(&path).map_err(|source| read_error(&path, source))?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| {
            LoadFiles::Syntax { path: path.clone(), text: first_line(&error.to_string()) }
        })?;
        for (index, document) in documents.into_iter().enumerate().filter(|(_, d)| !d.is_null()) {
            found.take(document).map_err(|text| LoadFiles::Document {
                path: path.clone(),
                document: index + 1,
                text,
            })?;
        }
    }
    found.into_loaded(directory, operator_namespace)
}

/// Follows a directory until told to stop. Namespaces come from the cluster if there is one, else from the roles.
///
/// # Errors
/// [`LoadFiles`] if the directory cannot be served at the start; later errors are logged and change nothing.
pub(crate) fn follow(
    directory: PathBuf,
    operator_namespace: String,
    cluster: Option<kube::Client>,
    stop: CancellationToken,
) -> Result<(Policy, Subject, Vec<KeyFile>, impl Future<Output = ()> + Send + 'static), LoadFiles> {
    // Taken before reading, so that an edit in between is noticed.
    let seen = fingerprint(&directory);
    let loaded = load(&directory, &operator_namespace)?;
    let (subject, keys) = (loaded.subject.clone(), loaded.keys.clone());
    let policy = Policy::local(subject.snapshot(&loaded.objects));
    let following = Following { directory, operator_namespace, policy: policy.clone(), loaded, seen };
    let namespaces = match cluster {
        Some(client) => super::watch::namespaces(client).boxed(),
        None => futures::stream::pending().boxed(),
    };
    Ok((policy, subject, keys, following.run(namespaces, stop)))
}

/// A directory that is being followed.
struct Following {
    directory: PathBuf,
    operator_namespace: String,
    policy: Policy,
    loaded: Loaded,
    seen: Fingerprint,
}

impl Following {
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
                    let now = fingerprint(&self.directory);
                    if now == self.seen {
                        continue;
                    }
                    self.seen = now;
                    self.reload();
                }
            }
            let mut objects = self.loaded.objects.clone();
            objects.namespaces.extend(cluster.clone().unwrap_or_default());
            admit(&mut objects, &self.loaded.subject.namespace);
            self.policy.publish(self.loaded.subject.snapshot(&objects));
        }
    }

    fn reload(&mut self) {
        match load(&self.directory, &self.operator_namespace) {
            Ok(loaded) if loaded.subject == self.loaded.subject => {
                for key in loaded.keys.iter().filter(|key| key.generated) {
                    info!(key = key.key, path = %key.path.display(), "key generated");
                }
                info!(directory = %self.directory.display(), "files changed and are in use");
                self.loaded = loaded;
            }
            Ok(_) => warn!("the McpServer has another name or namespace now; restart to serve it"),
            Err(error) => warn!(%error, "files changed and cannot be used; the last good ones stay in use"),
        }
    }
}

/// Names, sizes and times of the files: enough to notice an edit.
type Fingerprint = Vec<(PathBuf, Option<std::time::SystemTime>, u64)>;

fn fingerprint(directory: &Path) -> Fingerprint {
    let files = yaml_files(directory).unwrap_or_default();
    let described = files.into_iter().map(|path| {
        let metadata = fs::metadata(&path).ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        (path, modified, metadata.map_or(0, |metadata| metadata.len()))
    });
    described.collect()
}

/// The objects of the documents, before they are known to fit together.
#[derive(Default)]
struct Found {
    servers: Vec<McpServer>,
    roles: Vec<McpRole>,
    cluster_roles: Vec<ClusterMcpRole>,
    keys: Vec<McpApiKey>,
}

impl Found {
    fn take(&mut self, document: Value) -> Result<(), String> {
        let text = |field: &str| document.get(field).and_then(Value::as_str).unwrap_or_default();
        let expected = format!("{}/{}", api::GROUP, api::VERSION);
        if text("apiVersion") != expected {
            return Err(format!("apiVersion: must be {expected:?}, not {:?}", text("apiVersion")));
        }
        match text("kind") {
            "McpServer" => self.servers.push(decode(document)?),
            "McpRole" => self.roles.push(decode(document)?),
            "ClusterMcpRole" => self.cluster_roles.push(decode(document)?),
            "McpApiKey" => self.keys.push(decode(document)?),
            other => {
                return Err(format!(
                    "kind: must be McpServer, McpRole, ClusterMcpRole or McpApiKey, not {other:?}"
                ));
            }
        }
        Ok(())
    }

    fn into_loaded(mut self, directory: &Path, operator_namespace: &str) -> Result<Loaded, LoadFiles> {
        let count = self.servers.len();
        let (Some(mut server), 1) = (self.servers.pop(), count) else {
            return Err(LoadFiles::Servers { path: directory.to_owned(), count });
        };
        let namespace = server.namespace().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        server.metadata.namespace = Some(namespace.clone());
        let mut files = Vec::new();
        for key in &mut self.keys {
            if key.status.as_ref().is_none_or(|status| status.keys.is_empty()) {
                files.push(key_file(directory, key)?);
            }
        }
        let subject = Subject {
            namespace: namespace.clone(),
            server: server.name_any(),
            operator_namespace: operator_namespace.to_owned(),
        };
        let namespaces = self.cluster_roles.iter().flat_map(|role| &role.spec.namespaces);
        let literal = namespaces.filter(|name| !name.contains('*')).cloned();
        let mut objects = Objects {
            server: Some(Arc::new(server)),
            namespaces: literal.map(|name| (name, BTreeMap::new())).collect(),
            roles: by_name(self.roles, Some(&namespace), directory)?,
            cluster_roles: by_name(self.cluster_roles, None, directory)?,
            keys: by_name(self.keys, Some(&namespace), directory)?,
        };
        admit(&mut objects, &namespace);
        Ok(Loaded { subject, objects, keys: files })
    }
}

/// Lets `ClusterMcpRole`s count: the writer of the files is the administrator.
fn admit(objects: &mut Objects, namespace: &str) {
    let labels = objects.namespaces.entry(namespace.to_owned()).or_default();
    labels.insert(names::NAMESPACE_LABEL.to_owned(), names::NAMESPACE_CLUSTER.to_owned());
}

fn decode<K: CustomResourceExt + DeserializeOwned>(document: Value) -> Result<K, String> {
    if document.pointer("/metadata/name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err("metadata.name: is missing".to_owned());
    }
    schema::check(&K::crd(), &document)?;
    serde_path_to_error::deserialize(document).map_err(|error| format!("{}: {}", error.path(), error.inner()))
}

/// Objects by name, all of the server's namespace.
fn by_name<K: Resource<DynamicType = ()>>(
    objects: Vec<K>,
    namespace: Option<&str>,
    directory: &Path,
) -> Result<BTreeMap<String, Arc<K>>, LoadFiles> {
    let mut named = BTreeMap::new();
    for mut object in objects {
        let (kind, name) = (K::kind(&()).into_owned(), object.name_any());
        let refuse = |text: String| LoadFiles::Object { path: directory.to_owned(), text };
        if let Some(namespace) = namespace {
            let own = object.meta_mut().namespace.get_or_insert_with(|| namespace.to_owned());
            if own != namespace {
                return Err(refuse(format!(
                    "{kind} {name}: metadata.namespace is {own:?} and the server's is {namespace:?}"
                )));
            }
        }
        if named.insert(name.clone(), Arc::new(object)).is_some() {
            return Err(refuse(format!("{kind} {name} is there twice")));
        }
    }
    Ok(named)
}

/// Finds or generates the plaintext of a key, and puts its digest where the operator would put it.
fn key_file(directory: &Path, key: &mut McpApiKey) -> Result<KeyFile, LoadFiles> {
    let name = key.name_any();
    let path = directory.join(GENERATED).join("keys").join(&name);
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if !name.chars().all(plain) || name.starts_with('.') {
        let text = "metadata.name: must have lower-case letters, digits, '-' and '.' only".to_owned();
        return Err(LoadFiles::Object { path, text });
    }
    let (secret, generated) = match fs::read_to_string(&path) {
        Ok(text) => (ApiKey::parse(text.trim()), false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let fresh = generate();
            let text = format!("{}\n", fresh.expose());
            write_private(&path, text.as_bytes()).map_err(|source| read_error(&path, source))?;
            (Ok(fresh), true)
        }
        Err(source) => return Err(read_error(&path, source)),
    };
    let secret = secret.map_err(|error| LoadFiles::Object { path: path.clone(), text: error.to_string() })?;
    key.status.get_or_insert_default().keys.push(KeyGeneration {
        id: secret.id().to_owned(),
        digest: api_key::format_digest(&secret.digest()),
        created_at: Time(Timestamp::now()),
        not_after: None,
        state: KeyState::Active,
    });
    Ok(KeyFile { key: name, path, generated })
}

fn generate() -> ApiKey {
    let (mut id, mut secret) = ([0; 10], [0; 32]);
    aws_lc_rs::rand::fill(&mut id).expect("the system has randomness");
    aws_lc_rs::rand::fill(&mut secret).expect("the system has randomness");
    ApiKey::generate(id, secret)
}

/// Writes a new file that only its owner can read, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = parent.join(name);
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(temporary, path)
}

fn yaml_files(directory: &Path) -> Result<Vec<PathBuf>, LoadFiles> {
    let error = |source| read_error(directory, source);
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_error(path: &Path, source: io::Error) -> LoadFiles {
    LoadFiles::Read { path: path.to_owned(), source }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
