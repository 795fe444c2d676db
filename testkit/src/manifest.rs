//! An example's own manifest, with its upstreams on this machine. Nothing else of it is changed.

use std::net::SocketAddr;
use std::path::Path;

use toml_edit::{DocumentMut, Item, Table, value};

/// Where a granted host is played.
pub struct Played {
    /// The host, as the manifest names it.
    pub host: &'static str,
    /// Where.
    pub address: SocketAddr,
}

/// The text of an example's manifest.
///
/// # Errors
/// In words, if it cannot be read.
pub fn read(example: &Path) -> Result<String, String> {
    let path = example.join("ringfence.toml");
    std::fs::read_to_string(&path).map_err(|e| format!("cannot read `{}`: {e}", path.display()))
}

/// The name of an example's agent.
///
/// # Errors
/// In words, if the manifest has none.
pub fn agent_of(example: &Path) -> Result<String, String> {
    let document = parse(&read(example)?)?;
    let name = document.get("agent").and_then(|agent| agent.get("name")).and_then(Item::as_str);
    name.map(str::to_owned).ok_or_else(|| "the example's manifest has no name below `[agent]`".into())
}

/// The manifest with `connect_to` and `ca` in the grants of what is played.
///
/// # Errors
/// In words, if the manifest cannot be read, or grants nothing of what is played.
pub fn derive(text: &str, played: &[Played], ca: &Path) -> Result<String, String> {
    let ca = ca.to_str().ok_or_else(|| format!("`{}` is not a text", ca.display()))?;
    let mut document = parse(text)?;
    for Played { host, address } in played {
        let lead = |item: Option<&mut Item>| {
            let grants = item.and_then(Item::as_array_of_tables_mut).into_iter().flat_map(|grants| grants.iter_mut());
            let led = grants.filter(|grant| names(grant, host)).map(|grant| {
                grant.insert("connect_to", value(address.to_string()));
                // SSH has none: the grant itself names the host's key.
                if grant.get("protocol").and_then(Item::as_str) != Some("ssh") {
                    grant.insert("ca", value(ca));
                }
            });
            led.count()
        };
        let mut changed = lead(document.get_mut("grant"));
        let servers = document.get_mut("mcp").and_then(Item::as_table_like_mut);
        for (_, server) in servers.into_iter().flat_map(|servers| servers.iter_mut()) {
            changed += lead(server.get_mut("grant"));
        }
        if changed == 0 {
            return Err(format!("the example's manifest grants no `{host}`"));
        }
    }
    Ok(document.to_string())
}

fn names(grant: &Table, host: &str) -> bool {
    grant.get("host").and_then(Item::as_str) == Some(host)
}

fn parse(text: &str) -> Result<DocumentMut, String> {
    text.parse().map_err(|e| format!("cannot read the example's manifest: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_grants_of_what_is_played_change() {
        let text = "# mine\n[agent]\nname = \"a\"\n\n[[grant]]\nhost = \"x.example\"\nmethods = [\"GET\"]\n\n\
                    [[grant]]\nhost = \"y.example\"\n\n[ingress]\nport = 8501\n";
        let played = Played { host: "x.example", address: ([127, 0, 0, 1], 4433).into() };
        let derived = derive(text, &[played], Path::new("/tmp/ca.pem")).unwrap();
        let want = text.replace(
            "methods = [\"GET\"]\n",
            "methods = [\"GET\"]\nconnect_to = \"127.0.0.1:4433\"\nca = \"/tmp/ca.pem\"\n",
        );
        assert_eq!(derived, want);
        let missing = Played { host: "z.example", address: ([127, 0, 0, 1], 4433).into() };
        assert!(derive(text, &[missing], Path::new("/tmp/ca.pem")).is_err());
    }
}
