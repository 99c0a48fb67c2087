//! Whom a message would be sent through if other rules were live: for playing messages through
//! again. Nothing is asked, and what passes by itself, as an open breaker, bars nobody.

use super::{Course, Dispatcher};
use crate::{
    directory::{Endpoint, TenantConfig},
    domain::message::Message,
    routing::{self, Barred, Situation},
    rules::{rulebook::Rulebook, script::Given},
};

impl Dispatcher {
    /// The connection that would be asked first.
    #[must_use]
    pub fn foreseen<'a>(
        &self,
        config: &'a TenantConfig,
        book: &Rulebook,
        message: &Message,
        given: &Given,
    ) -> Option<&'a Endpoint> {
        let mut course = Course::of(config, message)?.favoured(config, message);
        if course.route.is_some() {
            self.follow_scripts(config, book, &mut course, message, &[], given);
        }
        let mut standings = self.standings(config, &course.spec, message);
        for standing in &mut standings {
            standing.barred = standing.barred.filter(|barred: &Barred| !barred.is_a_guard());
        }
        let turn = (given.chance * 10_000.0) as u64;
        let mut plan = routing::plan(&course.spec, &standings, &Situation { past: &[], turn, chance: given.chance });
        course.prefer(&mut plan);
        let first = plan.candidates.first()?;
        config.endpoints.get(&first.connection).map(|endpoint| &**endpoint)
    }
}
