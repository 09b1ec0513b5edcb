//! Units, images, the compose file and the join script, each as it stands in deploy/.

mod deploy {
    mod agent;
    mod compose;
    pub(crate) mod ground;
    mod images;
    mod join;
    mod reference;
    pub(crate) mod units;
}
