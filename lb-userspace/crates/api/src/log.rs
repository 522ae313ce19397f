//! The log level, in requests and answers.

use std::time::SystemTime;

use lb_model::{log::Filter, units::rfc3339};
use serde::{Deserialize, Serialize};

/// The log level at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    /// The level in force.
    pub filter: String,
    /// The configured level, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<String>,
    /// Until when; none: until `lbd` ends.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "rfc3339::option")]
    pub until: Option<SystemTime>,
}

/// A requested change of the log level.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The level; none: the configured one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// For so long; none: until `lbd` ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_secs: Option<u64>,
}
