//! The folder of components that an operator fills: each that the database does not know is installed at the start.

use std::{
    io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{Activation, Grants, Installation, install};
use crate::{
    app::{Result, change::Changes, error::UseCaseError},
    node::{config::FolderGrant, providers::Providers},
};
use angarium_domain::audit::Actor;
use angarium_store::provider::component_bytes;

/// Installs the folder's components. One that is refused, or may not take the place of what serves, is logged and left
/// alone: the others serve.
///
/// # Errors
/// When the database or the folder can't be read.
pub async fn install_all(changes: &Changes, providers: &Providers, folder: &Path, grant: FolderGrant) -> Result<()> {
    for path in components(folder).map_err(|error| unreadable(folder, &error))? {
        install_file(changes, providers, &path, grant).await?;
    }
    Ok(providers.sync().await?)
}

fn unreadable(path: &Path, error: &io::Error) -> UseCaseError {
    let path = path.display();
    UseCaseError::Internal(format!(
        "the folder of providers {path} can't be read: {error}; `providers.folder` names it"
    ))
}

/// A file that the database knows already changes nothing: an operator may have gone back from it since. One that may not
/// take the place of what serves is left alone, at each start anew.
async fn install_file(changes: &Changes, providers: &Providers, path: &Path, grant: FolderGrant) -> Result<()> {
    let bytes = tokio::fs::read(path).await.map_err(|error| unreadable(path, &error))?;
    let digest = hex::encode(Sha256::digest(&bytes));
    if component_bytes(&mut *changes.store.worker().await?, &digest).await?.is_some() {
        return Ok(());
    }
    let grants = match grant {
        FolderGrant::None => None,
        FolderGrant::Declared => Some(Grants::Declared),
    };
    let activation = Some(Activation { allow_downgrade: false, grants });
    let by = Actor::gateway("providers.folder");
    match install(changes, providers, &by, bytes.into(), Installation { activation, replace: false }).await {
        Ok(_) => Ok(()),
        Err(error @ (UseCaseError::ComponentRefused(_) | UseCaseError::Conflict { .. })) => {
            tracing::error!(file = %path.display(), %error,
                "a component of the folder is not installed; `angarium provider install` can say more than the folder");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The folder's components, by name.
fn components(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
