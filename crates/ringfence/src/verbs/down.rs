//! `ringfence down`

use std::process::ExitCode;

use ringfence_fleet::api::{DownRequest, Nothing};
use ringfence_model::{AgentName, Report};

use crate::args::Down;
use crate::{connect, print};

pub async fn run(args: Down) -> Result<ExitCode, Report> {
    let client = connect::client_or_start().await?;
    let names: Vec<AgentName> = match &args.agent {
        Some(name) => vec![name.clone()],
        None => client.ps(&Nothing {}).await?.into_iter().map(|view| view.agent).collect(),
    };
    client.down(&DownRequest { agent: args.agent, keep_state: args.keep_state }).await?;
    if args.output.json {
        print::json(&serde_json::json!({ "down": names }));
        return Ok(ExitCode::SUCCESS);
    }
    for name in &names {
        print::line(&format!("{name} is down"));
    }
    if names.is_empty() {
        print::line("no agents");
    }
    Ok(ExitCode::SUCCESS)
}
