//! What a sandbox is made from, as the supervisor tells the shim.

use std::path::PathBuf;

use ringfence_model::manifest::Limits;
use ringfence_model::{AgentName, Bytes, SandboxId};
use serde::{Deserialize, Serialize};

/// The first host uid given to agents. Above systemd's container range (which ends at 1,879,048,191) and below
/// 2³¹, so that no account of the host, no subordinate range and no signed uid is met.
pub const FIRST_UID: u32 = 1_900_000_000;

/// How many uids each agent has.
pub const UIDS_PER_AGENT: u32 = 65_536;

/// The first host uid of gates; an agent's gate has this plus the agent's slot.
pub const FIRST_GATE_UID: u32 = 1_899_900_000;

/// How many agents a host can hold by uids.
pub const SLOTS: u32 = 3_000;

/// The uid and gid of an agent inside its sandbox.
pub const AGENT_UID: u32 = 65_532;

/// How much memory a gate may take. Past it the kernel ends the gate, and with it the agent that flooded it.
pub const GATE_MEMORY: Bytes = Bytes::mib(512);

/// How many threads a gate may have.
pub const GATE_TASKS: u64 = 64;

/// Everything that a sandbox is made from, except secrets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// This start's id.
    pub id: SandboxId,
    /// Whose it is.
    pub agent: AgentName,
    /// Decides the uid ranges; no two living sandboxes share one.
    pub slot: u32,
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// Command line.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The port on which the command, an MCP server that speaks over its standard input and output, is served over
    /// HTTP. The sandbox's first process then is ours, under the same fence.
    #[serde(default)]
    pub bridge: Option<u16>,
    /// Where it starts.
    pub cwd: PathBuf,
    /// What it may use up.
    pub limits: Limits,
    /// Host folders and files that it sees.
    pub mounts: Vec<SpecMount>,
    /// The file with the file system of `/state`, and its size; it is made when absent.
    pub state: Option<StateVolume>,
    /// Files inside the image to be replaced by the gate's trust bundle.
    pub trust_stores: Vec<PathBuf>,
    /// PEM of the authorities that stay trusted beside the gate's own (for calls relayed closed).
    pub host_roots: Option<PathBuf>,
    /// A folder of this start's own for sockets and mount points.
    pub run_dir: PathBuf,
    /// An empty folder that anybody may pass through; the shim mounts the sandbox's files over it, where only
    /// the shim and the sandbox see them.
    pub mount_dir: PathBuf,
    /// The agent's output, as JSON lines.
    pub log: PathBuf,
    /// The folder with `shim.spool` and `gate.spool`.
    pub spools: PathBuf,
    /// The file that the agent's budget is counted in, if it has one; it is made when absent.
    #[serde(default)]
    pub ledger: Option<PathBuf>,
    /// The file that the host's budget is counted in, if it has one; it is made when absent.
    #[serde(default)]
    pub host_ledger: Option<PathBuf>,
    /// The file with the definitions of MCP tools that the agent's gates have seen; it is made when absent.
    #[serde(default)]
    pub definitions: Option<PathBuf>,
    /// The file with captured bodies; it is made when absent.
    #[serde(default)]
    pub captures: Option<PathBuf>,
    /// The program that holds `gate-process`: our own binary.
    pub gate_program: PathBuf,
    /// Which barriers stand.
    pub fence: Fence,
    /// Whether the agent waits, made but not begun, for [`crate::control::Request::Start`]; so that its fence can
    /// be probed before its first instruction.
    #[serde(default)]
    pub hold: bool,
}

/// A host folder or file that a sandbox sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecMount {
    /// Path on the host.
    pub source: PathBuf,
    /// Absolute path in the sandbox.
    pub target: PathBuf,
    /// Whether it may be written.
    pub writable: bool,
    /// Whether programs in it may be run.
    pub executable: bool,
}

/// The volume at `/state`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateVolume {
    /// The file.
    pub file: PathBuf,
    /// Its size when it is made.
    pub size: Bytes,
    /// Whether `size` is enforced. Without, `/state` is a folder beside the file.
    pub quota: bool,
}

/// Which barriers stand. All do, unless an operator gave one up in writing, or a test shows what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_excessive_bools, reason = "each is one barrier, on or off")]
pub struct Fence {
    /// Own uid range.
    pub user_namespace: bool,
    /// Read-only root.
    pub read_only_root: bool,
    /// No capabilities, no new privileges.
    pub no_privileges: bool,
    /// System call filter.
    pub seccomp: bool,
    /// Landlock domain.
    pub landlock: bool,
    /// Masked `/proc` files.
    pub masks: bool,
    /// Capture of the network, and the gate behind it.
    pub network: bool,
    /// Process, memory and CPU limits.
    pub cgroup: bool,
}

impl Default for Fence {
    fn default() -> Self {
        Self {
            user_namespace: true,
            read_only_root: true,
            no_privileges: true,
            seccomp: true,
            landlock: true,
            masks: true,
            network: true,
            cgroup: true,
        }
    }
}

impl SandboxSpec {
    /// The first host uid of this agent's range.
    #[must_use]
    pub const fn uid_base(&self) -> u32 {
        FIRST_UID + self.slot * UIDS_PER_AGENT
    }

    /// The uid and gid of this agent's gate on the host.
    #[must_use]
    pub const fn gate_uid(&self) -> u32 {
        FIRST_GATE_UID + self.slot
    }

    /// The host uid that the agent itself runs as.
    #[must_use]
    pub const fn agent_host_uid(&self) -> u32 {
        if self.fence.user_namespace { self.uid_base() + AGENT_UID } else { AGENT_UID }
    }

    /// The shim's control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.run_dir.join("control")
    }
}

/// Numbers of the descriptors that the shim and the gate inherit.
pub mod fds {
    /// Shim: the [`super::SandboxSpec`], as JSON in a sealed memory file.
    pub const SHIM_SPEC: i32 = 3;
    /// Shim: the gate's configuration, passed on unread.
    pub const SHIM_GATE_CONFIG: i32 = 4;
    /// Shim: pipe on which one line says that the agent runs, or why not.
    pub const SHIM_READY: i32 = 5;
    /// Shim: listening socket of the ingress; may be absent.
    pub const SHIM_INGRESS: i32 = 6;

    /// Gate: its configuration, as JSON in a sealed memory file.
    pub const GATE_CONFIG: i32 = 3;
    /// Gate: its spool.
    pub const GATE_SPOOL: i32 = 4;
    /// Gate: pipe on which one line says that it is up.
    pub const GATE_READY: i32 = 5;
    /// Gate: the host's network namespace.
    pub const GATE_HOST_NETNS: i32 = 6;
    /// Gate: listening socket of the ingress; may be absent.
    pub const GATE_INGRESS: i32 = 7;
    /// Gate: the file that the agent's budget is counted in; may be absent.
    pub const GATE_LEDGER: i32 = 8;
    /// Gate: the file that the host's budget is counted in; may be absent.
    pub const GATE_HOST_LEDGER: i32 = 9;
    /// Gate: the file with definitions of MCP tools; may be absent.
    pub const GATE_DEFINITIONS: i32 = 17;
    /// Gate: the file with captured bodies; may be absent.
    pub const GATE_CAPTURES: i32 = 18;
    /// Gate: Unix socket on which new policies come.
    pub const GATE_CONTROL: i32 = 16;
    /// Gate: captured TCP connections, IPv4 and IPv6.
    pub const GATE_TCP: [i32; 2] = [10, 11];
    /// Gate: captured datagrams to port 53.
    pub const GATE_DNS: [i32; 2] = [12, 13];
    /// Gate: all other captured datagrams.
    pub const GATE_UDP: [i32; 2] = [14, 15];
}
