//! Whose turn it is.

use super::{BANDS, Demand, Doors, FEW_LANES, Head, LaneIx, NO_LANE, OwnerIx, Turn, UnitIx};
use crate::labels::Bits;

impl Demand {
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
