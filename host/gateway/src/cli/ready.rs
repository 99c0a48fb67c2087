//! `angarium ready`: a health check for containers, which have no shell to ask with.

use clap::Args;

use super::{CliError, client::GatewayAddress, output::Output};

/// Ends with 0 while `/readyz` answers 200; otherwise the error says why the node cannot serve.
#[derive(Debug, Args)]
pub struct ReadyArgs {
    #[command(flatten)]
    gateway: GatewayAddress,
}

impl ReadyArgs {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        output.one(&self.gateway.ready().await?, &[("status", "/status")]);
        Ok(())
    }
}
