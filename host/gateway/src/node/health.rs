//! The node's needs beside the database: keys that open the stored secrets, and the folders that the configuration
//! names. Each change is logged once; while something is missing, the node is not ready.
//!
//! It mends nothing and sends nothing.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::node::telemetry;
use angarium_store::{
    self as store, Store,
    secret::{SecretTally, secret_tally},
};
use angarium_transport::sealing::Keyring;

/// Between two looks at the folders.
const PAUSE: Duration = Duration::from_secs(1);
/// The number of looks between two counts of the secrets.
const LOOKS_A_COUNT: u32 = 10;

/// The needs of this node and their state.
pub struct NodeHealth {
    store: Store,
    keyring: Arc<Keyring>,
    /// By the keys that name them.
    folders: Vec<(&'static str, PathBuf)>,
    lacks: Mutex<Lacks>,
}

/// The missing needs, as last observed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Lacks {
    secrets: SecretTally,
    /// For each folder, why it cannot be read.
    folders: Vec<Option<String>>,
}

impl NodeHealth {
    /// Nothing is looked at before [`NodeHealth::look`].
    #[must_use]
    pub fn new(store: Store, keyring: Arc<Keyring>, folders: Vec<(&'static str, PathBuf)>) -> Self {
        let lacks = Lacks { secrets: SecretTally::default(), folders: vec![None; folders.len()] };
        Self { store, keyring, folders, lacks: Mutex::new(lacks) }
    }

    /// Returns the reason for which the node cannot serve now, with the remedy; `None` if it lacks nothing.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let lacks = self.lacks();
        let folder = || {
            let missing = self.folders.iter().zip(&lacks.folders);
            missing.filter_map(|((key, path), why)| Some(missing_folder(key, path, why.as_deref()?))).next()
        };
        no_secret_opens(lacks.secrets).or_else(folder)
    }

    /// Looks at all of it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn look(&self) -> store::Result<()> {
        self.look_at_folders().await;
        self.count_secrets().await
    }

    /// Looks on, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut looks = 0_u32;
        while !stop.is_cancelled() {
            self.look_at_folders().await;
            if looks.is_multiple_of(LOOKS_A_COUNT)
                && let Err(error) = self.count_secrets().await
            {
                tracing::warn!(%error, "the stored secrets cannot be counted; they are at the next look");
            }
            looks = looks.wrapping_add(1);
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn count_secrets(&self) -> store::Result<()> {
        let mut txn = self.store.worker().await?;
        let tally = secret_tally(&mut txn, &self.keyring.ids()).await?;
        txn.commit().await?;
        telemetry::secrets_unavailable(tally.closed);
        let before = std::mem::replace(&mut self.lacks().secrets, tally);
        if tally.closed > 0 && before.closed == 0 {
            tracing::error!(
                secrets = tally.all,
                closed = tally.closed,
                "stored secrets are encrypted with keys that this node does not have: what needs them waits; add the key \
                 after the current one"
            );
        } else if tally.closed == 0 && before.closed > 0 {
            tracing::info!("all stored secrets stand on keys of this node again");
        }
        Ok(())
    }

    async fn look_at_folders(&self) {
        let paths: Vec<_> = self.folders.iter().map(|(_, path)| path.clone()).collect();
        let read = move || paths.iter().map(|path| std::fs::read_dir(path).err().map(|it| it.to_string())).collect();
        let Ok(now) = tokio::task::spawn_blocking(read).await else { return };
        let before: Vec<Option<String>> = std::mem::replace(&mut self.lacks().folders, now);
        let now = self.lacks().folders.clone();
        for (((key, path), before), now) in self.folders.iter().zip(before).zip(now) {
            match (before, now) {
                (None, Some(why)) => tracing::error!("{}", missing_folder(key, path, &why)),
                (Some(_), None) => tracing::info!(folder = %path.display(), "`{key}` can be read again"),
                (None, None) | (Some(_), Some(_)) => {}
            }
        }
    }

    fn lacks(&self) -> MutexGuard<'_, Lacks> {
        self.lacks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_secret_opens(secrets: SecretTally) -> Option<String> {
    (secrets.all > 0 && secrets.closed == secrets.all).then(|| {
        format!(
            "none of the {} stored secrets can be opened with the keys of `secrets.key` or `secrets.key_file`: add the key \
             that they were encrypted with after the current one",
            secrets.all
        )
    })
}

fn missing_folder(key: &str, path: &Path, why: &str) -> String {
    format!("the folder {} cannot be read ({why}): `{key}` names it", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_opens_some_secrets_serves() {
        assert_eq!(no_secret_opens(SecretTally { all: 0, closed: 0 }), None);
        assert_eq!(no_secret_opens(SecretTally { all: 3, closed: 2 }), None);
        let problem = no_secret_opens(SecretTally { all: 3, closed: 3 }).unwrap();
        assert!(problem.contains("none of the 3 stored secrets"), "{problem}");
    }
}
