//! `ringfence build`

use std::process::ExitCode;

use ringfence_fleet::api::UpEvent;
use ringfence_model::{Fault, Report};

use crate::args::Build;
use crate::connect;
use crate::print::{self, Steps};

pub async fn run(args: Build) -> Result<ExitCode, Report> {
    let request = super::up::request(&args.folder, args.manifest.as_deref())?;
    let client = connect::client_or_start().await?;
    let mut steps = Steps::new();
    let mut built = None;
    let result = client
        .build(&request, |event| {
            match event {
                UpEvent::Built { image } => built = Some(image),
                UpEvent::Step(step) => steps.take(&step),
                UpEvent::Locked(_) | UpEvent::Up(_) => {}
            }
            true
        })
        .await;
    match (result, built) {
        (Err(report), _) => {
            steps.failed();
            Err(report)
        }
        (Ok(()), Some(image)) => {
            steps.done();
            if args.output.json {
                print::json(&serde_json::json!({ "image": image }));
            } else {
                print::line(&image);
            }
            Ok(ExitCode::SUCCESS)
        }
        (Ok(()), None) => Err(Report::new("supervisor.lost", Fault::Us, "the supervisor ended without a report")),
    }
}
