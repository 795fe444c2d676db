//! `ringfence start`

use std::process::ExitCode;

use ringfence_fleet::api::StartRequest;
use ringfence_model::Report;

use super::up::Story;
use crate::args::Named;
use crate::connect;

pub async fn run(args: Named) -> Result<ExitCode, Report> {
    let client = connect::client_or_start().await?;
    let mut story = Story::new();
    let result = client
        .start(&StartRequest { agent: args.agent }, |event| {
            story.take(event);
            true
        })
        .await;
    story.finish(result, args.output.json)
}
