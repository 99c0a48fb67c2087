//! Statistics: the figures of a range of time, as totals, as a series and by groups. They agree with the ledger.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{App, Result};
use angarium_domain::{
    ids::{ConnectionId, RouteId, TenantId},
    statistics::{Dimension, Figures},
};
use angarium_store::{
    Connection as Db,
    statistics::{StatRow, stat_names, stat_read},
};

pub use angarium_store::statistics::StatQuery;

/// The most groups of one answer: those with the most in them.
const MOST_GROUPS: usize = 100;

/// The figures of a query.
pub struct Statistics {
    pub whole: FiguresSeries,
    /// Whether accepted messages are counted as the query selects: they have no connection, provider, route or code.
    pub counts_accepted: bool,
    /// The groups with the most in them, if the query groups.
    pub groups: Option<Vec<FiguresGroup>>,
    /// The number of further groups.
    pub groups_left_out: usize,
}

/// The figures of all buckets together, and of each.
#[derive(Default)]
pub struct FiguresSeries {
    pub totals: Figures,
    pub buckets: BTreeMap<Timestamp, Figures>,
}

/// The figures of one value of a dimension.
pub struct FiguresGroup {
    /// The value, as the API writes it; none for entries without one.
    pub key: Option<String>,
    /// The uid of a connection or route, the name of a tenant.
    pub name: Option<String>,
    /// Of a route.
    pub version: Option<i32>,
    pub series: FiguresSeries,
    /// Whether accepted messages are counted in the groups of this dimension.
    pub counts_accepted: bool,
}

/// Returns the figures of a tenant; `query.tenant` is set to it.
pub async fn of_tenant(app: &App, tenant: TenantId, query: &StatQuery) -> Result<Statistics> {
    let mut txn = app.store.tenant(tenant).await?;
    read(&mut txn, &StatQuery { tenant: Some(tenant), ..query.clone() }).await
}

/// Returns the figures of all tenants, or of the one that the query names: for operators.
pub async fn of_all(app: &App, query: &StatQuery) -> Result<Statistics> {
    read(&mut *app.store.worker().await?, query).await
}

async fn read(db: &mut Db, query: &StatQuery) -> Result<Statistics> {
    let mut whole = FiguresSeries::default();
    let mut groups: HashMap<(String, i32), FiguresSeries> = HashMap::new();
    for row in stat_read(db, query).await? {
        whole.add(&row);
        if query.by.is_some() {
            groups.entry((row.key.clone(), row.version)).or_default().add(&row);
        }
    }
    let narrowed =
        query.connection.is_some() || query.provider.is_some() || query.route.is_some() || query.code.is_some();
    let groups_left_out = groups.len().saturating_sub(MOST_GROUPS);
    let groups = match query.by {
        Some(by) => Some(largest(db, by, groups, !narrowed && by.is_known_at_acceptance()).await?),
        None => None,
    };
    Ok(Statistics { whole, counts_accepted: !narrowed, groups, groups_left_out })
}

impl FiguresSeries {
    fn add(&mut self, row: &StatRow) {
        self.totals.add(&row.counted, row.count);
        self.buckets.entry(row.at).or_default().add(&row.counted, row.count);
    }
}

async fn largest(
    db: &mut Db,
    by: Dimension,
    groups: HashMap<(String, i32), FiguresSeries>,
    counts_accepted: bool,
) -> Result<Vec<FiguresGroup>> {
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_cached_key(|(key, group)| {
        (Reverse(group.totals.attempts), Reverse(group.totals.accepted), key.clone())
    });
    groups.truncate(MOST_GROUPS);
    let ids: Vec<Uuid> = groups.iter().filter_map(|((key, _), _)| key.parse().ok()).collect();
    let names = stat_names(db, by, &ids).await?;
    let group = |((key, version), series): ((String, i32), FiguresSeries)| FiguresGroup {
        name: key.parse::<Uuid>().ok().and_then(|id| names.get(&id).cloned()),
        key: shown_key(by, key),
        version: (version > 0).then_some(version),
        series,
        counts_accepted,
    };
    Ok(groups.into_iter().map(group).collect())
}

/// The key as the rest of the API writes it.
fn shown_key(by: Dimension, key: String) -> Option<String> {
    let id = key.parse::<Uuid>().unwrap_or_default();
    match by {
        Dimension::Channel | Dimension::Provider | Dimension::Code => Some(key).filter(|key| !key.is_empty()),
        _ if id.is_nil() => None,
        Dimension::Connection => Some(ConnectionId::from(id).to_string()),
        Dimension::Route => Some(RouteId::from(id).to_string()),
        Dimension::Tenant => Some(TenantId::from(id).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_without_a_connection_has_no_key() {
        assert_eq!(shown_key(Dimension::Connection, Uuid::nil().to_string()), None);
        assert_eq!(shown_key(Dimension::Code, String::new()), None);
        assert_eq!(shown_key(Dimension::Channel, "sms".into()).as_deref(), Some("sms"));
    }
}
