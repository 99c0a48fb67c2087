//! HTTP clients with a client certificate: one each, kept by the digest of certificate and key, so that only holders of
//! the same key share its connections.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ring::digest::{SHA256, digest};

use super::{egress::Egress, fault::invalid, http::build_client, pool::PooledClient, tls::TlsRoots};
use crate::sealing::Secret;
use angarium_domain::transmission::Fault;

/// The most clients that are kept; with one more, all are forgotten.
const CAPACITY: usize = 256;

pub(super) struct Certificates {
    clients: Mutex<HashMap<Vec<u8>, PooledClient>>,
    egress: Arc<Egress>,
    roots: TlsRoots,
}

impl Certificates {
    pub(super) fn new(egress: Arc<Egress>, roots: TlsRoots) -> Self {
        Self { clients: Mutex::default(), egress, roots }
    }

    /// The client for a secret that holds a certificate chain and its key.
    pub(super) fn client(&self, name: &str, pem: &Secret) -> Result<PooledClient, Fault> {
        let id = digest(&SHA256, pem.expose()).as_ref().to_vec();
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&id) {
            return Ok(client.clone());
        }
        let tls = self
            .roots
            .config_with_certificate(pem.expose())
            .map_err(|reason| invalid(format!("the secret `{name}` is no client certificate: {reason}")))?;
        let client = build_client(&self.egress, tls);
        if clients.len() >= CAPACITY {
            clients.clear();
        }
        clients.insert(id, client.clone());
        Ok(client)
    }
}
