//! Writes an inference down as a manifest for people.

use std::fmt::Write;

use toml_edit::Value;

use super::{Inference, Seen};

impl Inference {
    /// The text of a `ringfence.toml`.
    ///
    /// Grants are comments: what an agent may reach is for a person to say.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::from(
            "# What this agent is, what it needs and where it may call. Written by `ringfence init`; yours to change.\n\n",
        );
        self.agent(&mut out);
        self.image(&mut out);
        self.dependencies(&mut out);
        out.push_str("\n# [limits]\n# memory = \"1GiB\"\n# cpus = 1.0\n# disk = \"1GiB\"\n");
        if let Some(port) = self.port {
            let _ = write!(out, "\n[ingress]\nport = {port}\n");
        }
        self.grants(&mut out);
        self.credentials(&mut out);
        out
    }

    fn agent(&self, out: &mut String) {
        let _ = write!(
            out,
            "[agent]\nname = {}\nkind = {}\nentry = {}  # {}\n",
            text(self.name.as_str()),
            text(self.kind.word()),
            list(&self.entry),
            self.entry_seen
        );
        if !self.env.is_empty() {
            out.push_str("\n[agent.env]\n");
            for (name, value) in &self.env {
                let _ = writeln!(out, "{name} = {}", text(value));
            }
        }
        if !self.suggestions.settings.is_empty() {
            if self.env.is_empty() {
                out.push_str("\n# [agent.env]\n");
            }
            for setting in &self.suggestions.settings {
                let _ = writeln!(out, "# {} = \"\"  # read at {}", setting.name, places(&setting.seen));
            }
        }
    }

    fn image(&self, out: &mut String) {
        let Some(python) = &self.python else { return };
        let _ = write!(out, "\n[image]\npython = {}  # {}\n", text(&python.version), places(&python.seen));
        if let Some(note) = &python.note {
            let _ = writeln!(out, "# {}", comment(note));
        }
    }

    fn dependencies(&self, out: &mut String) {
        let file = self.declared.files.first();
        if file.is_none() && self.added.is_empty() && self.undeclared.is_empty() {
            return;
        }
        out.push_str("\n[dependencies]\n");
        if let Some(file) = file {
            let _ = writeln!(out, "files = {}", list(std::slice::from_ref(file)));
        }
        if !self.added.is_empty() {
            out.push_str("add = [\n");
            for added in &self.added {
                let _ = writeln!(out, "    {},  # {} at {}", text(&added.requirement), added.why, added.seen);
            }
            out.push_str("]\n");
        }
        for guess in &self.undeclared {
            let _ = writeln!(
                out,
                "# imported but not declared: {} at {}; add it unless another package brings it",
                comment(&guess.requirement),
                guess.seen
            );
        }
    }

    fn grants(&self, out: &mut String) {
        let grants = &self.suggestions.grants;
        out.push_str("\n# Where it may call: nowhere, until a grant says so.\n");
        if grants.is_empty() {
            out.push_str("#\n# [[grant]]\n# host = \"api.example.com\"\n# methods = [\"GET\"]\n");
        }
        for grant in grants {
            let _ = write!(out, "#\n# [[grant]]  # seen at {}\n# host = {}\n", places(&grant.seen), text(&grant.host));
            if grant.cleartext {
                out.push_str("# scheme = \"http\"\n");
            }
            if let Some(port) = grant.port {
                let _ = writeln!(out, "# port = {port}");
            }
            if !grant.methods.is_empty() {
                let _ = writeln!(out, "# methods = {}", list(&grant.methods));
            }
            if let Some(credential) = &grant.credential {
                let _ = writeln!(out, "# credential = {}", text(credential));
            }
            if grant.untrusted {
                out.push_str("# trust = \"untrusted\"\n");
            }
        }
    }

    fn credentials(&self, out: &mut String) {
        if self.suggestions.secrets.is_empty() {
            return;
        }
        out.push_str("\n# Secrets that the gate puts into calls; the agent sees a placeholder.\n");
        for secret in &self.suggestions.secrets {
            let _ = write!(
                out,
                "#\n# [credential.{}]  # seen at {}\n# from = {}\n",
                secret.name,
                places(&secret.seen),
                text(&format!("env:{}", secret.env))
            );
            match &secret.place {
                Some(place) => {
                    let _ = writeln!(out, "# {place}");
                }
                None => out.push_str("# header = \"Authorization: Bearer {}\"  # a guess\n"),
            }
        }
    }
}

/// At most three places.
fn places(seen: &[Seen]) -> String {
    let shown: Vec<String> = seen.iter().take(3).map(|s| comment(&s.to_string())).collect();
    let more = if seen.len() > 3 { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// File names come from the folder, and must not end a comment.
fn comment(text: &str) -> String {
    ringfence_model::report::one_line(text)
}

fn text(value: &str) -> String {
    Value::from(value).to_string().trim().to_owned()
}

fn list(values: &[String]) -> String {
    format!("[{}]", values.iter().map(|v| text(v)).collect::<Vec<_>>().join(", "))
}
