//! The demonstration: starts the example agent with `ringfence up`, talks to it as a person would, lets a web page
//! turn it against its owner, and shows from outside what came of that.
//!
//! `demo --ringfence target/release/ringfence` tells the [`story`]. What the agent may reach outside is played by
//! [`upstreams`], which is this same program, detached, so that the agent that is left running goes on working.

#[path = "demo/log.rs"]
mod log;
#[path = "demo/memory.rs"]
mod memory;
#[path = "demo/product.rs"]
mod product;
#[path = "demo/show.rs"]
mod show;
#[path = "demo/stage.rs"]
mod stage;
#[path = "demo/story.rs"]
mod story;
#[path = "demo/upstreams.rs"]
mod upstreams;

use std::ffi::OsString;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ringfence_testkit::manifest;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::product::Product;
use crate::show::Show;
use crate::stage::Stage;

/// How long a start that was called off may take to undo itself.
const UNDOING: Duration = Duration::from_secs(30);

const USAGE: &str = "\
Usage: demo --ringfence PROGRAM [--example FOLDER]

  --ringfence PROGRAM  the program to show, such as target/release/ringfence
  --example FOLDER     the agent to start (default: examples/analyst)

With OPENAI_API_KEY set, the agent talks to the real service; otherwise this machine plays it.
";

/// What the user asked for.
struct Options {
    ringfence: PathBuf,
    example: PathBuf,
}

enum Command {
    Help,
    ServeUpstreams(PathBuf),
    Tell(Options),
}

fn main() -> ExitCode {
    let done = match command(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            show::print(USAGE.trim_end());
            return ExitCode::SUCCESS;
        }
        Ok(Command::ServeUpstreams(folder)) => upstreams::main(&folder).map(|()| ExitCode::SUCCESS),
        Ok(Command::Tell(options)) => runtime().and_then(|runtime| runtime.block_on(tell(&options))),
        Err(why) => {
            show::complain(&format!("error: {why}\n\n{}", USAGE.trim_end()));
            return ExitCode::from(2);
        }
    };
    done.unwrap_or_else(|why| {
        show::complain(&format!("error: {why}"));
        ExitCode::FAILURE
    })
}

fn command(mut arguments: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let (mut ringfence, mut example) = (None, PathBuf::from("examples/analyst"));
    while let Some(argument) = arguments.next() {
        let mut value = |what: &str| arguments.next().map(PathBuf::from).ok_or(format!("{what} is missing"));
        match argument.to_str() {
            Some("-h" | "--help") => return Ok(Command::Help),
            Some("--example") => example = value("the folder after `--example`")?,
            Some("--ringfence") => ringfence = Some(value("the program after `--ringfence`")?),
            Some("serve-upstreams") => return value("the folder after `serve-upstreams`").map(Command::ServeUpstreams),
            _ => return Err(format!("unknown argument `{}`", argument.display())),
        }
    }
    let ringfence = ringfence.ok_or("`--ringfence` is missing")?;
    Ok(Command::Tell(Options { ringfence, example }))
}

/// One thread is enough for all there is to do.
fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().map_err(|e| format!("cannot start: {e}"))
}

/// Tells the story, and leaves nothing behind unless it ends well.
async fn tell(options: &Options) -> Result<ExitCode, String> {
    let mut signals = Signals::listen()?;
    let product = Product::at(&options.ringfence)?;
    let agent = manifest::agent_of(&options.example)?;
    let stage = Stage::prepare()?;
    let show = Show::new();
    let ended = {
        let mut story = pin!(story::tell(&product, &stage, &show, &options.example, &agent));
        tokio::select! {
            ended = &mut story => Some(ended),
            () = signals.any() => {
                product.interrupt();
                // What was interrupted may want to clear up after itself.
                tokio::select! {
                    _ = &mut story => {}
                    () = product.idle() => {}
                    () = tokio::time::sleep(Duration::from_secs(15)) => {}
                }
                None
            }
        }
    };
    let code = match ended {
        Some(Ok(())) => {
            stage.hand_over();
            return Ok(ExitCode::SUCCESS);
        }
        Some(Err(why)) => {
            show::complain(&show.bad(&format!("demo failed: {why}")));
            ExitCode::FAILURE
        }
        None => {
            show::complain("interrupted");
            ExitCode::from(130)
        }
    };
    show::complain(&format!("stopping `{agent}` and all that was started for it"));
    clear(&product, &agent).await;
    stage.strike();
    Ok(code)
}

/// Stops the agent, and the supervisor if it has no other agents to look after.
async fn clear(product: &Product, agent: &str) {
    let there = |listed: &product::Listed| listed.agent == agent;
    let began = Instant::now();
    let others = loop {
        let stopped = product.down(agent).await;
        let left = product.agents().await;
        // What was not there cannot be stopped, and need not be.
        if stopped.is_ok() || left.as_ref().is_ok_and(|left| !left.iter().any(there)) {
            break left.unwrap_or_default();
        }
        // A start that was called off may still be undoing itself.
        if let Err(why) = stopped
            && began.elapsed() > UNDOING
        {
            show::complain(&format!("  {why}"));
            break left.unwrap_or_default();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    if others.iter().all(there)
        && let Err(why) = product.stop_supervisor().await
    {
        show::complain(&format!("  {why}"));
    }
}

/// What ends a program from outside.
struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Self, String> {
        let listen = |kind| signal(kind).map_err(|e| format!("cannot listen for signals: {e}"));
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.hangup.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
