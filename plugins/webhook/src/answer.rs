//! What an endpoint's answer means.

use angarium_provider::{Context, Outcome, Reply, code};

/// As any HTTP answer, save that 403 is the endpoint's word on this message, not on our
/// credentials, and that 410 asks for nothing to be sent there again.
pub fn classify(ctx: &Context, answer: &Reply) -> Outcome {
    let outcome = Outcome::from_http_status(ctx, answer);
    let Reply::Http(response) = answer else {
        return outcome;
    };
    match response.status {
        403 => Outcome::rejected_permanent(code::FORBIDDEN, "the endpoint forbids this message").code(403),
        410 => Outcome::rejected_permanent(code::GONE, "the endpoint wants no more messages").code(410),
        _ => outcome,
    }
}
