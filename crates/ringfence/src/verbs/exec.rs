//! `ringfence exec`

use std::io::{Read, Write};
use std::process::ExitCode;

use ringfence_fleet::api::{ExecEvent, ExecRequest};
use ringfence_model::{Fault, Report};

use crate::args::Exec;
use crate::connect;

/// How much standard input is passed on.
const INPUT_BYTES: u64 = 4 << 20;

pub async fn run(args: Exec) -> Result<ExitCode, Report> {
    let mut stdin = Vec::new();
    if args.input {
        let read = std::io::stdin().lock().take(INPUT_BYTES + 1).read_to_end(&mut stdin);
        if let Err(error) = read {
            return Err(Report::new("exec.input", Fault::Caller, "cannot read standard input").because(&error));
        }
        if stdin.len() as u64 > INPUT_BYTES {
            return Err(Report::new("exec.input", Fault::Caller, "standard input is larger than 4 MiB")
                .hint("put the file into the agent's folder, or into /state"));
        }
    }
    let request = ExecRequest { agent: args.agent, argv: args.argv, stdin };
    let client = connect::client_or_start().await?;
    let mut code = None;
    client
        .exec(&request, |event| {
            // A closed pipe ends the command's output, not the command.
            let _ = match event {
                ExecEvent::Out(bytes) => std::io::stdout().write_all(&bytes).and_then(|()| std::io::stdout().flush()),
                ExecEvent::Err(bytes) => std::io::stderr().write_all(&bytes),
                ExecEvent::Exit(ended) => {
                    code = Some(ended);
                    Ok(())
                }
            };
            true
        })
        .await?;
    match code {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(255))),
        None => Err(Report::new("supervisor.lost", Fault::Us, "the supervisor ended without the command's exit code")),
    }
}
