//! The route that a message follows: its own connection or its channel's active route, with the rules' scores and the
//! scripts' selection.

use std::{borrow::Cow, cmp::Ordering};

use crate::node::tenant_config::{ActiveRoute, TenantConfig};
use angarium_domain::{
    attempt::PastAttempt,
    ids::{ConnectionId, RouteId},
    message::Message,
    overrides::EffectiveOverrides,
    provider::Disposition,
    route::{Candidate, RouteSpec, Strategy},
    routing::Plan,
    settings::TenantSettings,
};
use angarium_rules::{decision::Scored, ruling::Ruling};

/// The route that a message follows.
pub struct EffectiveRoute<'c> {
    pub spec: Cow<'c, RouteSpec>,
    /// The route's id and version; `None` if the message names its connection.
    pub route: Option<(RouteId, i32)>,
    settings: &'c TenantSettings,
    /// The rules' scores of connections.
    scores: Vec<(ConnectionId, f64)>,
    /// A script chose the candidates.
    by_script: bool,
}

impl<'c> EffectiveRoute<'c> {
    /// Returns the message's own connection as a route, or its channel's active route; `None` if there is neither.
    #[must_use]
    pub fn of(config: &'c TenantConfig, message: &Message) -> Option<Self> {
        let leg = message.first();
        let (spec, route) = match leg.connection {
            Some(connection) => (Cow::Owned(RouteSpec::pinned(connection)), None),
            None => {
                let route: &ActiveRoute = config.routes.get(&leg.channel)?;
                (Cow::Borrowed(&route.spec), Some((route.id, route.version)))
            }
        };
        Some(Self { spec, route, settings: &config.settings, scores: Vec::new(), by_script: false })
    }

    /// Returns the overrides of providers' codes.
    #[must_use]
    pub fn overrides(&self) -> EffectiveOverrides<'_> {
        EffectiveOverrides { route: &self.spec.overrides, tenant: &self.settings.overrides }
    }

    /// Returns the candidate that every node asks first for a fresh delivery, if it is on record or certain. A script
    /// may answer differently the next time.
    #[must_use]
    pub fn certain_first(&self, message: &Message) -> Option<ConnectionId> {
        message.body.first.or_else(|| (!self.by_script).then(|| self.spec.certain_first()).flatten())
    }

    /// Whether rules and scripts choose among its candidates.
    pub(super) const fn is_open(&self) -> bool {
        self.route.is_some()
    }

    /// Returns the rules' score of a connection, if they have one.
    pub(super) fn score_of(&self, connection: ConnectionId) -> Option<f64> {
        self.scores.iter().find(|(it, _)| *it == connection).map(|(_, score)| *score)
    }

    /// Adds the rules' scores at acceptance; they are read from the message if they are not given.
    pub(super) fn score(&mut self, config: &TenantConfig, message: &Message, scores: Option<Vec<Scored>>) {
        if self.is_open() && message.body.ruling.is_some() {
            self.scores = known_scores(config, scores.unwrap_or_else(|| Ruling::scores(message)));
        }
        // If the strategy leaves the order to the route, the rules' order applies from here on: the first one is
        // certain.
        if self.spec.strategy == Strategy::Primary
            && !self.spec.candidates.is_sorted_by(|a, b| self.by_score(a.connection, b.connection).is_le())
        {
            let mut candidates = self.spec.candidates.clone();
            candidates.sort_by(|a, b| self.by_score(a.connection, b.connection));
            self.spec.to_mut().candidates = candidates;
        }
    }

    /// Takes the candidates in the order of the scripts' answer; returns the parts of it that cannot be followed.
    pub(super) fn follow_scripts(
        &mut self,
        config: &TenantConfig,
        order: Vec<String>,
        past: &[PastAttempt],
    ) -> Vec<String> {
        let (mut listed, mut faults) = (Vec::<Candidate>::with_capacity(order.len()), Vec::new());
        let known = |connection| self.spec.candidates.iter().find(|it| it.connection == connection).cloned();
        for name in order {
            let Some(endpoint) = config.connection(&name) else {
                faults.push(format!("a script names `{name}`, which is no connection"));
                continue;
            };
            let connection = endpoint.connection.id;
            if listed.iter().all(|it| it.connection != connection) {
                let candidate = known(connection).unwrap_or_else(|| Candidate::new(connection));
                // A candidate that a script names is asked in its position, whatever weight the route gave it.
                listed.push(Candidate { weight: candidate.weight.max(1), ..candidate });
            }
        }
        // A candidate that may already have the delivery is never taken off the list.
        let unknown = past.iter().filter(|it| it.disposition == Disposition::Unknown);
        for connection in unknown.filter_map(|it| it.connection) {
            if listed.iter().all(|it| it.connection != connection) {
                listed.extend(known(connection));
            }
        }
        let spec = self.spec.to_mut();
        (spec.candidates, spec.strategy) = (listed, Strategy::Primary);
        self.by_script = true;
        faults
    }

    /// Orders the plan by the rules' scores; among equals the strategy's order stands. A script saw the scores before.
    pub(super) fn prefer(&self, plan: &mut Plan) {
        if self.scores.is_empty() || self.by_script {
            return;
        }
        plan.candidates.sort_by(|a, b| self.by_score(a.connection, b.connection));
        for candidate in &mut plan.candidates {
            if let Some(score) = self.score_of(candidate.connection) {
                candidate.reason = Cow::Owned(format!("rules give it {score:+}; {}", candidate.reason));
            }
        }
    }

    /// Returns the route as scripts changed it, if they did.
    pub(super) fn into_spec_by_scripts(self) -> Option<Box<RouteSpec>> {
        self.by_script.then(|| Box::new(self.spec.into_owned()))
    }

    /// Follows a route that scripts changed earlier, if they did.
    pub(super) fn replaced(mut self, by_scripts: Option<Box<RouteSpec>>) -> Self {
        if let Some(spec) = by_scripts {
            (self.spec, self.by_script) = (Cow::Owned(*spec), true);
        }
        self
    }

    /// Orders candidates by the rules' scores, the highest first.
    fn by_score(&self, a: ConnectionId, b: ConnectionId) -> Ordering {
        let score = |connection| self.score_of(connection).unwrap_or_default();
        score(b).total_cmp(&score(a))
    }
}

/// Returns the scores of the connections that exist.
fn known_scores(config: &TenantConfig, scores: Vec<Scored>) -> Vec<(ConnectionId, f64)> {
    let known = scores.into_iter().filter_map(|it| Some((config.connection(&it.connection)?.connection.id, it.score)));
    known.collect()
}
