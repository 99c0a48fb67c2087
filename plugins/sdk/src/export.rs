//! From a [`Provider`] to the functions that the contract exports.

use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use crate::bindings::plugin::Guest;
use crate::callback::{self, Callback};
use crate::callback_bindings::callbacks;
use crate::{Context, Delivery, Descriptor, Outcome, Reply, Step, code, log};

/// A delivery provider: three pure functions.
pub trait Provider {
    /// The connection's `config`; the gateway has checked it against the descriptor's schema.
    type Config: DeserializeOwned;

    /// Returns this provider's description and needs.
    fn describe() -> Descriptor;

    /// Turns a delivery into the first step; an `Err` is its outcome, and nothing is sent.
    fn prepare(ctx: &Context, config: &Self::Config, delivery: &Delivery) -> Result<Step, Outcome>;

    /// Returns the meaning of the answer to the last transmission, or the next step.
    fn interpret(ctx: &Context, config: &Self::Config, state: &[u8], answer: &Reply) -> Result<Step, Outcome>;

    /// Does the same as [`Provider::prepare`] for a provider whose `max_batch` is above 1; it must return one outcome
    /// for each delivery, in the order given.
    fn prepare_batch(ctx: &Context, config: &Self::Config, deliveries: &[Delivery]) -> Result<Step, Outcome> {
        match deliveries {
            [delivery] => Self::prepare(ctx, config, delivery),
            _ => Err(Outcome::rejected_permanent(code::REJECTED, "this provider takes one delivery at a time")),
        }
    }

    /// Reads a callback, for a component that is exported `with callbacks`. An `Err` says in a sentence why the request
    /// does not come from the service.
    fn parse_callback(_: &callback::Context, _: &Self::Config, _: &callback::Request) -> Result<Callback, String> {
        Err("this provider reads no callbacks".into())
    }
}

/// Carries a [`Provider`] across the component boundary.
pub struct Adapter<P>(PhantomData<P>);

impl<P: Provider> Guest for Adapter<P> {
    fn describe() -> Descriptor {
        log::report_panics();
        P::describe()
    }

    fn prepare(ctx: Context, config: String, items: Vec<Delivery>) -> Result<Step, Outcome> {
        log::report_panics();
        P::prepare_batch(&ctx, &parse_config::<P>(&config)?, &items)
    }

    fn interpret(ctx: Context, config: String, state: Vec<u8>, answer: Reply) -> Result<Step, Outcome> {
        log::report_panics();
        P::interpret(&ctx, &parse_config::<P>(&config)?, &state, &answer)
    }
}

impl<P: Provider> callbacks::Guest for Adapter<P> {
    fn parse_callback(ctx: callback::Context, config: String, request: callback::Request) -> Result<Callback, String> {
        log::report_panics();
        P::parse_callback(&ctx, &parse_config::<P>(&config).map_err(|outcome| outcome.message)?, &request)
    }
}

pub(crate) fn parse_config<P: Provider>(config: &str) -> Result<P::Config, Outcome> {
    serde_json::from_str(config).map_err(|error| {
        Outcome::rejected_permanent("invalid_config", format!("the connection's config can't be used: {error}"))
    })
}

/// Makes a crate with `crate-type = ["cdylib"]` a provider component: `export!(MyProvider);`, or
/// `export!(MyProvider, with callbacks);` for one that has a [`Provider::parse_callback`] of its own.
///
/// It does nothing except on wasm32, so that the same crate is tested on the author's machine.
#[macro_export]
macro_rules! export {
    ($provider:ty) => {
        #[cfg(target_arch = "wasm32")]
        mod component {
            use super::*;
            type Component = $crate::Adapter<$provider>;
            $crate::bindings::__export_component!(Component with_types_in $crate::bindings);
        }
    };
    ($provider:ty, with callbacks) => {
        $crate::export!($provider);
        #[cfg(target_arch = "wasm32")]
        mod callback_reader {
            use super::*;
            type Component = $crate::Adapter<$provider>;
            $crate::callback_bindings::__export_callbacks!(Component with_types_in $crate::callback_bindings);
        }
    };
}
