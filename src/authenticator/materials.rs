//! What Secrets and ConfigMaps hold, by the path of the entry: mounted in a pod, or given as documents with `--from`.
//!
//! A volume swaps its files under the process, by symbolic links: the content decides what has changed, never a time. A
//! volume that cannot be read for a moment keeps the entries that it had.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Entries by path, as [`crate::api::names::material_path`] makes it.
pub(crate) type Entries = BTreeMap<String, Arc<[u8]>>;

/// Time between two looks at a volume.
const POLL: Duration = Duration::from_secs(2);
/// Most bytes of one entry: what an object of Kubernetes holds.
const ENTRY_LIMIT: u64 = 1 << 20;
/// Most entries of a volume, above what a spec can refer to.
const ENTRIES: usize = 256;
/// The two kinds of objects, as folders.
const FOLDERS: [&str; 2] = ["configmap", "secret"];
/// Link by which a volume swaps all of its files at once.
const DATA: &str = "..data";

/// Entries that change. Clones share them.
#[derive(Clone)]
pub(crate) struct Materials(Arc<Shared>);

struct Shared {
    /// Where the volume is, if the entries are mounted.
    directory: Option<PathBuf>,
    entries: ArcSwap<Entries>,
    changes: watch::Sender<u64>,
}

impl Materials {
    /// These entries, until others are set.
    pub(crate) fn given(entries: Entries) -> Self {
        Self::new(None, entries)
    }

    /// What is mounted below a directory. A directory that is not there holds nothing.
    ///
    /// # Errors
    /// When what is there cannot be read.
    pub(crate) fn mounted(directory: &Path) -> io::Result<Self> {
        Ok(Self::new(Some(directory.to_owned()), read(directory)?))
    }

    fn new(directory: Option<PathBuf>, entries: Entries) -> Self {
        let (entries, changes) = (ArcSwap::from_pointee(entries), watch::Sender::new(0));
        Self(Arc::new(Shared { directory, entries, changes }))
    }

    /// Every entry of now.
    pub(crate) fn load(&self) -> Arc<Entries> {
        self.0.entries.load_full()
    }

    /// Swaps every entry, and wakes those who wait if any is different.
    pub(crate) fn set(&self, entries: Entries) {
        if *self.load() != entries {
            self.0.entries.store(Arc::new(entries));
            self.0.changes.send_modify(|count| *count += 1);
        }
    }

    /// Wakes at every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Looks at what is mounted until told to stop. Given entries change by themselves.
    pub(super) async fn follow(&self, stop: CancellationToken) {
        let Some(directory) = self.0.directory.clone() else { return stop.cancelled().await };
        while stop.run_until_cancelled(tokio::time::sleep(POLL)).await.is_some() {
            let directory = directory.clone();
            match tokio::task::spawn_blocking(move || read(&directory)).await {
                Ok(Ok(entries)) => self.set(entries),
                Ok(Err(error)) => tracing::warn!(%error, "mounted Secrets and ConfigMaps cannot be read"),
                Err(error) => tracing::error!(%error, "mounted Secrets and ConfigMaps were not read"),
            }
        }
    }
}

/// Every entry of a volume, all of one moment.
fn read(directory: &Path) -> io::Result<Entries> {
    // The files of one swap stand together behind the link: following it once keeps two moments apart.
    let base = match fs::canonicalize(directory.join(DATA)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => directory.to_owned(),
        base => base?,
    };
    let mut entries = Entries::new();
    for folder in FOLDERS {
        for object in names_in(&base.join(folder))? {
            for key in names_in(&base.join(folder).join(&object))? {
                let path = format!("{folder}/{object}/{key}");
                if let Some(content) = read_entry(&base.join(&path))? {
                    entries.insert(path, content);
                }
                if entries.len() > ENTRIES {
                    return Err(io::Error::other(format!("more than {ENTRIES} entries are mounted")));
                }
            }
        }
    }
    Ok(entries)
}

/// Names in a folder, without those of the volume's own. A folder that is not there is empty.
fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let found = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found?,
    };
    let names = found.map(|entry| Ok(entry?.file_name().into_string().ok()));
    let names = names.filter_map(io::Result::transpose);
    names.filter(|name| name.as_ref().map_or(true, |name| !name.starts_with(".."))).collect()
}

/// The content of a file, unless it is too large for an entry.
fn read_entry(path: &Path) -> io::Result<Option<Arc<[u8]>>> {
    let mut content = Vec::new();
    fs::File::open(path)?.take(ENTRY_LIMIT + 1).read_to_end(&mut content)?;
    if content.len() as u64 > ENTRY_LIMIT {
        tracing::warn!(path = %path.display(), "entry is larger than 1 MiB and is not used");
        return Ok(None);
    }
    Ok(Some(content.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const PATH: &str = "secret/issuer/jwks.json";

    /// A volume as the kubelet makes it: files in a folder of their own, a link to it, links to what is in it.
    fn project(directory: &Path, version: &str, content: &[u8]) {
        let file = directory.join(version).join(PATH);
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        fs::write(file, content).expect("written");
        let swapped = directory.join("..data_tmp");
        symlink(version, &swapped).expect("linked");
        fs::rename(swapped, directory.join(DATA)).expect("swapped");
        if !directory.join("secret").exists() {
            symlink("..data/secret", directory.join("secret")).expect("linked");
        }
    }

    #[test]
    fn a_volume_is_read_through_its_links_and_without_what_is_too_large() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(Materials::mounted(directory.path()).expect("read").load().is_empty());
        assert!(Materials::mounted(&directory.path().join("absent")).expect("read").load().is_empty());
        project(directory.path(), "..1", b"first");
        fs::write(directory.path().join("..1/secret/issuer/large"), vec![0; (1 << 20) + 1]).expect("written");
        let entries = Materials::mounted(directory.path()).expect("read").load();
        assert_eq!(entries.keys().collect::<Vec<_>>(), [PATH]);
        assert_eq!(&*entries[PATH], b"first");
    }

    #[tokio::test(start_paused = true)]
    async fn a_swap_of_the_volume_is_followed_and_touching_it_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        project(directory.path(), "..1", b"first");
        let materials = Materials::mounted(directory.path()).expect("read");
        let (stop, mut changes) = (CancellationToken::new(), materials.changes());
        let following = tokio::spawn({
            let (materials, stop) = (materials.clone(), stop.clone());
            async move { materials.follow(stop).await }
        });
        project(directory.path(), "..2", b"first");
        tokio::time::sleep(POLL * 3).await;
        assert!(!changes.has_changed().expect("followed"), "the content is the same");
        project(directory.path(), "..3", b"second");
        fs::remove_dir_all(directory.path().join("..1")).expect("removed");
        changes.changed().await.expect("followed");
        assert_eq!(&*materials.load()[PATH], b"second");
        stop.cancel();
        following.await.expect("ends");
    }
}
