//! `ringfence explain`

use std::process::ExitCode;

use ringfence_audit::Event;
use ringfence_fleet::api::ExplainRequest;
use ringfence_model::Report;

use crate::args::Explain;
use crate::connect;
use crate::print::{self, Ink};

pub async fn run(args: Explain) -> Result<ExitCode, Report> {
    let client = connect::client_or_start().await?;
    let explained = client.explain(&ExplainRequest { entry: args.entry }).await?;
    if args.output.json {
        print::json(&explained);
        return Ok(ExitCode::SUCCESS);
    }
    let entry = &explained.line.entry;
    print::line(&format!(
        "{} {}  {}  {}",
        print::paint(Ink::Bold, &format!("entry {}", explained.line.index)),
        entry.event.kind(),
        entry.time,
        print::paint(Ink::Dim, &entry.source)
    ));
    for paragraph in &explained.text {
        print::line(&format!("  {}", print::safe(paragraph)));
    }
    if let Some(line) = &explained.outcome
        && let Event::CallOutcome(done) = &line.entry.event
    {
        let status = done.status.map_or_else(|| "no answer".to_owned(), |s| format!("status {s}"));
        print::line(&format!(
            "  It ended in entry {} with {status}: {} bytes up, {} bytes down, {:.1} ms.",
            line.index,
            done.bytes_up,
            done.bytes_down,
            std::time::Duration::from_micros(done.duration_us).as_secs_f64() * 1000.0
        ));
        for (way, digest) in [("went up", done.digest_up), ("came down", done.digest_down)] {
            if let Some(digest) = digest {
                print::line(&format!("  The body that {way} is {digest}."));
            }
        }
        for finding in &done.findings {
            print::line(&format!("  Inspection found: {}", print::safe(finding)));
        }
    }
    if let Some(grant) = &explained.grant {
        print::line("");
        print::line(&print::paint(
            Ink::Dim,
            "  To allow such calls, write into ringfence.toml and run `ringfence up --replace`:",
        ));
        for text in grant.lines() {
            print::line(&format!("    {}", print::safe(text)));
        }
    }
    Ok(ExitCode::SUCCESS)
}
