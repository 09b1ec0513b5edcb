//! Units, images, the compose file and the join script, each as it stands in deploy/.

mod deploy {
    mod agent;
    pub(crate) mod ground;
    pub(crate) mod units;
}
