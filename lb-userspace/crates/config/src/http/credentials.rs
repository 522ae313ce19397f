//! Credentials: a password (`htpasswd -B`), or a token. Tokens are kept and compared as digests.

use std::{collections::BTreeMap, fmt};

use ring::digest::{SHA256, digest};
use subtle::{Choice, ConstantTimeEq as _};

/// The allowed costs of bcrypt. Less is guessed too fast, more takes seconds for each request.
const COSTS: std::ops::RangeInclusive<u32> = 5..=15;
/// A shorter token could be guessed.
const SHORTEST: usize = 16;

/// Users with a password: names, and the bcrypt hashes of their passwords.
#[derive(Clone, PartialEq, Eq)]
pub struct Users(BTreeMap<String, String>);

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Users(..)")
    }
}

/// Tokens: a digest of each.
#[derive(Clone, PartialEq, Eq)]
pub struct Tokens(Vec<[u8; 32]>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(..)")
    }
}

/// The lines that are neither empty nor comments, by their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

impl Users {
    /// Reads lines of `NAME:$2y$...`, as `htpasswd -B` writes them.
    ///
    /// # Errors
    ///
    /// All mistakes with their lines, without secrets.
    pub fn parse(text: &str) -> Result<Self, Vec<(usize, String)>> {
        let mut users = BTreeMap::new();
        let mut mistakes = Vec::new();
        for (number, line) in lines(text) {
            const HOW: &str = "write what 'htpasswd -nB NAME' prints";
            match line.split_once(':') {
                None => mistakes.push((number, format!("no `:` behind a name; {HOW}"))),
                Some(("", _)) => mistakes.push((number, format!("no name; {HOW}"))),
                Some((name, hash)) => match check(hash) {
                    Err(what) => mistakes.push((number, format!("{name}: {what}; {HOW}"))),
                    Ok(()) if users.insert(name.to_owned(), hash.to_owned()).is_some() => {
                        mistakes.push((number, format!("{name} is there already")));
                    }
                    Ok(()) => {}
                },
            }
        }
        if users.is_empty() && mistakes.is_empty() {
            mistakes.push((1, "nobody; write what 'htpasswd -nB NAME' prints".into()));
        }
        if mistakes.is_empty() { Ok(Self(users)) } else { Err(mistakes) }
    }

    /// Whether a user of this name has this password. It takes as long as bcrypt, for unknown names too.
    #[must_use]
    pub fn is_right(&self, name: &str, password: &str) -> bool {
        let user = self.0.get(name);
        // Of another one if there is no such user, so that the refusal takes as long.
        let Some(hash) = user.or_else(|| self.0.values().next()) else { return false };
        // The reader has refused values that are no hash.
        let right = bcrypt::verify(password, hash).unwrap_or(false);
        user.is_some() && right
    }
}

/// Whether bcrypt made it, at a price that can be paid.
fn check(hash: &str) -> Result<(), String> {
    let parts: bcrypt::HashParts =
        hash.parse().map_err(|_| "its password is not hashed by bcrypt".to_owned())?;
    let cost = parts.get_cost();
    match COSTS.contains(&cost) {
        true => Ok(()),
        false => {
            let (least, most) = COSTS.into_inner();
            Err(format!("a cost of {cost}, where {least} to {most} is possible (htpasswd -C)"))
        }
    }
}

impl Tokens {
    /// Reads tokens, one a line.
    ///
    /// # Errors
    ///
    /// All mistakes with their lines, without secrets.
    pub fn parse(text: &str) -> Result<Self, Vec<(usize, String)>> {
        const HOW: &str = "write one as 'openssl rand -hex 32' prints it";
        let mut mistakes = Vec::new();
        let mut tokens = Vec::new();
        for (number, line) in lines(text) {
            if line.len() < SHORTEST {
                let length = line.len();
                mistakes.push((number, format!("a token of {length} characters; {HOW}")));
            } else if !line.bytes().all(|byte| byte.is_ascii_graphic()) {
                mistakes
                    .push((number, format!("a token with a character that it can't have; {HOW}")));
            }
            tokens.push(sha256(&[line.as_bytes()]));
        }
        if tokens.is_empty() {
            mistakes.push((1, format!("no token; {HOW}")));
        }
        if mistakes.is_empty() { Ok(Self(tokens)) } else { Err(mistakes) }
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn is_right(&self, token: &str) -> bool {
        let token = sha256(&[token.as_bytes()]);
        let found = self.0.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&token));
        found.into()
    }
}

/// SHA-256 of the parts together.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let all = parts.concat();
    digest(&SHA256, &all).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::time::ClockId;

    use super::*;

    /// The bcrypt hash of a password.
    fn hash(password: &str) -> String {
        bcrypt::hash_with_salt(password, 5, [7; 16]).expect("it is hashed").to_string()
    }

    #[test]
    fn it_takes_as_long_to_refuse_who_is_unknown() {
        let users = Users::parse(&format!("ann:{}", hash("x"))).expect("users");
        // Other threads use the CPUs as well: only this thread's time on them counts.
        let cpu =
            || Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now().expect("the clock is there"));
        let time = |name: &str| {
            let started = cpu();
            assert!(!users.is_right(name, "wrong"));
            cpu() - started
        };
        let least = |name: &str| (0..9).map(|_| time(name)).min().expect("nine");
        let (known, unknown) = (least("ann"), least("eve"));
        assert!(unknown * 2 > known, "{unknown:?} for who is unknown, {known:?} for who is known");
    }
}
