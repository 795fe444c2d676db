//! Which answer belongs to which request.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::message::Id;

/// The requests of one side of a session that are not answered yet, with what the caller wants to know of each.
///
/// Both what is open and what is remembered of what was answered has a bound.
#[derive(Clone, Debug)]
pub struct Pending<T> {
    limit: usize,
    open: BTreeMap<Id, T>,
    /// The last ids that were answered, the latest last.
    answered: VecDeque<Id>,
    /// The same ids, to be found.
    known: BTreeSet<Id>,
}

/// Why an id cannot be what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum IdProblem {
    /// A request with this id is not answered yet.
    #[error("a request with this id is still open")]
    Duplicate,
    /// As many requests are open as may be.
    #[error("too many requests are open")]
    Full,
    /// A request with this id was answered already.
    #[error("the id of an answered request is used again")]
    Reused,
    /// No request with this id is open.
    #[error("an answer belongs to no request")]
    Unasked,
}

impl IdProblem {
    /// A stable code such as `mcp_id_reused`.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Duplicate => "mcp_id_duplicate",
            Self::Full => "mcp_id_full",
            Self::Reused => "mcp_id_reused",
            Self::Unasked => "mcp_id_unasked",
        }
    }
}

impl<T> Pending<T> {
    /// Begins a session with at most `limit` requests open at once, and as many remembered.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { limit, open: BTreeMap::new(), answered: VecDeque::new(), known: BTreeSet::new() }
    }

    /// Remembers a request.
    ///
    /// # Errors
    /// [`IdProblem::Duplicate`], [`IdProblem::Reused`] or [`IdProblem::Full`]; the request must not be sent on then,
    /// because nobody could say which answer is its.
    pub fn asked(&mut self, id: &Id, what: T) -> Result<(), IdProblem> {
        if self.open.contains_key(id) {
            return Err(IdProblem::Duplicate);
        }
        if self.known.contains(id) {
            return Err(IdProblem::Reused);
        }
        if self.open.len() >= self.limit {
            return Err(IdProblem::Full);
        }
        self.open.insert(id.clone(), what);
        Ok(())
    }

    /// Takes the request that an answer belongs to.
    ///
    /// # Errors
    /// [`IdProblem::Unasked`]; also for a second answer.
    pub fn answered(&mut self, id: &Id) -> Result<T, IdProblem> {
        let what = self.open.remove(id).ok_or(IdProblem::Unasked)?;
        if self.answered.len() >= self.limit
            && let Some(oldest) = self.answered.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.answered.push_back(id.clone());
        self.known.insert(id.clone());
        Ok(what)
    }

    /// The request with this id, if it is open.
    #[must_use]
    pub fn get(&self, id: &Id) -> Option<&T> {
        self.open.get(id)
    }

    /// Forgets a request that will not be answered, such as one whose connection broke; its id may be used again.
    pub fn forget(&mut self, id: &Id) -> Option<T> {
        self.open.remove(id)
    }

    /// How many requests are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether no request is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}
