//! The command line.

use std::path::PathBuf;

use clap::{Args as Group, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use ringfence_model::HostPattern;
use ringfence_model::manifest::Kind;
use ringfence_model::{AgentName, CallId};

/// What follows the list of verbs.
fn after_help() -> String {
    let mut text = String::from(
        "Exit codes:\n\
         \x20   0  done\n\
         \x20   1  Ringfence itself failed\n\
         \x20   2  what was asked for cannot be\n\
         \x20   3  the host lacks something\n\
         \x20   4  somebody else failed (mirror, index, upstream); trying again may help\n\
         \x20   5  a check did not pass\n\
         \x20 130  called off with Ctrl-C\n\
         \x20 `exec` ends with the command's own code.\n\n\
         Environment:\n",
    );
    for variable in crate::env::ALL {
        text.push_str(&format!("  {:<19} {}\n", variable.name, variable.meaning));
    }
    text
}

/// Takes an AI agent from a source folder to production, and keeps it inside a fence there.
#[derive(Debug, Parser)]
#[command(name = "ringfence", version, after_help = after_help(), propagate_version = true, max_term_width = 100)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Look at a folder and write its manifest, `ringfence.toml`.
    #[command(after_help = "Example:\n  ringfence init examples/analyst")]
    Init(Init),
    /// Lock, build, start and validate the agent in a folder.
    #[command(after_help = "Example:\n  OPENAI_API_KEY=sk-… ringfence up examples/analyst")]
    Up(Up),
    /// Lock and build the agent in a folder, without starting it.
    #[command(after_help = "Example:\n  ringfence build examples/analyst")]
    Build(Build),
    /// Find out why an agent does not start, and lock versions with which it does.
    #[command(after_help = "Examples:\n  ringfence doctor examples/analyst\n  ringfence doctor --explain")]
    Doctor(Doctor),
    /// Pin every package of the agent in a folder, in its `pylock.toml`.
    #[command(
        after_help = "Examples:\n  ringfence lock examples/analyst\n  ringfence lock --check\n  ringfence lock --upgrade openai"
    )]
    Lock(Lock),
    /// Write the lock as other platforms read it.
    #[command(
        after_help = "Examples:\n  ringfence export requirements examples/analyst > requirements.txt\n  ringfence export docker --out /tmp/image"
    )]
    Export(Export),
    /// List agents.
    #[command(after_help = "Example:\n  ringfence ps --json | jq '.[].agent'")]
    Ps(Json),
    /// Show what an agent printed.
    #[command(after_help = "Example:\n  ringfence logs analyst --follow")]
    Logs(Logs),
    /// Show the audit log, or prove it whole with `audit verify`.
    #[command(
        after_help = "Examples:\n  ringfence audit analyst --follow\n  ringfence audit verify",
        args_conflicts_with_subcommands = true
    )]
    Audit(Audit),
    /// Explain one entry of the audit log.
    #[command(after_help = "Example:\n  ringfence explain 42")]
    Explain(Explain),
    /// Propose the least grants for what an agent was denied, for a person to review.
    #[command(after_help = "Example:\n  ringfence learn analyst >> examples/analyst/ringfence.toml")]
    Learn(Learn),
    /// Run a command inside an agent's sandbox.
    #[command(after_help = "Example:\n  ringfence exec analyst -- python3 -c 'import os; print(os.environ)'")]
    Exec(Exec),
    /// Stop an agent; it keeps its image and its state.
    #[command(after_help = "Example:\n  ringfence stop analyst")]
    Stop(Stop),
    /// Start an agent that was stopped.
    #[command(after_help = "Example:\n  ringfence start analyst")]
    Start(Named),
    /// Hold every process of an agent where it is.
    #[command(after_help = "Example:\n  ringfence freeze analyst")]
    Freeze(Named),
    /// Let a frozen agent run on.
    #[command(after_help = "Example:\n  ringfence resume analyst")]
    Resume(Named),
    /// Stop an agent and forget it, with its state.
    #[command(after_help = "Example:\n  ringfence down analyst")]
    Down(Down),
    /// Say what this host can and cannot enforce.
    #[command(after_help = "Example:\n  ringfence host", visible_alias = "doctor-host")]
    Host(Json),
    /// Put a secret into the vault, for manifests to name as `vault:NAME`.
    #[command(after_help = "Example:\n  printf %s \"$KEY\" | ringfence secret put openai")]
    Secret(Secret),
    /// Ask what a manifest and this host's guard-rails allow, without making a call.
    #[command(
        subcommand,
        after_help = "Examples:\n  ringfence policy explain examples/analyst GET https://example.org/\n  \
                      ringfence policy diff ringfence.toml new.toml --replay analyst"
    )]
    Policy(PolicyVerb),
    /// Run the supervisor in the foreground.
    #[command(after_help = "Example:\n  ringfence serve")]
    Serve(Serve),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  ringfence completions bash > /etc/bash_completion.d/ringfence")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Output for scripts.
#[derive(Clone, Copy, Debug, Group)]
pub struct Json {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `doctor`
#[derive(Debug, Group)]
pub struct Doctor {
    /// The agent's folder. Without a manifest, what it would say is inferred.
    #[arg(default_value = ".")]
    pub folder: PathBuf,
    /// The manifest, if it is not the folder's `ringfence.toml`.
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Without a manifest, the program that is the agent: `app.py` or `module:object`.
    #[arg(long, value_name = "FILE")]
    pub entry: Option<String>,
    /// Tell of each change on what evidence and how sure, and of each try.
    #[arg(long)]
    pub explain: bool,
    /// Diagnose anew, though the lock that is there fits.
    #[arg(long)]
    pub again: bool,
    /// Releases after this date do not count.
    #[arg(long, value_name = "DATE", value_parser = moment)]
    pub as_of: Option<Timestamp>,
    #[command(flatten)]
    pub output: Json,
}

/// `lock`
#[derive(Debug, Group)]
pub struct Lock {
    /// The agent's folder.
    #[arg(default_value = ".")]
    pub folder: PathBuf,
    /// The manifest, if it is not the folder's `ringfence.toml`.
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Change nothing: end with 5 if the lock is not there or does not fit what is declared.
    #[arg(long, conflicts_with_all = ["upgrade", "as_of"])]
    pub check: bool,
    /// Take newer versions: of these distributions, or of all if none is named.
    #[arg(long, value_name = "NAME", num_args = 0.., value_delimiter = ',')]
    pub upgrade: Option<Vec<String>>,
    /// Releases after this date do not count.
    #[arg(long, value_name = "DATE", value_parser = moment)]
    pub as_of: Option<Timestamp>,
    #[command(flatten)]
    pub output: Json,
}

/// `export`
#[derive(Debug, Group)]
pub struct Export {
    /// For whom.
    #[arg(value_enum)]
    pub target: ExportTarget,
    /// The agent's folder.
    #[arg(default_value = ".")]
    pub folder: PathBuf,
    /// The manifest, if it is not the folder's `ringfence.toml`.
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Where to write; else the agent's folder, and `requirements` are printed.
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Replace files that are there and differ.
    #[arg(long)]
    pub force: bool,
}

/// For whom a lock is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportTarget {
    /// pip's `requirements.txt`, with digests.
    Requirements,
    /// Streamlit's Community Cloud and Hugging Face's Spaces.
    Streamlit,
    /// A `Dockerfile`.
    Docker,
}

/// `init`
#[derive(Debug, Group)]
pub struct Init {
    /// The agent's folder.
    #[arg(default_value = ".")]
    pub folder: PathBuf,
    /// The program that is the agent: `app.py` or `module:object`.
    #[arg(long, value_name = "FILE")]
    pub entry: Option<String>,
    /// What kind of program it is: asgi, chainlit, gradio, script, streamlit or wsgi.
    #[arg(long, value_parser = kind)]
    pub kind: Option<Kind>,
    /// The agent's name.
    #[arg(long)]
    pub name: Option<AgentName>,
    /// The port that it listens on.
    #[arg(long)]
    pub port: Option<u16>,
    /// Write over a manifest that is there.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub output: Json,
}

/// `up`
#[derive(Debug, Group)]
pub struct Up {
    /// The agent's folder.
    #[arg(default_value = ".")]
    pub folder: PathBuf,
    /// Another manifest than the folder's own.
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Replace an agent of the same name that runs.
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    pub output: Json,
}

/// `build`
#[derive(Debug, Group)]
pub struct Build {
    /// The agent's folder.
    #[arg(default_value = ".")]
    pub folder: PathBuf,
    /// Another manifest than the folder's own.
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    #[command(flatten)]
    pub output: Json,
}

/// `learn`
#[derive(Debug, Group)]
pub struct Learn {
    /// Which agent.
    pub agent: AgentName,
    #[command(flatten)]
    pub output: Json,
}

/// `policy`
#[derive(Debug, Subcommand)]
pub enum PolicyVerb {
    /// Put a changed manifest's grants and budget, and the guard-rails as they are now, in force for an agent that runs.
    #[command(after_help = "Example:\n  ringfence policy apply examples/analyst\n\n\
                            The next call is decided by it. A policy that is not right changes nothing.")]
    Apply(PolicyApply),
    /// Compile a manifest's grants and the guard-rails, and say whether they stand.
    #[command(after_help = "Example:\n  ringfence policy check examples/analyst --rules")]
    Check(PolicyCheck),
    /// Show what a change of a manifest newly allows or denies, in rules and in recorded calls.
    #[command(after_help = "Example:\n  ringfence policy diff ringfence.toml new.toml --replay analyst")]
    Diff(PolicyDiff),
    /// Decide one call and say why.
    #[command(after_help = "Examples:\n  ringfence policy explain examples/analyst GET https://example.org/\n  \
                      ringfence policy explain examples/analyst DNS example.org")]
    Explain(PolicyExplain),
    /// Prove for all calls that could ever be made, not for examples, what a policy never allows.
    #[command(after_help = "Examples:\n  \
                            ringfence policy prove examples/analyst --only api.openai.com --only '*.acme.example'\n  \
                            ringfence policy prove new.toml --within ringfence.toml\n  \
                            ringfence policy prove . --never 'context.method == \"DELETE\"'\n\n\
                            Needs the solver cvc5: apt install cvc5")]
    Prove(PolicyProve),
    /// Decide a file of calls, and fail if one is not decided as expected.
    #[command(after_help = "Example:\n  ringfence policy test examples/analyst\n\n\
                            The file has a `[[case]]` for each call:\n  [[case]]\n  \
                            call = \"POST https://api.openai.com/v1/chat/completions\"\n  \
                            model = \"gpt-4o\"\n  expect = \"deny\"\n  reason = \"model_not_granted\"")]
    Test(PolicyTest),
}

/// `policy apply`
#[derive(Debug, Group)]
pub struct PolicyApply {
    /// The agent's folder.
    #[arg(default_value = ".")]
    pub folder: PathBuf,
    /// Another manifest than the folder's own.
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    #[command(flatten)]
    pub output: Json,
}

/// `policy check`
#[derive(Debug, Group)]
pub struct PolicyCheck {
    /// The agent's folder, or a manifest.
    #[arg(default_value = ".")]
    pub place: PathBuf,
    /// Print every rule as Cedar text.
    #[arg(long)]
    pub rules: bool,
    #[command(flatten)]
    pub output: Json,
}

/// `policy test`
#[derive(Debug, Group)]
pub struct PolicyTest {
    /// The agent's folder, or a manifest.
    #[arg(default_value = ".")]
    pub place: PathBuf,
    /// The cases. [default: ringfence.test.toml beside the manifest]
    #[arg(long, value_name = "FILE")]
    pub cases: Option<PathBuf>,
    #[command(flatten)]
    pub output: Json,
}

/// `policy explain`
#[derive(Debug, Group)]
pub struct PolicyExplain {
    /// The agent's folder, or a manifest.
    pub place: PathBuf,
    /// `GET https://host/path`, `DNS name` or `TLS host:port`.
    #[arg(required = true, num_args = 1..)]
    pub call: Vec<String>,
    /// The model that the call's body names.
    #[arg(long)]
    pub model: Option<String>,
    /// The call asks to become a WebSocket.
    #[arg(long)]
    pub websocket: bool,
    #[command(flatten)]
    pub output: Json,
}

/// `policy prove`
#[derive(Debug, Group)]
pub struct PolicyProve {
    /// The agent's folder, or a manifest.
    pub place: PathBuf,
    /// No other host is ever reached: `host` or `*.domain`; may be repeated.
    #[arg(long, value_name = "HOST")]
    pub only: Vec<HostPattern>,
    /// Nothing is allowed that this manifest, or that of this folder, does not allow.
    #[arg(long, value_name = "MANIFEST")]
    pub within: Option<PathBuf>,
    /// No request is allowed that meets this condition, in Cedar.
    #[arg(long, value_name = "CONDITION")]
    pub never: Vec<String>,
    #[command(flatten)]
    pub output: Json,
}

/// `policy diff`
#[derive(Debug, Group)]
pub struct PolicyDiff {
    /// The manifest as it is, or its folder.
    pub old: PathBuf,
    /// The manifest as it would be, or its folder.
    pub new: PathBuf,
    /// Decide the recorded calls of this agent by both.
    #[arg(long, value_name = "AGENT")]
    pub replay: Option<AgentName>,
    #[command(flatten)]
    pub output: Json,
}

/// A verb on one agent.
#[derive(Debug, Group)]
pub struct Named {
    /// Which agent.
    pub agent: AgentName,
    #[command(flatten)]
    pub output: Json,
}

/// `logs`
#[derive(Debug, Group)]
pub struct Logs {
    /// Which agent.
    pub agent: AgentName,
    /// Go on with what comes.
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last N lines.
    #[arg(long, short = 'n', value_name = "N")]
    pub tail: Option<usize>,
    #[command(flatten)]
    pub output: Json,
}

/// `audit`
#[derive(Debug, Group)]
pub struct Audit {
    /// What else.
    #[command(subcommand)]
    pub verb: Option<AuditVerb>,
    /// Only entries about this agent.
    pub agent: Option<AgentName>,
    /// Go on with what comes.
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last N entries.
    #[arg(long, short = 'n', value_name = "N")]
    pub tail: Option<usize>,
    /// From this entry on.
    #[arg(long, default_value_t = 0, value_name = "ENTRY")]
    pub from: u64,
    /// Show the grant that each denied call lacks.
    #[arg(long)]
    pub suggest: bool,
    #[command(flatten)]
    pub output: Json,
}

/// `audit …`
#[derive(Debug, Subcommand)]
pub enum AuditVerb {
    /// Take out a captured body of a call, encrypted as it was kept.
    #[command(
        after_help = "Examples:\n  ringfence audit body c-019d… | age -d -i key.txt\n  ringfence audit body c-019d… --response -o answer.age"
    )]
    Body(Body),
    /// Remove every captured body of an agent, so that there is room for others.
    #[command(after_help = "Example:\n  ringfence audit forget analyst")]
    Forget(Named),
    /// Prove the log whole: every entry, every hash, the signature.
    #[command(
        after_help = "Examples:\n  ringfence audit verify\n  ringfence audit verify --log /backup/audit --key /backup/audit.pub"
    )]
    Verify(Verify),
}

/// `audit body`
#[derive(Debug, Group)]
pub struct Body {
    /// The call's id, as `audit --json` shows it.
    #[arg(value_parser = call)]
    pub call: CallId,
    /// What the agent sent; so it is if nothing is said.
    #[arg(long, conflicts_with = "response")]
    pub request: bool,
    /// What the agent got.
    #[arg(long)]
    pub response: bool,
    /// Decrypt it with the identity in this file, as `age-keygen` makes them.
    #[arg(long, short, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Write it into this file.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `audit verify`
#[derive(Debug, Group)]
pub struct Verify {
    /// Verify the log in this folder, without a supervisor.
    #[arg(long, value_name = "FOLDER", requires = "key")]
    pub log: Option<PathBuf>,
    /// The file with the log's public key.
    #[arg(long, value_name = "FILE", requires = "log")]
    pub key: Option<PathBuf>,
    /// The least number of entries that there must be.
    #[arg(long, default_value_t = 0, value_name = "N", requires = "log")]
    pub at_least: u64,
    #[command(flatten)]
    pub output: Json,
}

/// `explain`
#[derive(Debug, Group)]
pub struct Explain {
    /// The entry's number, as `audit` shows it.
    pub entry: u64,
    #[command(flatten)]
    pub output: Json,
}

/// `exec`
#[derive(Debug, Group)]
pub struct Exec {
    /// Which agent.
    pub agent: AgentName,
    /// The command; `--` before it.
    #[arg(last = true, required = true)]
    pub argv: Vec<String>,
    /// Pass this command's standard input on, up to 4 MiB.
    #[arg(long, short)]
    pub input: bool,
}

/// `stop`
#[derive(Debug, Group)]
pub struct Stop {
    /// Which agent.
    pub agent: AgentName,
    /// Seconds that it may take to end by itself.
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    pub grace: u64,
    #[command(flatten)]
    pub output: Json,
}

/// `down`
#[derive(Debug, Group)]
pub struct Down {
    /// Which agent.
    #[arg(required_unless_present = "all")]
    pub agent: Option<AgentName>,
    /// Every agent.
    #[arg(long, conflicts_with = "agent")]
    pub all: bool,
    /// Keep `/state` for a later agent of the same name.
    #[arg(long)]
    pub keep_state: bool,
    #[command(flatten)]
    pub output: Json,
}

/// `secret`
#[derive(Debug, Group)]
pub struct Secret {
    /// What to do.
    #[command(subcommand)]
    pub verb: SecretVerb,
}

/// `secret …`
#[derive(Debug, Subcommand)]
pub enum SecretVerb {
    /// Read a secret from standard input and seal it.
    #[command(after_help = "Example:\n  printf %s \"$KEY\" | ringfence secret put openai")]
    Put {
        /// Its name.
        name: String,
    },
    /// Remove a secret.
    #[command(after_help = "Example:\n  ringfence secret rm openai")]
    Rm {
        /// Its name.
        name: String,
    },
}

/// `serve`
#[derive(Debug, Group)]
pub struct Serve {
    /// End the supervisor that runs; agents run on.
    #[arg(long)]
    pub stop: bool,
    /// End by itself when nothing is left to do.
    #[arg(long, hide = true)]
    pub on_demand: bool,
}

fn call(text: &str) -> Result<CallId, String> {
    let id = serde_json::from_value::<CallId>(text.into()).ok();
    let digits = |id: &CallId| {
        id.as_str().strip_prefix("c-").is_some_and(|d| d.len() == 27 && d.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    id.filter(digits)
        .ok_or_else(|| "not a call's id: `c-` and 27 digits, as `ringfence audit --json` shows it".to_owned())
}

fn moment(text: &str) -> Result<Timestamp, String> {
    ringfence_model::manifest::moment(text).ok_or_else(|| "write a date such as `2024-08-14`".into())
}

fn kind(text: &str) -> Result<Kind, String> {
    serde_json::from_value(text.into()).map_err(|_| "one of asgi, chainlit, gradio, script, streamlit, wsgi".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_every_verb_has_an_example() {
        let command = Args::command();
        command.clone().debug_assert();
        for verb in command.get_subcommands() {
            let after = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains("Example"), "`{}` has no example", verb.get_name());
            assert!(after.contains(&format!("ringfence {}", verb.get_name())), "{}", verb.get_name());
        }
    }
}
