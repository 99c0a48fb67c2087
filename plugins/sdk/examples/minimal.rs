use angarium_provider::*;
use serde::Deserialize;

pub struct Acme;

#[derive(Deserialize)]
pub struct Config {
    account: String,
}

impl Provider for Acme {
    type Config = Config;

    fn describe() -> Descriptor {
        Descriptor::new("acme-sms", "0.1.0", "Sends SMS through Acme.", &["sms"])
            .config_schema(r#"{"type":"object","required":["account"],"properties":{"account":{"type":"string"}}}"#)
            .secret("token", "The API token from Acme's console.")
            .hosts(&["api.acme.example"])
    }

    fn prepare(_: &Context, config: &Config, delivery: &Delivery) -> Result<Step, Outcome> {
        let url = format!("https://api.acme.example/v1/{}/messages", config.account);
        let form = [("to", delivery.to[0].value.as_str()), ("text", delivery.text.as_deref().unwrap_or_default())];
        Ok(HttpRequest::post(url).form(&form).bearer("token").into())
    }

    fn interpret(ctx: &Context, _: &Config, _: &[u8], answer: &Reply) -> Result<Step, Outcome> {
        Ok(Outcome::from_http_status(ctx, answer).into())
    }
}

export!(Acme);
