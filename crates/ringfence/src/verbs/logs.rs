//! `ringfence logs`

use std::process::ExitCode;

use ringfence_fleet::api::LogsRequest;
use ringfence_model::Report;

use crate::args::Logs;
use crate::connect;
use crate::print::{self, Ink};

pub async fn run(args: Logs) -> Result<ExitCode, Report> {
    let request = LogsRequest { agent: args.agent, follow: args.follow, tail: args.tail };
    let client = connect::client_or_start().await?;
    client
        .logs(&request, |line| {
            if args.output.json {
                print::json_line(&line);
            } else {
                let text = print::safe(&print::uncoloured(&line.text));
                print::line(&if line.stream == "err" { print::paint(Ink::Dim, &text) } else { text });
            }
            true
        })
        .await?;
    Ok(ExitCode::SUCCESS)
}
