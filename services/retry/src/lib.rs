//! The delay tiers. A stage that wants a record tried again writes it into the topic of a tier, with the time it is due
//! in a header; the runner holds it until then, and this stage returns it to `<stage>.again`, in the same lane, as it
//! is. Reading the tier and writing there is one transaction, like everything else: no try is lost or made twice.

pub mod config;
mod give_back;

pub use give_back::Return;
