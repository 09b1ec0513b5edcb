//! Who stands in which line, and since when: listed exactly while it waits.

use super::{Demand, LaneIx, LineIx, Place, UnitIx};
use crate::{model::UtcMillis, ordered::Ordered};

impl Demand {
    /// Lists the unit in its lane exactly while it waits for a runner.
    pub(super) fn settle(&mut self, unit: UnitIx) {
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

    pub(super) fn list_owner(&mut self, line_ix: LineIx, band: u8, time: u64) {
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
    pub(super) fn close_if_empty(&mut self, lane: LaneIx) {
        let entry = &self.lanes[lane as usize];
        if entry.bands.iter().all(Ordered::is_empty) {
            self.credentials[entry.credential as usize]
                .live
                .remove(entry.shape);
        }
    }
}
