//! The program as its users meet it: arguments in; stdout, stderr and exit
//! code out; a fake FleetService on the other side.

mod changes;
mod exits;
mod fake;
mod help;
mod lists;
mod local;
mod logs;
mod program;
mod status;
mod tokens;
mod world;
