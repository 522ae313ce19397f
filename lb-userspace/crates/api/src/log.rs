//! How much is logged, as it is asked for and answered.

use std::time::SystemTime;

use lb_model::{log::Filter, units::rfc3339};
use serde::{Deserialize, Serialize};

/// How much is said at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    /// What is in force.
    pub filter: String,
    /// What the configuration says, if that is something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<String>,
    /// Until when; none: until `lbd` ends.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "rfc3339::option")]
    pub until: Option<SystemTime>,
}

/// What is asked of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// How much is to be said; none: what the configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// For so long; none: until `lbd` ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_secs: Option<u64>,
}
