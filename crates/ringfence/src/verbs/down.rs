//! `ringfence down`

use std::process::ExitCode;

use ringfence_fleet::api::DownRequest;
use ringfence_model::Report;

use crate::args::Down;
use crate::{connect, print};

pub async fn run(args: Down) -> Result<ExitCode, Report> {
    let client = connect::client_or_start().await?;
    let name = args.agent.as_ref().map_or_else(|| "every agent".to_owned(), ToString::to_string);
    client.down(&DownRequest { agent: args.agent, keep_state: args.keep_state }).await?;
    if args.output.json {
        print::json(&serde_json::json!({ "down": name }));
    } else {
        print::line(&format!("{name} is down"));
    }
    Ok(ExitCode::SUCCESS)
}
