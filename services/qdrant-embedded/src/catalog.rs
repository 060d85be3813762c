//! The data folder: which collections and aliases there are.
//!
//! ```text
//! DIR/lock                       held by the process that has the folder
//! DIR/in-use                     there while it runs: found at the start, the last one was killed
//! DIR/aliases.json
//! DIR/collections/<id>/collection.pb   the request that made the collection; written last, removed first
//! DIR/collections/<id>/shard/          the engine's files
//! ```

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use prost::Message;
use qdrant_client::qdrant::{AliasDescription, CreateCollection, alias_operations::Action};
use tonic::Status;
use uuid::Uuid;

use crate::collection::Collection;
use crate::convert::config;
use crate::refusal::{internal, invalid, no_collection};

const CREATED: &str = "collection.pb";
const ALIASES: &str = "aliases.json";
const IN_USE: &str = "in-use";

/// Why the data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Another process has it.
    #[error("{0} belongs to a server that is running: stop it, or name another folder with --data")]
    Taken(PathBuf),
    /// The file system refuses.
    #[error("can't use the data folder {path}: {source}")]
    Folder {
        /// The folder or a file in it.
        path: PathBuf,
        /// What the file system says.
        source: std::io::Error,
    },
    /// A collection can't be read.
    #[error("collection in {path} can't be opened ({reason}): move the folder away to start without it")]
    Corrupt {
        /// Its folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

fn folder_error(path: &Path) -> impl FnOnce(std::io::Error) -> CatalogError + '_ {
    move |source| CatalogError::Folder { path: path.to_owned(), source }
}

/// The collections of a data folder.
pub struct Catalog {
    root: PathBuf,
    _lock: File,
    names: RwLock<Names>,
}

#[derive(Default)]
struct Names {
    collections: BTreeMap<String, Arc<Collection>>,
    aliases: BTreeMap<String, String>,
}

impl Names {
    fn check_alias(&self, alias: &str) -> Result<(), Status> {
        check_name(alias)?;
        let taken = self.collections.contains_key(alias);
        if taken { Err(invalid(format!("{alias:?} is the name of a collection"))) } else { Ok(()) }
    }
}

impl Catalog {
    /// Opens a data folder, and takes it.
    pub fn open(root: &Path) -> Result<Arc<Self>, CatalogError> {
        let folders = root.join("collections");
        std::fs::create_dir_all(&folders).map_err(folder_error(&folders))?;
        let lock = File::create(root.join("lock")).map_err(folder_error(root))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CatalogError::Taken(root.to_owned())),
            Err(TryLockError::Error(source)) => return Err(CatalogError::Folder { path: root.to_owned(), source }),
        }
        let in_use = root.join(IN_USE);
        let after_kill = in_use.exists();
        File::create(&in_use).map_err(folder_error(&in_use))?;
        let mut names = Names { aliases: read_aliases(root)?, ..Names::default() };
        for entry in std::fs::read_dir(&folders).map_err(folder_error(&folders))? {
            let folder = entry.map_err(folder_error(&folders))?.path();
            if let Some(collection) = open_collection(&folder, after_kill)? {
                tracing::info!(collection = collection.name(), after_kill, "opened");
                names.collections.insert(collection.name().to_owned(), Arc::new(collection));
            }
        }
        Ok(Arc::new(Self { root: root.to_owned(), _lock: lock, names: RwLock::new(names) }))
    }

    /// A collection by its name or an alias.
    pub fn get(&self, name: &str) -> Result<Arc<Collection>, Status> {
        let names = self.names();
        let name = names.aliases.get(name).map_or(name, String::as_str);
        names.collections.get(name).cloned().ok_or_else(|| no_collection(name))
    }

    /// All collections.
    pub fn collections(&self) -> Vec<String> {
        self.names().collections.keys().cloned().collect()
    }

    /// Makes a collection. Blocks.
    pub fn create(&self, created: CreateCollection) -> Result<(), Status> {
        let name = created.collection_name.clone();
        check_name(&name)?;
        let config = config::engine(&created)?;
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if names.collections.contains_key(&name) || names.aliases.contains_key(&name) {
            return Err(Status::already_exists(format!("Wrong input: Collection `{name}` already exists!")));
        }
        let folder = self.root.join("collections").join(Uuid::new_v4().to_string());
        std::fs::create_dir_all(&folder).map_err(internal)?;
        let collection = Collection::create(&folder, created.clone(), config)?;
        write_durably(&folder.join(CREATED), &created.encode_to_vec()).map_err(internal)?;
        names.collections.insert(name, Arc::new(collection));
        Ok(())
    }

    /// Deletes a collection, with its aliases. Whether there was one. Blocks.
    pub fn delete(&self, name: &str) -> Result<bool, Status> {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let Some(collection) = names.collections.remove(name) else { return Ok(false) };
        names.aliases.retain(|_, target| target != name);
        self.write_aliases(&names)?;
        drop(names);
        std::fs::remove_file(collection.folder().join(CREATED)).map_err(internal)?;
        collection.close();
        std::fs::remove_dir_all(collection.folder()).map_err(internal)?;
        Ok(true)
    }

    /// Changes aliases, all or none.
    pub fn change_aliases(&self, actions: Vec<Action>) -> Result<(), Status> {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let mut aliases = names.aliases.clone();
        for action in actions {
            match action {
                Action::CreateAlias(create) => {
                    names.check_alias(&create.alias_name)?;
                    if !names.collections.contains_key(&create.collection_name) {
                        return Err(no_collection(&create.collection_name));
                    }
                    aliases.insert(create.alias_name, create.collection_name);
                }
                Action::RenameAlias(rename) => {
                    names.check_alias(&rename.new_alias_name)?;
                    let target =
                        aliases.remove(&rename.old_alias_name).ok_or_else(|| no_alias(&rename.old_alias_name))?;
                    aliases.insert(rename.new_alias_name, target);
                }
                Action::DeleteAlias(delete) => {
                    aliases.remove(&delete.alias_name).ok_or_else(|| no_alias(&delete.alias_name))?;
                }
            }
        }
        let before = std::mem::replace(&mut names.aliases, aliases);
        self.write_aliases(&names).inspect_err(|_| names.aliases = before)
    }

    /// All aliases, or those of one collection.
    pub fn aliases(&self, of: Option<&str>) -> Vec<AliasDescription> {
        let names = self.names();
        let wanted = names.aliases.iter().filter(|(_, collection)| of.is_none_or(|name| name == *collection));
        wanted
            .map(|(alias, collection)| AliasDescription {
                alias_name: alias.clone(),
                collection_name: collection.clone(),
            })
            .collect()
    }

    /// Writes everything to disk and leaves the folder as a clean end does. Blocks.
    pub fn close(&self) -> Result<(), CatalogError> {
        let collections: Vec<_> = self.names().collections.values().cloned().collect();
        for collection in collections {
            collection.close();
        }
        let in_use = self.root.join(IN_USE);
        std::fs::remove_file(&in_use).map_err(folder_error(&in_use))
    }

    fn names(&self) -> std::sync::RwLockReadGuard<'_, Names> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_aliases(&self, names: &Names) -> Result<(), Status> {
        let json = serde_json::to_vec_pretty(&names.aliases).map_err(internal)?;
        write_durably(&self.root.join(ALIASES), &json).map_err(internal)
    }
}

fn open_collection(folder: &Path, after_kill: bool) -> Result<Option<Collection>, CatalogError> {
    let created = match std::fs::read(folder.join(CREATED)) {
        Ok(bytes) => bytes,
        // Its creation or its deletion was cut short.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::remove_dir_all(folder).map_err(folder_error(folder))?;
            return Ok(None);
        }
        Err(error) => return Err(folder_error(folder)(error)),
    };
    let corrupt = |reason: String| CatalogError::Corrupt { path: folder.to_owned(), reason };
    let created = CreateCollection::decode(created.as_slice()).map_err(|error| corrupt(error.to_string()))?;
    let collection =
        Collection::open(folder, created, after_kill).map_err(|status| corrupt(status.message().to_owned()))?;
    Ok(Some(collection))
}

fn read_aliases(root: &Path) -> Result<BTreeMap<String, String>, CatalogError> {
    let path = root.join(ALIASES);
    match std::fs::read(&path) {
        Ok(json) => {
            serde_json::from_slice(&json).map_err(|error| CatalogError::Corrupt { path, reason: error.to_string() })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(folder_error(&path)(error)),
    }
}

fn no_alias(name: &str) -> Status {
    Status::not_found(format!("Not found: Alias {name} does not exists!"))
}

fn check_name(name: &str) -> Result<(), Status> {
    let fits = (1..=255).contains(&name.len())
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | '<' | '>' | ':' | '"' | '|' | '?' | '*'));
    if fits { Ok(()) } else { Err(invalid(format!("{name:?} can't be the name of a collection or an alias"))) }
}

/// The file is there whole or not at all, also after a loss of power.
fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
