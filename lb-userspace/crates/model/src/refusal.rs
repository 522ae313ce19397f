//! The reason why a request is not done: in the daemon, and in its answers.

use std::fmt;

#[cfg(feature = "axum")]
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use crate::plan::Plan;

/// Why a request can't be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Refusal {
    /// Its kind.
    pub kind: RefusalKind,
    /// The error.
    pub error: String,
    /// The remedy.
    pub hint: Option<String>,
    /// The changes that it would have made, if only a confirmation is missing.
    pub unconfirmed: Option<Box<Plan>>,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// There is nothing of this name.
    NotFound,
    /// It does not go with what is there.
    Conflict,
    /// It makes no sense.
    Invalid,
    /// It was tried, and did not work.
    Failed,
    /// The daemon is stopping.
    Stopping,
}

impl Refusal {
    /// A refusal without a hint.
    #[must_use]
    pub fn new(kind: RefusalKind, error: impl fmt::Display) -> Self {
        Self { kind, error: error.to_string(), hint: None, unconfirmed: None }
    }

    /// A change that is made only with a confirmation.
    #[must_use]
    pub fn unconfirmed(loss: impl fmt::Display, plan: Plan) -> Self {
        let refusal = Self::new(RefusalKind::Conflict, loss);
        let refusal = refusal.hint("pass --yes to do it all the same");
        Self { unconfirmed: Some(Box::new(plan)), ..refusal }
    }

    /// With a remedy.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// The error.
    pub error: String,
    /// The remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The changes that it would have made, if only `yes=true` is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed: Option<Plan>,
}

#[cfg(feature = "axum")]
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = match self.kind {
            RefusalKind::NotFound => StatusCode::NOT_FOUND,
            RefusalKind::Conflict => StatusCode::CONFLICT,
            RefusalKind::Invalid => StatusCode::BAD_REQUEST,
            RefusalKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            RefusalKind::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        let unconfirmed = self.unconfirmed.map(|plan| *plan);
        (code, Json(Error { error: self.error, hint: self.hint, unconfirmed })).into_response()
    }
}
