//! The meaning of an endpoint's answer.

use angarium_provider::{Context, HttpResponse, Outcome, Reply, code};

/// Classifies as any HTTP answer, but every failure is tried again, except 410, which asks for nothing to be sent there
/// again, and a redirect. An endpoint answers 404, 401, 403 or 409 while it is deployed, moved or given a new secret,
/// and Standard Webhooks has such deliveries tried again. No answer says anything about this connection's credentials.
pub fn classify(ctx: &Context, answer: &Reply) -> Outcome {
    let outcome = Outcome::from_http_status(ctx, answer);
    let Reply::Http(response) = answer else {
        return outcome;
    };
    match response.status {
        410 => Outcome::rejected_permanent(code::GONE, "the endpoint wants no more messages").code(410),
        408 | 425 | 429 => outcome,
        400..=499 => refused(response),
        _ => outcome,
    }
}

fn refused(response: &HttpResponse) -> Outcome {
    let unified = match response.status {
        401 => code::UNAUTHORIZED,
        403 => code::FORBIDDEN,
        404 => code::NOT_FOUND,
        413 => code::TOO_LARGE,
        _ => code::REJECTED,
    };
    Outcome::rejected_transient(unified, format!("the endpoint answered {}", response.status)).code(response.status)
}
