//! Who is let in by which token and certificate.

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);
const LATER: UtcMillis = 24 * 3_600_000;

fn issued(serial: &str, not_after: UtcMillis) -> Issued {
    Issued {
        pem: String::new(),
        serial: serial.to_owned(),
        not_after,
    }
}

fn shown(node: &str, serial: &str) -> NodeCertificate {
    NodeCertificate {
        node: node.to_owned(),
        serial: serial.to_owned(),
        not_after: LATER,
    }
}

#[test]
fn a_token_admits_one_node_and_answers_again_to_the_same_key_only() {
    let mut all = Admissions::default();
    let (token, secret) = all.create(None, HOUR, "ada", 0).unwrap();
    let given = (token.id.as_str(), secret.as_str());
    let used = |node: &str| Err(Refusal::UsedToken(node.to_owned()));
    assert!(all.take(given, "a", b"key", 1).is_ok());
    assert!(
        all.take(given, "a", b"key", 2).is_ok(),
        "an answer was lost"
    );
    assert_eq!(all.take(given, "a", b"other", 3), used("a"));
    assert_eq!(all.take(given, "b", b"key", 3), used("a"));
}

#[test]
fn expired_foreign_wrong_and_revoked_tokens_admit_nobody() {
    let mut all = Admissions::default();
    let (token, secret) = all.create(None, HOUR, "ada", 0).unwrap();
    let (other, _) = all.create(None, HOUR, "ada", 0).unwrap();
    let id = token.id.as_str();
    let end = HOUR.as_millis() as u64;
    let unknown = Err(Refusal::UnknownToken);
    assert_eq!(all.take(("none", &secret), "a", b"k", 1), unknown);
    assert_eq!(all.take((&other.id, &secret), "a", b"k", 1), unknown);
    assert_eq!(all.take((id, ""), "a", b"k", 1), unknown);
    let expired = Err(Refusal::ExpiredToken);
    assert_eq!(all.take((id, &secret), "a", b"k", end), expired);
    assert!(all.revoke_token(id, 2).is_some());
    let revoked = Err(Refusal::RevokedToken);
    assert_eq!(all.take((id, &secret), "a", b"k", 3), revoked);
    assert_eq!(all.revoke_token("none", 2), None);
}

#[test]
fn the_name_of_a_node_is_given_again_only_by_a_token_that_names_it() {
    let mut all = Admissions::default();
    all.issued("a", &issued("1", LATER), false, 0);
    let (any, secret) = all.create(None, HOUR, "ada", 0).unwrap();
    let taken = Err(Refusal::NameTaken("a".to_owned()));
    assert_eq!(all.take((&any.id, &secret), "a", b"k", 1), taken);

    let (named, secret) = all.create(Some("a".to_owned()), HOUR, "ada", 0).unwrap();
    let only = Err(Refusal::OtherNode("a".to_owned()));
    assert_eq!(all.take((&named.id, &secret), "b", b"k", 1), only);
    assert!(all.take((&named.id, &secret), "a", b"k", 1).is_ok());
    all.issued("a", &issued("2", LATER), true, 2);
    let revoked = Err(Refusal::Revoked("a".to_owned()));
    assert_eq!(all.admits(&shown("a", "1"), 3), revoked);
    assert_eq!(all.admits(&shown("a", "2"), 3), Ok(()));
}

#[test]
fn only_certificates_that_were_issued_and_not_taken_back_count() {
    let mut all = Admissions::default();
    all.issued("a", &issued("1", LATER), false, 0);
    assert_eq!(all.admits(&shown("a", "1"), 1), Ok(()));
    let unknown = |node: &str| Err(Refusal::Unknown(node.to_owned()));
    assert_eq!(all.admits(&shown("a", "2"), 1), unknown("a"));
    assert_eq!(all.admits(&shown("b", "1"), 1), unknown("b"));
    let expired = Err(Refusal::Expired("a".to_owned()));
    assert_eq!(all.admits(&shown("a", "1"), LATER), expired);
    assert_eq!(all.remove("a", 2).len(), 1);
    let revoked = Err(Refusal::Revoked("a".to_owned()));
    assert_eq!(all.admits(&shown("a", "1"), 3), revoked);
    assert!(!all.is_taken("a", 3), "the name is free again");
}

#[test]
fn a_stream_outlives_its_certificate_when_the_node_renewed_it() {
    let mut all = Admissions::default();
    all.issued("a", &issued("1", 100), false, 0);
    all.issued("a", &issued("2", 200), false, 60);
    assert_eq!(all.stands(&shown("a", "1"), 150), Ok(()));
    let expired = Err(Refusal::Expired("a".to_owned()));
    assert_eq!(all.stands(&shown("a", "1"), 250), expired);
    all.remove("a", 160);
    let revoked = Err(Refusal::Revoked("a".to_owned()));
    assert_eq!(all.stands(&shown("a", "1"), 170), revoked);
}

#[test]
fn what_was_kept_and_loaded_again_decides_the_same() {
    let mut all = Admissions::default();
    let (token, secret) = all.create(None, HOUR, "ada", 0).unwrap();
    let mut records = vec![all.take((&token.id, &secret), "a", b"k", 1).unwrap()];
    records.extend(all.issued("a", &issued("1", LATER), false, 1));
    records.extend(all.issued("b", &issued("2", LATER), false, 2));
    records.extend(all.remove("b", 3));
    let mut again = Admissions::load(records);
    let used = Err(Refusal::UsedToken("a".to_owned()));
    assert_eq!(again.take((&token.id, &secret), "c", b"k", 4), used);
    assert_eq!(again.admits(&shown("a", "1"), 4), Ok(()));
    let revoked = Err(Refusal::Revoked("b".to_owned()));
    assert_eq!(again.admits(&shown("b", "2"), 4), revoked);
}

#[test]
fn tokens_and_certificates_are_bounded_and_forgotten_when_they_ran_out() {
    let mut all = Admissions::default();
    for _ in 0..TOKENS {
        all.create(None, HOUR, "ada", 0).unwrap();
    }
    let full = all.create(None, HOUR, "ada", 0);
    assert_eq!(full.unwrap_err(), Refusal::TooManyTokens);
    for serial in 0..20_u64 {
        all.issued("a", &issued(&serial.to_string(), LATER), false, serial);
    }
    let counting = |all: &Admissions| all.nodes["a"].iter().filter(|c| c.counts(30)).count();
    assert_eq!(counting(&all), CERTIFICATES);
    let (tokens, serials) = all.forget(LATER + 1);
    assert_eq!((tokens.len(), serials.len()), (TOKENS, 20));
    assert!(all.tokens().is_empty() && all.nodes.is_empty());
}

#[test]
fn nothing_that_is_kept_holds_the_secret() {
    let mut all = Admissions::default();
    let (token, secret) = all.create(None, HOUR, "ada", 0).unwrap();
    let kept = format!("{token:?}{:?}", all.tokens());
    assert!(!kept.contains(&secret));
}
