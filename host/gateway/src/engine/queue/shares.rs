//! The shares of a claim: tenants get equal parts, and within a tenant urgent priorities get more than the others,
//! which always get something. Pure.

use angarium_domain::{ids::TenantId, message::Priority};
use angarium_store::queue::{QueueLane, Share};

/// Every place of a tenant's part at a multiple of this number belongs to the priority; an unused place goes to
/// another. This gives 8 : 4 : 2 : 1 if all wait.
const fn stride(priority: Priority) -> usize {
    match priority {
        Priority::Urgent => 2,
        Priority::High => 4,
        Priority::Normal => 8,
        Priority::Low => 16,
    }
}

/// The number of places after which the pattern repeats.
const CYCLE: usize = 16;

/// Returns shares of `limit` deliveries for the due lanes, in the order in which tenants are visited; `room` gives each
/// tenant's limit. `chance`, from 0 to 1, is the position in the priorities' pattern: it matters for a small share.
pub fn shares(lanes: &[QueueLane], limit: usize, capacity: impl Fn(TenantId) -> usize, chance: f64) -> Vec<Share> {
    let due: Vec<_> = lanes.iter().filter(|lane| lane.due).copied().collect();
    // A tenant's lanes stand beside each other.
    let tenants: Vec<_> = due.chunk_by(|one, next| one.tenant == next.tenant).collect();
    let caps: Vec<_> = tenants.iter().map(|lanes| capacity(lanes[0].tenant)).collect();
    let phase = (chance * CYCLE as f64) as usize % CYCLE;
    let parts = parts(&caps, limit);
    tenants.into_iter().zip(parts).flat_map(|(lanes, part)| by_priority(lanes, part, phase)).collect()
}

/// Returns equal parts of `limit`; the excess over a cap goes to the others.
fn parts(caps: &[usize], limit: usize) -> Vec<usize> {
    let mut parts = vec![0; caps.len()];
    let mut left = limit;
    loop {
        let open = parts.iter().zip(caps).filter(|(part, cap)| part < cap).count();
        if open == 0 || left == 0 {
            return parts;
        }
        let each = (left / open).max(1);
        for (part, cap) in parts.iter_mut().zip(caps) {
            let more = each.min(cap - *part).min(left);
            *part += more;
            left -= more;
        }
    }
}

/// Gives each place to the priority whose own place is next; of two to the less urgent one, which comes less often.
fn by_priority(lanes: &[QueueLane], part: usize, phase: usize) -> Vec<Share> {
    let share = |lane: &QueueLane| Share { tenant: lane.tenant, priority: lane.priority, count: 0 };
    let mut shares: Vec<_> = lanes.iter().map(share).collect();
    let next = |share: &Share| {
        let stride = stride(share.priority);
        ((phase / stride + 1 + share.count) * stride, std::cmp::Reverse(stride))
    };
    for _ in 0..part {
        let Some(share) = shares.iter_mut().min_by_key(|share| next(share)) else { break };
        share.count += 1;
    }
    shares.retain(|share| share.count > 0);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(tenant: TenantId, priority: Priority) -> QueueLane {
        QueueLane { tenant, priority, due: true }
    }

    fn counts(shares: &[Share]) -> Vec<usize> {
        shares.iter().map(|share| share.count).collect()
    }

    fn tenants(count: usize) -> Vec<TenantId> {
        (0..count).map(|_| TenantId::new()).collect()
    }

    #[test]
    fn one_tenant_alone_gets_everything() {
        let lanes = [lane(TenantId::new(), Priority::Low)];
        assert_eq!(counts(&shares(&lanes, 500, |_| 1000, 0.0)), [500]);
    }

    #[test]
    fn tenants_get_equal_parts_and_what_one_has_no_room_for_is_the_others() {
        let tenants = tenants(3);
        let lanes: Vec<_> = tenants.iter().map(|it| lane(*it, Priority::Normal)).collect();
        let capacity = |tenant| if tenant == tenants[0] { 20 } else { 1000 };
        let shares = shares(&lanes, 500, capacity, 0.0);
        assert_eq!(counts(&shares), [20, 240, 240]);
    }

    #[test]
    fn where_there_is_less_than_tenants_the_first_of_the_walk_get_it() {
        let tenants = tenants(5);
        let lanes: Vec<_> = tenants.iter().map(|it| lane(*it, Priority::Normal)).collect();
        let shares = shares(&lanes, 3, |_| 10, 0.0);
        assert_eq!(shares.iter().map(|it| it.tenant).collect::<Vec<_>>(), tenants[..3]);
    }

    #[test]
    fn what_is_due_later_or_has_no_room_gets_nothing() {
        let [one, other] = [TenantId::new(), TenantId::new()];
        let later = QueueLane { due: false, ..lane(one, Priority::Urgent) };
        let lanes = [later, lane(other, Priority::Normal)];
        assert!(shares(&lanes, 500, |_| 0, 0.0).is_empty());
        assert_eq!(shares(&lanes, 5, |_| 9, 0.0), [Share { tenant: other, priority: Priority::Normal, count: 5 }]);
    }

    #[test]
    fn priorities_share_a_part_eight_to_one() {
        let tenant = TenantId::new();
        let lanes: Vec<_> = Priority::ALL.into_iter().map(|priority| lane(tenant, priority)).collect();
        assert_eq!(counts(&shares(&lanes, 150, |_| 1000, 0.0)), [80, 40, 20, 10]);
    }

    #[test]
    fn of_nine_the_low_has_one_whoever_is_there() {
        let tenant = TenantId::new();
        for phase in 0..CYCLE {
            let lanes = [lane(tenant, Priority::Urgent), lane(tenant, Priority::Low)];
            let shares = shares(&lanes, 9, |_| 1000, phase as f64 / CYCLE as f64);
            let low = shares.iter().find(|it| it.priority == Priority::Low).map_or(0, |it| it.count);
            assert!((1..=2).contains(&low), "phase {phase}: {shares:?}");
        }
    }

    #[test]
    fn one_at_a_time_the_low_is_chosen_now_and_then_and_the_urgent_mostly() {
        let tenant = TenantId::new();
        let lanes: Vec<_> = Priority::ALL.into_iter().map(|priority| lane(tenant, priority)).collect();
        let chosen = |priority: Priority| {
            let phases = (0..CYCLE).map(|phase| shares(&lanes, 1, |_| 1, phase as f64 / CYCLE as f64));
            phases.filter(|shares| shares[0].priority == priority).count()
        };
        let counts = Priority::ALL.map(chosen);
        assert_eq!(counts.iter().sum::<usize>(), CYCLE);
        assert!(counts.iter().all(|count| *count >= 1) && counts[0] >= counts[3] * 2, "{counts:?}");
    }
}
