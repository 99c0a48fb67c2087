//! The request that creates a message.

use angarium_provider::{
    Context, Delivery, HttpRequest, Outcome,
    address::{is_e164, is_sms_sender},
    code, form_encode, host_of_url,
};
use serde::Deserialize;

/// Name of the secret.
pub const AUTH_TOKEN: &str = "auth_token";

/// The parameter of the callback URL that brings the delivery's id back.
pub const DELIVERY: &str = "delivery";

const DEFAULT_BASE_URL: &str = "https://api.twilio.com";

/// Characters that Twilio takes in a body (its error 21617).
const MAX_BODY: usize = 1600;
/// Addresses of media that Twilio takes in one message (its error 21623).
const MAX_MEDIA: usize = 10;
/// Seconds; Twilio's upper bound.
const MAX_VALIDITY: u32 = 36_000;

/// A connection's configuration; `config.schema.json` explains the fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    account_sid: String,
    api_key_sid: Option<String>,
    from: Option<String>,
    messaging_service_sid: Option<String>,
    status_callback: Option<String>,
    #[serde(default)]
    receipts: bool,
    base_url: Option<String>,
    timeout_ms: Option<u32>,
}

type Field<'a> = (&'static str, &'a str);

/// The request for a delivery.
pub fn build(ctx: &Context, config: &Config, delivery: &Delivery) -> Result<HttpRequest, Outcome> {
    let callback = status_callback(ctx, config, delivery);
    let mut form = vec![("To", recipient(delivery)?), sender(config, delivery)?];
    form.extend(content(delivery)?);
    form.extend(callback.as_deref().map(|url| ("StatusCallback", url)));
    form.extend(parameters(delivery)?);
    let base = config.base_url.as_deref().unwrap_or(DEFAULT_BASE_URL).trim_end_matches('/');
    let url = format!("{base}/2010-04-01/Accounts/{}/Messages.json", config.account_sid);
    let user = config.api_key_sid.as_ref().unwrap_or(&config.account_sid);
    Ok(HttpRequest::post(url).form(&form).basic(user, AUTH_TOKEN).timeout_ms(config.timeout_ms))
}

/// Returns the URL for Twilio's reports: an address of the sender's, or the connection's own with the delivery's id,
/// which then returns with each callback.
fn status_callback(ctx: &Context, config: &Config, delivery: &Delivery) -> Option<String> {
    let own = || {
        let url = ctx.callback_url().filter(|_| config.receipts)?;
        Some(format!("{url}?{}", form_encode(&[(DELIVERY, &delivery.id)])))
    };
    config.status_callback.clone().or_else(own)
}

fn recipient(delivery: &Delivery) -> Result<&str, Outcome> {
    match delivery.to.as_slice() {
        [to] if is_e164(&to.value) => Ok(&to.value),
        _ => Err(Outcome::rejected_permanent(
            code::INVALID_RECIPIENT,
            "`to` must be one number in E.164 form, such as +14155550123",
        )),
    }
}

/// The message's sender, else the connection's service, else its number.
fn sender<'a>(config: &'a Config, delivery: &'a Delivery) -> Result<Field<'a>, Outcome> {
    let named = delivery.sender.as_ref().map(|sender| sender.value.as_str());
    let field = match (named, config.messaging_service_sid.as_deref(), config.from.as_deref()) {
        (Some(number), ..) | (None, None, Some(number)) => ("From", number),
        (None, Some(service), _) => ("MessagingServiceSid", service),
        (None, None, None) => {
            return Err(invalid("`from` must be given: neither the message nor the connection names a sender"));
        }
    };
    if field.0 == "From" && !is_sms_sender(field.1) {
        return Err(invalid("`from` must be a number in E.164 form, a short code or up to 11 letters and digits"));
    }
    Ok(field)
}

fn content(delivery: &Delivery) -> Result<Vec<Field<'_>>, Outcome> {
    let media = &delivery.media_urls;
    if !delivery.blobs.is_empty() {
        return Err(invalid("`attachments` is not allowed: Twilio fetches media itself; give `media_urls`"));
    }
    match (delivery.channel.as_str(), media.len()) {
        ("mms", 0) => return Err(invalid("`media_urls` must be given with the channel `mms`")),
        ("mms", 1..=MAX_MEDIA) | (_, 0) => {}
        ("mms", _) => return Err(invalid("`media_urls` must list at most 10 URLs")),
        _ => return Err(invalid("`media_urls` is only allowed with the channel `mms`")),
    }
    if let Some(index) = media.iter().position(|url| host_of_url(url).is_none()) {
        return Err(invalid(format!("`media_urls[{index}]` must be an http or https URL")));
    }
    let text = delivery.text.as_deref().unwrap_or_default();
    if text.is_empty() && media.is_empty() {
        return Err(invalid("`text` must be given"));
    }
    if text.chars().count() > MAX_BODY {
        return Err(Outcome::rejected_permanent(code::TOO_LARGE, "`text` must have at most 1600 characters"));
    }
    let body = (!text.is_empty()).then_some(("Body", text));
    Ok(body.into_iter().chain(media.iter().map(|url| ("MediaUrl", url.as_str()))).collect())
}

fn parameters(delivery: &Delivery) -> Result<Vec<Field<'_>>, Outcome> {
    let mut fields = Vec::new();
    if let Some(price) = delivery.param("max_price") {
        if !is_price(price) {
            return Err(invalid("`params.max_price` must be a decimal number, such as 0.05"));
        }
        fields.push(("MaxPrice", price));
    }
    if let Some(seconds) = delivery.param("validity_period") {
        if !seconds.parse().is_ok_and(|seconds: u32| (1..=MAX_VALIDITY).contains(&seconds)) {
            return Err(invalid("`params.validity_period` must be a number of seconds from 1 to 36000"));
        }
        fields.push(("ValidityPeriod", seconds));
    }
    Ok(fields)
}

fn is_price(price: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.len() <= 9 && part.bytes().all(|digit| digit.is_ascii_digit());
    price.split_once('.').map_or_else(|| digits(price), |(whole, part)| digits(whole) && digits(part))
}

fn invalid(message: impl Into<String>) -> Outcome {
    Outcome::rejected_permanent(code::INVALID_CONTENT, message)
}
