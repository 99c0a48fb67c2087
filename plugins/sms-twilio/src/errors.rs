//! Twilio's error codes (twilio.com/docs/api/errors) in the gateway's words.

use angarium_provider::{Disposition, Outcome, code};

use Disposition::{AuthFailed, RejectedPermanent, RejectedTransient, Throttled};

/// The outcome for one of Twilio's errors; `None` for one that isn't known here.
pub fn outcome(error: u32, message: String) -> Option<Outcome> {
    let (disposition, unified) = meaning(error)?;
    Some(Outcome::new(disposition, unified, message).code(error))
}

/// The gateway's word for an error that a report brings, later.
pub fn unified(error: u32) -> &'static str {
    meaning(error).map_or(code::REJECTED, |(_, unified)| unified)
}

/// Returns the meaning of an error. An error of the account is an `auth_failed`: no message of this connection will
/// pass.
fn meaning(error: u32) -> Option<(Disposition, &'static str)> {
    Some(match error {
        // Wrong credentials; access denied; test credentials.
        20003 | 20006 | 20008 => (AuthFailed, code::UNAUTHORIZED),
        // Account not active; account suspended.
        20005 | 30002 => (AuthFailed, code::FORBIDDEN),
        // Too many requests; sending rate; the sender's queue is full; queue overflow; 10DLC rate.
        20429 | 14107 | 21611 | 30001 | 30022 | 63018 => (Throttled, code::RATE_LIMITED),
        // The account's or the brand's daily limit.
        63038 | 30023 => (RejectedTransient, code::QUOTA_EXCEEDED),
        20500 | 20503 | 20504 | 30008 => (RejectedTransient, code::PROVIDER_ERROR),
        // Not a number; not reachable; not a mobile number; a trial account's unverified number; landline.
        21211 | 21214 | 21217 | 21219 | 21401 | 21407 | 21604 | 21608 | 21612 | 21614 | 21635 | 30003 | 30005
        | 30006 => (RejectedPermanent, code::INVALID_RECIPIENT),
        // The recipient answered STOP.
        21610 => (RejectedPermanent, code::UNSUBSCRIBED),
        // Body over 1600 characters; too many media; media too large.
        21617 | 21623 | 30019 => (RejectedPermanent, code::TOO_LARGE),
        // No body; no content; media URL; media type.
        21602 | 21619 | 21620 | 21621 | 12300 => (RejectedPermanent, code::INVALID_CONTENT),
        // The sender is not one, not ours, not capable or not in the service; no such service.
        21212 | 21603 | 21606 | 21659 | 21660 | 21661 | 21701 | 21703..=21705 | 21712 => {
            (RejectedPermanent, code::FORBIDDEN)
        }
        // Region not permitted; blocked; filtered; unregistered number or campaign.
        21408 | 30004 | 30007 | 30024 | 30032 | 30034 => (RejectedPermanent, code::FORBIDDEN),
        // Dearer than `MaxPrice`.
        30010 => (RejectedPermanent, "price_exceeded"),
        // The validity period ended first.
        30036 => (RejectedPermanent, "expired"),
        20404 => (RejectedPermanent, code::NOT_FOUND),
        _ => return None,
    })
}
