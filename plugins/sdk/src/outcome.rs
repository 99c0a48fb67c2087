//! Outcomes with sane defaults.

pub use crate::bindings::plugin::Outcome;
use crate::{Context, Cost, Disposition, HttpResponse, Reply, Step};

/// The gateway's words for why; an outcome's `unified_code` is one of them or another in that form.
pub mod code {
    pub const OK: &str = "ok";
    pub const INVALID_RECIPIENT: &str = "invalid_recipient";
    pub const UNSUBSCRIBED: &str = "unsubscribed";
    pub const INVALID_CONTENT: &str = "invalid_content";
    pub const TOO_LARGE: &str = "too_large";
    pub const UNAUTHORIZED: &str = "unauthorized";
    pub const FORBIDDEN: &str = "forbidden";
    pub const NOT_FOUND: &str = "not_found";
    pub const GONE: &str = "gone";
    pub const RATE_LIMITED: &str = "rate_limited";
    pub const QUOTA_EXCEEDED: &str = "quota_exceeded";
    pub const PROVIDER_ERROR: &str = "provider_error";
    pub const REJECTED: &str = "rejected";
    pub const UNREADABLE_ANSWER: &str = "unreadable_answer";
}

impl Outcome {
    /// An outcome of that kind; `message` is one sentence for a person.
    pub fn new(disposition: Disposition, unified_code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            disposition,
            code: String::new(),
            unified_code: unified_code.into(),
            message: message.into(),
            external_id: None,
            retry_after_ms: None,
            cost: None,
            units: None,
            ext: "{}".into(),
        }
    }

    /// The provider took it.
    pub fn accepted() -> Self {
        Self::new(Disposition::Accepted, code::OK, "accepted")
    }

    /// Never again here; another provider may.
    pub fn rejected_permanent(unified_code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Disposition::RejectedPermanent, unified_code, message)
    }

    /// Again after a backoff.
    pub fn rejected_transient(unified_code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Disposition::RejectedTransient, unified_code, message)
    }

    /// Again later, and no attempt is consumed.
    pub fn throttled(message: impl Into<String>) -> Self {
        Self::new(Disposition::Throttled, code::RATE_LIMITED, message)
    }

    /// This connection's credentials are refused.
    pub fn auth_failed(message: impl Into<String>) -> Self {
        Self::new(Disposition::AuthFailed, code::UNAUTHORIZED, message)
    }

    /// It may or may not have been taken.
    pub fn unknown(unified_code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Disposition::Unknown, unified_code, message)
    }

    /// The provider's own code, such as `21610` or `550 5.1.1`.
    #[must_use]
    pub fn code(mut self, code: impl ToString) -> Self {
        self.code = code.to_string();
        self
    }

    /// Sets the provider's id of the message.
    #[must_use]
    pub fn external_id(mut self, id: impl Into<String>) -> Self {
        self.external_id = Some(id.into());
        self
    }

    /// When to try again, in milliseconds from now; `None` leaves it to the route's policy.
    #[must_use]
    pub fn retry_after_ms(mut self, ms: Option<f64>) -> Self {
        self.retry_after_ms = ms;
        self
    }

    /// Sets the cost, in millionths of the currency's unit.
    #[must_use]
    pub fn cost(mut self, micros: f64, currency: impl Into<String>) -> Self {
        self.cost = Some(Cost { micros, currency: currency.into() });
        self
    }

    /// Billed units, such as SMS segments.
    #[must_use]
    pub fn units(mut self, units: u32) -> Self {
        self.units = Some(units);
        self
    }
}

impl From<Outcome> for Step {
    /// The end of a single delivery.
    fn from(outcome: Outcome) -> Self {
        Self::Done(vec![outcome])
    }
}

impl Outcome {
    /// Returns the default meaning of an HTTP status: 2xx is accepted; 429 is throttled; 401 is refused credentials;
    /// 408, 425 and 5xx are worth another try; 410 is gone; any other, also a redirect, is final. `Retry-After` is
    /// honoured.
    ///
    /// 403 means that this request is not allowed, which concerns the recipient or the sender more often than the
    /// credentials: a provider whose service answers bad credentials with it must say so itself.
    #[must_use]
    pub fn from_http_status(ctx: &Context, answer: &Reply) -> Self {
        let Reply::Http(response) = answer else {
            return Self::not_over_http();
        };
        let said = format!("the other side answered {}", response.status);
        let outcome = match response.status {
            200..=299 => Self::accepted(),
            401 => Self::auth_failed(said),
            403 => Self::rejected_permanent(code::FORBIDDEN, said),
            404 => Self::rejected_permanent(code::NOT_FOUND, said),
            408 | 425 | 500..=599 => Self::rejected_transient(code::PROVIDER_ERROR, said),
            410 => Self::rejected_permanent(code::GONE, said),
            413 => Self::rejected_permanent(code::TOO_LARGE, said),
            429 => Self::throttled(said),
            300..=399 => Self::rejected_permanent(code::REJECTED, format!("{said}; redirects are not followed")),
            _ => Self::rejected_permanent(code::REJECTED, said),
        };
        outcome.code(response.status).retry_after_ms(retry_after(ctx, response))
    }

    /// For the answer of another transport than the one that was asked for, which is a defect of
    /// the gateway.
    #[must_use]
    pub fn not_over_http() -> Self {
        Self::unknown(code::UNREADABLE_ANSWER, "the answer is not of HTTP")
    }
}

/// Only where another try makes sense.
fn retry_after(ctx: &Context, response: &HttpResponse) -> Option<f64> {
    matches!(response.status, 408 | 425 | 429 | 500..=599).then(|| response.retry_after_ms(ctx.now_ms)).flatten()
}
