//! PostgreSQL, statement by statement.
//!
//! The gate is a server to the agent and a client to the database. The agent shows no password: the gate has the one
//! that the grant names, and proves it to the server, which proves that it knew it. User and database are the grant's.
//! From then on messages go through one by one. What is asked in SQL is understood ([`classify`]), decided, and in the
//! log before the server sees it. A denied statement is replaced by one that always fails, so that the server's state
//! is what it would be had it refused by itself; the agent is told the gate's words in place of the server's.
//!
//! - [`startup`]: both first conversations, and [`auth`], what is proved in them
//! - [`session`]: messages to and fro; [`wire`] is their bytes
//! - [`classify`]: what a statement does, from [`lex`], its tokens; `settings` knows which settings are harmless
//! - [`cancel`]: a session's statement is given up

pub mod auth;
pub mod cancel;
pub mod classify;
pub mod lex;
pub mod session;
mod settings;
pub mod startup;
pub mod wire;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use ringfence_audit::SqlAsked;
use ringfence_model::HostName;
use ringfence_model::manifest::{Grant, PostgresRules, Protocol, Trust};
use ringfence_policy::{Denial, Permit};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::budget::{Amounts, Behalf};
use crate::dial::NoAddress;
use crate::misdirect::MISDIRECTED;
use crate::record::Subject;
use crate::{Gate, call, decide};

/// How the log names it.
const PROTOCOL: &str = "postgres";

/// A connection of either side.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection, inside TLS or not.
pub type Io = Box<dyn Stream>;

/// Where a session goes.
pub struct Target {
    /// The host as policy sees it.
    pub host: HostName,
    /// The port.
    pub port: u16,
    /// The place of the grant.
    pub at: usize,
    /// The grant.
    pub grant: Grant,
    /// What it says of databases.
    pub rules: PostgresRules,
}

impl Target {
    fn of(gate: &Gate, host: HostName, port: u16) -> Option<Self> {
        let (at, grant) = gate.policy.other_than_http(&host, port)?;
        let Protocol::Postgres(rules) = &grant.protocol else { return None };
        let (grant, rules) = (grant.clone(), (**rules).clone());
        Some(Self { host, port, at, grant, rules })
    }

    /// What is known of a session, or of a statement in it, for the log.
    fn subject(&self, asked: SqlAsked) -> Subject {
        let (user, database) = (self.rules.user.clone(), self.rules.database.clone());
        Subject {
            sql: Some(SqlAsked { user, database, ..asked }),
            ..Subject::connection(PROTOCOL, self.host.to_string(), self.port)
        }
    }

    fn untrusted(&self) -> bool {
        self.grant.trust == Trust::Untrusted
    }
}

/// Serves a connection to a host and port where a grant says that PostgreSQL is spoken.
pub async fn serve<S: Stream + 'static>(gate: Arc<Gate>, stream: S, host: HostName, port: u16) {
    let Some(target) = Target::of(&gate, host, port) else { return };
    let denied = |denial: Denial| {
        let subject = target.subject(SqlAsked::default());
        let gate = Arc::clone(&gate);
        async move { gate.recorder.deny(subject, &denial).await }
    };
    let (mut agent, hello) = match startup::hear(&gate, stream, &target).await {
        Ok(heard) => heard,
        Err(refused) => {
            let id = denied(refused.denial).await;
            if let Some(agent) = refused.agent {
                refuse(agent, &format!("this session is not granted (call {id})")).await;
            }
            return;
        }
    };
    match hello {
        startup::Hello::Cancel { pid, key } => {
            cancel::serve(&gate, &target, pid, &key).await;
            // The end is the only answer. A client that hears it by TLS wants it said there; one that is gone does not.
            let _ = agent.shutdown().await;
        }
        startup::Hello::Session(hello) => {
            let permit = match decide::database(&gate.policy, &target.host, target.port) {
                Ok(permit) => permit,
                Err(denial) => {
                    let id = denied(denial).await;
                    return refuse(agent, &format!("this session is not granted (call {id})")).await;
                }
            };
            open(&gate, &target, agent, hello, &permit).await;
        }
    }
}

/// Tells the agent, in the words of the protocol, that there is no session.
async fn refuse(mut agent: Io, message: &str) {
    // The agent may be gone already; then there is nobody to tell.
    let _ = agent.write_all(&wire::error("FATAL", "28000", message, None)).await;
    let _ = agent.shutdown().await;
}

/// Opens the session that was allowed, and follows it to its end.
async fn open(gate: &Arc<Gate>, target: &Target, agent: Io, hello: startup::Session, permit: &Permit) {
    let refused = |denial: Denial| {
        let subject = target.subject(SqlAsked::default());
        async move {
            let id = gate.recorder.deny(subject, &denial).await;
            format!("this session is not granted (call {id})")
        }
    };
    let way = match gate.dialler.addresses(&target.grant, &target.host, target.port, &gate.recorder).await {
        Err(NoAddress::Denied(denial)) => return refuse(agent, &refused(denial).await).await,
        Err(NoAddress::Failed(why)) => Err(why),
        Ok(way) => Ok(way),
    };
    let account = match call::account(gate, Amounts::CALL, Behalf::default()).await {
        Ok(account) => account,
        Err(spent) => return refuse(agent, &refused(Denial::new("budget_exhausted", spent.why())).await).await,
    };
    let subject = target.subject(SqlAsked::default());
    let Ok(call) = gate.recorder.allow(subject, permit, target.untrusted()).await else {
        return refuse(agent, "this session is not granted").await;
    };
    let opened = match way {
        Ok(way) => startup::open(gate, target, permit, &way, &hello, &call).await,
        Err(why) => Err(why),
    };
    let done = match opened {
        Ok(opened) => session::run(gate, target, agent, &hello, opened, &call, account.as_deref()).await,
        Err(why) => {
            if let Some(account) = account {
                account.give_back();
            }
            refuse(agent, &format!("the database could not be reached (call {})", call.id())).await;
            Err(why)
        }
    };
    if let Err(why) = done {
        if why.starts_with(MISDIRECTED) {
            call.found(MISDIRECTED);
        }
        call.failed(why);
    }
}
