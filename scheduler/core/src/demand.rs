//! Demand as counts per scope and signature, and whose turn it is.
//!
//! A **group** is what runners are counted for: scope, signature, pool and
//! credential. A **unit** is one repository's queue in a group. A **lane** holds
//! the units of one credential and shape, in fair order: band, owner's virtual
//! time, repository's virtual time, age. Virtual times only grow, so an entry's
//! stored key is a lower bound and is corrected when it comes first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    fact::RunnerSpec,
    feasible::{PoolIx, ShapeIx},
    labels::{Bits, SignatureIx},
    model::{CredentialName, JobId, Priority, Repository, Scope, UtcMillis},
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
    pub(crate) scope: Scope,
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
    lane: LaneIx,
    /// What its runners are made from, one for each platform they are placed on.
    pub(crate) specs: Vec<Arc<RunnerSpec>>,
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
        let after = |(since, JobId(id))| self.jobs.at_or_after((since, JobId(id + 1)));
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
            scope: scope.clone(),
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
            specs: Vec::new(),
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

    /// Lists the unit in its lane exactly while it waits for a runner.
    fn settle(&mut self, unit: UnitIx) {
        let entry = &self.units[unit as usize];
        let waits = !entry.parked && entry.jobs.len() > entry.cover as usize;
        let place = match entry.jobs.first() {
            Some((since, _)) if waits => Some(Place {
                band: self.lines[entry.line as usize]
                    .base
                    .saturating_sub(entry.boost),
                virtual_time: entry.at.map_or_else(
                    || self.tenants[entry.tenant as usize].account.virtual_time,
                    |at| at.virtual_time,
                ),
                since,
            }),
            _ => None,
        };
        if entry.at == place {
            return;
        }
        if let Some(old) = entry.at {
            self.unlist(unit, old);
        }
        self.units[unit as usize].at = place;
        if let Some(new) = place {
            self.list(unit, new);
            if new.band > 0 && self.ageing_ms > 0 {
                self.watch_age(unit, new.since);
            }
        }
    }

    fn watch_age(&mut self, unit: UnitIx, since: UtcMillis) {
        let entry = &mut self.units[unit as usize];
        if entry.promote_at.is_none() {
            let due = since.max(entry.served_at) + self.ageing_ms;
            entry.promote_at = Some(due);
            self.promotions.insert((due, unit));
        }
    }

    /// Moves up a band whoever waited a whole ageing period without being served.
    pub(crate) fn promote(&mut self, now: UtcMillis) {
        while let Some((due, unit)) = self.promotions.first().copied() {
            if due > now {
                return;
            }
            self.promotions.pop_first();
            let entry = &mut self.units[unit as usize];
            entry.promote_at = None;
            let Some(place) = entry.at else {
                continue;
            };
            let base = place.band + entry.boost;
            let since = place.since.max(entry.served_at);
            let earned = ((now.saturating_sub(since)) / self.ageing_ms).min(u64::from(base)) as u8;
            let next = since + self.ageing_ms * (u64::from(earned) + 1);
            if earned > entry.boost {
                entry.boost = earned;
                self.settle(unit);
            }
            let entry = &mut self.units[unit as usize];
            if earned < base && entry.promote_at.is_none_or(|known| known > next) {
                if let Some(known) = entry.promote_at.replace(next) {
                    self.promotions.remove(&(known, unit));
                }
                self.promotions.insert((next, unit));
            }
        }
    }

    pub(crate) fn next_promotion(&self) -> Option<UtcMillis> {
        self.promotions.first().map(|(due, _)| *due)
    }

    fn list(&mut self, unit: UnitIx, place: Place) {
        let entry = &self.units[unit as usize];
        let (line_ix, tenant_ix, owner) = (entry.line, entry.tenant, entry.owner);
        let band = place.band as usize;
        let line = &mut self.lines[line_ix as usize];
        line.bands[band].insert((place.virtual_time, place.since, unit));
        let door = line.door;
        let owner_entry = &mut self.owners[owner as usize];
        let time = owner_entry.account.virtual_time;
        let tenant = &mut self.tenants[tenant_ix as usize];
        owner_entry.doors[band].insert(door);
        tenant.units[band].insert((place.since, unit, door));
        if tenant.listed[band].is_none() {
            tenant.listed[band] = Some(tenant.account.virtual_time);
            owner_entry.order[band].insert((tenant.account.virtual_time, tenant_ix));
        }
        if owner_entry.listed[band].is_none() {
            owner_entry.listed[band] = Some(time);
            self.order[band].insert((time, owner));
        }
        self.list_owner(line_ix, place.band, time);
    }

    fn list_owner(&mut self, line_ix: LineIx, band: u8, time: u64) {
        let band = band as usize;
        let line = &mut self.lines[line_ix as usize];
        if line.bands[band].is_empty() {
            return;
        }
        let lane = &mut self.lanes[line.lane as usize];
        lane.head = None;
        if line.listed[band].is_none() {
            line.listed[band] = Some(time);
            lane.bands[band].insert((time, line.owner, line_ix));
        }
        self.credentials[line.door.credential as usize]
            .live
            .insert(line.door.shape);
    }

    fn unlist(&mut self, unit: UnitIx, place: Place) {
        let entry = &self.units[unit as usize];
        let (line_ix, tenant_ix, owner) = (entry.line, entry.tenant, entry.owner);
        let band = place.band as usize;
        let line = &mut self.lines[line_ix as usize];
        line.bands[band].remove((place.virtual_time, place.since, unit));
        let (lane_ix, door) = (line.lane, line.door);
        let lane = &mut self.lanes[lane_ix as usize];
        let tenant = &mut self.tenants[tenant_ix as usize];
        let owner_entry = &mut self.owners[owner as usize];
        tenant.units[band].remove((place.since, unit, door));
        if tenant.units[band].is_empty()
            && let Some(time) = tenant.listed[band].take()
        {
            owner_entry.order[band].remove((time, tenant_ix));
        }
        if owner_entry.order[band].is_empty()
            && let Some(time) = owner_entry.listed[band].take()
        {
            self.order[band].remove((time, owner));
        }
        if line.bands[band].is_empty() {
            owner_entry.doors[band].remove(door);
            if let Some(time) = line.listed[band].take() {
                lane.bands[band].remove((time, owner, line_ix));
            }
        }
        lane.head = None;
        self.close_if_empty(lane_ix);
    }

    /// A lane without anybody listed is not looked at.
    fn close_if_empty(&mut self, lane: LaneIx) {
        let entry = &self.lanes[lane as usize];
        if entry.bands.iter().all(Ordered::is_empty) {
            self.credentials[entry.credential as usize]
                .live
                .remove(entry.shape);
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

    /// Whose turn it is among the lanes that could place a runner now.
    ///
    /// Few open lanes are compared by their heads. With many, nearly all have the
    /// same owner first, so owners are walked in order instead.
    /// `narrow` leaves of a set of shapes those that some node and their pool can take.
    pub(crate) fn pick(&mut self, narrow: impl Fn(&mut Bits)) -> Option<UnitIx> {
        let mut open = std::mem::take(&mut self.open);
        open.0.resize(self.credentials.len(), Bits::default());
        let mut count = 0;
        for (credential, shapes) in self.credentials.iter().zip(&mut open.0) {
            shapes.clear();
            if credential.available > 0 {
                shapes.copy_from(&credential.live);
                narrow(shapes);
                count += shapes.count();
            }
        }
        let mut few = [NO_LANE; FEW_LANES];
        if count <= FEW_LANES {
            let credentials = self.credentials.iter().zip(&open.0);
            let lanes = credentials.flat_map(|(credential, shapes)| {
                let lane = |shape| credential.lanes[shape as usize];
                shapes.iter().map(lane)
            });
            few.iter_mut().zip(lanes).for_each(|(at, lane)| *at = lane);
        }
        let picked = loop {
            let first = match count {
                0 => None,
                1..=FEW_LANES => self.first_of(&few[..count]),
                _ => self.first_in(&open),
            };
            match first {
                Some(unit) if self.park_if_blocked(unit) => {}
                found => break found,
            }
        };
        self.open = open;
        picked
    }

    fn first_of(&mut self, lanes: &[LaneIx]) -> Option<UnitIx> {
        let mut best: Option<(Turn, UnitIx)> = None;
        for lane in lanes {
            let Some(head) = self.head(*lane) else {
                continue;
            };
            let key = (
                head.band,
                self.owners[head.owner as usize].account.virtual_time,
                self.tenants[head.tenant as usize].account.virtual_time,
                head.since,
                *lane,
            );
            if best.is_none_or(|(known, _)| key < known) {
                best = Some((key, head.unit));
            }
        }
        best.map(|(_, unit)| unit)
    }

    fn first_in(&mut self, open: &Doors) -> Option<UnitIx> {
        for band in 0..BANDS {
            let mut from = (0, 0);
            while let Some((stored, owner)) = self.order[band].at_or_after(from) {
                from = (stored, owner + 1);
                let entry = &mut self.owners[owner as usize];
                let time = entry.account.virtual_time;
                if time != stored {
                    entry.listed[band] = Some(time);
                    self.order[band].remove((stored, owner));
                    self.order[band].insert((time, owner));
                    continue;
                }
                if entry.account.is_full() || !entry.doors[band].meets(open) {
                    continue;
                }
                if let Some(unit) = self.first_of_owner(owner, band, open) {
                    return Some(unit);
                }
            }
        }
        None
    }

    fn first_of_owner(&mut self, owner: OwnerIx, band: usize, open: &Doors) -> Option<UnitIx> {
        let Self {
            owners, tenants, ..
        } = self;
        let order = &mut owners[owner as usize].order[band];
        let mut from = (0, 0);
        while let Some((stored, tenant)) = order.at_or_after(from) {
            from = (stored, tenant + 1);
            let entry = &mut tenants[tenant as usize];
            let time = entry.account.virtual_time;
            if time != stored {
                entry.listed[band] = Some(time);
                order.remove((stored, tenant));
                order.insert((time, tenant));
                continue;
            }
            if entry.account.is_full() {
                continue;
            }
            let found = entry.units[band]
                .iter()
                .find(|(_, _, door)| open.contains(*door));
            if let Some((_, unit, _)) = found {
                return Some(unit);
            }
        }
        None
    }

    /// Takes a unit out of its lane while something other than capacity holds it.
    fn park_if_blocked(&mut self, unit: UnitIx) -> bool {
        let entry = &self.units[unit as usize];
        let (group, tenant, owner) = (entry.group, entry.tenant, entry.owner);
        let scope = self.groups[group as usize].scope;
        if self.owners[owner as usize].account.is_full() {
            let Some(place) = entry.at else {
                return false;
            };
            let line_ix = entry.line;
            let line = &mut self.lines[line_ix as usize];
            let lane = line.lane;
            let lane_entry = &mut self.lanes[lane as usize];
            if let Some(time) = line.listed[place.band as usize].take() {
                lane_entry.bands[place.band as usize].remove((time, owner, line_ix));
            }
            lane_entry.head = None;
            self.owners[owner as usize]
                .parked
                .insert((line_ix, place.band));
            self.close_if_empty(lane);
            return true;
        }
        let parked = if self.groups[group as usize].need() == 0 {
            &mut self.groups[group as usize].parked
        } else if self.scopes[scope as usize].resting {
            &mut self.scopes[scope as usize].parked
        } else if self.tenants[tenant as usize].account.is_full() {
            &mut self.tenants[tenant as usize].parked
        } else {
            return false;
        };
        parked.insert(unit);
        self.units[unit as usize].parked = true;
        self.settle(unit);
        true
    }

    fn head(&mut self, lane: LaneIx) -> Option<Head> {
        if let Some(head) = self.lanes[lane as usize].head
            && self.owners[head.owner as usize].account.virtual_time <= head.owner_limit
            && self.tenants[head.tenant as usize].account.virtual_time <= head.tenant_limit
        {
            return Some(head);
        }
        let Self {
            lanes,
            lines,
            owners,
            tenants,
            units,
            ..
        } = self;
        let entry = &mut lanes[lane as usize];
        entry.head = None;
        for band in 0..BANDS {
            while let Some((stored, owner, line_ix)) = entry.bands[band].first() {
                let time = owners[owner as usize].account.virtual_time;
                let line = &mut lines[line_ix as usize];
                if time != stored {
                    entry.bands[band].remove((stored, owner, line_ix));
                    entry.bands[band].insert((time, owner, line_ix));
                    line.listed[band] = Some(time);
                    continue;
                }
                let (tenant, unit, since) = loop {
                    let (stored, since, unit) = line.bands[band]
                        .first()
                        .expect("a listed owner has a unit in the band");
                    let tenant = units[unit as usize].tenant;
                    let time = tenants[tenant as usize].account.virtual_time;
                    if time == stored {
                        break (tenant, unit, since);
                    }
                    line.bands[band].remove((stored, since, unit));
                    line.bands[band].insert((time, since, unit));
                    if let Some(at) = &mut units[unit as usize].at {
                        at.virtual_time = time;
                    }
                };
                let limit = |next: Option<u64>| next.unwrap_or(u64::MAX);
                let head = Head {
                    band: band as u8,
                    owner,
                    tenant,
                    unit,
                    since,
                    owner_limit: limit(entry.bands[band].second().map(|(time, ..)| time)),
                    tenant_limit: limit(line.bands[band].second().map(|(time, ..)| time)),
                };
                entry.head = Some(head);
                return Some(head);
            }
        }
        None
    }
}
