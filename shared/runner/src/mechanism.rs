//! Mechanisms that tests switch off, to see that they notice. Without the feature `failpoints` none can be.

/// Something that a guarantee rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// What is older than what is known changes nothing.
    RevisionFencing,
    /// Kafka is asked whether a commit in doubt was applied. Switched off, it is taken for applied.
    AskingAfterDoubt,
    /// Nothing of a commit in doubt that was applied is done again. Switched off, it is taken for not applied.
    TrustingAnAppliedCommit,
    /// The state of the lanes is written to disk only after the commit.
    WriteAfterCommit,
    /// What is done beyond a position is committed with it. Switched off, it is done again after a crash.
    RememberingWhatIsDone,
    /// An owner that can't be sure of its lane makes no calls.
    Lease,
    /// What was done for a record before a crash is not done again.
    Journal,
}

/// Whether a test has switched this off: `WEIR_TEST_WITHOUT` names it.
#[cfg(not(feature = "failpoints"))]
#[inline]
#[must_use]
pub const fn is_switched_off(_mechanism: Mechanism) -> bool {
    false
}

/// Whether a test has switched this off: `WEIR_TEST_WITHOUT` names it.
#[cfg(feature = "failpoints")]
#[must_use]
pub fn is_switched_off(mechanism: Mechanism) -> bool {
    static OFF: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let name = match mechanism {
        Mechanism::RevisionFencing => "revision-fencing",
        Mechanism::AskingAfterDoubt => "asking-after-doubt",
        Mechanism::TrustingAnAppliedCommit => "trusting-an-applied-commit",
        Mechanism::WriteAfterCommit => "write-after-commit",
        Mechanism::RememberingWhatIsDone => "remembering-what-is-done",
        Mechanism::Lease => "lease",
        Mechanism::Journal => "journal",
    };
    OFF.get_or_init(|| std::env::var("WEIR_TEST_WITHOUT").unwrap_or_default()).split(',').any(|off| off == name)
}
