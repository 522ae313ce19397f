//! Why a probe failed, in words for people.
//!
//! A reason is a short phrase in lower case: one line, at most [`MOST`] characters, with whatever a
//! peer or a command has sent escaped, since it ends in logs and on terminals.

use std::{borrow::Cow, fmt::Write as _, io, time::Duration};

use lb_model::units::format_duration;

use super::{Failure, Outcome, vip};

/// Characters of a reason.
pub(super) const MOST: usize = 200;

/// The words for a refusal of which no more is known.
pub(super) const REFUSED: &str = "connection refused";

/// Bytes of a peer's answer that are quoted.
const QUOTED: usize = 40;

/// Why a probe failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ProbeError {
    /// The peer refuses: nothing listens there.
    Refused(Cow<'static, str>),
    /// Nothing comes from the peer.
    Silent(Cow<'static, str>),
    /// Nothing comes from the peer but its MAC address (ARP, neighbour discovery).
    Resolves(Cow<'static, str>),
    /// There is an answer, and it is a bad one.
    Failed(Cow<'static, str>),
    /// This node could not send the probe.
    Unknown(Cow<'static, str>),
}

impl ProbeError {
    pub(super) fn failed(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Failed(reason.into())
    }

    pub(super) fn silent(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Silent(reason.into())
    }

    pub(super) fn unknown(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Unknown(reason.into())
    }

    /// Nothing came in time.
    pub(super) fn silence(timeout: Duration) -> Self {
        Self::silent(format!("no answer within {}", format_duration(timeout)))
    }

    /// What went wrong on this node with a connection along the path of the clients' packets, if the error
    /// is of that kind.
    pub(super) fn of_this_node(error: &io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref()? {
            vip::Error::Local(reason) => Some(Self::unknown(reason.clone())),
            vip::Error::Refused => None,
        }
    }

    /// The reason in an error of a socket, that of connecting most of all.
    pub(super) fn of_socket(error: &io::Error) -> Self {
        if let Some(local) = Self::of_this_node(error) {
            return local;
        }
        match error.raw_os_error() {
            // RST, and for UDP the ICMP port unreachable.
            Some(libc::ECONNREFUSED) => Self::Refused(REFUSED.into()),
            // From a router's ICMP message, or because no host answers ARP or neighbour solicitations.
            Some(libc::EHOSTUNREACH) => Self::silent("host unreachable"),
            Some(libc::ETIMEDOUT) => Self::silent("connection timed out"),
            Some(libc::ECONNRESET | libc::ECONNABORTED | libc::EPIPE) => {
                Self::failed("connection reset")
            }
            Some(libc::EMFILE) => Self::unknown("no file descriptor left; raise LimitNOFILE"),
            Some(libc::EADDRNOTAVAIL) => {
                Self::unknown("no source address or port; see net.ipv4.ip_local_port_range")
            }
            Some(libc::EPERM | libc::EACCES) => {
                Self::unknown("not permitted to send; see the firewall of this node")
            }
            Some(
                libc::ENETUNREACH
                | libc::ENETDOWN
                | libc::EHOSTDOWN
                | libc::EAFNOSUPPORT
                | libc::EINVAL
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EAGAIN,
            ) => Self::unknown(text_of(error)),
            _ => Self::failed(text_of(error)),
        }
    }
}

impl From<ProbeError> for Outcome {
    fn from(error: ProbeError) -> Self {
        match error {
            ProbeError::Silent(reason) => Self::failed(Failure::Silence, &reason),
            ProbeError::Resolves(reason) => Self::failed(Failure::Resolves, &reason),
            ProbeError::Refused(reason) => Self::failed(Failure::Refusal, &reason),
            ProbeError::Failed(reason) => Self::failed(Failure::Wrong, &reason),
            ProbeError::Unknown(reason) => Self::Unknown { reason: tidy(&reason) },
        }
    }
}

impl Outcome {
    fn failed(how: Failure, reason: &str) -> Self {
        Self::Failed { how, reason: tidy(reason) }
    }
}

/// The system's words for an error, without its number.
pub(super) fn text_of(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.find(" (os error").map_or(&*text, |end| &text[..end]);
    let mut letters = text.chars();
    // A word in capitals, as TLS, keeps them.
    match letters.next() {
        Some(first) if !letters.as_str().starts_with(char::is_uppercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

/// One line of at most [`MOST`] characters, without control characters.
pub(super) fn tidy(text: &str) -> String {
    let mut tidy = String::with_capacity(text.len().min(MOST));
    let mut left = MOST;
    for letter in text.trim().chars() {
        let mut shown = String::new();
        // The marks that turn a line's direction are as bad as control characters.
        let turns = matches!(
            letter,
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        );
        if letter.is_control() || turns {
            let _ = write!(shown, "{}", letter.escape_default());
        } else {
            shown.push(letter);
        }
        let length = shown.chars().count();
        if length > left.saturating_sub(1) {
            tidy.push('…');
            break;
        }
        left -= length;
        tidy += &shown;
    }
    tidy
}

/// The beginning of a peer's bytes, in quotes.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let shown = bytes[..bytes.len().min(QUOTED)].escape_ascii();
    let more = if bytes.len() > QUOTED { "…" } else { "" };
    format!("`{shown}{more}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(number: i32) -> ProbeError {
        ProbeError::of_socket(&io::Error::from_raw_os_error(number))
    }

    #[test]
    fn a_refusal_and_a_reset_are_answers_and_an_unreachable_host_is_silent() {
        assert_eq!(of(libc::ECONNREFUSED), ProbeError::Refused("connection refused".into()));
        assert_eq!(of(libc::EHOSTUNREACH), ProbeError::silent("host unreachable"));
        assert_eq!(of(libc::ECONNRESET), ProbeError::failed("connection reset"));
        assert_eq!(of(libc::ETIMEDOUT), ProbeError::silent("connection timed out"));
    }

    #[test]
    fn what_this_node_lacks_says_nothing_about_the_backend() {
        for number in [
            libc::ENETUNREACH,
            libc::EADDRNOTAVAIL,
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EPERM,
        ] {
            assert!(matches!(of(number), ProbeError::Unknown(_)), "{number}: {:?}", of(number));
        }
        assert_eq!(of(libc::ENETUNREACH), ProbeError::unknown("network is unreachable"));
    }

    #[test]
    fn what_breaks_on_the_way_out_says_nothing_about_the_backend() {
        let local = vip::Error::Local("send on eth0: network is down".into());
        let error = ProbeError::of_socket(&io::Error::other(local));
        assert_eq!(error, ProbeError::unknown("send on eth0: network is down"));
        assert!(matches!(
            ProbeError::of_socket(&io::Error::other(vip::Error::Refused)),
            ProbeError::Failed(_)
        ));
    }

    #[test]
    fn a_reason_is_one_short_line_without_control_characters() {
        assert_eq!(tidy(" a\nb\u{1b}[2Jc\u{202e}"), "a\\nb\\u{1b}[2Jc\\u{202e}");
        assert_eq!(tidy("quoted…"), "quoted…");
        let long = tidy(&"ä".repeat(1_000));
        assert_eq!(long.chars().count(), MOST);
        assert!(long.ends_with("ä…"));
        let escaped = tidy(&"\u{7}".repeat(1_000));
        assert!(escaped.chars().count() <= MOST && escaped.ends_with("\\u{7}…"), "{escaped}");
    }

    #[test]
    fn bytes_of_a_peer_are_quoted_and_cut() {
        assert_eq!(quoted(b"a\x00\xff"), "`a\\x00\\xff`");
        assert_eq!(quoted(&[b'x'; 41]), format!("`{}…`", "x".repeat(40)));
    }

    #[test]
    fn the_systems_words_begin_small_unless_they_are_capitals() {
        assert_eq!(
            text_of(&io::Error::from_raw_os_error(libc::ENOENT)),
            "no such file or directory"
        );
        assert_eq!(text_of(&io::Error::other("TLS is odd")), "TLS is odd");
        assert_eq!(text_of(&io::Error::other("")), "");
    }
}
