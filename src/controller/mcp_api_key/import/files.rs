//! The Secrets with the salted hashes of a server's imported keys: read, brought in line, and written by version.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{from_value, json};

use crate::api::conditions::REASON_NOT_FOUND;
use crate::api::{GROUP, McpApiKey, McpServer, VERSION, names};
use crate::authn::imported::ImportedKeys;
use crate::controller::Context;
use crate::controller::engine::Transient;
use crate::controller::mcp_api_key::secret::{conflict, random};
use crate::controller::mcp_api_key::{Problem, Rules};
use crate::index::snapshot::admits_servers;
use crate::k8s::apply::text;
use crate::k8s::watch::find;

use super::resolve::{self, Fresh, Resolved};

/// The hashes of one server as they were read.
struct File {
    server: McpServer,
    live: Option<Secret>,
    keys: ImportedKeys,
    /// What was read, to see whether anything has changed. None: nothing was.
    before: Option<Vec<u8>>,
}

impl File {
    async fn read(secrets: &Api<Secret>, server: McpServer) -> Result<Self, Transient> {
        let name = names::imported_secret(&server.name_any());
        let failed = |error| Transient::apply(format!("failed to read Secret {name:?}: {}", text(&error)));
        let live = secrets.get_opt(&name).await.map_err(failed)?;
        if let Some(live) = &live {
            let is_ours =
                live.owner_references().iter().any(|owner| Some(&owner.uid) == server.uid().as_ref());
            if !is_ours {
                return Err(conflict(&name));
            }
            if live.metadata.deletion_timestamp.is_some() {
                return Err(Transient::apply(format!("Secret {name:?} is being deleted")));
            }
        }
        let bytes = live.as_ref().and_then(|live| live.data.as_ref()?.get(names::IMPORTED_DATA));
        // What cannot be read counts for nothing at the endpoint either; it is made anew.
        let keys = bytes.and_then(|bytes| ImportedKeys::from_json(&bytes.0).ok());
        let before = keys.as_ref().map(to_json);
        let keys = match keys {
            Some(keys) => keys,
            None => ImportedKeys::new(random()?),
        };
        Ok(Self { server, live, keys, before })
    }

    /// Writes what has changed. Says whether it stands in the Secret now: it does not when somebody else was faster.
    async fn write(&self, secrets: &Api<Secret>) -> Result<bool, Transient> {
        let after = to_json(&self.keys);
        let is_needed = match &self.before {
            Some(before) => *before != after,
            None => self.live.is_some() || self.keys.iter().next().is_some(),
        };
        if !is_needed {
            return Ok(true);
        }
        let mut wanted = secret(&self.server, after);
        let name = wanted.name_any();
        let parameters =
            PostParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let written = match &self.live {
            None => secrets.create(&parameters, &wanted).await,
            Some(live) => {
                wanted.metadata.uid.clone_from(&live.metadata.uid);
                wanted.metadata.resource_version.clone_from(&live.metadata.resource_version);
                wanted.metadata.annotations.clone_from(&live.metadata.annotations);
                wanted.metadata.finalizers.clone_from(&live.metadata.finalizers);
                wanted.type_.clone_from(&live.type_);
                secrets.replace(&name, &parameters, &wanted).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status))
                if status.is_conflict() || status.is_not_found() || status.is_already_exists() =>
            {
                Ok(false)
            }
            Err(error) => Err(Transient::apply(format!("failed to write Secret {name:?}: {}", text(&error)))),
        }
    }
}

fn to_json(keys: &ImportedKeys) -> Vec<u8> {
    serde_json::to_vec(keys).expect("texts and numbers are JSON")
}

/// The Secret that a server's pods mount.
fn secret(server: &McpServer, content: Vec<u8>) -> Secret {
    let name = server.name_any();
    let metadata = from_value(json!({
        "name": names::imported_secret(&name),
        "namespace": server.namespace(),
        "labels": {
            "app.kubernetes.io/name": "portcullis-server",
            "app.kubernetes.io/instance": name,
            "app.kubernetes.io/component": "endpoint",
            "app.kubernetes.io/part-of": "portcullis",
            "app.kubernetes.io/managed-by": names::FIELD_MANAGER,
            names::SERVER_LABEL: name,
        },
        "ownerReferences": [{
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "McpServer",
            "name": name,
            "uid": server.uid().unwrap_or_default(),
            "controller": true,
        }],
    }))
    .expect("the shape of metadata");
    Secret {
        metadata,
        type_: Some(names::IMPORTED_SECRET_TYPE.to_owned()),
        data: Some(BTreeMap::from([(names::IMPORTED_DATA.to_owned(), ByteString(content))])),
        ..Secret::default()
    }
}

/// The servers of a key that exist, in the order of their names: every pass of every operator begins with the same.
fn servers(context: &Context, key: &McpApiKey) -> Vec<McpServer> {
    let namespace = key.namespace().unwrap_or_default();
    let named: BTreeSet<&String> = key.spec.servers.iter().collect();
    let found = named.into_iter().filter_map(|name| find(&context.cluster.servers, &namespace, name));
    found.filter(|server| server.metadata.deletion_timestamp.is_none()).collect()
}

async fn read_all(context: &Context, secrets: &Api<Secret>, key: &McpApiKey) -> Result<Vec<File>, Transient> {
    let mut files = Vec::new();
    for server in servers(context, key) {
        files.push(File::read(secrets, server).await?);
    }
    Ok(files)
}

async fn write_all(secrets: &Api<Secret>, files: &[File]) -> Result<bool, Transient> {
    for file in files {
        if !file.write(secrets).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Which generation a text is; the key's servers hold its hash afterwards. None: somebody else wrote in between.
pub(super) async fn resolve(
    context: &Context,
    secrets: &Api<Secret>,
    key: &McpApiKey,
    rules: &Rules,
    plain: SecretString,
) -> Result<Result<Option<Resolved>, Problem>, Transient> {
    let mut files = read_all(context, secrets, key).await?;
    if files.is_empty() {
        let message = format!(
            "spec.servers: none of {} exists; a key is imported for the servers that there are",
            key.spec.servers.join(", ")
        );
        return Ok(Err(Problem { reason: REASON_NOT_FOUND, message, is_fatal: false }));
    }
    let (name, rules) = (key.name_any(), *rules);
    let known = key.status.as_ref().map_or_else(Vec::new, |status| status.keys.clone());
    let fresh = Fresh { id: random()?, salt: random()? };
    let mut hashes: Vec<ImportedKeys> = files.iter().map(|file| file.keys.clone()).collect();
    let hashing = tokio::task::spawn_blocking(move || {
        let now = Timestamp::now();
        let is_over = |generation: &_| super::is_over(generation, &rules, now);
        let plain = plain.expose_secret();
        let resolved = resolve::resolve(&mut hashes, &name, plain, &known, is_over, fresh);
        (resolved, hashes)
    });
    let (resolved, hashes) = hashing.await.map_err(|_| Transient::apply("the key could not be hashed"))?;
    let resolved = match resolved {
        Ok(resolved) => resolved,
        Err(error) => return super::refused(&error).map(Err),
    };
    for (file, keys) in files.iter_mut().zip(hashes) {
        file.keys = keys;
    }
    let was_written = write_all(secrets, &files).await?;
    Ok(Ok(was_written.then_some(resolved)))
}

/// Removes the hashes of generations that a key has no more, where the text that it has now needs none.
pub(super) async fn forget(
    context: &Context,
    secrets: &Api<Secret>,
    key: &McpApiKey,
) -> Result<(), Transient> {
    let keys = key.status.as_ref().map_or(&[][..], |status| &status.keys);
    for mut file in read_all(context, secrets, key).await? {
        resolve::prune(std::slice::from_mut(&mut file.keys), &key.name_any(), keys, None);
        // Whoever was faster has brought it in line or left it for the next pass.
        file.write(secrets).await?;
    }
    Ok(())
}

/// Removes the hashes of keys that are gone or do not name the server any more. No pass over a key looks there.
pub(in crate::controller::mcp_api_key) async fn clean(context: &Context) {
    let servers = context.cluster.servers.state();
    for server in servers.iter().filter_map(|server| server.0.as_ref().ok()) {
        if let Err(error) = clean_one(context, server).await {
            tracing::debug!(server = %server.name_any(), %error, "Imported keys not cleaned");
        }
    }
}

async fn clean_one(context: &Context, server: &McpServer) -> Result<(), Transient> {
    let namespace = server.namespace().unwrap_or_default();
    let is_admitted = find(&context.cluster.namespaces, "", &namespace)
        .is_some_and(|namespace| admits_servers(namespace.labels()));
    if !is_admitted || server.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let room = context.namespaces.room(&namespace);
    let _working = room.work().await;
    let secrets = Api::<Secret>::namespaced(context.client.clone(), &namespace);
    let mut file = File::read(&secrets, server.clone()).await?;
    let name = server.name_any();
    let is_wanted = |key: &str| {
        let found = context
            .cluster
            .keys
            .find(|other| other.namespace().as_deref() == Some(&namespace) && other.name_any() == key);
        // What cannot be read is there all the same.
        found.is_some_and(|found| match &found.0 {
            Ok(found) => found.spec.import.is_some() && found.spec.servers.contains(&name),
            Err(_) => true,
        })
    };
    let stale = file.keys.iter().filter(|entry| !is_wanted(&entry.key));
    let stale: Vec<String> = stale.map(|entry| entry.id.clone()).collect();
    if !stale.is_empty() {
        for id in &stale {
            file.keys.remove(id);
        }
        file.write(&secrets).await?;
    }
    Ok(())
}
