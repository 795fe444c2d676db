//! Picks the rules that can matter for an action and a host.
//!
//! Cedar's cost is in proportion to the number of rules, so every set that a request can need is put
//! together when the policy is compiled: one for each host or suffix that a rule names, and one for all
//! other hosts. A property test holds the answer equal to that of all rules.

use std::collections::{BTreeMap, HashMap};

use cedar_policy::{ActionConstraint, PolicySet, PolicySetError, PrincipalConstraint, ResourceConstraint};
use ringfence_model::{HostName, HostPattern};

use crate::compile::{Action, Names};

/// Where a rule can matter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct RuleAt(usize);

/// Prepared sets of rules by action and host.
#[derive(Default)]
pub(crate) struct Index {
    rules: Vec<cedar_policy::Policy>,
    open: [Shelf; Action::ALL.len()],
    sealed: [Sealed; Action::ALL.len()],
}

/// Rules of one action by what they say about the host.
#[derive(Default)]
struct Shelf {
    any: Vec<RuleAt>,
    exact: BTreeMap<String, Vec<RuleAt>>,
    below: BTreeMap<String, Vec<RuleAt>>,
}

#[derive(Default)]
struct Sealed {
    any: PolicySet,
    exact: HashMap<String, PolicySet>,
    /// By suffix; the longest suffix of a name decides, and its set holds the shorter ones' rules too.
    below: HashMap<String, PolicySet>,
}

impl Index {
    /// Adds a rule that matters for these actions, and for these hosts or for all.
    pub(crate) fn add(&mut self, actions: &[Action], host: Option<&HostPattern>, rule: cedar_policy::Policy) {
        let at = RuleAt(self.rules.len());
        self.rules.push(rule);
        for action in actions {
            let Some(shelf) = self.open.get_mut(action.slot()) else { continue };
            match host {
                None => shelf.any.push(at),
                Some(HostPattern::Below(suffix)) => shelf.below.entry(suffix.clone()).or_default().push(at),
                Some(HostPattern::Exact(host)) => shelf.exact.entry(host.to_string()).or_default().push(at),
            }
        }
    }

    /// Adds a guard-rail by what its scope says; whatever the scope leaves open counts as "can matter".
    pub(crate) fn add_guard_rail(&mut self, names: &Names, rule: cedar_policy::Policy) {
        if matches!(rule.principal_constraint(), PrincipalConstraint::Eq(other) if other != names.agent) {
            return;
        }
        let actions: Vec<Action> = match rule.action_constraint() {
            ActionConstraint::Any => Action::ALL.to_vec(),
            // Actions have no groups in the schema, so `in` is equality.
            ActionConstraint::In(some) => {
                Action::ALL.into_iter().filter(|a| some.contains(&names.action(*a))).collect()
            }
            ActionConstraint::Eq(one) => Action::ALL.into_iter().filter(|a| one == names.action(*a)).collect(),
        };
        // A host that does not parse equals no request's host, but then nothing is lost by asking.
        let host = match rule.resource_constraint() {
            ResourceConstraint::Eq(host) => {
                let text: &str = host.id().as_ref();
                text.parse::<HostName>().ok().filter(|parsed| parsed.to_string() == text).map(HostPattern::Exact)
            }
            _ => None,
        };
        self.add(&actions, host.as_ref(), rule);
    }

    /// Puts the sets together.
    pub(crate) fn seal(&mut self) -> Result<(), Box<PolicySetError>> {
        for (shelf, sealed) in self.open.iter().zip(&mut self.sealed) {
            let set = |parts: &[&[RuleAt]]| {
                let mut set = PolicySet::new();
                for at in parts.iter().copied().flatten() {
                    if let Some(rule) = self.rules.get(at.0) {
                        set.add(rule.clone()).map_err(Box::new)?;
                    }
                }
                Ok::<_, Box<PolicySetError>>(set)
            };
            sealed.any = set(&[&shelf.any])?;
            for suffix in shelf.below.keys() {
                let mut parts = vec![shelf.any.as_slice()];
                parts.extend(
                    std::iter::once(suffix.as_str())
                        .chain(parents(suffix))
                        .filter_map(|s| shelf.below.get(s))
                        .map(Vec::as_slice),
                );
                sealed.below.insert(suffix.clone(), set(&parts)?);
            }
            for (host, own) in &shelf.exact {
                let mut parts = vec![shelf.any.as_slice(), own.as_slice()];
                parts.extend(parents(host).filter_map(|s| shelf.below.get(s)).map(Vec::as_slice));
                sealed.exact.insert(host.clone(), set(&parts)?);
            }
        }
        self.open = Default::default();
        self.rules = Vec::new();
        Ok(())
    }

    /// The rules that can matter.
    pub(crate) fn slice(&self, action: Action, host: &HostName, text: &str) -> Option<&PolicySet> {
        let sealed = self.sealed.get(action.slot())?;
        if let Some(set) = sealed.exact.get(text) {
            return Some(set);
        }
        if sealed.below.is_empty() || host.name().is_none() {
            return Some(&sealed.any);
        }
        Some(parents(text).find_map(|suffix| sealed.below.get(suffix)).unwrap_or(&sealed.any))
    }
}

/// `a.b.c` → `b.c`, `c`.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(name.split_once('.').map(|(_, rest)| rest), |rest| rest.split_once('.').map(|(_, r)| r))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_of_a_name() {
        assert_eq!(parents("a.b.c").collect::<Vec<_>>(), ["b.c", "c"]);
        assert_eq!(parents("a").count(), 0);
    }
}
