//! What a client asks to be run, understood; no I/O. Three commands of git with one path each, and nothing else.
//!
//! What is sent to the server is written anew from what was understood, so no character of the client's reaches a shell
//! but those that [`is_of_repository`] names, within quotes.
//!
//! # Source
//! `git_connect` and `sq_quote_buf` of git: a program, one space, the path in single quotes.

use ringfence_model::manifest::{GitOperation, MAX_GIT_NAME, SshRules, bare_name, is_of_repository};

/// The longest command that is looked at.
pub const MAX_COMMAND: usize = 2048;

/// A command of git.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// What it does.
    pub operation: GitOperation,
    /// The path as it is sent.
    path: String,
}

/// Programs by what they do.
const PROGRAMS: [(GitOperation, &str); 3] = [
    (GitOperation::Archive, "upload-archive"),
    (GitOperation::Fetch, "upload-pack"),
    (GitOperation::Push, "receive-pack"),
];

impl Command {
    /// Reads a command for a host of which a grant says `rules`.
    ///
    /// # Errors
    /// Why it is none that may be granted.
    pub fn read(text: &[u8], rules: &SshRules) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= MAX_COMMAND);
        let text = text.ok_or("it is too long or no text")?;
        let none = "it is no command of git, and nothing else is run";
        let named = text.strip_prefix("git-").or_else(|| text.strip_prefix("git ")).ok_or(none)?;
        let known = |(operation, program): &(GitOperation, &str)| {
            named.strip_prefix(program).and_then(|rest| rest.strip_prefix(' ')).map(|rest| (*operation, rest))
        };
        let (operation, argument) = PROGRAMS.iter().find_map(known).ok_or(none)?;
        let path = argument.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
        let path = path.ok_or("its path is not one argument in single quotes")?;
        Ok(Self { operation, path: path_of(path, rules)? })
    }

    /// The repository as it is decided about.
    #[must_use]
    pub fn repository(&self) -> &str {
        bare_name(&self.path).unwrap_or(&self.path)
    }

    /// What is sent.
    #[must_use]
    pub fn line(&self) -> String {
        let program = PROGRAMS.iter().find(|(operation, _)| *operation == self.operation).map_or("", |(_, name)| name);
        format!("git-{program} '{}'", self.path)
    }
}

/// A path in the one form that is decided and sent. Where a grant names no absolute paths, `/x` is `x`, as hosts have it
/// that keep repositories for many; `ssh://` has no way to write the other.
fn path_of(path: &str, rules: &SshRules) -> Result<String, &'static str> {
    if path.is_empty() || path.len() > MAX_GIT_NAME || !path.bytes().all(is_of_repository) {
        return Err("its path has a character that the gate does not let through, or is too long");
    }
    let (absolute, relative) = match path.strip_prefix('/') {
        Some(rest) => (rules.absolute(), rest),
        None => (false, path),
    };
    let relative = relative.strip_suffix('/').unwrap_or(relative);
    // An option to the program, if it were first.
    if relative.starts_with('-') {
        return Err("its path begins with `-`");
    }
    if relative.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err("its path has an empty part, `.` or `..`");
    }
    bare_name(relative).ok_or("its path can be read in two ways")?;
    Ok(if absolute { format!("/{relative}") } else { relative.to_owned() })
}

/// Whether a variable and its value may be set for a command: git's word for the version of its protocol.
#[must_use]
pub fn is_harmless(name: &str, value: &str) -> bool {
    name == "GIT_PROTOCOL" && ["version=0", "version=1", "version=2"].contains(&value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringfence_model::manifest::RefChange;

    use super::*;

    pub(super) fn rules(repositories: &[&str]) -> SshRules {
        SshRules {
            user: "git".into(),
            host_keys: Vec::new(),
            host_authorities: Vec::new(),
            repositories: repositories.iter().map(ToString::to_string).collect(),
            operations: GitOperation::ALL.to_vec(),
            refs: Vec::new(),
            changes: RefChange::ALL.to_vec(),
        }
    }

    fn read(text: &str) -> Result<Command, &'static str> {
        Command::read(text.as_bytes(), &rules(&["*"]))
    }

    #[test]
    fn git_s_own_commands_are_understood_and_written_anew() {
        for (text, operation, repository, line) in [
            ("git-upload-pack 'acme/site.git'", GitOperation::Fetch, "acme/site", "git-upload-pack 'acme/site.git'"),
            ("git upload-pack '/acme/site.git/'", GitOperation::Fetch, "acme/site", "git-upload-pack 'acme/site.git'"),
            ("git-receive-pack 'site'", GitOperation::Push, "site", "git-receive-pack 'site'"),
            ("git-upload-archive 'a/b_c+d.e'", GitOperation::Archive, "a/b_c+d.e", "git-upload-archive 'a/b_c+d.e'"),
        ] {
            let command = read(text).unwrap();
            assert_eq!(
                (command.operation, command.repository(), command.line().as_str()),
                (operation, repository, line)
            );
        }
        let absolute = |text: &str| Command::read(text.as_bytes(), &rules(&["/srv/git/*"])).unwrap().line();
        assert_eq!(absolute("git-upload-pack '/srv/git/x'"), "git-upload-pack '/srv/git/x'");
        assert_eq!(absolute("git-upload-pack 'srv/git/x'"), "git-upload-pack 'srv/git/x'");
    }

    #[test]
    fn whatever_else_a_shell_or_git_would_do_is_refused() {
        for text in [
            "",
            "sh",
            "git-shell",
            "git-upload-pack",
            "git-upload-pack ",
            "git-upload-pack x",
            "git-upload-pack ''",
            "git-upload-pack '/'",
            "git-upload-pack 'x' 'y'",
            "git-upload-pack 'x';id",
            "git-upload-pack 'x';'id'",
            "git-upload-pack 'x'$(id)'y'",
            "git-upload-pack 'x'\\''y'",
            "git-upload-pack 'x\\'",
            "git-upload-pack 'x'&'y'",
            "git-upload-pack 'x\ny'",
            "git-upload-pack 'x\0'",
            "git-upload-pack  'x'",
            "git-upload-pack --strict 'x'",
            "git-upload-pack '--upload-pack=id'",
            "git-upload-pack '-x'",
            "git-upload-pack '/-x'",
            "git-upload-pack '../x'",
            "git-upload-pack 'x/..'",
            "git-upload-pack 'x/./y'",
            "git-upload-pack 'x//y'",
            "git-upload-pack '//x'",
            "git-upload-pack 'x//'",
            "git-upload-pack '~/x'",
            "git-upload-pack '~root/x'",
            "git-upload-pack 'x%2e'",
            "git-upload-pack 'x y'",
            "git-upload-pack '*'",
            "git-upload-pack 'ä'",
            "git-upload-pack '.git'",
            "git-upload-pack 'x.git.git'",
            "git-upload-pack 'x'\n",
            " git-upload-pack 'x'",
            "git-upload-pack2 'x'",
            "git  upload-pack 'x'",
            "git -c x=y upload-pack 'x'",
            "git-lfs-authenticate 'x' upload",
            "scp -t x",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
        assert!(read(&format!("git-upload-pack '{}'", "x".repeat(MAX_GIT_NAME + 1))).is_err());
    }

    #[test]
    fn only_git_s_protocol_may_be_set() {
        assert!(is_harmless("GIT_PROTOCOL", "version=2"));
        for (name, value) in
            [("GIT_PROTOCOL", "version=2;x"), ("LANG", "C"), ("GIT_TRACE", "/x"), ("git_protocol", "version=2")]
        {
            assert!(!is_harmless(name, value), "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_is_plain_and_means_what_was_decided(
            path in "[-/.a'~ $;|&`\\\\\"gits\n]{0,24}", absolute in any::<bool>()
        ) {
            let rules = rules(if absolute { &["/*"] } else { &["*"] });
            if let Ok(command) = Command::read(format!("git-upload-pack '{path}'").as_bytes(), &rules) {
                let line = command.line();
                let sent = line.strip_prefix("git-upload-pack '").and_then(|rest| rest.strip_suffix('\'')).unwrap();
                prop_assert!(sent.bytes().all(is_of_repository));
                prop_assert!(!sent.contains("//") && !sent.split('/').any(|part| part == ".." || part == "."));
                prop_assert!(absolute || !sent.starts_with('/'));
                let again = Command::read(line.as_bytes(), &rules).unwrap();
                prop_assert_eq!(again.repository(), command.repository());
                prop_assert_eq!(again.line(), line);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Command::read(&bytes, &rules(&["*"]));
        }
    }
}
