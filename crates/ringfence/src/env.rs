//! Every environment variable that Ringfence reads, in one list.

/// A variable and what it is for.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub meaning: &'static str,
}

/// Where state lies.
pub const STATE: Variable =
    Variable { name: "RINGFENCE_STATE", meaning: "folder of images, state and audit log (default /var/lib/ringfence)" };
/// Where sockets lie.
pub const RUN: Variable =
    Variable { name: "RINGFENCE_RUN", meaning: "folder of sockets and mount points (default /run/ringfence)" };
/// Where guard-rails lie.
pub const POLICIES: Variable = Variable {
    name: "RINGFENCE_POLICIES",
    meaning: "folder of guard-rails, Cedar files (default /etc/ringfence/policies)",
};
/// Which uv.
pub const UV: Variable = Variable { name: "RINGFENCE_UV", meaning: "the `uv` program (default: found on PATH)" };
/// No colour.
pub const NO_COLOR: Variable = Variable { name: "NO_COLOR", meaning: "print without colour" };

/// All of them, for `--help`.
pub const ALL: [Variable; 5] = [STATE, RUN, POLICIES, UV, NO_COLOR];

/// Reads a variable of the list. An empty one counts as absent.
pub fn read(variable: Variable) -> Option<String> {
    std::env::var(variable.name).ok().filter(|v| !v.is_empty())
}
