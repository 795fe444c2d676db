//! What a supervisor remembers of its agents: one SQLite file in WAL mode.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use ringfence_fleet::api::State;
use ringfence_model::{AgentName, Explain, Fault, Manifest, SandboxId};
use rusqlite::{Connection, OptionalExtension, params};

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// SQLite refused.
    #[error("cannot use the supervisor's state")]
    Sqlite(#[from] rusqlite::Error),
    /// A row does not mean anything.
    #[error("the supervisor's state holds a broken row for `{0}`")]
    Row(String),
    /// All uid ranges are taken.
    #[error("no uid range is free for another agent")]
    Full,
}

impl Explain for DbError {
    fn code(&self) -> &'static str {
        match self {
            Self::Full => "state.full",
            Self::Row(_) => "state.row",
            Self::Sqlite(_) => "state.sqlite",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Full => Fault::Host,
            Self::Sqlite(error) if is_of_the_host(error) => Fault::Host,
            _ => Fault::Us,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Full => Some("remove agents that are not needed: `ringfence ps`, `ringfence down NAME`".into()),
            Self::Sqlite(error) if is_damaged(error) => {
                Some("put `state.db` back from a backup, or move it away and take the agents up again".into())
            }
            _ => Some("see whether the disk is full: `df -h`".into()),
        }
    }
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::*;
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Whether SQLite found the disk full, broken or closed to it, and not a mistake of ours.
fn is_of_the_host(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::*;
    matches!(
        error.sqlite_error_code(),
        Some(CannotOpen | DatabaseCorrupt | DiskFull | NotADatabase | PermissionDenied | ReadOnly | SystemIoFailure)
    )
}

/// An agent, as it is remembered.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its name.
    pub name: AgentName,
    /// Its uid range.
    pub slot: u32,
    /// Its folder.
    pub folder: PathBuf,
    /// Its manifest, understood.
    pub manifest: Manifest,
    /// Its image.
    pub image: String,
    /// Where it stands.
    pub state: State,
    /// Why.
    pub reason: Option<String>,
    /// Its last start.
    pub sandbox: Option<SandboxId>,
    /// When that was.
    pub since: Option<Timestamp>,
}

/// The state, open.
pub struct Db(Connection);

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS agent (
    name TEXT PRIMARY KEY,
    slot INTEGER NOT NULL UNIQUE,
    folder TEXT NOT NULL,
    manifest TEXT NOT NULL,
    image TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    sandbox TEXT,
    since TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
";

impl Db {
    /// Opens or begins the state at `path`.
    ///
    /// # Errors
    /// [`DbError::Sqlite`].
    pub fn open(path: &Path) -> Result<Self, DbError> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self(connection))
    }

    /// All agents, by name.
    ///
    /// # Errors
    /// [`DbError`].
    pub fn agents(&self) -> Result<Vec<Agent>, DbError> {
        let mut statement = self.0.prepare_cached("SELECT * FROM agent ORDER BY name")?;
        let rows = statement.query_map([], |row| Ok(Row::read(row)))?;
        rows.map(|row| row?.and_then(Row::understand)).collect()
    }

    /// One agent.
    ///
    /// # Errors
    /// [`DbError`].
    pub fn agent(&self, name: &AgentName) -> Result<Option<Agent>, DbError> {
        let mut statement = self.0.prepare_cached("SELECT * FROM agent WHERE name = ?1")?;
        let row = statement.query_row([name.as_str()], |row| Ok(Row::read(row))).optional()?;
        row.map(|row| row.and_then(Row::understand)).transpose()
    }

    /// Remembers an agent.
    ///
    /// # Errors
    /// [`DbError::Sqlite`].
    pub fn put(&self, agent: &Agent) -> Result<(), DbError> {
        let manifest = serde_json::to_string(&agent.manifest).map_err(|_| DbError::Row(agent.name.to_string()))?;
        // Not `OR REPLACE`, which would drop whoever has the same uid range.
        const PUT: &str =
            "INSERT INTO agent VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (name) DO UPDATE SET
            slot = ?2, folder = ?3, manifest = ?4, image = ?5, state = ?6, reason = ?7, sandbox = ?8, since = ?9";
        self.0.prepare_cached(PUT)?.execute(params![
            agent.name.as_str(),
            agent.slot,
            agent.folder.to_string_lossy(),
            manifest,
            agent.image,
            agent.state.word(),
            agent.reason,
            agent.sandbox.as_ref().map(SandboxId::as_str),
            agent.since.map(|t| t.to_string()),
        ])?;
        Ok(())
    }

    /// Forgets an agent.
    ///
    /// # Errors
    /// [`DbError::Sqlite`].
    pub fn remove(&self, name: &AgentName) -> Result<(), DbError> {
        self.0.execute("DELETE FROM agent WHERE name = ?1", [name.as_str()])?;
        Ok(())
    }

    /// The lowest uid range that no agent has.
    ///
    /// # Errors
    /// [`DbError::Full`] past `most`.
    pub fn free_slot(&self, taken: &[u32], most: u32) -> Result<u32, DbError> {
        let mut statement = self.0.prepare_cached("SELECT slot FROM agent")?;
        let mut slots: Vec<u32> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        slots.extend_from_slice(taken);
        (0..most).find(|slot| !slots.contains(slot)).ok_or(DbError::Full)
    }

    /// A fact by name.
    ///
    /// # Errors
    /// [`DbError::Sqlite`].
    pub fn fact(&self, name: &str) -> Result<Option<String>, DbError> {
        Ok(self.0.query_row("SELECT value FROM fact WHERE name = ?1", [name], |row| row.get(0)).optional()?)
    }

    /// Remembers a fact.
    ///
    /// # Errors
    /// [`DbError::Sqlite`].
    pub fn put_fact(&self, name: &str, value: &str) -> Result<(), DbError> {
        self.0.prepare_cached("INSERT OR REPLACE INTO fact VALUES (?1, ?2)")?.execute([name, value])?;
        Ok(())
    }
}

struct Row {
    name: String,
    slot: u32,
    folder: String,
    manifest: String,
    image: String,
    state: String,
    reason: Option<String>,
    sandbox: Option<String>,
    since: Option<String>,
}

impl Row {
    fn read(row: &rusqlite::Row<'_>) -> Result<Self, DbError> {
        Ok(Self {
            name: row.get(0)?,
            slot: row.get(1)?,
            folder: row.get(2)?,
            manifest: row.get(3)?,
            image: row.get(4)?,
            state: row.get(5)?,
            reason: row.get(6)?,
            sandbox: row.get(7)?,
            since: row.get(8)?,
        })
    }

    fn understand(self) -> Result<Agent, DbError> {
        let broken = || DbError::Row(self.name.clone());
        let text = |t: &str| serde_json::Value::String(t.into());
        Ok(Agent {
            name: self.name.parse().map_err(|_| broken())?,
            slot: self.slot,
            folder: PathBuf::from(&self.folder),
            manifest: serde_json::from_str(&self.manifest).map_err(|_| broken())?,
            image: self.image.clone(),
            state: serde_json::from_value(text(&self.state)).map_err(|_| broken())?,
            reason: self.reason.clone(),
            sandbox: self
                .sandbox
                .as_deref()
                .map(|id| serde_json::from_value(text(id)))
                .transpose()
                .map_err(|_| broken())?,
            since: self.since.as_deref().map(str::parse).transpose().map_err(|_| broken())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest::parse("[agent]\nname = \"a\"\nentry = [\"x\"]\n", &|_| Err(String::new())).unwrap()
    }

    #[test]
    fn agents_are_remembered_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let db = Db::open(&path).unwrap();
        assert_eq!(db.free_slot(&[], 2).unwrap(), 0);
        let agent = Agent {
            name: "a".parse().unwrap(),
            slot: 0,
            folder: "/x".into(),
            manifest: manifest(),
            image: "sha256:0".into(),
            state: State::Running,
            reason: None,
            sandbox: Some(SandboxId::from_parts(1, [2; 8])),
            since: Some(Timestamp::UNIX_EPOCH),
        };
        db.put(&agent).unwrap();
        drop(db);
        let db = Db::open(&path).unwrap();
        let found = db.agent(&agent.name).unwrap().unwrap();
        assert_eq!((found.state, found.sandbox, found.manifest), (State::Running, agent.sandbox.clone(), manifest()));
        assert_eq!(db.free_slot(&[], 2).unwrap(), 1);
        assert!(matches!(db.free_slot(&[1], 2), Err(DbError::Full)));
        let other = Agent { name: "b".parse().unwrap(), ..agent.clone() };
        assert!(db.put(&other).is_err(), "two agents never share a uid range");
        assert_eq!(db.agents().unwrap().len(), 1);
        db.remove(&agent.name).unwrap();
        assert!(db.agents().unwrap().is_empty());
        db.put_fact("size", "7").unwrap();
        assert_eq!(db.fact("size").unwrap().as_deref(), Some("7"));
    }
}
