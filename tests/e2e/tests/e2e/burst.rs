//! Many jobs at once on a small host.

use std::time::Duration;

use crate::rig::{Rig, Settings, job, native};

/// A hundred containers, a few at a time.
const BURST: Duration = Duration::from_secs(540);

#[tokio::test]
async fn a_burst_of_100_jobs_runs_with_100_runners_and_never_more_than_fit() {
    let mut rig = Rig::start(Settings {
        scheduler: vec!["--max-runners", "6"],
        ..Settings::default()
    })
    .await;
    let mut matrix = job("shard", &native(), &["echo ok"]);
    matrix["matrix"] = 100.into();
    let pushed = rig.push("acme/web", vec![matrix]).await;
    assert_eq!(pushed.jobs.len(), 100);
    let mut most = 0;
    let deadline = tokio::time::Instant::now() + BURST;
    loop {
        let summary = rig.sim.look("summary").await.unwrap();
        most = most.max(
            rig.sim
                .look("runners")
                .await
                .unwrap()
                .as_array()
                .map_or(0, Vec::len),
        );
        if summary["jobs"]["completed"] == 100 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{summary:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    rig.all_end(&pushed.jobs, "success", Duration::from_secs(10))
        .await;
    assert!((2..=6).contains(&most), "{most} registrations at once");
    assert_eq!(rig.registrations_ever().await, 100, "no runner beyond need");
    rig.finish().await;
}
