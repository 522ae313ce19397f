//! Authentication of HTTP requests: passwords and tokens.
//!
//! bcrypt for each scrape would cost a tenth of a second of CPU time, so a password that was right is remembered as a
//! salted digest.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::http::{HeaderMap, header};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use lb_config::http::credentials::{Tokens, Users, sha256};
use tokio::sync::Semaphore;

use super::per_address::Semaphores;

/// The most passwords that are remembered as right.
const REMEMBERED: usize = 256;

/// Checks the credentials of requests.
#[derive(Debug)]
pub(super) struct Authenticator {
    users: Option<Arc<Users>>,
    tokens: Option<Tokens>,
    /// Credentials that were right before, as digests with `salt`: bcrypt does not run for each scrape.
    remembered: Mutex<HashSet<[u8; 32]>>,
    salt: [u8; 32],
    /// Passwords are compared one at a time, so that guessing takes one CPU at most.
    turn: Arc<Semaphore>,
    /// Each address has a queue of its own, of which one request waits for its turn: a client that guesses
    /// waits behind itself, and not before others.
    queues: Semaphores,
}

impl Authenticator {
    pub(super) fn new(users: Option<Users>, tokens: Option<Tokens>) -> anyhow::Result<Self> {
        let mut salt = [0; 32];
        let random = ring::rand::SystemRandom::new();
        ring::rand::SecureRandom::fill(&random, &mut salt)
            .map_err(|_| anyhow::anyhow!("the kernel has no random numbers"))?;
        let (remembered, queues) = (Mutex::default(), Semaphores::new(1));
        let (users, turn) = (users.map(Arc::new), Arc::new(Semaphore::new(1)));
        Ok(Self { users, tokens, remembered, salt, turn, queues })
    }

    /// Whether the credentials of a request from an address are right.
    pub(super) async fn admits(&self, headers: &HeaderMap, peer: IpAddr) -> bool {
        if self.users.is_none() && self.tokens.is_none() {
            return true;
        }
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else { return false };
        let Some((scheme, value)) = value.to_str().ok().and_then(|value| value.split_once(' '))
        else {
            return false;
        };
        let value = value.trim();
        match (&self.users, &self.tokens) {
            (_, Some(tokens)) if scheme.eq_ignore_ascii_case("bearer") => tokens.is_right(value),
            (Some(users), _) if scheme.eq_ignore_ascii_case("basic") => {
                self.knows(users, value, peer).await
            }
            _ => false,
        }
    }

    async fn knows(&self, users: &Arc<Users>, value: &str, peer: IpAddr) -> bool {
        let mark = sha256(&[&self.salt, value.as_bytes()]);
        if self.remembered().contains(&mark) {
            return true;
        }
        let Some((name, password)) = decode(value) else { return false };
        let queue = self.queues.of(peer);
        let Ok(_next) = queue.acquire().await else { return false };
        let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else { return false };
        // A browser sends several requests at once.
        if self.remembered().contains(&mark) {
            return true;
        }
        let users = Arc::clone(users);
        let compare = move || {
            // It can't be broken off: the turn is over when it is, whether the client is there or not.
            let _turn = turn;
            users.is_right(&name, &password)
        };
        let right = tokio::task::spawn_blocking(compare).await.unwrap_or(false);
        if right {
            let mut remembered = self.remembered();
            if remembered.len() >= REMEMBERED {
                remembered.clear();
            }
            remembered.insert(mark);
        }
        right
    }

    fn remembered(&self) -> MutexGuard<'_, HashSet<[u8; 32]>> {
        // A set is whole at every moment.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The accepted schemes, for `WWW-Authenticate`.
    pub(super) fn challenges(&self) -> impl Iterator<Item = &'static str> {
        let basic = self.users.as_ref().map(|_| r#"Basic realm="lb", charset="UTF-8""#);
        let bearer = self.tokens.as_ref().map(|_| r#"Bearer realm="lb""#);
        basic.into_iter().chain(bearer)
    }
}

/// Name and password of the header's value.
fn decode(value: &str) -> Option<(String, String)> {
    let bytes = BASE64_STANDARD.decode(value).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use futures_util::FutureExt as _;

    use super::*;

    /// A password's hash.
    fn hash(password: &str) -> String {
        bcrypt::hash_with_salt(password, 5, [7; 16]).expect("it is hashed").to_string()
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let values = values.iter().map(|value| HeaderValue::from_str(value).expect("a value"));
        values.map(|value| (header::AUTHORIZATION, value)).collect()
    }

    fn basic(name: &str, password: &str) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")))
    }

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    async fn admits(authenticator: &Authenticator, value: &str) -> bool {
        authenticator.admits(&headers(&[value]), address(1)).await
    }

    #[tokio::test]
    async fn a_password_or_a_token_opens_and_nothing_else_does() {
        let ann = hash("correct horse").replace("$2b$", "$2y$");
        let users = Users::parse(&format!("ann:{ann}\nbob:{}\n", hash(""))).expect("users");
        let token = "0123456789abcdef0123456789abcdef";
        let tokens = Tokens::parse(&format!("# of Prometheus\n{token}\n")).expect("a token");
        let authenticator = Authenticator::new(Some(users), Some(tokens)).expect("random numbers");
        for (value, is_right) in [
            (basic("ann", "correct horse"), true),
            (basic("ann", "correct horse").replace("Basic", "basic"), true),
            (basic("bob", ""), true),
            (basic("ann", ""), false),
            (basic("ann", "correct horse "), false),
            (basic("bob", "correct horse"), false),
            (basic("eve", "correct horse"), false),
            (basic("ann", &ann), false),
            (format!("Bearer {token}"), true),
            (format!("bearer {token}"), true),
            (format!("Bearer {}", &token[1..]), false),
            (format!("Bearer {token}0"), false),
            (format!("Basic {token}"), false),
            (format!("Digest {token}"), false),
            ("Bearer ".into(), false),
            ("Basic !".into(), false),
            (token.into(), false),
            (String::new(), false),
        ] {
            assert_eq!(admits(&authenticator, &value).await, is_right, "{value}");
            // From memory, it is the same.
            assert_eq!(admits(&authenticator, &value).await, is_right, "{value}, again");
        }
        let right = format!("Bearer {token}");
        assert!(!authenticator.admits(&HeaderMap::new(), address(1)).await);
        let twice = headers(&[&right, &right]);
        assert!(!authenticator.admits(&twice, address(1)).await, "which of the two is meant?");
        assert_eq!(authenticator.challenges().count(), 2);
    }

    #[tokio::test]
    async fn what_is_not_configured_opens_nothing() {
        let users = Users::parse(&format!("ann:{}", hash("x"))).expect("users");
        let authenticator = Authenticator::new(Some(users), None).expect("random numbers");
        assert!(!admits(&authenticator, "Bearer 0123456789abcdef0123456789abcdef").await);
        let challenges: Vec<_> = authenticator.challenges().collect();
        assert_eq!(challenges, [r#"Basic realm="lb", charset="UTF-8""#]);
        let open = Authenticator::new(None, None).expect("random numbers");
        assert!(open.admits(&HeaderMap::new(), address(1)).await);
    }

    #[tokio::test]
    async fn what_was_right_once_costs_no_second_time() {
        let authenticator = slow_authenticator();
        let started = std::time::Instant::now();
        assert!(admits(&authenticator, &basic("ann", "x")).await);
        let once = started.elapsed();
        for _ in 0..100 {
            assert!(admits(&authenticator, &basic("ann", "x")).await);
        }
        assert!(started.elapsed() < 20 * once, "{once:?}, {:?}", started.elapsed());
    }

    /// One that knows `ann` by `x`, and takes a while to compare.
    fn slow_authenticator() -> Authenticator {
        let hash = bcrypt::hash_with_salt("x", 11, [7; 16]).expect("it is hashed").to_string();
        let users = Users::parse(&format!("ann:{hash}")).expect("users");
        Authenticator::new(Some(users), None).expect("random numbers")
    }

    #[tokio::test]
    async fn who_goes_away_while_a_password_is_compared_makes_no_room_for_another_comparison() {
        let authenticator = slow_authenticator();
        let wrong = basic("ann", "wrong");
        assert_eq!(admits(&authenticator, &wrong).now_or_never(), None, "it is being compared");
        assert_eq!(authenticator.turn.available_permits(), 0, "it is being compared still");
        assert_eq!(admits(&authenticator, &wrong).now_or_never(), None, "and the next one waits");
        assert!(!admits(&authenticator, &wrong).await, "for its turn");
        assert_eq!(authenticator.turn.available_permits(), 1);
    }

    #[tokio::test]
    async fn who_guesses_waits_behind_itself_and_not_before_others() {
        let authenticator = Arc::new(slow_authenticator());
        let guess = |_| {
            let authenticator = Arc::clone(&authenticator);
            tokio::spawn(async move { admits(&authenticator, &basic("ann", "wrong")).await })
        };
        let guesses: Vec<_> = (0..20).map(guess).collect();
        while authenticator.turn.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(authenticator.admits(&headers(&[&basic("ann", "x")]), address(2)).await);
        let compared = guesses.iter().filter(|guess| guess.is_finished()).count();
        assert!(compared <= 2, "{compared} guesses came first");
        guesses.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
