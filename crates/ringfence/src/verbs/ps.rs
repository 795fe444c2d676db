//! `ringfence ps`

use std::io::ErrorKind;
use std::process::ExitCode;

use ringfence_fleet::api::{Nothing, State};
use ringfence_model::{Bytes, Report};

use crate::args::Json;
use crate::print::{self, Ink, Table};
use crate::{connect, paths::Paths};

pub async fn run(args: Json) -> Result<ExitCode, Report> {
    // Where there is no state there are no agents, and nothing is made to say so. State that is there but cannot be
    // used is for the supervisor to find out.
    let nothing = std::fs::symlink_metadata(Paths::from_env().state).is_err_and(|e| e.kind() == ErrorKind::NotFound);
    let agents = if nothing { Vec::new() } else { connect::client_or_start().await?.ps(&Nothing {}).await? };
    if args.json {
        print::json(&agents);
        return Ok(ExitCode::SUCCESS);
    }
    if agents.is_empty() {
        print::line("no agents; start one with `ringfence up FOLDER`");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["AGENT", "STATE", "STARTED", "MEMORY", "URL", "WHY"]);
    for agent in agents {
        let ink = match agent.state {
            State::Running => Ink::Good,
            State::Failed => Ink::Bad,
            State::Frozen | State::Starting => Ink::Warn,
            State::Exited | State::Stopped => Ink::Dim,
        };
        table.row(vec![
            (agent.agent.to_string(), Some(Ink::Bold)),
            (agent.state.word().into(), Some(ink)),
            (agent.since.map_or_else(|| "-".into(), ago), None),
            (agent.memory_bytes.map_or_else(|| "-".into(), |b| Bytes(b).to_string()), None),
            (agent.url.unwrap_or_else(|| "-".into()), None),
            (print::safe(&agent.reason.unwrap_or_default()), None),
        ]);
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}

/// A time as people say it.
fn ago(then: jiff::Timestamp) -> String {
    let seconds = (jiff::Timestamp::now().as_second() - then.as_second()).max(0);
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}
