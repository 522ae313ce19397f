//! A probe through the VIP, and the error texts for its silence or refusal.
//!
//! lbd finds the cause by a probe of the backend's own address too: where that answers, the VIP or
//! the tunnel is missing. That second probe has the last part of the first one's time, so that the
//! outcome never comes later for it.

use std::{net::IpAddr, pin::pin, time::Duration};

use lb_model::{desired::Mode, units::format_duration};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    LAST_SHARE,
    reason::{ProbeError, REFUSED},
    vip::{Error, ProbePath},
};

/// How the VIP was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    Silence,
    Refusal,
}

/// The result of a check of the backend's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Answers,
    Refuses,
    Silent,
    /// There was no time, or this node could not send the probe.
    NotKnown,
}

impl Own {
    fn of(answer: &Result<(), ProbeError>) -> Self {
        match answer {
            Ok(()) => Self::Answers,
            // A connection that is reset is no better.
            Err(ProbeError::Refused(_) | ProbeError::Failed(_)) => Self::Refuses,
            Err(ProbeError::Silent(_) | ProbeError::Resolves(_)) => Self::Silent,
            Err(ProbeError::Unknown(_)) => Self::NotKnown,
        }
    }
}

/// Waits for `answer` of the VIP until `deadline`; `own` probes the backend's own address.
pub(super) async fn run<T>(
    path: &ProbePath,
    timeout: Duration,
    deadline: Instant,
    answer: impl Future<Output = Result<T, Error>>,
    own: impl Future<Output = Result<(), ProbeError>>,
) -> Result<T, ProbeError> {
    let mut answer = pin!(answer);
    let mut own = pin!(own);
    let share = LAST_SHARE.min(timeout / 2);
    let worded = |met, own| worded(met, own, path.mode, path.vip, path.backend, timeout);
    let mut seen = None;
    let answer = match timeout_at(deadline - share, &mut answer).await {
        Ok(answer) => answer,
        Err(_) => loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer,
                answer = &mut own, if seen.is_none() => seen = Some(Own::of(&answer)),
                () = sleep_until(deadline) => {
                    return Err(worded(Met::Silence, seen.unwrap_or(Own::Silent)));
                }
            }
        },
    };
    match answer {
        Ok(answer) => Ok(answer),
        Err(Error::Local(reason)) => Err(ProbeError::unknown(reason)),
        Err(Error::Refused) => {
            let until = deadline.min(Instant::now() + share);
            let own = match seen {
                Some(seen) => seen,
                None => timeout_at(until, own).await.map_or(Own::NotKnown, |own| Own::of(&own)),
            };
            Err(worded(Met::Refusal, own))
        }
    }
}

/// The words for a VIP that was met in silence or with a refusal.
///
/// Only the VIP's own refusal is one: it is what the clients meet. A host that answers at its own
/// address is alive, so that its silence for the VIP is a fault of another kind.
fn worded(
    met: Met,
    own: Own,
    mode: Mode,
    vip: IpAddr,
    backend: IpAddr,
    timeout: Duration,
) -> ProbeError {
    let hint = match mode {
        Mode::Dsr | Mode::Nat => "is the VIP on its loopback?",
        Mode::Ipip => "is the tunnel up, and the VIP on its loopback?",
    };
    match (met, own) {
        (Met::Silence, Own::Answers) => ProbeError::failed(format!(
            "does not answer for {vip}, though it answers at {backend}: {hint}"
        )),
        (Met::Silence, Own::Refuses) => ProbeError::failed(format!(
            "does not answer for {vip}, and refuses connections at {backend}"
        )),
        (Met::Silence, Own::Silent) => ProbeError::silent(format!(
            "no answer within {}, for {vip} as at {backend} itself",
            format_duration(timeout)
        )),
        (Met::Silence, Own::NotKnown) => ProbeError::silence(timeout),
        // A host without the tunnel's protocol answers by ICMP.
        (Met::Refusal, Own::Answers) => {
            let hint = match mode {
                Mode::Dsr | Mode::Nat => "does it listen on the VIP?",
                Mode::Ipip => "is the tunnel up, and does it listen on the VIP?",
            };
            ProbeError::Refused(
                format!("refuses connections for {vip}, though it answers at {backend}: {hint}")
                    .into(),
            )
        }
        (Met::Refusal, Own::Refuses | Own::Silent | Own::NotKnown) => {
            ProbeError::Refused(REFUSED.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use lb_model::{hop::NextHop, settings::Tunnel};

    use super::*;

    const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 100));
    const BACKEND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 11));
    const SHORT: Duration = Duration::from_millis(60);

    fn path(mode: Mode) -> ProbePath {
        let hop = NextHop {
            ifindex: 1,
            interface: "lo".into(),
            mac: [2; 6],
            l2: vec![0; 14],
            mtu: 1_500,
        };
        ProbePath { vip: VIP, backend: BACKEND, mode, hop, tunnel: Tunnel::default() }
    }

    async fn run_dsr(
        timeout: Duration,
        answer: impl Future<Output = Result<(), Error>>,
        own: impl Future<Output = Result<(), ProbeError>>,
    ) -> Result<(), ProbeError> {
        run(&path(Mode::Dsr), timeout, Instant::now() + timeout, answer, own).await
    }

    fn words(met: Met, own: Own, mode: Mode) -> ProbeError {
        worded(met, own, mode, VIP, BACKEND, Duration::from_secs(1))
    }

    #[test]
    fn a_silent_vip_of_a_backend_that_answers_is_missing_or_not_tunnelled() {
        assert_eq!(
            words(Met::Silence, Own::Answers, Mode::Dsr),
            ProbeError::failed(
                "does not answer for 10.0.0.100, though it answers at 10.0.0.11: is the VIP on its loopback?"
            )
        );
        assert_eq!(
            words(Met::Silence, Own::Answers, Mode::Ipip),
            ProbeError::failed(
                "does not answer for 10.0.0.100, though it answers at 10.0.0.11: is the tunnel up, and the VIP on its loopback?"
            )
        );
    }

    #[test]
    fn a_silent_backend_is_told_from_one_without_the_vip() {
        assert_eq!(
            words(Met::Silence, Own::Silent, Mode::Ipip),
            ProbeError::silent("no answer within 1s, for 10.0.0.100 as at 10.0.0.11 itself")
        );
        assert_eq!(
            words(Met::Silence, Own::NotKnown, Mode::Dsr),
            ProbeError::silent("no answer within 1s")
        );
    }

    #[test]
    fn only_a_refusal_for_the_vip_refuses_and_only_silence_at_both_addresses_is_silence() {
        for own in [Own::Answers, Own::Refuses, Own::Silent, Own::NotKnown] {
            for mode in [Mode::Dsr, Mode::Ipip] {
                let is_silent = matches!(words(Met::Silence, own, mode), ProbeError::Silent(_));
                assert_eq!(is_silent, matches!(own, Own::Silent | Own::NotKnown), "{own:?}");
                assert!(matches!(words(Met::Refusal, own, mode), ProbeError::Refused(_)));
            }
        }
        assert_eq!(
            words(Met::Silence, Own::Refuses, Mode::Dsr),
            ProbeError::failed(
                "does not answer for 10.0.0.100, and refuses connections at 10.0.0.11"
            )
        );
        assert_eq!(
            words(Met::Refusal, Own::Answers, Mode::Dsr),
            ProbeError::Refused(
                "refuses connections for 10.0.0.100, though it answers at 10.0.0.11: does it listen on the VIP?"
                    .into()
            )
        );
        let ProbeError::Refused(reason) = words(Met::Refusal, Own::Answers, Mode::Ipip) else {
            unreachable!("a refusal, as above");
        };
        assert!(reason.contains("is the tunnel up"), "{reason}");
    }

    #[test]
    fn the_longest_words_fit() {
        let vip: IpAddr = "2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap();
        for (met, own) in [
            (Met::Silence, Own::Answers),
            (Met::Silence, Own::Refuses),
            (Met::Silence, Own::Silent),
            (Met::Refusal, Own::Answers),
        ] {
            let (ProbeError::Silent(reason)
            | ProbeError::Resolves(reason)
            | ProbeError::Failed(reason)
            | ProbeError::Refused(reason)
            | ProbeError::Unknown(reason)) =
                worded(met, own, Mode::Ipip, vip, vip, Duration::from_millis(1_001));
            assert!(reason.len() <= super::super::reason::MOST, "{}: {reason}", reason.len());
        }
    }

    #[tokio::test]
    async fn an_answer_is_passed_on_and_the_backends_address_left_alone() {
        let own = async { panic!("asked") };
        assert_eq!(run_dsr(Duration::from_secs(10), ready(Ok(())), own).await, Ok(()));
    }

    #[tokio::test]
    async fn silence_ends_in_time_with_what_the_backends_address_says() {
        let before = Instant::now();
        let outcome = run_dsr(SHORT, pending(), ready(Ok(()))).await;
        assert!(
            matches!(&outcome, Err(ProbeError::Failed(why)) if why.contains("though it answers"))
        );
        let both = run_dsr(SHORT, pending(), pending()).await;
        assert!(
            matches!(&both, Err(ProbeError::Silent(why)) if why.contains("itself")),
            "{both:?}"
        );
        assert!(before.elapsed() >= 2 * SHORT);
        assert!(before.elapsed() < 2 * SHORT + Duration::from_secs(20));
    }

    #[tokio::test]
    async fn an_answer_that_comes_late_but_in_time_counts() {
        let answer = async {
            tokio::time::sleep(SHORT * 3 / 4).await;
            Ok(())
        };
        let timeout = Duration::from_secs(5);
        let deadline = Instant::now() + timeout;
        // The share of the own address has begun long before.
        let outcome = run(&path(Mode::Dsr), timeout, deadline, answer, ready(Ok(()))).await;
        assert_eq!(outcome, Ok(()));
        let late = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(())
        };
        assert_eq!(run_dsr(Duration::from_millis(500), late, ready(Ok(()))).await, Ok(()));
    }

    #[tokio::test]
    async fn a_refusal_waits_for_the_backends_address_only_shortly() {
        let before = Instant::now();
        let outcome = run_dsr(Duration::from_secs(60), ready(Err(Error::Refused)), pending()).await;
        assert_eq!(outcome, Err(ProbeError::Refused("connection refused".into())));
        assert!(before.elapsed() < Duration::from_secs(30), "{:?}", before.elapsed());
    }

    #[tokio::test]
    async fn what_cannot_be_asked_is_unknown_at_once() {
        let answer = ready(Err(Error::Local("no socket".into())));
        let outcome = run_dsr(Duration::from_secs(60), answer, pending()).await;
        assert_eq!(outcome, Err(ProbeError::unknown("no socket")));
    }
}
