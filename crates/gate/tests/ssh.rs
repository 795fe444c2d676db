//! Real git and a real OpenSSH client, through a gate, to a real OpenSSH server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ringfence_audit::{CallIntent, Outcome};
use ringfence_gate::config::{CredentialLease, GateConfig};
use ringfence_gate::ssh::{MAX_CHANNELS, MAX_SESSIONS};
use ringfence_model::SecretText;
use ringfence_model::manifest::{
    GitOperation::{self, Archive, Fetch, Push},
    Grant, Place, Protocol,
    RefChange::{Create, Delete, Update},
    SshRules,
};
use ringfence_testkit::sshd::{self, Sshd};
use russh::keys::PublicKeyOrCertificate;
use russh::{ChannelMsg, client};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const GIT_HOST: &str = "git.example.org";

/// A git host with a repository `acme/site`, and `acme/secret`.
struct Host {
    sshd: Sshd,
    site: PathBuf,
    _folder: tempfile::TempDir,
}

impl Host {
    fn start() -> Self {
        Self::with("")
    }

    fn with(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sshd = Sshd::start(folder.path(), more).unwrap();
        let site = sshd.repository("acme/site.git").unwrap();
        sshd.repository("acme/secret.git").unwrap();
        Self { sshd, site, _folder: folder }
    }

    fn grant(&self, operations: &[GitOperation]) -> Grant {
        granted(self.sshd.address(), &self.sshd.host_key("ed25519").unwrap(), operations)
    }

    fn config(&self, grants: Vec<Grant>) -> GateConfig {
        configured(grants, &self.sshd.client_key().unwrap())
    }

    /// What a ref means there; empty if there is none.
    fn at(&self, name: &str) -> String {
        let output =
            sshd::git().arg("-C").arg(&self.site).args(["rev-parse", "-q", "--verify", name]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

fn granted(address: SocketAddr, host_key: &str, operations: &[GitOperation]) -> Grant {
    let rules = SshRules {
        user: "root".into(),
        host_keys: vec![host_key.into()],
        host_authorities: Vec::new(),
        repositories: vec!["acme/site".into(), "new/*".into()],
        operations: operations.to_vec(),
        refs: vec!["refs/heads/agent/*".into()],
        changes: vec![Create, Update],
    };
    Grant {
        port: 22,
        protocol: Protocol::Ssh(Box::new(rules)),
        connect_to: Some(address),
        credential: Some("deploy".into()),
        ..Grant::to(GIT_HOST.parse().unwrap())
    }
}

fn change(mut grant: Grant, change: impl FnOnce(&mut SshRules)) -> Grant {
    if let Protocol::Ssh(rules) = &mut grant.protocol {
        change(rules);
    }
    grant
}

fn configured(grants: Vec<Grant>, key: &str) -> GateConfig {
    let mut config = config(grants);
    let lease = CredentialLease {
        place: Place::SshKey,
        placeholder: "rf-no-place-for-it".into(),
        secret: SecretText::new(key.into()),
    };
    config.credentials.insert("deploy".into(), lease);
    config
}

/// An agent at its gate. It has what a sandbox would give it: the gate's authority, and no key.
struct Agent {
    fence: Fence,
    at: SocketAddr,
    home: tempfile::TempDir,
}

impl Agent {
    async fn new(config: &GateConfig) -> Self {
        Self::behind(Fence::of(config)).await
    }

    async fn behind(fence: Fence) -> Self {
        let at = fence.to_name(GIT_HOST, 22).await;
        let home = tempfile::tempdir().unwrap();
        let known = format!("@cert-authority * {}\n", fence.gate.ssh_authority());
        std::fs::write(home.path().join("ssh_known_hosts"), known).unwrap();
        Self { fence, at, home }
    }

    /// Options of a client that has only what a sandbox would give it.
    fn options(&self) -> Vec<String> {
        let known = self.home.path().join("ssh_known_hosts");
        [
            "-F".into(),
            "/dev/null".into(),
            "-p".into(),
            self.at.port().to_string(),
            "-oHostName=127.0.0.1".into(),
            format!("-oHostKeyAlias={GIT_HOST}"),
            format!("-oGlobalKnownHostsFile={}", known.display()),
            "-oUserKnownHostsFile=/dev/null".into(),
            "-oStrictHostKeyChecking=yes".into(),
            "-oBatchMode=yes".into(),
        ]
        .into()
    }

    fn command(&self, mut command: Command) -> Command {
        command
            .env_remove("SSH_AUTH_SOCK")
            .env("HOME", self.home.path())
            .env("GIT_SSH_COMMAND", format!("ssh {}", self.options().join(" ")))
            .env("GIT_SSH_VARIANT", "ssh")
            .current_dir(self.home.path());
        command
    }

    async fn git(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = self.command(sshd::git());
        command.args(arguments);
        run(command).await
    }

    async fn git_in(&self, folder: &str, arguments: &[&str]) -> (bool, String) {
        self.git(&[&["-C", folder], arguments].concat()).await
    }

    async fn ssh(&self, more: &[&str], words: &[&str]) -> (Option<i32>, String) {
        let output = output(self.ssh_command(more, words)).await;
        (output.status.code(), text(&output))
    }

    fn ssh_command(&self, more: &[&str], words: &[&str]) -> Command {
        let mut command = self.command(Command::new("ssh"));
        command.args(self.options()).args(more).arg(format!("anybody@{GIT_HOST}")).args(words).stdin(Stdio::null());
        command
    }

    async fn clone(&self) {
        let (done, said) = self.git(&["clone", "-q", &format!("git@{GIT_HOST}:acme/site.git"), "site"]).await;
        assert!(done, "{said}");
    }

    fn last(&self) -> CallIntent {
        self.fence.log.intents().pop().unwrap()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).trim().to_owned()
}

async fn output(mut command: Command) -> Output {
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    tokio::time::timeout(Duration::from_secs(60), running).await.expect("it ends").unwrap()
}

async fn run(command: Command) -> (bool, String) {
    let output = output(command).await;
    (output.status.success(), text(&output))
}

/// All that lies below a folder.
fn contents(folder: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(contents(&path)) } else { all.extend(std::fs::read(path).unwrap()) }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_goes_through_and_the_agent_has_no_key() {
    let host = Host::start();
    let agent = Agent::new(&host.config(vec![host.grant(&[Fetch])])).await;
    let log = &agent.fence.log;
    for (nth, url) in [
        format!("git@{GIT_HOST}:acme/site.git"),
        format!("ssh://git@{GIT_HOST}/acme/site.git"),
        format!("whoever@{GIT_HOST}:acme/site"),
    ]
    .iter()
    .enumerate()
    {
        let folder = format!("site{nth}");
        let (done, said) = agent.git(&["clone", "-q", url, &folder]).await;
        // A server of git finds `site.git` for `site`, as this one does.
        assert!(done && said.is_empty(), "{url}: {said}");
        assert_eq!(
            std::fs::read_to_string(agent.home.path().join(folder).join("README")).unwrap(),
            "this is acme/site.git\n"
        );
        let (intent, outcome) = (log.intent(nth).await, log.outcome(nth).await);
        assert_eq!(
            (intent.decision, intent.protocol.as_str(), intent.reason.as_str()),
            (Outcome::Allow, "ssh", "grant")
        );
        assert_eq!((intent.host.as_str(), intent.port, intent.credential.as_deref()), (GIT_HOST, 22, Some("deploy")));
        let asked = intent.git.unwrap();
        assert_eq!(
            (asked.user.as_str(), asked.operation.as_str(), asked.repository.as_str()),
            ("root", "fetch", "acme/site")
        );
        assert_eq!((outcome.error, outcome.address), (None, Some(host.sshd.address().to_string())));
        assert!(outcome.bytes_down > 200 && outcome.bytes_up > 4, "{} {}", outcome.bytes_down, outcome.bytes_up);
    }
    assert!(host.sshd.log().contains("Accepted publickey for root"));
    // Nothing of the key is anywhere that the agent looks.
    let key = host.sshd.client_key().unwrap();
    let line = key.lines().nth(3).unwrap();
    let seen = contents(agent.home.path());
    assert!(memchr_of(&seen, line.as_bytes()).is_none());
    assert!(!format!("{:?}", log.events.lock().unwrap()).contains(line));
    // And it is the key that opens the host: without it there is no way in.
    let mut direct = agent.command(Command::new("ssh"));
    direct.args(["-F", "/dev/null", "-oBatchMode=yes", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null"]);
    direct.args(["-p", &host.sshd.address().port().to_string(), "root@127.0.0.1", "id"]);
    let (done, said) = run(direct).await;
    assert!(!done && said.contains("Permission denied"), "{said}");
}

fn memchr_of(all: &[u8], one: &[u8]) -> Option<usize> {
    all.windows(one.len()).position(|window| window == one)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_is_decided_ref_by_ref() {
    let host = Host::start();
    let agent = Agent::new(&host.config(vec![host.grant(&[Fetch, Push])])).await;
    agent.clone().await;
    let before = host.at("main");
    for text in ["one", "two"] {
        let (done, said) = agent.git_in("site", &["commit", "-q", "--allow-empty", "-m", text]).await;
        assert!(done, "{said}");
    }
    let push = async |arguments: &[&str]| agent.git_in("site", &[&["push", "-q", "origin"], arguments].concat()).await;
    let (done, said) = push(&["HEAD~1:refs/heads/agent/x"]).await;
    assert!(done, "{said}");
    let (done, said) = push(&["HEAD:refs/heads/agent/x", "HEAD:refs/heads/agent/y"]).await;
    assert!(done, "{said}");
    assert!(!host.at("agent/x").is_empty() && host.at("agent/x") == host.at("agent/y"));
    let intents = agent.fence.log.intents();
    let refs: Vec<Vec<String>> = intents.iter().filter_map(|i| Some(i.git.as_ref()?.refs.clone())).collect();
    let wanted: [&[&str]; 5] =
        [&[], &[], &["create refs/heads/agent/x"], &[], &["update refs/heads/agent/x", "create refs/heads/agent/y"]];
    assert_eq!(refs, wanted);
    let last = wait(|| agent.fence.log.outcomes().into_iter().find(|o| o.call == agent.last().call), String::new).await;
    assert!(last.error.is_none() && last.bytes_up > 200 && last.bytes_down > 0, "{last:?}");
    for (refs, reason, denied) in [
        (&["HEAD:main"][..], "ref_not_granted", "update refs/heads/main"),
        (&["HEAD:refs/heads/agent/z", "+HEAD:main"], "ref_not_granted", "update refs/heads/main"),
        (&["--delete", "agent/x"], "ref_not_granted", "delete refs/heads/agent/x"),
        (&["HEAD:refs/tags/agent/x"], "ref_not_granted", "create refs/tags/agent/x"),
    ] {
        let (done, said) = push(refs).await;
        assert!(!done && said.contains("ringfence: this push is not granted (call "), "{refs:?}: {said}");
        let intent = agent.last();
        assert_eq!((intent.decision, intent.reason.as_str()), (Outcome::Deny, reason), "{refs:?}");
        assert_eq!(intent.git.unwrap().refs, [denied]);
        let cut = || {
            agent
                .fence
                .log
                .outcomes()
                .into_iter()
                .find(|o| o.error.as_deref().is_some_and(|e| e.starts_with("push_denied")))
        };
        wait(cut, || "no outcome".into()).await;
    }
    assert_eq!(
        (host.at("main"), host.at("agent/z"), host.at("refs/tags/agent/x")),
        (before, String::new(), String::new())
    );
    assert!(!host.at("agent/x").is_empty());

    // The same client, with the same words, where all of it is granted.
    let all = change(host.grant(&[Fetch, Push]), |rules| {
        rules.refs = vec!["refs/*".into()];
        rules.changes = vec![Create, Delete, Update];
    });
    let agent = Agent::new(&host.config(vec![all])).await;
    agent.clone().await;
    agent.git_in("site", &["commit", "-q", "--amend", "--allow-empty", "-m", "other"]).await;
    let (done, said) = agent.git_in("site", &["push", "-q", "origin", "+HEAD:main", ":agent/x"]).await;
    assert!(done, "{said}");
    assert!(host.at("agent/x").is_empty());
    // Options have a server do more than change refs.
    sshd::git().arg("-C").arg(&host.site).args(["config", "receive.advertisePushOptions", "true"]).status().unwrap();
    let (done, said) = agent.git_in("site", &["push", "-q", "-o", "ci.skip", "origin", "HEAD:refs/heads/o"]).await;
    assert!(!done && said.contains("not granted"), "{said}");
    assert_eq!(agent.last().reason, "push_not_understood");
    let (done, said) = agent.git_in("site", &["push", "-q", "origin", "HEAD:refs/heads/o"]).await;
    assert!(done, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_grant_names_is_run() {
    let host = Host::start();
    let agent = Agent::new(&host.config(vec![host.grant(&[Fetch])])).await;
    for (command, reason) in [
        ("git-upload-pack 'acme/secret.git'", "repository_not_granted"),
        ("git-upload-pack 'acme'", "repository_not_granted"),
        ("git-receive-pack 'acme/site.git'", "repository_not_granted"),
        ("git-upload-archive 'acme/site.git'", "repository_not_granted"),
        ("git-upload-pack 'acme/site.git/../secret.git'", "command_not_granted"),
        ("git-upload-pack 'acme/site.git'; touch pwned", "command_not_granted"),
        ("git-upload-pack '$(touch pwned)'", "command_not_granted"),
        ("git-upload-pack '`touch pwned`'", "command_not_granted"),
        ("git-upload-pack 'acme/site.git' 'x'\ntouch pwned", "command_not_granted"),
        ("git-upload-pack --help", "command_not_granted"),
        ("git -c core.pager=id upload-pack 'acme/site.git'", "command_not_granted"),
        ("git-lfs-authenticate acme/site.git download", "command_not_granted"),
        ("touch pwned", "command_not_granted"),
        ("cat ../client", "command_not_granted"),
    ] {
        let (status, said) = agent.ssh(&[], &[command]).await;
        assert_eq!(status, Some(128), "{command}: {said}");
        assert!(said.contains("ringfence: this is not granted (call "), "{command}: {said}");
        let intent = agent.last();
        assert_eq!((intent.decision, intent.reason.as_str()), (Outcome::Deny, reason), "{command}: {}", intent.why);
        assert_eq!(intent.git.unwrap().other.is_some(), reason == "command_not_granted");
    }
    // No shell, no terminal, no files, no way on.
    let (status, said) = agent.ssh(&["-T"], &[]).await;
    assert!(status == Some(128) && said.contains("only commands of git are granted here (call "), "{said}");
    let (_, said) = agent.ssh(&["-tt"], &[]).await;
    assert!(said.contains("PTY allocation request failed"), "{said}");
    let mut sftp = agent.command(Command::new("sftp"));
    let options: Vec<String> = agent.options().into_iter().map(|o| if o == "-p" { "-P".into() } else { o }).collect();
    sftp.args(options).args(["-b", "/dev/stdin"]).arg(format!("git@{GIT_HOST}")).stdin(Stdio::null());
    let (done, said) = run(sftp).await;
    assert!(!done && said.contains("only commands of git"), "{said}");
    let refused = |what: &str| {
        let told = |i: &CallIntent| i.git.as_ref().and_then(|git| git.other.clone());
        let found = agent.fence.log.intents().iter().filter_map(told).any(|other| other.starts_with(what));
        assert!(found, "{what} is not in the log");
    };
    ["shell", "pty-req", "subsystem sftp"].iter().for_each(|what| refused(what));
    // Connections through the host: to it, from it, and by name.
    let (_, said) = agent.ssh(&["-W", "127.0.0.1:22"], &[]).await;
    assert!(said.contains("administratively prohibited"), "{said}");
    let (_, said) = agent.ssh(&["-oExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"], &["git-upload-pack 'x'"]).await;
    assert!(said.contains("remote port forwarding failed"), "{said}");
    let (_, said) = agent.ssh(&["-oExitOnForwardFailure=yes", "-R", "/x:127.0.0.1:1"], &["git-upload-pack 'x'"]).await;
    assert!(said.contains("remote port forwarding failed"), "{said}");
    ["direct-tcpip 127.0.0.1:22", "tcpip-forward ", "streamlocal-forward /x"].iter().for_each(|what| refused(what));
    assert!(!host.sshd.log().contains("Accepted"), "the host heard nothing of it");
    assert!(agent.fence.log.intents().iter().all(|i| i.decision == Outcome::Deny));

    // What the gate is for: with the key in hand, the same words do it.
    let key = host.site.parent().unwrap().parent().unwrap().parent().unwrap().join("client");
    let mut direct = Command::new("ssh");
    direct.args(["-F", "/dev/null", "-oBatchMode=yes", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null"]);
    direct.arg("-i").arg(&key).args(["-p", &host.sshd.address().port().to_string(), "root@127.0.0.1"]);
    direct.arg("git-upload-pack 'acme/none' ; touch pwned").stdin(Stdio::null());
    run(direct).await;
    assert!(host.site.parent().unwrap().parent().unwrap().join("pwned").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_granted_by_itself() {
    let host = Host::start();
    sshd::git().arg("-C").arg(&host.site).args(["config", "uploadArchive.allowUnreachable", "true"]).status().unwrap();
    let agent = Agent::new(&host.config(vec![host.grant(&[Archive])])).await;
    let url = format!("git@{GIT_HOST}:acme/site.git");
    let (done, said) = agent.git(&["archive", "--remote", &url, "-o", "a.tar", "main"]).await;
    assert!(done, "{said}");
    assert!(memchr_of(&contents(agent.home.path()), b"this is acme/site.git").is_some());
    let (done, _) = agent.git(&["ls-remote", &url]).await;
    assert!(!done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_the_grant_does_not_name_is_shown_no_key() {
    let (host, other) = (Host::start(), Host::start());
    let fingerprint = |key: &str| {
        russh::keys::PublicKey::from_openssh(key).unwrap().fingerprint(russh::keys::HashAlg::Sha256).to_string()
    };
    let (own, ecdsa) = (host.sshd.host_key("ed25519").unwrap(), host.sshd.host_key("ecdsa").unwrap());
    let wrong = other.sshd.host_key("ed25519").unwrap();
    for (keys, good) in [
        (vec![own.clone()], true),
        (vec![fingerprint(&own)], true),
        (vec![ecdsa.clone()], true),
        (vec![wrong.clone(), own.clone()], true),
        (vec![wrong.clone()], false),
        (vec![fingerprint(&wrong)], false),
        (vec![other.sshd.host_key("ecdsa").unwrap()], false),
    ] {
        let before = host.sshd.log();
        let grant = change(host.grant(&[Fetch]), |rules| rules.host_keys = keys.clone());
        let agent = Agent::new(&host.config(vec![grant])).await;
        let (done, said) = agent.git(&["ls-remote", &format!("git@{GIT_HOST}:acme/site")]).await;
        assert_eq!(done, good, "{keys:?}: {said}");
        if !good {
            let error = agent.fence.log.outcome(0).await.error.unwrap();
            assert!(error.starts_with("host_key_unknown: the host has the key SHA256:"), "{error}");
            let said = host.sshd.log().split_off(before.len());
            assert!(!said.contains("publickey"), "it came to authentication: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_known_by_an_authority_s_word_for_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    sshd::key(&ca, "ed25519").unwrap();
    sshd::key(&folder.path().join("other"), "ed25519").unwrap();
    let public = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap().trim().to_owned();
    for (name, trusted, good) in
        [(GIT_HOST, "ca.pub", true), ("www.example.org", "ca.pub", false), (GIT_HOST, "other.pub", false)]
    {
        let files = tempfile::tempdir().unwrap();
        let certified = format!("HostCertificate {}/host_ed25519-cert.pub", files.path().display());
        // The server takes its certificate when it starts, and makes its key before.
        for kind in ["ed25519", "ecdsa"] {
            sshd::key(&files.path().join(format!("host_{kind}")), kind).unwrap();
        }
        let mut sign = Command::new("ssh-keygen");
        sign.args(["-q", "-h", "-I", "x", "-n", name, "-s"]).arg(&ca).arg(files.path().join("host_ed25519.pub"));
        assert!(sign.status().unwrap().success());
        let sshd = Sshd::start(files.path(), &certified).unwrap();
        sshd.repository("acme/site.git").unwrap();
        let grant = change(granted(sshd.address(), "", &[Fetch]), |rules| {
            rules.host_keys = Vec::new();
            rules.host_authorities = vec![public(trusted).split_whitespace().take(2).collect::<Vec<_>>().join(" ")];
        });
        let agent = Agent::new(&configured(vec![grant], &sshd.client_key().unwrap())).await;
        let (done, said) = agent.git(&["ls-remote", &format!("git@{GIT_HOST}:acme/site")]).await;
        assert_eq!(done, good, "{name} {trusted}: {said}");
        if !good {
            let error = agent.fence.log.outcome(0).await.error.unwrap();
            assert!(error.starts_with("host_key_unknown: the host's certificate"), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_wants_something_else_fails_the_command() {
    for (settings, want) in [
        ("PubkeyAuthentication no\nKbdInteractiveAuthentication yes", "auth_failed"),
        ("AuthenticationMethods publickey,keyboard-interactive\nKbdInteractiveAuthentication yes", "auth_failed"),
        ("Ciphers aes256-cbc,aes128-cbc", "ssh_failed"),
        ("KexAlgorithms diffie-hellman-group14-sha1,diffie-hellman-group14-sha256", "ssh_failed"),
        ("ForceCommand exit 3", "git_failed: exit status 3"),
        ("MaxSessions 0", "ssh_failed"),
    ] {
        let host = Host::with(settings);
        let agent = Agent::new(&host.config(vec![host.grant(&[Fetch])])).await;
        let (done, said) = agent.git(&["ls-remote", &format!("git@{GIT_HOST}:acme/site")]).await;
        let error = agent.fence.log.outcome(0).await.error.unwrap_or_default();
        assert!(!done && error.starts_with(want), "{settings}: {error}: {said}");
        assert!(!said.to_ascii_lowercase().contains("password"), "{said}");
    }
    // A banner is not led on, and one that does not end is not heard to its end.
    let banner = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(banner.path(), "BANNER\n").unwrap();
    let host = Host::with(&format!("Banner {}", banner.path().display()));
    let agent = Agent::new(&host.config(vec![host.grant(&[Fetch])])).await;
    let (done, said) = agent.git(&["ls-remote", &format!("git@{GIT_HOST}:acme/site")]).await;
    assert!(done && !said.contains("BANNER"), "{said}");
    for speech in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"x", b"\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let talking = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(speech).await.is_ok() {}
        });
        let agent =
            Agent::new(&host.config(vec![granted(address, &host.sshd.host_key("ed25519").unwrap(), &[Fetch])])).await;
        let (done, _) = agent.git(&["ls-remote", &format!("git@{GIT_HOST}:acme/site")]).await;
        let error = agent.fence.log.outcome(0).await.error.unwrap_or_default();
        assert!(!done && error.starts_with("ssh_failed"), "{error}");
        talking.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_policy_holds_for_commands_that_run() {
    let host = Host::start();
    let config = host.config(vec![host.grant(&[Fetch])]);
    let rail = |text: &str| {
        let mut policy = config.policy();
        policy.guardrails = vec![("org.cedar".into(), text.into())];
        policy
    };
    let mut elsewhere = config.policy();
    elsewhere.grants = vec![change(host.grant(&[Fetch]), |rules| rules.repositories = vec!["acme/other".into()])];
    let mut none = config.policy();
    none.grants = Vec::new();
    for (policy, goes_on) in [
        (config.policy(), true),
        (rail("forbid (principal, action == Action::\"ssh:push\", resource);"), true),
        (
            rail(
                "forbid (principal, action == Action::\"ssh:exec\", resource) when { context.repository like \"acme/*\" };",
            ),
            false,
        ),
        (
            rail("forbid (principal, action == Action::\"secret:use\", resource) when { context.scheme == \"ssh\" };"),
            false,
        ),
        (elsewhere, false),
        (none, false),
    ] {
        let agent = Agent::new(&config).await;
        // It waits for what the client wants, which never comes.
        let mut child = agent
            .ssh_command(&[], &["git-upload-pack 'acme/site'"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 4];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
        agent.fence.gate.reload(&policy).unwrap();
        if goes_on {
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(agent.fence.log.outcomes().is_empty());
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"0000").unwrap();
            assert!(tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap().success());
        } else {
            let error = agent.fence.log.outcome(0).await.error.unwrap();
            assert!(error.starts_with("revoked"), "{error}");
            assert!(!tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap().success());
            let (done, _) = agent.git(&["ls-remote", &format!("git@{GIT_HOST}:acme/site")]).await;
            assert!(!done);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_their_bytes_count_against_the_budget() {
    let host = Host::start();
    let with = |text: &str| GateConfig { budget: budget(text), ..host.config(vec![host.grant(&[Fetch])]) };
    let agent = Agent::behind(Fence::counting(&with("[budget]\nrequests_per_month = 1\n"), &ledger())).await;
    let url = format!("git@{GIT_HOST}:acme/site");
    assert!(agent.git(&["ls-remote", &url]).await.0);
    assert!(!agent.git(&["ls-remote", &url]).await.0);
    assert_eq!(agent.last().reason, "budget_exhausted");

    let noise: Vec<u8> = (0_u32..200_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let seed = host.site.parent().unwrap().parent().unwrap().parent().unwrap().join("seed");
    std::fs::write(seed.join("noise"), noise).unwrap();
    for arguments in [
        &["add", "noise"][..],
        &["commit", "-q", "-m", "noise"],
        &["push", "-q", "--force", host.site.to_str().unwrap(), "main"],
    ] {
        assert!(sshd::git().arg("-C").arg(&seed).args(arguments).status().unwrap().success());
    }
    let agent = Agent::behind(Fence::counting(&with("[budget]\nbytes_per_month = 65536\n"), &ledger())).await;
    let (done, said) = agent.git(&["clone", "-q", &url, "x"]).await;
    assert!(!done && said.contains("this was cut off (call "), "{said}");
    let outcome = agent.fence.log.outcome(0).await;
    assert!(outcome.error.unwrap().starts_with("budget_exhausted"));
    assert!(outcome.bytes_down < 200_000, "{}", outcome.bytes_down);
    // The same with room for it, in keys that change every few kilobytes.
    let agent = Agent::new(&host.config(vec![host.grant(&[Fetch])])).await;
    let rekeyed = format!("ssh {} -oRekeyLimit=16K", agent.options().join(" "));
    let mut command = agent.command(sshd::git());
    command.args(["clone", "-q", &url, "y"]).env("GIT_SSH_COMMAND", rekeyed);
    let (done, said) = run(command).await;
    assert!(done, "{said}");
    assert!(agent.home.path().join("y/noise").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placeholder_does_not_go_to_the_host() {
    let host = Host::start();
    let mut config = host.config(vec![host.grant(&[Fetch])]);
    config.credentials.extend(leases());
    let agent = Agent::new(&config).await;
    let (status, _) = agent.ssh(&[], &[&format!("git-upload-pack 'acme/{PLACEHOLDER}'")]).await;
    assert_eq!((status, agent.last().reason.as_str()), (Some(128), "placeholder_misdirected"));
    let mut child = agent
        .ssh_command(&[], &["git-upload-pack 'acme/site'"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), format!("0040want {PLACEHOLDER}").as_bytes()).unwrap();
    assert!(!tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap().success());
    let outcome = agent.fence.log.outcome(0).await;
    assert_eq!(outcome.findings, ["placeholder_misdirected"]);
}

/// A client that believes whoever answers.
struct Any;

impl client::Handler for Any {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

async fn session(at: SocketAddr) -> Option<client::Handle<Any>> {
    let config = Arc::new(client::Config::default());
    let mut session = client::connect(config, at, Any).await.ok()?;
    session.authenticate_none("x").await.ok()?.success().then_some(session)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_too_much_harms_nobody_else() {
    let host = Host::start();
    let agent = Agent::new(&host.config(vec![host.grant(&[Fetch])])).await;
    let url = format!("git@{GIT_HOST}:acme/site");
    // Channels of one session, each with a command that waits.
    let one = session(agent.at).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..MAX_CHANNELS {
        let channel = one.channel_open_session().await.unwrap();
        channel.exec(true, "git-upload-pack 'acme/site'").await.unwrap();
        open.push(channel);
    }
    assert!(one.channel_open_session().await.is_err(), "one more");
    for channel in &mut open {
        let heard = async { while !matches!(channel.wait().await, Some(ChannelMsg::Data { .. })) {} };
        tokio::time::timeout(Duration::from_secs(30), heard).await.unwrap();
    }
    // Sessions of one agent.
    let mut sessions = Vec::new();
    while sessions.len() < MAX_SESSIONS - 1 {
        sessions.push(session(agent.at).await.unwrap());
    }
    assert!(session(agent.at).await.is_none(), "one more");
    assert_eq!(agent.last().reason, "too_many_connections");
    sessions.clear();
    drop((open, one));
    // What is no SSH, or breaks off, or never ends.
    for speech in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-x\r\n\xff\xff\xff\xff\x00", b"SSH-2.0-x\r\n"] {
        let mut stream = TcpStream::connect(agent.at).await.unwrap();
        stream.write_all(speech).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut heard)).await.unwrap();
        assert!(heard.len() < 4096);
    }
    let mut endless = TcpStream::connect(agent.at).await.unwrap();
    let sent = async { while endless.write_all(&[b'x'; 4096]).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), sent).await.expect("a word that does not end is cut");
    // Data where a command was to be asked for.
    let flood = session(agent.at).await.unwrap();
    let mut channel = flood.channel_open_session().await.unwrap();
    channel.data_bytes(vec![b'x'; 32 * 1024]).await.unwrap();
    assert_eq!(status_of(&mut channel).await, Some(128));
    let others = wait_for(|| async { agent.git(&["ls-remote", &url]).await.0 });
    assert!(others.await, "others are served");
}

async fn wait_for<F: Future<Output = bool>>(mut done: impl FnMut() -> F) -> bool {
    for _ in 0..100 {
        if done().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_list_of_refs_is_cut_off() {
    let host = Host::start();
    let agent = Agent::new(&host.config(vec![host.grant(&[Push])])).await;
    let session = session(agent.at).await.unwrap();
    let mut channel = session.channel_open_session().await.unwrap();
    channel.exec(true, "git-receive-pack 'acme/site'").await.unwrap();
    let line = format!("0034shallow {}", "1".repeat(40));
    assert_eq!(line.len(), 0x34);
    let many = line.repeat(600);
    for _ in 0..10 {
        channel.data_bytes(many.clone().into_bytes()).await.unwrap();
    }
    assert_eq!(status_of(&mut channel).await, Some(128));
    assert_eq!(agent.last().reason, "push_not_understood");
}

async fn status_of(channel: &mut russh::Channel<client::Msg>) -> Option<u32> {
    let status = async {
        loop {
            if let ChannelMsg::ExitStatus { exit_status } = channel.wait().await? {
                return Some(exit_status);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), status).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_used_opens_no_gate() {
    let host = Host::start();
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, arguments: &[&str]| {
        let path = folder.path().join(name);
        let made = Command::new("ssh-keygen").args(["-q", "-f"]).arg(&path).args(arguments).status().unwrap();
        assert!(made.success());
        std::fs::read_to_string(path).unwrap()
    };
    for (key, want) in [
        (make("rsa", &["-t", "rsa", "-N", ""]), "neither Ed25519 nor ECDSA"),
        (make("locked", &["-t", "ed25519", "-N", "secret"]), "passphrase"),
        ("nonsense".to_owned(), "no private key"),
    ] {
        let config = configured(vec![host.grant(&[Fetch])], &key);
        let refused = ringfence_gate::Gate::open(&config, Arc::new(Log::default())).err().unwrap().to_string();
        assert!(refused.contains(want), "{refused}");
    }
    let ecdsa = make("ecdsa", &["-t", "ecdsa", "-N", ""]);
    let bad = change(host.grant(&[Fetch]), |rules| rules.host_keys = vec!["ssh-ed25519 AAAA".into()]);
    let refused = ringfence_gate::Gate::open(&configured(vec![bad], &ecdsa), Arc::new(Log::default())).err().unwrap();
    assert!(refused.to_string().contains("grant 1 says how its host is known"), "{refused}");
    let agent = Agent::new(&configured(vec![host.grant(&[Fetch])], &ecdsa)).await;
    let (done, _) = agent.git(&["ls-remote", &format!("git@{GIT_HOST}:acme/site")]).await;
    assert!(!done, "a key that the host does not know");
    assert_eq!(agent.fence.log.outcome(0).await.error.unwrap(), "auth_failed: the host does not take the key");
}
