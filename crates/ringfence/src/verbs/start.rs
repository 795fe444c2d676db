//! `ringfence start`

use std::process::ExitCode;

use ringfence_fleet::api::StartRequest;
use ringfence_model::Report;

use crate::args::Named;
use crate::connect;
use crate::print::Steps;

pub async fn run(args: Named) -> Result<ExitCode, Report> {
    let client = connect::client_or_start().await?;
    let mut steps = Steps::new();
    let mut up = None;
    let result = client
        .start(&StartRequest { agent: args.agent }, |event| {
            super::up::take(event, &mut steps, &mut up);
            true
        })
        .await;
    super::up::finish(result, steps, up, args.output.json)
}
