//! `ringfence stop`

use std::process::ExitCode;

use ringfence_fleet::api::StopRequest;
use ringfence_model::Report;

use crate::args::Stop;
use crate::{connect, print};

pub async fn run(args: Stop) -> Result<ExitCode, Report> {
    let client = connect::client_or_start().await?;
    let view = client.stop(&StopRequest { agent: args.agent, grace_s: args.grace }).await?;
    if args.output.json {
        print::json(&view);
    } else {
        print::line(&format!("{} is {}", view.agent, view.state.word()));
    }
    Ok(ExitCode::SUCCESS)
}
