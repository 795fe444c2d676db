//! `ringfence serve`

use std::process::ExitCode;

use ringfence_fleet::api::{AgentView, Nothing, State};
use ringfence_model::Report;

use crate::args::Serve;
use crate::paths::Paths;
use crate::supervisor::{self, Options};
use crate::{connect, print};

pub fn run(args: Serve) -> Result<ExitCode, Report> {
    if args.stop {
        return super::block_on(async {
            let client = connect::client();
            if !client.is_there().await {
                print::line("no supervisor runs");
                return Ok(ExitCode::SUCCESS);
            }
            let pid = client.hello(&Nothing {}).await?.pid;
            let living = |view: &AgentView| matches!(view.state, State::Frozen | State::Running);
            let left = client.ps(&Nothing {}).await?.iter().filter(|view| living(view)).count();
            client.shutdown(&Nothing {}).await?;
            // It closes its socket first and its log last: wait for the process.
            while lives(pid) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            print::line(&match left {
                0 => "the supervisor ended".to_owned(),
                1 => "the supervisor ended; its agent runs on".to_owned(),
                n => format!("the supervisor ended; its {n} agents run on"),
            });
            Ok(ExitCode::SUCCESS)
        });
    }
    supervisor::serve(Paths::from_env(), Options { on_demand: args.on_demand })?;
    Ok(ExitCode::SUCCESS)
}

fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
