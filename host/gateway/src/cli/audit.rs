//! `angarium audit`

use clap::Args;

use super::{
    CliError,
    client::{ApiClient, segment},
    output::{Column, Output},
};

/// The audit, the newest entry first.
#[derive(Debug, Args)]
pub struct Audit {
    /// Only entries about this subject: `msg_…`, `dlv_…`, `job_…`, or a provider's name.
    #[arg(long)]
    subject: Option<String>,
    /// Only this action, such as `message.resolved`.
    #[arg(long)]
    action: Option<String>,
    /// Changes of providers, which belong to no tenant; needs a key with the scope `operator`.
    #[arg(long)]
    operator: bool,
    /// The entries of a page: 1 to 250; 50 by default.
    #[arg(long)]
    limit: Option<u32>,
    /// The page to show: the cursor of the previous one.
    #[arg(long)]
    cursor: Option<String>,
    #[command(flatten)]
    client: ApiClient,
}

const COLUMNS: [Column<'_>; 7] = [
    ("at", "/at"),
    ("action", "/action"),
    ("subject", "/subject"),
    ("actor", "/actor/name"),
    ("by", "/actor/kind"),
    ("reason", "/reason"),
    ("became", "/after"),
];

impl Audit {
    pub async fn run(self, output: &Output) -> Result<(), CliError> {
        let limit = self.limit.map(|limit| limit.to_string());
        let parameters =
            [("subject", self.subject), ("action", self.action), ("limit", limit), ("cursor", self.cursor)];
        let given = parameters.iter().filter_map(|(name, value)| value.as_ref().map(|value| (name, value)));
        let query: Vec<_> = given.map(|(name, value)| format!("{name}={}", segment(value))).collect();
        let path = if self.operator { "/v1/operator/audit" } else { "/v1/audit" };
        output.list(&self.client.get(&format!("{path}?{}", query.join("&"))).await?, &COLUMNS);
        Ok(())
    }
}
