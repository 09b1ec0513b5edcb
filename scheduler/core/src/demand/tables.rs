//! Owners, repositories, scopes, credentials, groups, lanes and units by number:
//! found by what they are, made when they are new.

use std::collections::BTreeSet;

use super::{
    Account, CredentialEntry, CredentialIx, Demand, Door, Group, GroupIx, GroupKey, Lane, LaneIx,
    Line, LineIx, NO_LANE, Owner, OwnerIx, ScopeEntry, ScopeIx, Tenant, TenantIx, Unit, UnitIx,
};
use crate::{
    feasible::ShapeIx,
    labels::Bits,
    model::{CredentialName, Priority, Repository, Scope},
    ordered::Ordered,
};

impl Demand {
    pub(crate) fn tenant(&mut self, folded: &str) -> TenantIx {
        if let Some(known) = self.tenant_ix.get(folded) {
            return *known;
        }
        let owner_name = folded.split('/').next().unwrap_or(folded);
        let owner = self.owner(owner_name);
        let ix = self.tenants.len() as TenantIx;
        self.tenants.push(Tenant {
            account: Account::new(folded.into()),
            owner,
            units: Default::default(),
            listed: Default::default(),
            parked: BTreeSet::new(),
        });
        self.tenant_ix.insert(folded.to_owned(), ix);
        ix
    }

    /// The repository's, found without making its name anew.
    pub(crate) fn tenant_of(&mut self, repository: &Repository) -> TenantIx {
        let mut name = std::mem::take(&mut self.name);
        repository.fold_into(&mut name);
        let ix = self.tenant(&name);
        self.name = name;
        ix
    }

    pub(crate) fn owner(&mut self, folded: &str) -> OwnerIx {
        if let Some(known) = self.owner_ix.get(folded) {
            return *known;
        }
        let ix = self.owners.len() as OwnerIx;
        self.owners.push(Owner {
            account: Account::new(folded.into()),
            order: Default::default(),
            listed: Default::default(),
            doors: Default::default(),
            parked: BTreeSet::new(),
        });
        self.owner_ix.insert(folded.to_owned(), ix);
        ix
    }

    pub(crate) fn known_tenant(&self, folded: &str) -> Option<&Tenant> {
        self.tenant_ix
            .get(folded)
            .map(|ix| &self.tenants[*ix as usize])
    }

    pub(crate) fn scope(&mut self, scope: &Scope) -> ScopeIx {
        if let Some(known) = self.scope_ix.get(scope) {
            return *known;
        }
        let ix = self.scopes.len() as ScopeIx;
        self.scopes.push(ScopeEntry {
            scope: scope.clone().into(),
            resting: false,
            parked: BTreeSet::new(),
            groups: Vec::new(),
            surplus: Ordered::default(),
            borrowing: false,
        });
        self.scope_ix.insert(scope.clone(), ix);
        ix
    }

    pub(crate) fn credential(&mut self, name: &CredentialName) -> CredentialIx {
        if let Some(known) = self.credential_ix.get(name) {
            return *known;
        }
        let ix = self.credentials.len() as CredentialIx;
        self.credentials.push(CredentialEntry {
            name: name.clone(),
            reserved: 0,
            available: 0,
            live: Bits::default(),
            lanes: Vec::new(),
        });
        self.credential_ix.insert(name.clone(), ix);
        ix
    }

    pub(crate) fn group(&mut self, key: &GroupKey<'_>) -> GroupIx {
        let scope = self.scope(key.scope);
        let credential = self.credential(key.credential);
        let place = (scope, key.signature, key.pool, credential);
        if let Some(known) = self.group_ix.get(&place) {
            return *known;
        }
        let lane = self.lane(credential, key.shape, key.priority);
        let ix = self.groups.len() as GroupIx;
        self.groups.push(Group {
            scope,
            signature: key.signature,
            pool: key.pool,
            credential,
            shape: key.shape,
            lane,
            runnable: 0,
            floor: 0,
            supply: 0,
            borrowed: 0,
            parked: BTreeSet::new(),
        });
        self.group_ix.insert(place, ix);
        self.scopes[scope as usize].groups.push(ix);
        ix
    }

    fn lane(&mut self, credential: CredentialIx, shape: ShapeIx, priority: Priority) -> LaneIx {
        let known = &mut self.credentials[credential as usize].lanes;
        if known.len() <= shape as usize {
            known.resize(shape as usize + 1, NO_LANE);
        }
        if known[shape as usize] != NO_LANE {
            return known[shape as usize];
        }
        let ix = self.lanes.len() as LaneIx;
        self.lanes.push(Lane {
            credential,
            shape,
            base: match priority {
                Priority::High => 0,
                Priority::Normal => 1,
                Priority::Low => 2,
            },
            specs: Vec::new(),
            bands: Default::default(),
            head: None,
        });
        self.credentials[credential as usize].lanes[shape as usize] = ix;
        ix
    }

    pub(crate) fn unit(&mut self, group: GroupIx, tenant: TenantIx) -> UnitIx {
        if let Some(known) = self.unit_ix.get(&(group, tenant)) {
            return *known;
        }
        let lane = self.groups[group as usize].lane;
        let owner = self.tenants[tenant as usize].owner;
        let line = self.line(lane, owner);
        let ix = self.units.len() as UnitIx;
        self.units.push(Unit {
            group,
            tenant,
            owner,
            line,
            jobs: Ordered::default(),
            named: None,
            cover: 0,
            served_at: 0,
            boost: 0,
            promote_at: None,
            parked: false,
            at: None,
        });
        self.unit_ix.insert((group, tenant), ix);
        ix
    }

    fn line(&mut self, lane: LaneIx, owner: OwnerIx) -> LineIx {
        if let Some(known) = self.line_ix.get(&(lane, owner)) {
            return *known;
        }
        let entry = &self.lanes[lane as usize];
        let ix = self.lines.len() as LineIx;
        self.lines.push(Line {
            lane,
            owner,
            door: Door {
                credential: entry.credential,
                shape: entry.shape,
            },
            base: entry.base,
            bands: Default::default(),
            listed: Default::default(),
        });
        self.line_ix.insert((lane, owner), ix);
        ix
    }
}
