//! What is out of the ordinary: [`SpendWatch`] for the money a tenant spends, [`PromptWatch`] for the tokens a version of
//! a prompt sends. Both learn what is ordinary from what they see, take little memory whatever that is, and can be kept
//! in a record.

mod prompt;
mod spend;

pub use prompt::{PromptAlarm, PromptWatch};
pub use spend::{SpendAlarm, SpendWatch};

/// What an observation tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict<Alarm> {
    /// Too little has been seen to know what is ordinary.
    NoBaseline,
    /// Nothing out of the ordinary.
    Ordinary,
    /// An alarm begins with this observation; what it is about.
    Raised(Alarm),
    /// The alarm that was raised goes on.
    Ongoing,
}
