//! Demand as counts per scope and signature, and whose turn it is.
//!
//! A **group** is what runners are counted for: scope, signature, pool and
//! credential. A **unit** is one repository's queue in a group. A **lane** holds
//! the units of one credential and shape, in fair order: band, owner's virtual
//! time, repository's virtual time, age. Virtual times only grow, so an entry's
//! stored key is a lower bound and is corrected when it comes first.

mod lines;
mod tables;
mod turns;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    fact::RunnerSpec,
    feasible::{PoolIx, ShapeIx},
    labels::{Bits, SignatureIx},
    model::{CredentialName, JobId, Priority, Scope, UtcMillis},
    ordered::Ordered,
    table::Table,
};

pub(crate) type UnitIx = u32;
pub(crate) type GroupIx = u32;
pub(crate) type LaneIx = u32;
type LineIx = u32;
pub(crate) type OwnerIx = u32;
pub(crate) type TenantIx = u32;
pub(crate) type ScopeIx = u32;
pub(crate) type CredentialIx = u32;

/// Virtual time one runner costs at weight 1.
pub(crate) const TURN: u64 = 1 << 20;

const BANDS: usize = 3;

/// No lane has this number.
const NO_LANE: LaneIx = LaneIx::MAX;

/// Up to so many open lanes are compared one by one.
const FEW_LANES: usize = 4;

/// One side of the fair share: an owner or a repository.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    /// Case-folded `owner` or `owner/name`.
    pub(crate) name: Arc<str>,
    pub(crate) virtual_time: u64,
    /// Of the one below it that was served last.
    pub(crate) served: u64,
    pub(crate) credit: u32,
    pub(crate) weight: u32,
    pub(crate) maximum: u32,
    /// Live runners charged to it.
    pub(crate) live: u32,
    /// Runnable jobs waiting.
    pub(crate) queued: u32,
}

impl Account {
    fn new(name: Arc<str>) -> Self {
        Self {
            name,
            virtual_time: 0,
            served: 0,
            credit: 0,
            weight: 1,
            maximum: 0,
            live: 0,
            queued: 0,
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.maximum > 0 && self.live >= self.maximum
    }

    fn charge(&mut self) {
        if self.credit > 0 {
            self.credit -= 1;
        } else {
            self.virtual_time += TURN / u64::from(self.weight.max(1));
        }
    }
}

#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) account: Account,
    /// Its repositories with units listed in a band, by virtual time.
    order: [Ordered<(u64, TenantIx)>; BANDS],
    /// Under which virtual time the fleet lists it.
    listed: [Option<u64>; BANDS],
    /// Doors before which it has units, by band.
    doors: [Doors; BANDS],
    /// Lines that rest until a runner of the owner ends.
    parked: BTreeSet<(LineIx, u8)>,
}

#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) account: Account,
    pub(crate) owner: OwnerIx,
    /// Its listed units, oldest first, and the doors they wait at.
    units: [Ordered<(UtcMillis, UnitIx, Door)>; BANDS],
    listed: [Option<u64>; BANDS],
    parked: BTreeSet<UnitIx>,
}

#[derive(Debug)]
pub(crate) struct ScopeEntry {
    pub(crate) scope: Arc<Scope>,
    pub(crate) resting: bool,
    parked: BTreeSet<UnitIx>,
    pub(crate) groups: Vec<GroupIx>,
    surplus: Ordered<GroupIx>,
    borrowing: bool,
}

#[derive(Debug)]
pub(crate) struct CredentialEntry {
    pub(crate) name: CredentialName,
    /// Runners placed whose registration GitHub has not answered.
    pub(crate) reserved: u32,
    /// How many more may be reserved in this step.
    pub(crate) available: u32,
    /// Shapes whose lane has somebody listed.
    live: Bits,
    /// By shape; `NO_LANE` where nobody asked yet.
    lanes: Vec<LaneIx>,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) scope: ScopeIx,
    pub(crate) signature: SignatureIx,
    pub(crate) pool: PoolIx,
    pub(crate) credential: CredentialIx,
    pub(crate) shape: ShapeIx,
    pub(crate) lane: LaneIx,
    /// Runnable queued jobs.
    pub(crate) runnable: u32,
    pub(crate) floor: u32,
    /// Runners reserved, registering, starting or idle.
    pub(crate) supply: u32,
    /// Surplus runners of wider groups that will take jobs of this one.
    pub(crate) borrowed: u32,
    parked: BTreeSet<UnitIx>,
}

impl Group {
    /// Jobs no runner is on its way for.
    pub(crate) fn need(&self) -> u32 {
        self.runnable.saturating_sub(self.supply + self.borrowed)
    }

    pub(crate) fn floor_need(&self) -> u32 {
        (self.runnable + self.floor).saturating_sub(self.supply + self.borrowed)
    }

    fn surplus(&self) -> u32 {
        self.supply.saturating_sub(self.runnable + self.floor)
    }
}

#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) group: GroupIx,
    pub(crate) tenant: TenantIx,
    owner: OwnerIx,
    line: LineIx,
    /// Oldest first.
    pub(crate) jobs: Ordered<(UtcMillis, JobId)>,
    /// The job that the latest runner was placed in the name of. GitHub gives
    /// out jobs as it likes; this only keeps each job's trace its own.
    pub(crate) named: Option<(UtcMillis, JobId)>,
    /// Runners on their way in this repository's name.
    pub(crate) cover: u32,
    served_at: UtcMillis,
    /// Bands gained by waiting.
    boost: u8,
    promote_at: Option<UtcMillis>,
    parked: bool,
    at: Option<Place>,
}

impl Unit {
    /// The oldest job in whose name no runner was placed yet; after the
    /// newest, the oldest again.
    pub(crate) fn next_job(&self) -> Option<(UtcMillis, JobId)> {
        let after =
            |(since, JobId(id))| self.jobs.at_or_after((since, JobId(id.saturating_add(1))));
        let fresh = self.named.and_then(after);
        fresh.or_else(|| self.jobs.first())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    band: u8,
    virtual_time: u64,
    since: UtcMillis,
}

/// An owner's units in a lane.
#[derive(Debug)]
struct Line {
    lane: LaneIx,
    owner: OwnerIx,
    door: Door,
    base: u8,
    bands: [Ordered<(u64, UtcMillis, UnitIx)>; BANDS],
    /// Under which virtual time the lane lists this owner.
    listed: [Option<u64>; BANDS],
}

/// What a unit waits for: room for a shape, and a credential that may register.
/// There is one lane for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Door {
    credential: CredentialIx,
    shape: ShapeIx,
}

/// A set of doors: shapes, by credential.
#[derive(Clone, Debug, Default)]
struct Doors(Vec<Bits>);

impl Doors {
    fn insert(&mut self, door: Door) {
        let at = door.credential as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, Bits::default());
        }
        self.0[at].insert(door.shape);
    }

    fn remove(&mut self, door: Door) {
        if let Some(shapes) = self.0.get_mut(door.credential as usize) {
            shapes.remove(door.shape);
        }
    }

    fn contains(&self, door: Door) -> bool {
        self.0
            .get(door.credential as usize)
            .is_some_and(|shapes| shapes.contains(door.shape))
    }

    fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a.meets(b))
    }
}

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) credential: CredentialIx,
    pub(crate) shape: ShapeIx,
    /// 0 is the highest band: the base of the pool's priority.
    base: u8,
    /// What its runners are made from, one for each platform they are placed on.
    pub(crate) specs: Vec<Arc<RunnerSpec>>,
    bands: [Ordered<(u64, OwnerIx, LineIx)>; BANDS],
    head: Option<Head>,
}

/// Whose turn comes first: band, owner's and repository's virtual time, age, lane.
type Turn = (u8, u64, u64, UtcMillis, LaneIx);

#[derive(Clone, Copy, Debug)]
struct Head {
    band: u8,
    owner: OwnerIx,
    tenant: TenantIx,
    unit: UnitIx,
    since: UtcMillis,
    /// Lower bound of the next owner's and of the next repository's virtual time.
    owner_limit: u64,
    tenant_limit: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Demand {
    /// Virtual time of the owner served last.
    pub(crate) served: u64,
    pub(crate) owners: Vec<Owner>,
    owner_ix: Table<String, OwnerIx>,
    pub(crate) tenants: Vec<Tenant>,
    tenant_ix: Table<String, TenantIx>,
    pub(crate) scopes: Vec<ScopeEntry>,
    scope_ix: Table<Scope, ScopeIx>,
    pub(crate) credentials: Vec<CredentialEntry>,
    credential_ix: BTreeMap<CredentialName, CredentialIx>,
    pub(crate) groups: Vec<Group>,
    group_ix: Table<(ScopeIx, SignatureIx, PoolIx, CredentialIx), GroupIx>,
    pub(crate) units: Vec<Unit>,
    unit_ix: Table<(GroupIx, TenantIx), UnitIx>,
    pub(crate) lanes: Vec<Lane>,
    lines: Vec<Line>,
    line_ix: Table<(LaneIx, OwnerIx), LineIx>,
    /// Owners with units listed in a band, by virtual time.
    order: [Ordered<(u64, OwnerIx)>; BANDS],
    /// A repository's name while it is looked up.
    name: String,
    /// Doors that are open now, while picking.
    open: Doors,
    promotions: BTreeSet<(UtcMillis, UnitIx)>,
    pub(crate) routes: Table<Route, Option<UnitIx>>,
    pub(crate) floors: Vec<GroupIx>,
    /// Scopes whose surplus must be shared anew.
    lending: BTreeSet<ScopeIx>,
    pub(crate) ageing_ms: u64,
}

/// All of a job that decides in which queue it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Route {
    pub(crate) tenant: TenantIx,
    pub(crate) signature: SignatureIx,
    pub(crate) scope: ScopeIx,
    pub(crate) credential: CredentialIx,
    /// Visibility of the repository and source of the code.
    pub(crate) admission: u8,
}

/// What a group is made from.
pub(crate) struct GroupKey<'a> {
    pub(crate) scope: &'a Scope,
    pub(crate) signature: SignatureIx,
    pub(crate) pool: PoolIx,
    pub(crate) credential: &'a CredentialName,
    pub(crate) shape: ShapeIx,
    pub(crate) priority: Priority,
}

impl Demand {
    /// Empty but for what the fair share remembers.
    pub(crate) fn emptied(&mut self, ageing_ms: u64) -> Self {
        let mut fresh = Self {
            served: self.served,
            owners: std::mem::take(&mut self.owners),
            owner_ix: std::mem::take(&mut self.owner_ix),
            tenants: std::mem::take(&mut self.tenants),
            tenant_ix: std::mem::take(&mut self.tenant_ix),
            ageing_ms,
            ..Self::default()
        };
        for owner in &mut fresh.owners {
            owner.parked.clear();
            owner.order = Default::default();
            owner.listed = Default::default();
            owner.doors = Default::default();
            owner.account.live = 0;
            owner.account.queued = 0;
        }
        for tenant in &mut fresh.tenants {
            tenant.parked.clear();
            tenant.units = Default::default();
            tenant.listed = Default::default();
            tenant.account.live = 0;
            tenant.account.queued = 0;
        }
        fresh
    }

    pub(crate) fn wipe_shares(&mut self) {
        let owners = self.owners.iter_mut().map(|owner| &mut owner.account);
        let tenants = self.tenants.iter_mut().map(|tenant| &mut tenant.account);
        for account in owners.chain(tenants) {
            account.virtual_time = 0;
            account.served = 0;
            account.credit = 0;
        }
    }

    /// `woken`: the job is new to the queue, not merely listed again.
    pub(crate) fn add_job(&mut self, unit: UnitIx, job: (UtcMillis, JobId), woken: bool) {
        let entry = &mut self.units[unit as usize];
        if !entry.jobs.insert(job) {
            return;
        }
        let (group, tenant, owner) = (entry.group, entry.tenant, entry.owner);
        let owner_entry = &mut self.owners[owner as usize].account;
        owner_entry.queued += 1;
        if woken && owner_entry.queued == 1 {
            owner_entry.virtual_time = owner_entry.virtual_time.max(self.served);
        }
        let floor = owner_entry.served;
        let account = &mut self.tenants[tenant as usize].account;
        account.queued += 1;
        if woken && account.queued == 1 {
            account.virtual_time = account.virtual_time.max(floor);
        }
        self.groups[group as usize].runnable += 1;
        self.settle(unit);
        self.rebalance(group);
    }

    pub(crate) fn remove_job(&mut self, unit: UnitIx, job: (UtcMillis, JobId)) {
        let entry = &mut self.units[unit as usize];
        if !entry.jobs.remove(job) {
            return;
        }
        let (group, tenant, owner) = (entry.group, entry.tenant, entry.owner);
        self.owners[owner as usize].account.queued -= 1;
        self.tenants[tenant as usize].account.queued -= 1;
        self.groups[group as usize].runnable -= 1;
        self.settle(unit);
        self.rebalance(group);
    }

    pub(crate) fn add_supply(&mut self, group: GroupIx, cover: Option<UnitIx>) {
        self.groups[group as usize].supply += 1;
        if let Some(unit) = cover {
            self.units[unit as usize].cover += 1;
            self.settle(unit);
        }
        self.rebalance(group);
    }

    pub(crate) fn remove_supply(&mut self, group: GroupIx, cover: Option<UnitIx>) {
        self.groups[group as usize].supply -= 1;
        if let Some(unit) = cover {
            self.units[unit as usize].cover -= 1;
            self.settle(unit);
        }
        self.rebalance(group);
    }

    pub(crate) fn set_floor(&mut self, group: GroupIx, floor: u32) {
        self.groups[group as usize].floor = floor;
        if floor > 0 && !self.floors.contains(&group) {
            self.floors.push(group);
        }
        self.rebalance(group);
    }

    /// A runner was placed in this repository's name.
    pub(crate) fn serve(&mut self, unit: Option<UnitIx>, tenant: TenantIx, at: UtcMillis) {
        if let Some(unit) = unit {
            let entry = &mut self.units[unit as usize];
            entry.served_at = at;
            if std::mem::take(&mut entry.boost) > 0 {
                self.settle(unit);
            }
        }
        self.charge(tenant);
        self.add_live(tenant);
    }

    pub(crate) fn charge(&mut self, tenant: TenantIx) {
        let entry = &mut self.tenants[tenant as usize];
        let owner = &mut self.owners[entry.owner as usize].account;
        self.served = self.served.max(owner.virtual_time);
        owner.served = owner.served.max(entry.account.virtual_time);
        owner.charge();
        entry.account.charge();
    }

    /// A runner placed in its name served somebody else.
    pub(crate) fn give_credit(&mut self, tenant: TenantIx) {
        let entry = &mut self.tenants[tenant as usize];
        entry.account.credit += 1;
        self.owners[entry.owner as usize].account.credit += 1;
    }

    pub(crate) fn add_live(&mut self, tenant: TenantIx) {
        let entry = &mut self.tenants[tenant as usize];
        entry.account.live += 1;
        self.owners[entry.owner as usize].account.live += 1;
    }

    pub(crate) fn remove_live(&mut self, tenant: TenantIx) {
        let entry = &mut self.tenants[tenant as usize];
        entry.account.live -= 1;
        let owner = entry.owner;
        self.owners[owner as usize].account.live -= 1;
        self.unpark_tenant(tenant);
        self.unpark_owner(owner);
    }

    pub(crate) fn unpark_tenant(&mut self, tenant: TenantIx) {
        if !self.tenants[tenant as usize].account.is_full() {
            let parked = std::mem::take(&mut self.tenants[tenant as usize].parked);
            self.unpark(parked);
        }
    }

    pub(crate) fn unpark_owner(&mut self, owner: OwnerIx) {
        if self.owners[owner as usize].account.is_full() {
            return;
        }
        let parked = std::mem::take(&mut self.owners[owner as usize].parked);
        let time = self.owners[owner as usize].account.virtual_time;
        for (line, band) in parked {
            self.list_owner(line, band, time);
        }
    }

    pub(crate) fn set_resting(&mut self, scope: ScopeIx, resting: bool) {
        let entry = &mut self.scopes[scope as usize];
        entry.resting = resting;
        if !resting {
            let parked = std::mem::take(&mut entry.parked);
            self.unpark(parked);
        }
    }

    fn unpark(&mut self, units: BTreeSet<UnitIx>) {
        for unit in units {
            self.units[unit as usize].parked = false;
            self.settle(unit);
        }
    }

    /// Counts of a group changed: surplus is lent to narrower groups of its scope,
    /// and whoever waited for the group to need a runner is listed again.
    fn rebalance(&mut self, group: GroupIx) {
        let entry = &self.groups[group as usize];
        let scope = entry.scope;
        let surplus = entry.surplus() > 0;
        let scope_entry = &mut self.scopes[scope as usize];
        if surplus {
            scope_entry.surplus.insert(group);
        } else if !scope_entry.surplus.is_empty() {
            scope_entry.surplus.remove(group);
        }
        if scope_entry.borrowing || (!scope_entry.surplus.is_empty()) {
            self.needs_lending(scope);
        }
        self.wake_group(group);
    }

    fn needs_lending(&mut self, scope: ScopeIx) {
        self.lending.insert(scope);
    }

    fn wake_group(&mut self, group: GroupIx) {
        let entry = &mut self.groups[group as usize];
        if entry.need() > 0 && !entry.parked.is_empty() {
            let parked = std::mem::take(&mut entry.parked);
            self.unpark(parked);
        }
    }

    /// Shares the surplus of every scope whose counts changed. `lends(a, b)`: a
    /// runner of group a takes jobs of group b.
    pub(crate) fn lend(&mut self, lends: impl Fn(&Group, &Group) -> bool) {
        for scope in std::mem::take(&mut self.lending) {
            let members = self.scopes[scope as usize].groups.clone();
            for group in &members {
                self.groups[*group as usize].borrowed = 0;
            }
            let mut borrowing = false;
            let lenders: Vec<GroupIx> = self.scopes[scope as usize].surplus.iter().collect();
            for lender in lenders {
                let mut left = self.groups[lender as usize].surplus();
                for borrower in &members {
                    let need = self.groups[*borrower as usize].need();
                    if left == 0 {
                        break;
                    }
                    if need == 0
                        || *borrower == lender
                        || !lends(
                            &self.groups[lender as usize],
                            &self.groups[*borrower as usize],
                        )
                    {
                        continue;
                    }
                    let lent = need.min(left);
                    left -= lent;
                    self.groups[*borrower as usize].borrowed += lent;
                    borrowing = true;
                }
            }
            self.scopes[scope as usize].borrowing = borrowing;
            for group in members {
                self.wake_group(group);
            }
        }
    }
}
