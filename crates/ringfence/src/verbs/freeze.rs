//! `ringfence freeze` and `ringfence resume`

use std::process::ExitCode;

use ringfence_fleet::api::{AgentView, Named as Name};
use ringfence_model::Report;

use crate::args::Named;
use crate::{connect, print};

pub async fn freeze(args: Named) -> Result<ExitCode, Report> {
    let view = connect::client_or_start().await?.freeze(&Name { agent: args.agent }).await?;
    Ok(show(&view, args.output.json))
}

pub async fn resume(args: Named) -> Result<ExitCode, Report> {
    let view = connect::client_or_start().await?.resume(&Name { agent: args.agent }).await?;
    Ok(show(&view, args.output.json))
}

fn show(view: &AgentView, json: bool) -> ExitCode {
    if json {
        print::json(view);
    } else {
        print::line(&format!("{} is {}", view.agent, view.state.word()));
    }
    ExitCode::SUCCESS
}
