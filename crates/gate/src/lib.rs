//! The gate: every call of one agent, out and in, is accepted, identified, decided, inspected, relayed and
//! recorded here. One process per sandbox; it holds this agent's leases and no others.
//!
//! It makes no rule: [`ringfence_policy::Policy::decide`] does, and [`relay`] sends nothing without the
//! [`ringfence_policy::Permit`] that it returned. It keeps no log: it records through
//! [`ringfence_audit::Record`] before anything leaves. It leans on `model`, `policy`, `audit` and `sys`.
//!
//! The phases of a call, one module each, in this order:
//!
//! - [`accept`]: a connection comes in, whatever its destination
//! - [`identify`]: what it speaks and where it means to go
//! - [`decide`]: the policy is asked
//! - [`inspect`]: what its content gives away; [`misdirect`] searches for placeholders, [`echo`] for secrets
//! - [`inject`]: the placeholder becomes the secret; [`fields`] in bodies, [`sigv4`] in signatures, [`token`] where a
//!   token is got for it
//! - [`relay`]: the call is sent, and its answer brought back
//! - [`record`]: the intent before, the outcome after; `pulse` tells when there was none for a while
//!
//! [`call`] tells the whole of it for one HTTP request. Around them:
//!
//! - [`tls`]: the authority that exists for one start of one sandbox, and what upstreams must show
//! - [`resolver`]: names become addresses that mean the name and nothing else
//! - [`websocket`]: messages both ways; [`realtime`] where they are for a language model
//! - [`proxy`]: the same calls, from clients that insist on a proxy
//! - [`dns`]: what is answered to which question
//! - [`datagram`]: UDP comes in; it is answered (DNS) or dropped
//! - `stream`: fewer and larger reads
//! - [`framing`]: where a message ends; [`detour`]: headers that ask to be taken for another request
//! - [`coding`]: content codings undone; [`arrival`]: of answers, as they come
//! - [`capture`]: bodies that are kept, for whoever has the key
//! - [`hash`]: digests of bodies, taken while they go by
//! - `needle`: many texts searched for at once, in all their forms
//! - [`dial`]: which addresses may be dialled; [`room`]: and how many at once; [`shelf`]: how much is held whole
//! - [`llm`], [`rpc`]: calls of language models; messages to MCP servers and other agents
//! - [`reload`]: a policy takes the place of another while calls are made
//! - [`budget`]: what may be spent; [`refuse`]: how a call is refused
//! - [`postgres`]: sessions with databases, statement by statement
//! - [`ssh`]: git over SSH, command by command
//! - [`tcp`]: connections that nobody looks into
//! - [`upstream_proxy`]: whom calls go through, where the operator says so; [`doh`]: DNS inside HTTPS
//! - [`ingress`]: people come in
//! - [`config`], [`process`]: what the process is told, and how it gives up everything else

pub mod accept;
pub mod arrival;
pub mod body;
pub mod budget;
pub mod call;
pub mod capture;
pub mod coding;
pub mod config;
pub mod datagram;
pub mod decide;
pub mod detour;
pub mod dial;
pub mod dns;
pub mod doh;
pub mod echo;
pub mod failover;
mod fields;
pub mod framing;
pub mod hash;
pub mod identify;
pub mod ingress;
pub mod inject;
pub mod inspect;
pub mod llm;
pub mod misdirect;
mod needle;
pub mod postgres;
pub mod process;
pub mod proxy;
mod pulse;
pub mod realtime;
pub mod record;
pub mod refuse;
pub mod relay;
pub mod reload;
pub mod resolver;
pub mod room;
pub mod rpc;
pub mod shelf;
pub mod sigv4;
pub mod ssh;
mod stream;
pub mod tcp;
pub mod tls;
pub mod token;
mod trace;
pub mod upload;
pub mod upstream_proxy;
pub mod websocket;

use std::collections::BTreeMap;
use std::sync::Arc;

use ringfence_audit::Record;
use ringfence_audit::age::{self, AgeError};
use ringfence_model::manifest::Grant;
use ringfence_model::{AgentName, Bytes, Explain, Fault};
use ringfence_policy::{Policy, PolicyError};
use tokio::sync::Semaphore;

use crate::config::{GateConfig, NewPolicy, UpstreamProxy};
use crate::upstream_proxy::Proxy;

/// Connections that are open at once; further ones wait to be accepted.
pub const MAX_CONNECTIONS: usize = 1024;

/// Everything that the calls of one sandbox share.
pub struct Gate {
    pub(crate) policy: Policy,
    pub(crate) decisions: decide::Decisions,
    pub(crate) credentials: Arc<BTreeMap<String, inject::Credential>>,
    pub(crate) placeholders: misdirect::Placeholders,
    pub(crate) recorder: Arc<record::Recorder>,
    pub(crate) names: Arc<resolver::Names>,
    pub(crate) authority: Arc<tls::Authority>,
    pub(crate) trust: tls::Trust,
    pub(crate) dialler: Arc<dial::Dialler>,
    pub(crate) pool: Arc<relay::Pool>,
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) shelf: Arc<shelf::Shelf>,
    pub(crate) rates: tcp::Rates,
    pub(crate) sessions: postgres::cancel::Sessions,
    pub(crate) git_sessions: ssh::Sessions,
    pub(crate) ledger: Arc<budget::Ledger>,
    pub(crate) servers: Arc<rpc::Servers>,
    pub(crate) captures: Arc<capture::Store>,
    pub(crate) barriers: Barriers,
    pub(crate) current: Arc<reload::Current>,
}

/// What outlives a policy.
struct Shared {
    recorder: Arc<record::Recorder>,
    names: Arc<resolver::Names>,
    authority: Arc<tls::Authority>,
    dialler: Arc<dial::Dialler>,
    connections: Arc<Semaphore>,
    shelf: Arc<shelf::Shelf>,
    sessions: postgres::cancel::Sessions,
    git_sessions: ssh::Sessions,
    servers: Arc<rpc::Servers>,
    captures: Arc<capture::Store>,
    current: Arc<reload::Current>,
    barriers: Barriers,
}

/// What the gate enforces beside the policy. All of it is on; no configuration can change that, only the tests that show
/// what each barrier is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Barriers {
    /// Addresses that are not on the Internet are not dialled.
    pub addresses: bool,
    /// Headers that ask to be taken for another request are decided as that one.
    pub detours: bool,
    /// DNS inside HTTPS or TLS is denied where it is not granted by name.
    pub encrypted_dns: bool,
    /// A ClientHello that may hide another name is not relayed closed.
    pub encrypted_hello: bool,
    /// What is held because it must be whole is bounded in all.
    pub held_bodies: bool,
    /// A call with a placeholder where it does not belong is denied.
    pub misdirected_placeholders: bool,
    /// Trailers of requests are dropped.
    pub request_trailers: bool,
    /// What is cut over several messages of a WebSocket is searched for.
    pub split_messages: bool,
    /// A body where servers may expect none is denied under a grant of some methods or paths.
    pub unexpected_bodies: bool,
}

impl Default for Barriers {
    fn default() -> Self {
        Self {
            addresses: true,
            detours: true,
            encrypted_dns: true,
            encrypted_hello: true,
            held_bodies: true,
            misdirected_placeholders: true,
            request_trailers: true,
            split_messages: true,
            unexpected_bodies: true,
        }
    }
}

/// Why a gate cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// A budget that cannot be held.
    #[error("cannot hold the budget of agent `{agent}`: {why}")]
    Budget {
        /// The agent.
        agent: AgentName,
        /// Why.
        why: String,
    },
    /// Nobody could read what is captured.
    #[error("cannot capture bodies")]
    Capture(#[source] AgeError),
    /// The policy does not compile.
    #[error("cannot open the gate of agent `{agent}`")]
    Policy {
        /// The agent.
        agent: AgentName,
        /// Why.
        #[source]
        source: PolicyError,
    },
    /// Keys, certificates or trust anchors are not usable.
    #[error("cannot prepare TLS for the gate of agent `{agent}`")]
    Tls {
        /// The agent.
        agent: AgentName,
        /// Why.
        #[source]
        source: tls::TlsError,
    },
    /// A key of a git host is none.
    #[error("grant {number} says how its host is known, and it cannot be read: {why}")]
    HostKey {
        /// 1-based number of the grant.
        number: usize,
        /// Why.
        why: String,
    },
    /// A grant names a credential that was not leased.
    #[error("grant {number} names credential `{credential}`, and no lease for it was given")]
    NoLease {
        /// 1-based number of the grant.
        number: usize,
        /// The credential.
        credential: String,
    },
    /// A secret cannot stand where its credential puts it.
    #[error("the secret of credential `{credential}` cannot be put into a call: {why}")]
    Secret {
        /// The credential.
        credential: String,
        /// Why.
        why: &'static str,
    },
    /// The proxy that calls are to go through cannot be used.
    #[error("cannot use the upstream proxy: {why}")]
    UpstreamProxy {
        /// Why.
        why: &'static str,
    },
    /// The resolver of the host cannot be used.
    #[error("cannot use the host's resolver: {0}")]
    Resolver(String),
}

impl Explain for GateError {
    fn code(&self) -> &'static str {
        match self {
            Self::Budget { .. } => "gate.budget",
            Self::Capture(_) => "gate.capture",
            Self::HostKey { .. } => "gate.host_key",
            Self::NoLease { .. } => "gate.no_lease",
            Self::Policy { source, .. } => source.code(),
            Self::Resolver(_) => "gate.resolver",
            Self::Secret { .. } => "gate.secret",
            Self::Tls { .. } => "gate.tls",
            Self::UpstreamProxy { .. } => "gate.upstream_proxy",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Budget { .. } => Fault::Host,
            Self::NoLease { .. } => Fault::Us,
            Self::Policy { source, .. } => source.fault(),
            Self::Resolver(_) | Self::UpstreamProxy { .. } => Fault::Host,
            Self::Capture(AgeError::Recipient(_)) | Self::HostKey { .. } | Self::Secret { .. } => Fault::Caller,
            Self::Capture(_) => Fault::Host,
            Self::Tls { source, .. } => source.fault(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Capture(AgeError::Recipient(_)) => {
                Some("make a key with `age-keygen`, and write its public key".into())
            }
            Self::HostKey { .. } => {
                Some("write `KIND BASE64` as in known_hosts, or `SHA256:` and the fingerprint".into())
            }
            Self::Policy { source, .. } => source.hint(),
            Self::Secret { .. } => {
                Some("look at the secret: its form, line breaks and other control characters".into())
            }
            _ => None,
        }
    }
}

impl Gate {
    /// Compiles the policy and makes the authority. Opens no socket and no file but trust store and resolver
    /// configuration, so that afterwards the process can give up all files.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn open(config: &GateConfig, log: Arc<dyn Record>) -> Result<Arc<Self>, GateError> {
        let authority = Self::authority(config)?;
        Self::open_with(config, log, authority, budget::Files::default(), Barriers::default())
    }

    /// As [`Gate::open`], with barriers down. For tests, which show the attack that a barrier stops.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn danger_open(config: &GateConfig, log: Arc<dyn Record>, barriers: Barriers) -> Result<Arc<Self>, GateError> {
        Self::open_with(config, log, Self::authority(config)?, budget::Files::default(), barriers)
    }

    /// As [`Gate::danger_open`], with names looked up at a server of the test's own.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn danger_open_asking(
        config: &GateConfig,
        log: Arc<dyn Record>,
        barriers: Barriers,
        resolver: std::net::SocketAddr,
    ) -> Result<Arc<Self>, GateError> {
        let dialler = dial::Dialler::danger_asking(resolver).map_err(GateError::Resolver)?;
        Self::open_dialling(config, log, Self::authority(config)?, budget::Files::default(), barriers, dialler)
    }

    /// As [`Gate::open`], with files to count budgets in.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn open_counting(
        config: &GateConfig,
        log: Arc<dyn Record>,
        files: budget::Files,
    ) -> Result<Arc<Self>, GateError> {
        Self::open_with(config, log, Self::authority(config)?, files, Barriers::default())
    }

    /// The authority of a gate to be. It is made first, because whoever starts the agent waits for its certificate.
    ///
    /// # Errors
    /// [`GateError::Tls`].
    pub(crate) fn authority(config: &GateConfig) -> Result<tls::Authority, GateError> {
        tls::Authority::generate(&config.agent).map_err(|source| GateError::Tls { agent: config.agent.clone(), source })
    }

    pub(crate) fn open_with(
        config: &GateConfig,
        log: Arc<dyn Record>,
        authority: tls::Authority,
        counters: budget::Files,
        barriers: Barriers,
    ) -> Result<Arc<Self>, GateError> {
        let dialler = dial::Dialler::system().map_err(GateError::Resolver)?;
        Self::open_dialling(config, log, authority, counters, barriers, dialler)
    }

    fn open_dialling(
        config: &GateConfig,
        log: Arc<dyn Record>,
        authority: tls::Authority,
        counters: budget::Files,
        barriers: Barriers,
        dialler: dial::Dialler,
    ) -> Result<Arc<Self>, GateError> {
        let proxy = config.upstream_proxy.as_ref().map(|proxy| Self::proxy(config, proxy)).transpose()?;
        let shared = Shared {
            recorder: Arc::new(record::Recorder::new(log)),
            names: Arc::default(),
            authority: Arc::new(authority),
            dialler: Arc::new(dialler.going(proxy, barriers.addresses)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            shelf: Arc::new(shelf::Shelf::new(barriers.held_bodies)),
            sessions: postgres::cancel::Sessions::default(),
            git_sessions: ssh::Sessions::default(),
            servers: Arc::default(),
            captures: Arc::default(),
            current: Arc::default(),
            barriers,
        };
        let mut credentials = BTreeMap::new();
        for (name, lease) in &config.credentials {
            let tls = |source| GateError::Tls { agent: config.agent.clone(), source };
            let anchors = match lease.place.endpoint().and_then(token::route) {
                Some(route) => tls::Trust::load(&[route], &BTreeMap::new()).map_err(tls)?.client(0, tls::Offer::Http1),
                None => None,
            };
            let read = inject::Credential::read(name, lease, anchors);
            let credential = read.map_err(|why| GateError::Secret { credential: name.clone(), why })?;
            credentials.insert(name.clone(), credential);
        }
        let placeholders = if barriers.misdirected_placeholders {
            misdirect::Placeholders::new(&config.credentials)
        } else {
            misdirect::Placeholders::default()
        };
        Self::make(&config.policy(), (Arc::new(credentials), placeholders), shared, counters, None)
    }

    fn proxy(config: &GateConfig, proxy: &UpstreamProxy) -> Result<Proxy, GateError> {
        let tls = |source| GateError::Tls { agent: config.agent.clone(), source };
        let trust = tls::Trust::load(upstream_proxy::route(proxy).as_slice(), &BTreeMap::new()).map_err(tls)?;
        Proxy::new(proxy, trust.client(0, tls::Offer::Http1)).map_err(|why| GateError::UpstreamProxy { why })
    }

    /// Takes up what earlier gates of the agent saw of MCP tools, and keeps in the same file what this one sees.
    ///
    /// # Errors
    /// Whatever reading gives.
    pub fn remember_definitions(&self, file: std::fs::File) -> std::io::Result<()> {
        self.servers.remember(file)
    }

    /// Keeps captured bodies in this file, which is opened to read and append, up to so many bytes.
    ///
    /// # Errors
    /// Whatever reading gives.
    pub fn keep_captures(&self, file: std::fs::File, most: Bytes) -> std::io::Result<()> {
        self.captures.keep_in(file, most)
    }

    /// The same gate with another policy.
    pub(crate) fn with(&self, policy: &NewPolicy) -> Result<Arc<Self>, GateError> {
        let shared = Shared {
            recorder: Arc::clone(&self.recorder),
            names: Arc::clone(&self.names),
            authority: Arc::clone(&self.authority),
            dialler: Arc::clone(&self.dialler),
            connections: Arc::clone(&self.connections),
            shelf: Arc::clone(&self.shelf),
            sessions: self.sessions.clone(),
            git_sessions: self.git_sessions.clone(),
            servers: Arc::clone(&self.servers),
            captures: Arc::clone(&self.captures),
            current: Arc::clone(&self.current),
            barriers: self.barriers,
        };
        let secrets = (Arc::clone(&self.credentials), self.placeholders.clone());
        Self::make(policy, secrets, shared, self.ledger.files(), Some(&self.trust))
    }

    fn make(
        config: &NewPolicy,
        (credentials, placeholders): (Arc<BTreeMap<String, inject::Credential>>, misdirect::Placeholders),
        shared: Shared,
        counters: budget::Files,
        before: Option<&tls::Trust>,
    ) -> Result<Arc<Self>, GateError> {
        let agent = config.agent.clone();
        let policy = Policy::compile(&agent, &config.grants, &config.guardrails)
            .map_err(|source| GateError::Policy { agent: agent.clone(), source })?;
        for (at, grant) in config.grants.iter().enumerate() {
            let mut named = grant.credential.iter().chain(&grant.client_certificate);
            if let Some(credential) = named.find(|name| !credentials.contains_key(*name)) {
                return Err(GateError::NoLease { number: at + 1, credential: credential.clone() });
            }
        }
        for recipient in config.grants.iter().filter_map(|grant| grant.capture.as_ref()).flat_map(|c| &c.to) {
            age::check(recipient).map_err(GateError::Capture)?;
        }
        ssh::host::check_all(&config.grants).map_err(|(number, why)| GateError::HostKey { number, why })?;
        let budget = |why: String| GateError::Budget { agent: agent.clone(), why };
        let ledger = budget::Ledger::of(config, counters).map_err(budget)?;
        let tls = |source| GateError::Tls { agent: agent.clone(), source };
        let trust = match before {
            None => tls::Trust::load(&config.grants, &credentials),
            Some(before) => tls::Trust::load_after(&config.grants, &credentials, before, config.system_pem.as_deref()),
        }
        .map_err(tls)?;
        let Shared {
            recorder,
            names,
            authority,
            dialler,
            connections,
            shelf,
            sessions,
            git_sessions,
            servers,
            captures,
            current,
            barriers,
        } = shared;
        let pool = Arc::new(relay::Pool::default());
        let idle = Arc::downgrade(&pool);
        dialler.room_made_by(move || idle.upgrade().iter().for_each(|pool| pool.drop_idle()));
        Ok(Arc::new(Self {
            policy,
            decisions: decide::Decisions::default(),
            credentials,
            placeholders,
            recorder,
            names,
            authority,
            trust,
            dialler,
            pool,
            connections,
            shelf,
            rates: tcp::Rates::new(&config.grants),
            sessions,
            git_sessions,
            ledger: Arc::new(ledger),
            servers,
            captures,
            barriers,
            current,
        }))
    }

    /// The certificate that the agent must trust.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.authority.ca_pem()
    }

    /// The key of the authority that the agent must believe for hosts that speak SSH, as OpenSSH writes it.
    #[must_use]
    pub fn ssh_authority(&self) -> &str {
        self.authority.ssh().public()
    }

    /// The names that have addresses so far.
    #[must_use]
    pub fn names(&self) -> &resolver::Names {
        &self.names
    }

    /// How much is held now because it must be whole, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.shelf.held()
    }

    pub(crate) fn grant(&self, permit: &ringfence_policy::Permit) -> Option<&Grant> {
        self.policy.grants().get(permit.grant()?)
    }
}
