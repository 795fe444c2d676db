//! One file for each verb.

mod audit;
mod body;
mod build;
mod doctor;
mod down;
mod exec;
mod explain;
mod export;
mod freeze;
mod host;
mod init;
mod learn;
mod lock;
mod logs;
mod policy;
mod ps;
mod secret;
mod serve;
mod start;
mod stop;
mod up;

use std::future::Future;
use std::process::ExitCode;

use clap::CommandFactory;
use ringfence_model::{Fault, Report};

use crate::args::{Args, Verb};

/// The exit code of a check that did not pass.
pub const NOT_PASSED: u8 = 5;

/// Runs a verb.
///
/// # Errors
/// The report to print.
pub fn run(args: Args) -> Result<ExitCode, Report> {
    match args.verb {
        Verb::Audit(args) => block_on(audit::run(args)),
        Verb::Build(args) => block_on(build::run(args)),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "ringfence", &mut script);
            crate::print::line(String::from_utf8_lossy(&script).trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Doctor(args) => block_on(doctor::run(args)),
        Verb::Down(args) => block_on(down::run(args)),
        Verb::Exec(args) => block_on(exec::run(args)),
        Verb::Explain(args) => block_on(explain::run(args)),
        Verb::Freeze(args) => block_on(freeze::freeze(args)),
        Verb::Host(args) => Ok(host::run(args)),
        Verb::Init(args) => init::run(args),
        Verb::Learn(args) => block_on(learn::run(args)),
        Verb::Export(args) => export::run(&args),
        Verb::Lock(args) => block_on(lock::run(args)),
        Verb::Logs(args) => block_on(logs::run(args)),
        Verb::Policy(verb) => block_on(policy::run(verb)),
        Verb::Ps(args) => block_on(ps::run(args)),
        Verb::Resume(args) => block_on(freeze::resume(args)),
        Verb::Secret(args) => block_on(secret::run(args)),
        Verb::Serve(args) => serve::run(args),
        Verb::Start(args) => block_on(start::run(args)),
        Verb::Stop(args) => block_on(stop::run(args)),
        Verb::Up(args) => block_on(up::run(args)),
    }
}

/// Runs a verb that talks to the supervisor. Ctrl-C drops the connection, at which the supervisor undoes what it began.
fn block_on(work: impl Future<Output = Result<ExitCode, Report>>) -> Result<ExitCode, Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Report::new("cli.runtime", Fault::Us, "cannot start the runtime").because(&e))?;
    let result = runtime.block_on(async {
        let term = async {
            match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
                Ok(mut term) => {
                    term.recv().await;
                }
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            result = work => result,
            _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
            () = term => Ok(ExitCode::from(143)),
        }
    });
    // Without this a read of standard input that hangs would hold the program.
    runtime.shutdown_background();
    result
}
