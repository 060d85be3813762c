//! The topics that `topics/*.toml` declare, and making a cluster match them.

mod apply;
mod declared;
mod diff;

pub use apply::{ApplyError, apply};
pub use declared::{TopicError, TopicSpec, declared, read_folder};
pub use diff::{Change, Shape, Step, diff};
