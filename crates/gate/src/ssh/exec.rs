//! One command: heard, understood, decided, recorded, run on the host, and followed to its end.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use ringfence_audit::GitAsked;
use ringfence_model::CallId;
use ringfence_model::manifest::GitOperation;
use ringfence_policy::{Denial, Permit, Policy, SshExec, SshPush};
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client};
use tokio::sync::OwnedSemaphorePermit;

use super::agent::NOT_GRANTED;
use super::command::{self, Command};
use super::push::{self, Said};
use super::upstream::{self, Running};
use super::{FAREWELL, Session, Target};
use crate::budget::{Account, Amounts, Behalf};
use crate::dial::NoAddress;
use crate::record::{Call, Subject};
use crate::tcp::{IDLE, Quiet};
use crate::{Gate, call, decide, relay};

/// How long a channel may be open before it asks for a command.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a client hears for its own error stream.
const STDERR: u32 = 1;

/// The code of a push whose list the gate does not let through, whatever the policy says.
const NOT_UNDERSTOOD: &str = "push_not_understood";

/// The exit status of what the gate did not let run.
const DENIED: u32 = 128;

/// Serves a channel on which one command may run.
pub(super) async fn serve(session: Arc<Session>, channel: Channel<Msg>, _place: OwnedSemaphorePermit) {
    let (mut from, to) = channel.split();
    let asked = tokio::time::timeout(PATIENCE, hear(&mut from)).await;
    let (status, words) = match asked {
        Ok(Some(Asked::Command { text, version })) => run(&session, &mut from, &to, &text, version.as_deref()).await,
        Ok(Some(Asked::Other(what))) => {
            let id = session.deny(NOT_GRANTED, "only commands of git are run", &what).await;
            (DENIED, Some(format!("only commands of git are granted here (call {id})")))
        }
        Ok(None) => return,
        Err(_) => (DENIED, Some("no command was asked for".to_owned())),
    };
    let farewell = async {
        if let Some(words) = words {
            to.extended_data_bytes(STDERR, format!("ringfence: {words}\n").into_bytes()).await?;
        }
        to.exit_status(status).await?;
        to.eof().await?;
        to.close().await
    };
    // The client may be gone already, or never read; then there is nobody to tell.
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
}

/// What a channel is for.
enum Asked {
    Command { text: Vec<u8>, version: Option<String> },
    Other(String),
}

/// Waits for what is asked for on a channel. The first counts.
async fn hear(from: &mut ChannelReadHalf) -> Option<Asked> {
    let mut version = None;
    loop {
        match from.wait().await? {
            // The last counts, as for a server; what is not harmless is as if it were not said.
            ChannelMsg::SetEnv { variable_name, variable_value, .. }
                if command::is_harmless(&variable_name, &variable_value) =>
            {
                version = Some(variable_value);
            }
            ChannelMsg::Exec { command, .. } => return Some(Asked::Command { text: command, version }),
            ChannelMsg::RequestShell { .. } => return Some(Asked::Other("shell".into())),
            ChannelMsg::RequestSubsystem { name, .. } => return Some(Asked::Other(format!("subsystem {name}"))),
            ChannelMsg::Data { .. } | ChannelMsg::ExtendedData { .. } => {
                return Some(Asked::Other("data before a command".into()));
            }
            ChannelMsg::Close => return None,
            _ => {}
        }
    }
}

/// How a command ended, for the client: its exit status, and words of the gate's own.
type Ended = (u32, Option<String>);

fn refused(id: &CallId) -> Ended {
    (DENIED, Some(format!("this is not granted (call {id})")))
}

async fn run(
    session: &Session,
    from: &mut ChannelReadHalf,
    to: &ChannelWriteHalf<Msg>,
    text: &[u8],
    version: Option<&str>,
) -> Ended {
    let gate = session.gate.latest();
    let shown = String::from_utf8_lossy(text.get(..text.len().min(command::MAX_COMMAND)).unwrap_or_default());
    let Some(target) = Target::of(&gate.policy, &session.host, session.port) else {
        return refused(&session.deny("no_grant", "no grant for SSH covers it any more", &shown).await);
    };
    if let Some(found) = gate.placeholders.find(text) {
        let denial = found.denial("a command");
        return refused(&gate.recorder.deny(target.subject(GitAsked::default()), &denial).await);
    }
    let command = match Command::read(text, &target.rules) {
        Ok(command) => command,
        Err(why) => return refused(&session.deny(NOT_GRANTED, why, &shown).await),
    };
    let asked = GitAsked {
        operation: command.operation.word().into(),
        repository: command.repository().into(),
        ..GitAsked::default()
    };
    let denied = |denial: Denial| {
        let (gate, subject) = (Arc::clone(&gate), target.subject(asked.clone()));
        async move { refused(&gate.recorder.deny(subject, &denial).await) }
    };
    let permit = match decide::git(&gate.policy, question(&target, &command)) {
        Ok(permit) => permit,
        Err(denial) => return denied(denial).await,
    };
    let way = match gate.dialler.addresses(&target.grant, &target.host, target.port, &gate.recorder).await {
        Err(NoAddress::Denied(denial)) => return denied(denial).await,
        Err(NoAddress::Failed(why)) => Err(why),
        Ok(way) => Ok(way),
    };
    let account = match call::account(&gate, Amounts::CALL, Behalf::default()).await {
        Ok(account) => account,
        Err(spent) => return denied(Denial::new("budget_exhausted", spent.why())).await,
    };
    let Ok(call) = gate.recorder.allow(target.subject(asked.clone()), &permit, target.untrusted()).await else {
        return (DENIED, Some("this is not granted".into()));
    };
    let version = version.filter(|_| command.operation != GitOperation::Push);
    let opened = match way {
        Ok(way) => upstream::open(&gate, &target, &permit, &way, (&command, version), &call).await,
        Err(why) => Err(why),
    };
    let running = match opened {
        Ok(running) => running,
        Err(why) => {
            if let Some(account) = account {
                account.give_back();
            }
            call.failed(why);
            return (
                DENIED,
                Some(format!("the host could not be reached, or did not let the gate in (call {})", call.id())),
            );
        }
    };
    let exec = Exec {
        gate: &gate,
        target: &target,
        command: &command,
        call: &call,
        account: account.as_deref(),
        quiet: Quiet::new(IDLE),
        push: Mutex::default(),
    };
    exec.follow(from, to, running).await
}

fn question<'a>(target: &'a Target, command: &'a Command) -> SshExec<'a> {
    let Target { host, port, .. } = target;
    SshExec { host, port: *port, operation: command.operation, repository: command.repository() }
}

/// A command that runs, as both its directions see it.
struct Exec<'a> {
    gate: &'a Arc<Gate>,
    target: &'a Target,
    command: &'a Command,
    call: &'a Arc<Call>,
    account: Option<&'a Account>,
    quiet: Quiet,
    /// What is pushed, once that was decided.
    push: Mutex<Option<Push>>,
}

/// Refs that are pushed, and their entry in the log.
struct Push {
    commands: Vec<push::Command>,
    call: Arc<Call>,
}

/// Why a command is cut.
enum Cut {
    /// It was denied, and is in the log as that.
    Denied(Option<CallId>),
    /// It failed, with a stable code before the first colon.
    Failed(String),
}

impl Exec<'_> {
    async fn follow(&self, from: &mut ChannelReadHalf, to: &ChannelWriteHalf<Msg>, mut running: Running) -> Ended {
        let (answers, host) = (&mut running.from, &running.to);
        let ended = tokio::select! {
            ended = self.down(answers, to) => ended,
            Err(cut) = self.up(from, host) => Err(cut),
            why = self.quiet.too_long() => Err(Cut::Failed(why)),
            () = self.gate.until_denied(|policy| self.still_allowed(policy)) => Err(Cut::Failed(relay::REVOKED.into())),
        };
        match ended {
            Ok(0) => (0, None),
            Ok(status) => {
                self.failed(&format!("git_failed: exit status {status}"));
                (status, None)
            }
            Err(Cut::Denied(id)) => {
                self.failed("push_denied: a ref of it is not granted");
                let id = id.map(|id| format!(" (call {id})")).unwrap_or_default();
                (DENIED, Some(format!("this push is not granted{id}")))
            }
            Err(Cut::Failed(why)) => {
                self.failed(&why);
                (DENIED, Some(format!("this was cut off (call {})", self.call.id())))
            }
        }
    }

    fn push(&self) -> MutexGuard<'_, Option<Push>> {
        self.push.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, why: &str) {
        self.call.failed(why);
        if let Some(push) = &*self.push() {
            push.call.failed(why);
        }
    }

    fn still_allowed(&self, policy: &Policy) -> bool {
        let pushed = |push: &Push| push.commands.iter().all(|one| decide::push(policy, self.of_ref(one)).is_ok());
        decide::git(policy, question(self.target, self.command)).is_ok() && self.push().as_ref().is_none_or(pushed)
    }

    fn of_ref<'b>(&'b self, one: &'b push::Command) -> SshPush<'b> {
        let Target { host, port, .. } = self.target;
        let repository = self.command.repository();
        SshPush { host, port: *port, repository, name: &one.name, change: one.change }
    }

    /// Bytes go by.
    fn went(&self, count: usize) -> Result<(), Cut> {
        self.quiet.broken();
        match self.account {
            Some(account) if !account.bytes(count) => Err(Cut::Failed("budget_exhausted: no bytes are left".into())),
            _ => Ok(()),
        }
    }

    /// What the agent says, until it goes away.
    async fn up(&self, from: &mut ChannelReadHalf, host: &ChannelWriteHalf<client::Msg>) -> Result<Infallible, Cut> {
        let mut search = self.gate.placeholders.search(&HeaderMap::new()).map_err(cut)?;
        let mut list = (self.command.operation == GitOperation::Push).then(push::Reader::default);
        loop {
            match from.wait().await {
                Some(ChannelMsg::Data { data }) => {
                    self.went(data.len())?;
                    if let Some(Err(denial)) = search.as_mut().map(|search| search.check(&data)) {
                        self.call.found(denial.code);
                        return Err(cut(denial));
                    }
                    let data = match list.take() {
                        None => data,
                        Some(mut reader) => match reader.take(&data) {
                            Err(why) => return Err(self.deny(Vec::new(), Denial::new(NOT_UNDERSTOOD, why)).await),
                            Ok(Said::More) => {
                                list = Some(reader);
                                continue;
                            }
                            Ok(Said::All(commands, bytes)) => {
                                self.decide(commands).await?;
                                bytes.into()
                            }
                        },
                    };
                    self.call.sent(data.len());
                    if let Some(push) = &*self.push() {
                        push.call.sent(data.len());
                    }
                    host.data_bytes(data).await.map_err(upstream_broke)?;
                    self.quiet.broken();
                }
                // A list that breaks off was not decided, so nothing of it is told.
                Some(ChannelMsg::Eof) => host.eof().await.map_err(upstream_broke)?,
                Some(ChannelMsg::Close) | None => return Err(Cut::Failed("agent_broke: the client went away".into())),
                Some(
                    ChannelMsg::Exec { .. } | ChannelMsg::RequestShell { .. } | ChannelMsg::RequestSubsystem { .. },
                ) => {
                    return Err(Cut::Failed("protocol: the client asks for two commands on one channel".into()));
                }
                Some(_) => {}
            }
        }
    }

    /// Decides about all that a push is to change, and records it.
    async fn decide(&self, commands: Vec<push::Command>) -> Result<(), Cut> {
        let policy = &self.gate.latest().policy;
        let mut first: Option<Permit> = None;
        for one in &commands {
            match decide::push(policy, self.of_ref(one)) {
                Ok(permit) => drop(first.get_or_insert(permit)),
                Err(denial) => return Err(self.deny(vec![word(one)], denial).await),
            }
        }
        // A push that changes nothing goes no further.
        let Some(permit) = first else { return Ok(()) };
        let subject = self.subject(commands.iter().map(word).collect());
        let call = self.gate.recorder.allow(subject, &permit, self.target.untrusted()).await;
        let call = call.map_err(|_| Cut::Denied(None))?;
        *self.push() = Some(Push { commands, call });
        Ok(())
    }

    fn subject(&self, refs: Vec<String>) -> Subject {
        self.target.subject(GitAsked {
            operation: self.command.operation.word().into(),
            repository: self.command.repository().into(),
            refs,
            ..GitAsked::default()
        })
    }

    async fn deny(&self, refs: Vec<String>, denial: Denial) -> Cut {
        Cut::Denied(Some(self.gate.recorder.deny(self.subject(refs), &denial).await))
    }

    /// What the host says, to its exit status.
    async fn down(&self, from: &mut ChannelReadHalf, to: &ChannelWriteHalf<Msg>) -> Result<u32, Cut> {
        let mut status = None;
        loop {
            match from.wait().await {
                Some(ChannelMsg::Data { data }) => {
                    self.came(data.len())?;
                    to.data_bytes(data).await.map_err(agent_broke)?;
                }
                Some(ChannelMsg::ExtendedData { data, ext: STDERR }) => {
                    self.came(data.len())?;
                    to.extended_data_bytes(STDERR, data).await.map_err(agent_broke)?;
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => status = Some(exit_status),
                Some(ChannelMsg::ExitSignal { .. }) => {
                    return Err(Cut::Failed("git_failed: a signal ended it on the host".into()));
                }
                Some(ChannelMsg::Close) | None => {
                    return status.ok_or_else(|| Cut::Failed("upstream_broke: the host went away".into()));
                }
                // The end is said with the exit status.
                Some(_) => {}
            }
            self.quiet.broken();
        }
    }

    fn came(&self, count: usize) -> Result<(), Cut> {
        self.call.received(count);
        if let Some(push) = &*self.push() {
            push.call.received(count);
        }
        self.went(count)
    }
}

fn word(one: &push::Command) -> String {
    format!("{} {}", one.change.word(), one.name)
}

fn cut(denial: Denial) -> Cut {
    Cut::Failed(format!("{}: {}", denial.code, denial.why))
}

fn agent_broke(_: russh::Error) -> Cut {
    Cut::Failed("agent_broke: the client went away".into())
}

fn upstream_broke(_: russh::Error) -> Cut {
    Cut::Failed("upstream_broke: the host went away".into())
}
