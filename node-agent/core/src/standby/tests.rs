//! What is kept ready, and when it goes.

use proptest::prelude::*;

use super::*;

const ROOMY: Room = Room {
    cpu_millis: 1_000_000,
    memory_bytes: 1 << 50,
    slots: 1_000,
};

fn shape(image: &str) -> Shape {
    Shape::of(&RunnerSpec {
        image: image.into(),
        platform: "linux/amd64".into(),
        resources: Resources {
            cpu_millis: 2_000,
            memory_bytes: 4 << 30,
            gpus: 0,
        },
        ..RunnerSpec::default()
    })
    .unwrap()
}

fn standby(floor: u32, ceiling: u32) -> Standby {
    Standby::new(Limits { floor, ceiling })
}

fn parked(id: u64, shape: &Shape, image_id: &str) -> Parked {
    Parked {
        id,
        shape: shape.clone(),
        image_id: image_id.into(),
        since_ms: id,
    }
}

fn same(_: &Shape) -> Option<&'static str> {
    Some("sha256:a")
}

#[test]
fn a_gpu_is_never_kept_waiting() {
    let mut spec = shape("a").spec();
    spec.resources.gpus = 1;
    assert_eq!(Shape::of(&spec), None);
    spec.resources.gpus = 0;
    spec.gpu_uuids.push("GPU-1".into());
    assert_eq!(Shape::of(&spec), None);
}

#[test]
fn what_is_left_out_means_its_default() {
    let mut spec = shape("a").spec();
    assert_eq!(spec.profile, "strict");
    spec.profile.clear();
    spec.network_mode.clear();
    spec.pool = "named".into();
    spec.traceparent = "00-1".into();
    assert_eq!(Shape::of(&spec), Some(shape("a")));
}

#[test]
fn what_is_expected_has_its_floor_before_anybody_came() {
    let mut standby = standby(1, 4);
    assert_eq!(standby.plan(0, &[], ROOMY, same), Plan::default());
    standby.expect([shape("a"), shape("b")]);
    let plan = standby.plan(0, &[], ROOMY, same);
    assert_eq!(plan.make, [shape("a"), shape("b")]);
    standby.expect([shape("b")]);
    let there = [
        parked(1, &shape("a"), "sha256:a"),
        parked(2, &shape("b"), "sha256:a"),
    ];
    let plan = standby.plan(0, &there, ROOMY, same);
    assert_eq!((plan.evict, plan.make), (vec![1], vec![]));
}

#[test]
fn a_burst_is_remembered_up_to_the_ceiling_and_fades() {
    let mut standby = standby(1, 4);
    let a = shape("a");
    for at in [0, 1, 2] {
        standby.arrived(&a, at);
    }
    standby.arrived(&a, 30_000);
    assert_eq!(standby.wanted(&a), 3, "the most that came at once");
    for at in 0..9 {
        standby.arrived(&a, 40_000 + at);
    }
    assert_eq!(standby.wanted(&a), 4);
    standby.arrived(&a, 500_000);
    assert_eq!(
        standby.plan(680_000, &[], ROOMY, same).make.len(),
        1,
        "the burst is long ago"
    );
    let plan = standby.plan(
        500_000 + FADE_MS + WINDOW_MS,
        &[parked(1, &a, "sha256:a")],
        ROOMY,
        same,
    );
    assert_eq!(
        (plan.evict, plan.make),
        (vec![1], vec![]),
        "nobody asks for it any more"
    );
}

#[test]
fn another_digest_replaces_and_an_unknown_one_ends() {
    let mut standby = standby(2, 2);
    let a = shape("a");
    standby.expect([a.clone()]);
    let there = [parked(1, &a, "sha256:old"), parked(2, &a, "sha256:a")];
    let plan = standby.plan(0, &there, ROOMY, same);
    assert_eq!((plan.evict, plan.make), (vec![1], vec![a.clone()]));
    let plan = standby.plan(0, &there, ROOMY, |_| None);
    assert_eq!((plan.evict, plan.make), (vec![2, 1], vec![]));
}

#[test]
fn room_is_shared_one_of_each_first_and_the_last_asked_for_before_others() {
    let mut standby = standby(2, 4);
    let (a, b) = (shape("a"), shape("b"));
    standby.expect([a.clone(), b.clone()]);
    let room = |slots| Room { slots, ..ROOMY };
    let plan = standby.plan(0, &[], room(3), same);
    assert_eq!(plan.make, [a.clone(), a.clone(), b.clone()]);
    standby.arrived(&b, 5);
    let plan = standby.plan(6, &[], room(1), same);
    assert_eq!(plan.make, std::slice::from_ref(&b));
    // What a cold start takes goes from the standbys.
    let there = [parked(1, &a, "sha256:a"), parked(2, &b, "sha256:a")];
    let plan = standby.plan(6, &there, room(1), same);
    assert_eq!((plan.evict, plan.make), (vec![1], vec![]));
    let little = Room {
        memory_bytes: (4 << 30) - 1,
        ..ROOMY
    };
    assert_eq!(standby.plan(6, &there, little, same).evict, [2, 1]);
}

#[test]
fn old_ones_are_made_anew_one_at_a_time() {
    let mut standby = standby(2, 2);
    let a = shape("a");
    standby.expect([a.clone()]);
    let there = [parked(1, &a, "sha256:a"), parked(2, &a, "sha256:a")];
    let plan = standby.plan(LONGEST_PARKED_MS + 5, &there, ROOMY, same);
    assert_eq!((plan.evict, plan.make), (vec![1], vec![a]));
}

#[test]
fn shapes_are_bounded() {
    let mut standby = standby(1, 1);
    for n in 0..1_000 {
        standby.arrived(&shape(&format!("i{n}")), n);
    }
    standby.expect((0..1_000).map(|n| shape(&format!("e{n}"))));
    assert_eq!(standby.shapes(1_000).len(), 2 * MAX_SHAPES);
    assert_eq!(standby.wanted(&shape("i999")), 1);
    assert_eq!(standby.wanted(&shape("i1")), 0);
}

proptest! {
    #[test]
    fn a_plan_carried_out_fits_the_room_and_leaves_nothing_to_do(
        floor in 0u32..3, ceiling in 0u32..6,
        arrivals in proptest::collection::vec((0usize..4, 0u64..900_000), 0..60),
        expected in proptest::collection::btree_set(0usize..4, 0..4),
        there in proptest::collection::vec((0usize..4, any::<bool>(), 0u64..900_000), 0..12),
        slots in 0u32..8, cpus in 0u32..9, gib in 0u64..20,
    ) {
        let images: Vec<Shape> = (0..4).map(|n| {
            let mut one = shape(&format!("i{n}"));
            one.cpu_millis = 1_000 * (n + 1);
            one
        }).collect();
        let mut standby = standby(floor, ceiling);
        let mut arrivals = arrivals;
        arrivals.sort_by_key(|(_, at)| *at);
        for (n, at) in &arrivals {
            standby.arrived(&images[*n], *at);
        }
        standby.expect(expected.iter().map(|n| images[*n].clone()));
        let room = Room { cpu_millis: cpus * 1_000, memory_bytes: gib << 30, slots };
        let there: Vec<Parked> = there.iter().enumerate().map(|(id, (n, current, since))| Parked {
            id: id as u64,
            shape: images[*n].clone(),
            image_id: if *current { "sha256:a" } else { "sha256:old" }.into(),
            since_ms: *since,
        }).collect();
        let now = 900_000;
        let plan = standby.plan(now, &there, room, same);

        let mut after: Vec<Parked> = there.iter().filter(|one| !plan.evict.contains(&one.id)).cloned().collect();
        for (n, shape) in plan.make.iter().enumerate() {
            after.push(Parked { id: 1_000 + n as u64, shape: shape.clone(), image_id: "sha256:a".into(), since_ms: now });
        }
        // Inside the room, each shape between nothing and what is wanted of it, never stale.
        prop_assert!(after.len() as u32 <= slots);
        prop_assert!(after.iter().map(|one| one.shape.cpu_millis).sum::<u32>() <= cpus * 1_000);
        prop_assert!(after.iter().map(|one| one.shape.memory_bytes).sum::<u64>() <= gib << 30);
        for shape in &images {
            let count = after.iter().filter(|one| one.shape == *shape).count() as u32;
            prop_assert!(count <= standby.wanted(shape));
            prop_assert!(standby.wanted(shape) <= ceiling.max(floor));
        }
        prop_assert!(after.iter().all(|one| one.image_id == "sha256:a"));
        // A second look changes nothing, and the same look says the same.
        prop_assert_eq!(standby.clone().plan(now, &there, room, same), plan);
        prop_assert_eq!(standby.plan(now, &after, room, same), Plan::default());
    }
}

#[test]
fn memory_is_short_below_its_floor_and_until_twice_as_much_is_left() {
    let text = |total: u64, available: u64| {
        format!(
            "MemTotal:       {total} kB\nMemFree:          12 kB\nMemAvailable:   {available} kB\nBuffers: 1 kB\n"
        )
    };
    let memory = |available_mib: u64| Memory::of(&text(8 << 20, available_mib << 10)).unwrap();
    assert_eq!(memory(300).total, 8 << 30);
    assert_eq!(memory(300).available, 300 << 20);
    // A thirty-second part of 8 GiB.
    assert!(memory(255).is_short(false) && !memory(256).is_short(false));
    assert!(memory(511).is_short(true) && !memory(512).is_short(true));
    // Of a terabyte half a gibibyte.
    let large = Memory::of(&text(1 << 30, 513 << 10)).unwrap();
    assert!(!large.is_short(false) && large.is_short(true));
    for broken in ["", "MemTotal: 5 kB", "MemTotal: x kB\nMemAvailable: 1 kB"] {
        assert_eq!(Memory::of(broken), None, "{broken}");
    }
}
