//! Why something asked for is not done: as the daemon has it, and as it answers requests.

use std::fmt;

#[cfg(feature = "axum")]
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use crate::plan::Plan;

/// Why something asked for can't be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Refusal {
    /// What kind of refusal it is.
    pub kind: RefusalKind,
    /// What is wrong.
    pub error: String,
    /// What would be right.
    pub hint: Option<String>,
    /// What it would have changed, if all that it takes is a yes.
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
    /// Nobody is there any more to do it.
    Stopping,
}

impl Refusal {
    /// A refusal without a hint.
    #[must_use]
    pub fn new(kind: RefusalKind, error: impl fmt::Display) -> Self {
        Self { kind, error: error.to_string(), hint: None, unconfirmed: None }
    }

    /// Something that is done only for who says yes.
    #[must_use]
    pub fn unconfirmed(loss: impl fmt::Display, plan: Plan) -> Self {
        let refusal = Self::new(RefusalKind::Conflict, loss);
        let refusal = refusal.hint("say --yes to do it all the same");
        Self { unconfirmed: Some(Box::new(plan)), ..refusal }
    }

    /// With what would be right.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What is wrong.
    pub error: String,
    /// What would be right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What it would have changed, if all that it takes is `yes=true`.
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
