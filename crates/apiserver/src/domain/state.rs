//! State words: what Argo and older databases say, what is stored, what each API generation shows.

use kfp_proto::google::rpc::Status;
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use serde::{Deserialize, Serialize};

/// State of a run or task; the text form is the one stored in `State` columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not known (yet).
    #[default]
    Unspecified,
    /// Accepted, not started.
    Pending,
    /// Under way.
    Running,
    /// Ended well.
    Succeeded,
    /// Not needed, or taken from the cache.
    Skipped,
    /// Ended badly.
    Failed,
    /// Termination was asked for.
    Canceling,
    /// Terminated.
    Canceled,
    /// Suspended.
    Paused,
}

impl State {
    /// Understands stored words of all generations and Argo phases; unknown words are [`State::Unspecified`].
    #[must_use]
    pub fn parse(word: &str) -> Self {
        match word.to_ascii_uppercase().as_str() {
            "PENDING" => State::Pending,
            "RUNNING" | "ENABLED" | "READY" => State::Running,
            "SUCCEEDED" | "DONE" => State::Succeeded,
            "SKIPPED" => State::Skipped,
            "FAILED" | "ERROR" => State::Failed,
            "CANCELING" | "TERMINATING" => State::Canceling,
            "CANCELED" | "DISABLED" => State::Canceled,
            "PAUSED" => State::Paused,
            _ => State::Unspecified,
        }
    }

    /// The word of `State` columns.
    #[must_use]
    pub fn word(self) -> &'static str {
        self.to_v2().as_str_name()
    }

    /// The word of `Conditions` columns, which the v1beta1 API shows.
    #[must_use]
    pub fn condition(self) -> &'static str {
        match self {
            State::Unspecified => "Unknown",
            State::Pending | State::Paused => "Pending",
            State::Running => "Running",
            State::Succeeded => "Succeeded",
            State::Skipped => "Skipped",
            State::Failed | State::Canceled => "Failed",
            State::Canceling => "Terminating",
        }
    }

    /// The v2beta1 enum value.
    #[must_use]
    pub fn to_v2(self) -> v2::RuntimeState {
        match self {
            State::Unspecified => v2::RuntimeState::Unspecified,
            State::Pending => v2::RuntimeState::Pending,
            State::Running => v2::RuntimeState::Running,
            State::Succeeded => v2::RuntimeState::Succeeded,
            State::Skipped => v2::RuntimeState::Skipped,
            State::Failed => v2::RuntimeState::Failed,
            State::Canceling => v2::RuntimeState::Canceling,
            State::Canceled => v2::RuntimeState::Canceled,
            State::Paused => v2::RuntimeState::Paused,
        }
    }

    /// True when nothing more happens by itself.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, State::Succeeded | State::Skipped | State::Failed | State::Canceled)
    }

    /// States from which a run may be terminated.
    pub const TERMINABLE: [State; 4] = [State::Paused, State::Pending, State::Running, State::Unspecified];

    /// State of a run whose Workflow has this phase and, perhaps, an `activeDeadlineSeconds` of zero, which is how
    /// termination is asked for. A Workflow that its controller has not looked at yet has no phase; its run waits.
    #[must_use]
    pub fn of_workflow(phase: &str, deadline_zero: bool) -> Self {
        let state = if phase.is_empty() { State::Pending } else { State::parse(phase) };
        if deadline_zero && !matches!(state, State::Succeeded | State::Failed) { State::Canceling } else { state }
    }
}

impl State {
    /// State of a run that was in this one when its Workflow is reported to be in `reported`. Reports overtake the order
    /// to terminate: until the Workflow has ended, the run stays as it was asked to be.
    #[must_use]
    pub fn after_report(self, reported: State) -> State {
        if self == State::Canceling && !reported.is_final() { self } else { reported }
    }
}

/// Whether a resource is archived; the word is the one stored in `StorageState` columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// In use.
    #[default]
    Available,
    /// Hidden from default lists.
    Archived,
}

impl Storage {
    /// Understands all generations; unknown and empty words are [`Storage::Available`].
    #[must_use]
    pub fn parse(word: &str) -> Self {
        match word.to_ascii_uppercase().as_str() {
            "ARCHIVED" | "STORAGESTATE_ARCHIVED" | "DISABLED" => Storage::Archived,
            _ => Storage::Available,
        }
    }

    /// The stored word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Storage::Available => "AVAILABLE",
            Storage::Archived => "ARCHIVED",
        }
    }

    /// Number of the enum value; it is the same for runs and experiments.
    #[must_use]
    pub fn number(self) -> i32 {
        match self {
            Storage::Available => v2::run::StorageState::Available as i32,
            Storage::Archived => v2::run::StorageState::Archived as i32,
        }
    }
}

/// One entry of a state history, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When, in Unix seconds.
    #[serde(rename = "UpdateTimeInSec", default)]
    pub at: i64,
    /// State word.
    #[serde(rename = "State", default)]
    pub state: String,
    /// What is to be said about it. Upstream stores nothing of the kind and skips it when it reads.
    #[serde(rename = "Message", default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The states a run or task went through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(pub Vec<Change>);

impl History {
    /// Reads the stored JSON; damaged text reads as no history.
    #[must_use]
    pub fn parse(json: &str) -> Self {
        History(serde_json::from_str::<Option<Vec<Change>>>(json).ok().flatten().unwrap_or_default())
    }

    /// The stored JSON; empty text when there is none.
    #[must_use]
    pub fn json(&self) -> String {
        if self.0.is_empty() { String::new() } else { serde_json::to_string(&self.0).unwrap_or_default() }
    }

    /// Adds an entry unless the last one already has this state.
    pub fn note(&mut self, state: State, at: i64) {
        self.note_because(state, at, "");
    }

    /// As [`History::note`], with what is to be said about the state; news about the last one replace what was said.
    pub fn note_because(&mut self, state: State, at: i64, message: &str) {
        match self.0.last_mut() {
            Some(last) if last.state == state.word() => {
                if !message.is_empty() {
                    message.clone_into(&mut last.message);
                }
            }
            _ => self.0.push(Change { at, state: state.word().to_owned(), message: message.to_owned() }),
        }
    }

    /// As shown by the v2beta1 API.
    #[must_use]
    pub fn to_v2(&self) -> Vec<v2::RuntimeStatus> {
        self.0
            .iter()
            .map(|change| {
                let state = State::parse(&change.state);
                let error = (!change.message.is_empty()).then(|| status(state, change.message.clone()));
                v2::RuntimeStatus { update_time: Some(timestamp(change.at)), state: state.to_v2() as i32, error }
            })
            .collect()
    }
}

/// A message about a state. Upstream's messages have one place for it, which is called an error; the code tells those
/// that are none.
#[must_use]
pub fn status(state: State, message: String) -> Status {
    let code = if state == State::Failed { tonic::Code::Unknown } else { tonic::Code::Ok };
    Status { code: code as i32, message, details: Vec::new() }
}

/// Unix seconds as a protobuf timestamp. Go's zero time, which old task rows hold, becomes the epoch.
#[must_use]
pub fn timestamp(seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: if seconds == GO_ZERO_TIME { 0 } else { seconds }, nanos: 0 }
}

/// Whether a time was given: clients written in Go send the year 1 for times that they leave out.
#[must_use]
pub fn is_given(seconds: i64) -> bool {
    seconds != 0 && seconds != GO_ZERO_TIME
}

/// Unix seconds of 0001-01-01T00:00:00Z, which upstream stores for node times that are not set.
pub const GO_ZERO_TIME: i64 = -62_135_596_800;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_all_generations_map_as_upstream_maps_them() {
        for (word, stored, condition) in [
            ("", "RUNTIME_STATE_UNSPECIFIED", "Unknown"),
            ("Omitted", "RUNTIME_STATE_UNSPECIFIED", "Unknown"),
            ("Pending", "PENDING", "Pending"),
            ("Ready", "RUNNING", "Running"),
            ("Done", "SUCCEEDED", "Succeeded"),
            ("Error", "FAILED", "Failed"),
            ("Terminating", "CANCELING", "Terminating"),
            ("DISABLED", "CANCELED", "Failed"),
            ("PAUSED", "PAUSED", "Pending"),
        ] {
            let state = State::parse(word);
            assert_eq!((state.word(), state.condition()), (stored, condition), "{word}");
        }
    }

    #[test]
    fn history_grows_only_when_the_state_changes() {
        let mut history = History::default();
        history.note(State::Pending, 1);
        history.note(State::Pending, 2);
        history.note(State::Running, 3);
        assert_eq!(
            history.json(),
            r#"[{"UpdateTimeInSec":1,"State":"PENDING"},{"UpdateTimeInSec":3,"State":"RUNNING"}]"#
        );
        assert_eq!(History::parse(&history.json()), history);
        assert_eq!(History::parse("null"), History::default());
    }

    #[test]
    fn messages_belong_to_a_state() {
        let mut history = History::default();
        history.note_because(State::Running, 1, "first");
        history.note_because(State::Running, 2, "");
        history.note_because(State::Running, 3, "second");
        history.note_because(State::Failed, 4, "why");
        let shown: Vec<_> = history.to_v2().into_iter().filter_map(|status| status.error).collect();
        let shown: Vec<_> = shown.iter().map(|error| (error.code, error.message.as_str())).collect();
        assert_eq!(shown, [(0, "second"), (2, "why")]);
        assert_eq!(History::parse(&history.json()), history);
    }

    #[test]
    fn a_zero_deadline_means_canceling_until_the_workflow_ends() {
        assert_eq!(State::of_workflow("Running", true), State::Canceling);
        assert_eq!(State::of_workflow("Failed", true), State::Failed);
        assert_eq!(State::of_workflow("Running", false), State::Running);
        assert_eq!(State::of_workflow("", false), State::Pending);
    }
}
