//! Puts runners on nodes while somebody waits and somewhere is room.

use std::{borrow::Cow, sync::Arc};

use crate::{
    apply::Stand,
    demand::{GroupIx, TenantIx, UnitIx},
    entropy::Entropy,
    fact::{Fact, RunnerPlaced, RunnerSpec},
    feasible::{ShapeIx, clamp},
    fleet::Fleet,
    model::{JobId, Now, Resources, RunnerName},
};

/// GitHub refuses longer names (not documented; facts.md 1.4).
const LONGEST_NAME: usize = 64;

/// What a new runner is for.
struct Need {
    group: GroupIx,
    /// A waiting job, its queue and its repository; `None` for an idle floor.
    job: Option<(JobId, UnitIx, TenantIx)>,
}

impl Fleet {
    /// Places until nothing more fits, nothing more is wanted or nothing more is
    /// allowed. Jobs first, in fair order; idle floors after them.
    pub(crate) fn schedule(&mut self, now: Now, entropy: &mut Entropy, facts: &mut Vec<Fact>) {
        self.ensure_index();
        self.settle_lending();
        if !self.autoscaler.running {
            return;
        }
        for ix in 0..self.demand.credentials.len() {
            let entry = &self.demand.credentials[ix];
            let available = self.available(&entry.name, entry.reserved);
            self.demand.credentials[ix].available = available;
        }
        while self.may_place() {
            self.capacity.look();
            let capacity = &self.capacity;
            let Some(ix) = self.demand.pick(|shapes| capacity.narrow(shapes)) else {
                break;
            };
            let unit = &self.demand.units[ix as usize];
            let named = unit.next_job();
            let need = Need {
                group: unit.group,
                job: named.map(|(_, job)| (job, ix, unit.tenant)),
            };
            if !self.place(now, entropy, &need, facts) {
                break;
            }
            self.demand.units[ix as usize].named = named;
        }
        for at in 0..self.demand.floors.len() {
            let group = self.demand.floors[at];
            while self.may_place() {
                let entry = &self.demand.groups[group as usize];
                let wanted = entry.floor_need() > 0
                    && !self.demand.scopes[entry.scope as usize].resting
                    && self.demand.credentials[entry.credential as usize].available > 0
                    && self.capacity.pools[entry.pool as usize].has_room()
                    && self.capacity.has_room(entry.shape);
                if !wanted || !self.place(now, entropy, &Need { group, job: None }, facts) {
                    break;
                }
            }
        }
    }

    fn may_place(&self) -> bool {
        let maximum = self.max_runners();
        (maximum == 0 || self.runners.len() < maximum as usize) && self.capacity.has_any_room()
    }

    pub(crate) fn settle_lending(&mut self) {
        let (labels, capacity) = (&self.labels, &self.capacity);
        self.demand.lend(|lender, borrower| {
            let (a, b) = (
                &capacity.pools[lender.pool as usize].pool,
                &capacity.pools[borrower.pool as usize].pool,
            );
            labels.serves(lender.signature, borrower.signature)
                && (lender.pool == borrower.pool
                    || (a.runner_group == b.runner_group
                        && a.profile == b.profile
                        && a.repositories == b.repositories
                        && a.public_repositories == b.public_repositories
                        && a.fork_pull_requests == b.fork_pull_requests))
        });
    }

    fn place(
        &mut self,
        now: Now,
        entropy: &mut Entropy,
        need: &Need,
        facts: &mut Vec<Fact>,
    ) -> bool {
        let group = &self.demand.groups[need.group as usize];
        let (pool, credential, shape): (_, _, ShapeIx) =
            (group.pool, group.credential, group.shape);
        let Some(ix) = self.capacity.choose(shape) else {
            return false;
        };
        let Some(node) = self.nodes[ix as usize].as_ref() else {
            return false;
        };
        let shape = &self.capacity.shapes[shape as usize];
        let request = &self.capacity.requests[shape.request as usize];
        let resources: Resources = clamp(request.resources, node);
        let gpu_uuids: Vec<String> = node
            .free_gpus()
            .filter(|gpu| request.gpu.admits(gpu))
            .take(resources.gpus as usize)
            .map(|gpu| gpu.uuid.clone())
            .collect();
        let node_name = node.name.clone();
        let prefix = &self.capacity.pools[pool as usize].pool.name_prefix;
        let runner = self.name(prefix, entropy);
        let platform = platform(
            &node.capability.arch,
            &self.labels.get(group.signature).labels,
        );
        let (scope, lane) = (group.scope, group.lane);
        let specs = &self.demand.lanes[lane as usize].specs;
        let known = specs.iter().find(|spec| spec.platform == platform);
        let spec = match known {
            Some(known) => Arc::clone(known),
            None => {
                let made = Arc::new(self.spec(need.group, platform.into_owned()));
                let lane = &mut self.demand.lanes[lane as usize];
                lane.specs.push(Arc::clone(&made));
                made
            }
        };
        let placed = Arc::new(RunnerPlaced {
            runner,
            node: node_name,
            scope: Arc::clone(&self.demand.scopes[scope as usize].scope),
            spec,
            resources,
            gpu_uuids,
            traceparent: need
                .job
                .and_then(|(job, ..)| self.jobs.get(&job))
                .and_then(|job| job.seen.traceparent.clone()),
            job: need.job.map(|(job, ..)| job),
            repository: need
                .job
                .map(|(.., tenant)| self.demand.tenants[tenant as usize].account.name.clone()),
            generation: self.next_generation(ix),
            at: now.utc,
        });
        let available = &mut self.demand.credentials[credential as usize].available;
        *available = available.saturating_sub(1);
        let stand = Stand {
            pool: Some(pool),
            group: need.group,
            cover: need.job.map(|(_, unit, _)| unit),
            tenant: need.job.map(|(.., tenant)| tenant),
            credential,
        };
        // As `apply` would, but what it stands for is not looked up again.
        self.apply_placed(&placed, Some(stand));
        facts.push(Fact::RunnerPlaced(placed));
        self.settle_lending();
        true
    }

    /// What every runner of the group's lane is made from on this platform.
    fn spec(&self, group: GroupIx, platform: String) -> RunnerSpec {
        let group = &self.demand.groups[group as usize];
        let pool = &self.capacity.pools[group.pool as usize].pool;
        RunnerSpec {
            pool: pool.name.clone(),
            credential: self.demand.credentials[group.credential as usize]
                .name
                .clone(),
            labels: self.labels.get(group.signature).labels.to_vec(),
            image: pool.image.clone(),
            profile: pool.profile.clone(),
            network_mode: pool.network_mode.clone(),
            allowed_domains: pool.allowed_domains.clone(),
            runtime: pool.runtime.clone(),
            platform,
            runner_group: pool.runner_group.clone(),
            idle_timeout_ms: pool.idle_timeout.as_millis() as u64,
            lifetime_ms: pool.lifetime.as_millis() as u64,
        }
    }

    fn name(&self, prefix: &str, entropy: &mut Entropy) -> RunnerName {
        let mut name = String::with_capacity(LONGEST_NAME);
        name.push_str(self.name_prefix());
        if !prefix.is_empty() {
            name.push_str(prefix);
            name.push('-');
        }
        name.truncate(LONGEST_NAME - 12);
        let start = name.len();
        loop {
            name.truncate(start);
            for byte in entropy.word() {
                name.push(char::from(byte));
            }
            let name = RunnerName::new(&name);
            if !self.runners.contains_key(&name) && !self.orphans.contains_key(&name) {
                return name;
            }
        }
    }
}

/// What the container engine calls the platform.
pub(crate) fn platform(arch: &str, labels: &[String]) -> Cow<'static, str> {
    let emulated = labels
        .iter()
        .find_map(|label| {
            label
                .strip_prefix("emulated-")
                .or_else(|| label.strip_suffix("-emulated"))
        })
        .unwrap_or(arch);
    match emulated {
        "x64" => "linux/amd64".into(),
        "arm64" => "linux/arm64".into(),
        "arm" => "linux/arm/v7".into(),
        other => format!("linux/{other}").into(),
    }
}
