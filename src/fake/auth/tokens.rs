//! Tokens: who holds which, and until when.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Identity;

/// All valid tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    issued: BTreeMap<String, Token>,
    ttl: Duration,
    /// They behave as etcd's JSON web tokens, which say themselves what they are good for: until a fixed time, and
    /// for the users and roles as they were.
    jwt: bool,
    random: fastrand::Rng,
}

#[derive(Debug)]
struct Token {
    user: String,
    revision: u64,
    until: Duration,
}

impl Tokens {
    pub(super) fn new(ttl: Duration, jwt: bool, seed: u64) -> Self {
        Self { issued: BTreeMap::new(), ttl, jwt, random: fastrand::Rng::with_seed(seed) }
    }

    pub(super) fn issue(&mut self, user: &str, revision: u64, index: u64, now: Duration) -> String {
        let head: String = (0..16).map(|_| self.random.alphabetic()).collect();
        let token = format!("{head}.{index}");
        let until = now.saturating_add(self.ttl);
        self.issued.insert(token.clone(), Token { user: user.to_owned(), revision, until });
        token
    }

    /// Whose token it is. A simple one lives on with every use.
    pub(super) fn look_up(&mut self, token: &str, revision: u64, now: Duration) -> Option<Identity> {
        let found = self.issued.get_mut(token)?;
        if found.until <= now {
            self.issued.remove(token);
            return None;
        }
        if self.jwt {
            return Some(Identity { user: found.user.clone(), revision: found.revision });
        }
        found.until = now.saturating_add(self.ttl);
        Some(Identity { user: found.user.clone(), revision })
    }

    /// A user's simple tokens end with the user, and with the old password.
    pub(super) fn forget_user(&mut self, user: &str) {
        if !self.jwt {
            self.issued.retain(|_, token| token.user != user);
        }
    }

    pub(super) fn restart(&mut self) {
        if !self.jwt {
            self.issued.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.issued.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_simple_token_lives_while_it_is_used_and_knows_no_revision() {
        let mut tokens = Tokens::new(at(10), false, 0);
        let token = tokens.issue("u", 3, 9, at(0));
        assert!(token.ends_with(".9"));
        assert_eq!(tokens.look_up(&token, 4, at(9)), Some(Identity { user: "u".into(), revision: 4 }));
        assert!(tokens.look_up(&token, 4, at(18)).is_some());
        assert!(tokens.look_up(&token, 4, at(28)).is_none());
        let token = tokens.issue("u", 3, 9, at(0));
        tokens.forget_user("u");
        assert!(tokens.look_up(&token, 3, at(0)).is_none());
    }

    #[test]
    fn a_web_token_ends_when_it_says_and_is_good_for_its_revision() {
        let mut tokens = Tokens::new(at(10), true, 0);
        let token = tokens.issue("u", 3, 9, at(0));
        tokens.forget_user("u");
        tokens.restart();
        assert_eq!(tokens.look_up(&token, 4, at(9)), Some(Identity { user: "u".into(), revision: 3 }));
        assert!(tokens.look_up(&token, 4, at(10)).is_none());
    }
}
