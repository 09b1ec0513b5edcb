//! Which pool serves a job, and why the others do not.

use crate::{
    explain::{Reason, ReasonCode},
    input::JobSeen,
    labels::Signature,
    model::{Admission, Origin, Pool, Repository},
};

/// Where the code comes from, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// The repository's own branches.
    Own,
    Fork,
    Unknown,
}

/// A pull request whose head is elsewhere, or was deleted, comes from a fork.
pub(crate) fn source(origin: &Origin, repository: &Repository) -> Source {
    let Some(event) = &origin.event else {
        return Source::Unknown;
    };
    if !event.starts_with("pull_request") || event == "pull_request_target" {
        return Source::Own;
    }
    match &origin.head_repository {
        Some(head) if head.eq_ignore_ascii_case(&repository.full_name()) => Source::Own,
        _ => Source::Fork,
    }
}

/// `None`: the pool serves it.
pub(crate) fn refusal(
    pool: &Pool,
    signature: &Signature,
    repository: &Repository,
    source: Source,
) -> Option<Reason> {
    let reason = |code, detail: String, unblocked_by: String| {
        Some(Reason {
            code,
            detail,
            unblocked_by,
        })
    };
    if !pool.labels.is_empty() {
        let missing = signature.labels.iter().find(|label| {
            *label != "self-hosted"
                && !pool
                    .labels
                    .iter()
                    .any(|offered| offered.eq_ignore_ascii_case(label))
        });
        if let Some(label) = missing {
            return reason(
                ReasonCode::MissingLabel,
                format!("pool {} does not offer the label {label}", pool.name),
                format!("add {label} to the pool's labels or change the job's runs-on"),
            );
        }
    }
    if signature.is_bare() && !pool.bare_self_hosted {
        return reason(
            ReasonCode::BareSelfHosted,
            "the job asks for self-hosted alone, which any machine would match".to_owned(),
            "name the architecture in runs-on, or set bare_self_hosted for the pool".to_owned(),
        );
    }
    let name = repository.full_name();
    if !pool.repositories.is_empty()
        && !pool
            .repositories
            .iter()
            .any(|pattern| matches_pattern(&pattern.to_lowercase(), &name.to_lowercase()))
    {
        return reason(
            ReasonCode::RepositoryNotAdmitted,
            format!("pool {} does not serve {name}", pool.name),
            format!("add {name} to the pool's repositories"),
        );
    }
    let strict = pool.profile == "strict";
    let public = repository.private != Some(true);
    if public && !allows(pool.public_repositories, strict) {
        return reason(
            ReasonCode::PublicRepositoryRefused,
            format!("pool {} does not serve public repositories", pool.name),
            "set the pool's public_repositories to strict under the strict profile, or to allow"
                .to_owned(),
        );
    }
    if allows(pool.fork_pull_requests, strict) {
        return None;
    }
    match source {
        Source::Own => None,
        Source::Fork => reason(
            ReasonCode::ForkRefused,
            format!("pool {} refuses pull requests from forks", pool.name),
            "set the pool's fork_pull_requests to strict under the strict profile".to_owned(),
        ),
        // Only a public repository takes pull requests from strangers.
        Source::Unknown if !public => None,
        Source::Unknown => reason(
            ReasonCode::OriginUnknown,
            "GitHub has not said yet where the code of this run comes from".to_owned(),
            "nothing: the next sweep or workflow_run event says it".to_owned(),
        ),
    }
}

/// The pool serves it only because a private repository takes no pull requests
/// from strangers: where this run's code comes from is not known.
pub(crate) fn admits_unseen(pool: &Pool, seen: &JobSeen) -> bool {
    let strict = pool.profile == "strict";
    source(&seen.origin, &seen.repository) == Source::Unknown
        && seen.repository.private == Some(true)
        && !allows(pool.fork_pull_requests, strict)
}

fn allows(policy: Admission, strict: bool) -> bool {
    match policy {
        Admission::Refuse => false,
        Admission::StrictOnly => strict,
        Admission::Allow => true,
    }
}

/// `*` stands for any run of characters.
pub(crate) fn matches_pattern(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches_pattern;

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        for (pattern, text, expected) in [
            ("acme/*", "acme/web", true),
            ("acme/*", "other/web", false),
            ("acme/web", "acme/web", true),
            ("acme/web", "acme/web2", false),
            ("*/web", "acme/web", true),
            ("acme/*-api", "acme/pay-api", true),
            ("acme/a*a", "acme/a", false),
            ("*", "acme/web", true),
            ("ac*e/*b*", "acme/web", true),
        ] {
            assert_eq!(matches_pattern(pattern, text), expected, "{pattern} {text}");
        }
    }
}
