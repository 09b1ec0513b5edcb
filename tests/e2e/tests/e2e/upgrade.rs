//! A scheduler over the store of an older release.

use crate::rig::{Rig, SOON, Settings, job, native};

/// A database as version 1 of the tables left it: fleet `dumpfleet` in its epoch 7, one finished job.
/// It is `scheduler/store/tests/data/store-version-1.sql`, loaded by sqlite3 with pages of 512 bytes.
const VERSION_1: &[u8] = include_bytes!("../../data/store-version-1.bin");
const OLD_JOB: u64 = 70;

#[tokio::test]
async fn a_scheduler_goes_on_with_the_fleet_of_an_old_store_and_again_after_a_restart() {
    let mut rig = Rig::start(Settings {
        store: Some(VERSION_1),
        // The old job ended in 1970, and is not to be forgotten yet.
        scheduler: vec!["--retention", "36500d"],
        ..Settings::default()
    })
    .await;
    for restart in [false, true] {
        if restart {
            rig.restart_scheduler().await;
        }
        let fleet = rig.cli_json(&["runner", "status"]).await["fleet"].clone();
        assert_eq!(fleet, "dumpfleet");
        let old = rig.known_end(OLD_JOB).await;
        assert_eq!(old["repo"], "mona/web", "{old:#}");
        assert_eq!(old["conclusion"], "success", "{old:#}");

        let pushed = rig
            .push("acme/web", vec![job("build", &native(), &["true"])])
            .await;
        rig.all_end(&pushed.jobs, "success", SOON).await;
        let new = rig.known_end(pushed.jobs[0]).await;
        let runner = new["runner"].as_str().unwrap();
        assert!(runner.starts_with("ls-dumpfleet-"), "{runner}");
    }
    rig.finish().await;
}
