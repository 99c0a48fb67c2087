//! Places beside each commit at which a test ends the process, holds it, or makes a step fail.
//!
//! They exist in debug builds and with the feature `failpoints`; a release build has nothing of
//! them. `ANGARIUM_FAILPOINTS` arms them, with commas between:
//!
//! ```text
//! accept.before_commit=abort           ends the process the first time
//! outcome.after_commit=error@3         fails the third time
//! claim.after_commit=pause:/tmp/go     waits until that file is there
//! ```

/// Passes a point; a function that returns an error which [`Injected`] becomes can have one.
#[macro_export]
macro_rules! failpoint {
    ($point:ident) => {
        #[cfg(any(debug_assertions, feature = "failpoints"))]
        $crate::failpoint::pass($crate::failpoint::Point::$point).await?;
    };
}

/// A step that was made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the failpoint `{0}` says so")]
pub struct Injected(pub &'static str);

#[cfg(any(debug_assertions, feature = "failpoints"))]
pub use armed::{Point, pass};

#[cfg(any(debug_assertions, feature = "failpoints"))]
mod armed {
    use std::{
        path::PathBuf,
        sync::{
            LazyLock,
            atomic::{AtomicU32, Ordering},
        },
        time::Duration,
    };

    use super::Injected;

    /// The places.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Point {
        AcceptBeforeCommit,
        /// The messages are durable, and the client is not answered yet.
        AcceptAfterCommit,
        ClaimBeforeCommit,
        /// The deliveries are this node's, and none has begun.
        ClaimAfterCommit,
        /// The request may begin, and has not.
        IntentAfterCommit,
        /// The provider has answered, and nothing is recorded yet.
        OutcomeBeforeCommit,
        OutcomeAfterCommit,
        RecoveryBeforeCommit,
        RecoveryAfterCommit,
        LegBeforeCommit,
        /// A channel follows one without its wanted receipt.
        LegAfterCommit,
        /// Scripts were asked for follow-ups, and nothing of their answers is written yet.
        FollowUpAfterAnswer,
    }

    impl Point {
        const ALL: [Self; 12] = [
            Self::AcceptBeforeCommit,
            Self::AcceptAfterCommit,
            Self::ClaimBeforeCommit,
            Self::ClaimAfterCommit,
            Self::IntentAfterCommit,
            Self::OutcomeBeforeCommit,
            Self::OutcomeAfterCommit,
            Self::RecoveryBeforeCommit,
            Self::RecoveryAfterCommit,
            Self::LegBeforeCommit,
            Self::LegAfterCommit,
            Self::FollowUpAfterAnswer,
        ];

        const fn as_str(self) -> &'static str {
            match self {
                Self::AcceptBeforeCommit => "accept.before_commit",
                Self::AcceptAfterCommit => "accept.after_commit",
                Self::ClaimBeforeCommit => "claim.before_commit",
                Self::ClaimAfterCommit => "claim.after_commit",
                Self::IntentAfterCommit => "intent.after_commit",
                Self::OutcomeBeforeCommit => "outcome.before_commit",
                Self::OutcomeAfterCommit => "outcome.after_commit",
                Self::RecoveryBeforeCommit => "recovery.before_commit",
                Self::RecoveryAfterCommit => "recovery.after_commit",
                Self::LegBeforeCommit => "leg.before_commit",
                Self::LegAfterCommit => "leg.after_commit",
                Self::FollowUpAfterAnswer => "follow_up.after_answer",
            }
        }
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Action {
        Abort,
        Error,
        /// Waits until the file exists.
        Pause(PathBuf),
    }

    struct Armed {
        point: Point,
        action: Action,
        /// The pass at which it acts.
        at: u32,
        passes: AtomicU32,
    }

    static ARMED: LazyLock<Vec<Armed>> = LazyLock::new(|| {
        let text = std::env::var("ANGARIUM_FAILPOINTS").unwrap_or_default();
        let parse = |part: &str| {
            parse(part).unwrap_or_else(|| {
                // A test that misspells a point must not pass for that.
                tracing::error!(failpoint = part, "ANGARIUM_FAILPOINTS is wrong");
                std::process::abort()
            })
        };
        text.split(',').filter(|part| !part.is_empty()).map(parse).collect()
    });

    fn parse(part: &str) -> Option<Armed> {
        let (name, action) = part.split_once('=')?;
        let (action, at) = action.split_once('@').map_or((action, Some(1)), |(action, at)| (action, at.parse().ok()));
        let action = match action.split_once(':') {
            Some(("pause", file)) => Action::Pause(file.into()),
            None if action == "abort" => Action::Abort,
            None if action == "error" => Action::Error,
            _ => return None,
        };
        let point = Point::ALL.into_iter().find(|point| point.as_str() == name)?;
        Some(Armed { point, action, at: at?, passes: AtomicU32::new(0) })
    }

    /// Triggers the armed action of the point, if this is its pass.
    pub async fn pass(point: Point) -> Result<(), Injected> {
        for armed in ARMED.iter().filter(|armed| armed.point == point) {
            if armed.passes.fetch_add(1, Ordering::Relaxed) + 1 != armed.at {
                continue;
            }
            tracing::warn!(failpoint = point.as_str(), "a failpoint is reached");
            match &armed.action {
                Action::Abort => std::process::abort(),
                Action::Error => return Err(Injected(point.as_str())),
                Action::Pause(file) => {
                    while !file.exists() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            }
        }
        Ok(())
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_is_armed_by_name_action_and_pass() {
            let armed = parse("outcome.after_commit=error@3").unwrap();
            assert_eq!((armed.point, armed.action, armed.at), (Point::OutcomeAfterCommit, Action::Error, 3));
            let armed = parse("claim.after_commit=pause:/tmp/go").unwrap();
            assert_eq!((armed.action, armed.at), (Action::Pause("/tmp/go".into()), 1));
            for wrong in ["", "accept=abort", "accept.before_commit", "accept.before_commit=die", "x=abort@y"] {
                assert!(parse(wrong).is_none(), "{wrong}");
            }
        }
    }
}
