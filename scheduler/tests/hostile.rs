//! What strangers may do to each listener of the real program, while everybody else's calls go on.
//!
//! Each test starts a scheduler of its own, does to it what the test is called,
//! and meanwhile makes calls that have to be answered soon. Its memory is read
//! from the kernel before and after.

mod hostile {
    pub(crate) mod crowds;
    pub(crate) mod floods;
    pub(crate) mod frames;
    pub(crate) mod slow;
    pub(crate) mod victim;
    pub(crate) mod wrong;
}
