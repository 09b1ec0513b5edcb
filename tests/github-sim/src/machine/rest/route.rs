//! The table of endpoints.

use super::super::model::Scope;
use super::super::world::World;
use super::{Answer, Ctx, accounts, actions, apps, groups, hooks, registrations};

type Handler = fn(&mut World, &Ctx) -> Answer;

pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) template: &'static str,
    pub(crate) handler: Handler,
}

const fn r(method: &'static str, template: &'static str, handler: Handler) -> Route {
    Route {
        method,
        template,
        handler,
    }
}

/// Every endpoint. Fixed segments stand before variable ones of the same length.
pub(crate) const ROUTES: &[Route] = &[
    r("GET", "/", accounts::root),
    r("GET", "/meta", accounts::meta),
    r("GET", "/versions", accounts::versions),
    r("GET", "/rate_limit", accounts::rate_limit),
    r("GET", "/user", accounts::me),
    r("GET", "/user/repos", accounts::my_repos),
    r("GET", "/user/installations", apps::my_installations),
    r(
        "GET",
        "/user/installations/{installation_id}/repositories",
        apps::my_installation_repos,
    ),
    r("GET", "/users/{username}", accounts::user),
    r("GET", "/users/{username}/repos", accounts::user_repos),
    r(
        "GET",
        "/users/{username}/installation",
        apps::user_installation,
    ),
    r("GET", "/orgs/{org}", accounts::organization),
    r("GET", "/orgs/{org}/repos", accounts::organization_repos),
    r(
        "GET",
        "/orgs/{org}/installation",
        apps::organization_installation,
    ),
    r("GET", "/repos/{owner}/{repo}", accounts::repository),
    r(
        "GET",
        "/repos/{owner}/{repo}/installation",
        apps::repository_installation,
    ),
    // Apps
    r("GET", "/app", apps::app),
    r("GET", "/app/hook/config", apps::hook_config),
    r("GET", "/app/hook/deliveries", hooks::app_deliveries),
    r(
        "GET",
        "/app/hook/deliveries/{delivery_id}",
        hooks::app_delivery,
    ),
    r(
        "POST",
        "/app/hook/deliveries/{delivery_id}/attempts",
        hooks::app_redeliver,
    ),
    r("GET", "/app/installations", apps::installations),
    r(
        "GET",
        "/app/installations/{installation_id}",
        apps::installation,
    ),
    r(
        "DELETE",
        "/app/installations/{installation_id}",
        apps::delete_installation,
    ),
    r(
        "PUT",
        "/app/installations/{installation_id}/suspended",
        apps::suspend,
    ),
    r(
        "DELETE",
        "/app/installations/{installation_id}/suspended",
        apps::unsuspend,
    ),
    r(
        "POST",
        "/app/installations/{installation_id}/access_tokens",
        apps::access_token,
    ),
    r(
        "GET",
        "/installation/repositories",
        apps::installation_repos,
    ),
    r("DELETE", "/installation/token", apps::revoke_token),
    // runs and jobs
    r(
        "GET",
        "/repos/{owner}/{repo}/actions/workflows",
        actions::workflows,
    ),
    r(
        "GET",
        "/repos/{owner}/{repo}/actions/workflows/{workflow_id}",
        actions::workflow,
    ),
    r(
        "GET",
        "/repos/{owner}/{repo}/actions/workflows/{workflow_id}/runs",
        actions::workflow_runs,
    ),
    r("GET", "/repos/{owner}/{repo}/actions/runs", actions::runs),
    r(
        "GET",
        "/repos/{owner}/{repo}/actions/runs/{run_id}",
        actions::run,
    ),
    r(
        "GET",
        "/repos/{owner}/{repo}/actions/runs/{run_id}/attempts/{attempt_number}",
        actions::run_attempt,
    ),
    r(
        "GET",
        "/repos/{owner}/{repo}/actions/runs/{run_id}/attempts/{attempt_number}/jobs",
        actions::attempt_jobs,
    ),
    r(
        "GET",
        "/repos/{owner}/{repo}/actions/runs/{run_id}/jobs",
        actions::run_jobs,
    ),
    r(
        "GET",
        "/repos/{owner}/{repo}/actions/runs/{run_id}/pending_deployments",
        actions::pending_deployments,
    ),
    r(
        "POST",
        "/repos/{owner}/{repo}/actions/runs/{run_id}/cancel",
        actions::cancel,
    ),
    r(
        "POST",
        "/repos/{owner}/{repo}/actions/runs/{run_id}/force-cancel",
        actions::force_cancel,
    ),
    r(
        "POST",
        "/repos/{owner}/{repo}/actions/runs/{run_id}/rerun",
        actions::rerun,
    ),
    r(
        "POST",
        "/repos/{owner}/{repo}/actions/runs/{run_id}/rerun-failed-jobs",
        actions::rerun_failed,
    ),
    r(
        "GET",
        "/repos/{owner}/{repo}/actions/jobs/{job_id}",
        actions::job,
    ),
    r(
        "POST",
        "/repos/{owner}/{repo}/actions/jobs/{job_id}/rerun",
        actions::rerun_job,
    ),
    // runners of a repository
    r("GET", "/repos/{owner}/{repo}/actions/runners", |w, c| {
        registrations::list(w, c, &REPOSITORY)
    }),
    r(
        "GET",
        "/repos/{owner}/{repo}/actions/runners/downloads",
        |w, c| registrations::downloads(w, c, &REPOSITORY),
    ),
    r(
        "POST",
        "/repos/{owner}/{repo}/actions/runners/generate-jitconfig",
        |w, c| registrations::jit(w, c, &REPOSITORY),
    ),
    r(
        "POST",
        "/repos/{owner}/{repo}/actions/runners/registration-token",
        |w, c| registrations::token(w, c, &REPOSITORY),
    ),
    r(
        "POST",
        "/repos/{owner}/{repo}/actions/runners/remove-token",
        |w, c| registrations::token(w, c, &REPOSITORY),
    ),
    r(
        "GET",
        "/repos/{owner}/{repo}/actions/runners/{runner_id}",
        |w, c| registrations::get(w, c, &REPOSITORY),
    ),
    r(
        "DELETE",
        "/repos/{owner}/{repo}/actions/runners/{runner_id}",
        |w, c| registrations::delete(w, c, &REPOSITORY),
    ),
    r(
        "GET",
        "/repos/{owner}/{repo}/actions/runners/{runner_id}/labels",
        |w, c| registrations::labels(w, c, &REPOSITORY),
    ),
    r(
        "POST",
        "/repos/{owner}/{repo}/actions/runners/{runner_id}/labels",
        |w, c| registrations::add_labels(w, c, &REPOSITORY),
    ),
    r(
        "PUT",
        "/repos/{owner}/{repo}/actions/runners/{runner_id}/labels",
        |w, c| registrations::set_labels(w, c, &REPOSITORY),
    ),
    r(
        "DELETE",
        "/repos/{owner}/{repo}/actions/runners/{runner_id}/labels",
        |w, c| registrations::clear_labels(w, c, &REPOSITORY),
    ),
    r(
        "DELETE",
        "/repos/{owner}/{repo}/actions/runners/{runner_id}/labels/{name}",
        |w, c| registrations::drop_label(w, c, &REPOSITORY),
    ),
    // runners of an organisation
    r(
        "GET",
        "/orgs/{org}/actions/permissions/self-hosted-runners",
        groups::runner_permissions,
    ),
    r(
        "PUT",
        "/orgs/{org}/actions/permissions/self-hosted-runners",
        groups::set_runner_permissions,
    ),
    r("GET", "/orgs/{org}/actions/runners", |w, c| {
        registrations::list(w, c, &ORGANIZATION)
    }),
    r("GET", "/orgs/{org}/actions/runners/downloads", |w, c| {
        registrations::downloads(w, c, &ORGANIZATION)
    }),
    r(
        "POST",
        "/orgs/{org}/actions/runners/generate-jitconfig",
        |w, c| registrations::jit(w, c, &ORGANIZATION),
    ),
    r(
        "POST",
        "/orgs/{org}/actions/runners/registration-token",
        |w, c| registrations::token(w, c, &ORGANIZATION),
    ),
    r(
        "POST",
        "/orgs/{org}/actions/runners/remove-token",
        |w, c| registrations::token(w, c, &ORGANIZATION),
    ),
    r("GET", "/orgs/{org}/actions/runners/{runner_id}", |w, c| {
        registrations::get(w, c, &ORGANIZATION)
    }),
    r(
        "DELETE",
        "/orgs/{org}/actions/runners/{runner_id}",
        |w, c| registrations::delete(w, c, &ORGANIZATION),
    ),
    r(
        "GET",
        "/orgs/{org}/actions/runners/{runner_id}/labels",
        |w, c| registrations::labels(w, c, &ORGANIZATION),
    ),
    r(
        "POST",
        "/orgs/{org}/actions/runners/{runner_id}/labels",
        |w, c| registrations::add_labels(w, c, &ORGANIZATION),
    ),
    r(
        "PUT",
        "/orgs/{org}/actions/runners/{runner_id}/labels",
        |w, c| registrations::set_labels(w, c, &ORGANIZATION),
    ),
    r(
        "DELETE",
        "/orgs/{org}/actions/runners/{runner_id}/labels",
        |w, c| registrations::clear_labels(w, c, &ORGANIZATION),
    ),
    r(
        "DELETE",
        "/orgs/{org}/actions/runners/{runner_id}/labels/{name}",
        |w, c| registrations::drop_label(w, c, &ORGANIZATION),
    ),
    r("GET", "/orgs/{org}/actions/runner-groups", |w, c| {
        groups::list(w, c, &ORGANIZATION)
    }),
    r("POST", "/orgs/{org}/actions/runner-groups", |w, c| {
        groups::create(w, c, &ORGANIZATION)
    }),
    r(
        "GET",
        "/orgs/{org}/actions/runner-groups/{runner_group_id}",
        |w, c| groups::get(w, c, &ORGANIZATION),
    ),
    r(
        "PATCH",
        "/orgs/{org}/actions/runner-groups/{runner_group_id}",
        |w, c| groups::update(w, c, &ORGANIZATION),
    ),
    r(
        "DELETE",
        "/orgs/{org}/actions/runner-groups/{runner_group_id}",
        |w, c| groups::delete(w, c, &ORGANIZATION),
    ),
    r(
        "GET",
        "/orgs/{org}/actions/runner-groups/{runner_group_id}/runners",
        |w, c| groups::runners(w, c, &ORGANIZATION),
    ),
    r(
        "GET",
        "/orgs/{org}/actions/runner-groups/{runner_group_id}/repositories",
        groups::repositories,
    ),
    r(
        "PUT",
        "/orgs/{org}/actions/runner-groups/{runner_group_id}/repositories",
        groups::set_repositories,
    ),
    // runners of an enterprise
    r(
        "GET",
        "/enterprises/{enterprise}/actions/runners",
        |w, c| registrations::list(w, c, &ENTERPRISE),
    ),
    r(
        "GET",
        "/enterprises/{enterprise}/actions/runners/downloads",
        |w, c| registrations::downloads(w, c, &ENTERPRISE),
    ),
    r(
        "POST",
        "/enterprises/{enterprise}/actions/runners/generate-jitconfig",
        |w, c| registrations::jit(w, c, &ENTERPRISE),
    ),
    r(
        "POST",
        "/enterprises/{enterprise}/actions/runners/registration-token",
        |w, c| registrations::token(w, c, &ENTERPRISE),
    ),
    r(
        "POST",
        "/enterprises/{enterprise}/actions/runners/remove-token",
        |w, c| registrations::token(w, c, &ENTERPRISE),
    ),
    r(
        "GET",
        "/enterprises/{enterprise}/actions/runners/deprecations/{version}",
        registrations::deprecation,
    ),
    r(
        "GET",
        "/enterprises/{enterprise}/actions/runners/{runner_id}",
        |w, c| registrations::get(w, c, &ENTERPRISE),
    ),
    r(
        "DELETE",
        "/enterprises/{enterprise}/actions/runners/{runner_id}",
        |w, c| registrations::delete(w, c, &ENTERPRISE),
    ),
    r(
        "GET",
        "/enterprises/{enterprise}/actions/runners/{runner_id}/labels",
        |w, c| registrations::labels(w, c, &ENTERPRISE),
    ),
    r(
        "GET",
        "/enterprises/{enterprise}/actions/runner-groups",
        |w, c| groups::list(w, c, &ENTERPRISE),
    ),
    r(
        "POST",
        "/enterprises/{enterprise}/actions/runner-groups",
        |w, c| groups::create(w, c, &ENTERPRISE),
    ),
    r(
        "GET",
        "/enterprises/{enterprise}/actions/runner-groups/{runner_group_id}",
        |w, c| groups::get(w, c, &ENTERPRISE),
    ),
    r(
        "PATCH",
        "/enterprises/{enterprise}/actions/runner-groups/{runner_group_id}",
        |w, c| groups::update(w, c, &ENTERPRISE),
    ),
    r(
        "DELETE",
        "/enterprises/{enterprise}/actions/runner-groups/{runner_group_id}",
        |w, c| groups::delete(w, c, &ENTERPRISE),
    ),
    r(
        "GET",
        "/enterprises/{enterprise}/actions/runner-groups/{runner_group_id}/runners",
        |w, c| groups::runners(w, c, &ENTERPRISE),
    ),
    // hooks
    r("GET", "/repos/{owner}/{repo}/hooks", |w, c| {
        hooks::list(w, c, &REPOSITORY)
    }),
    r("POST", "/repos/{owner}/{repo}/hooks", |w, c| {
        hooks::create(w, c, &REPOSITORY)
    }),
    r("GET", "/repos/{owner}/{repo}/hooks/{hook_id}", |w, c| {
        hooks::get(w, c, &REPOSITORY)
    }),
    r("PATCH", "/repos/{owner}/{repo}/hooks/{hook_id}", |w, c| {
        hooks::update(w, c, &REPOSITORY)
    }),
    r("DELETE", "/repos/{owner}/{repo}/hooks/{hook_id}", |w, c| {
        hooks::delete(w, c, &REPOSITORY)
    }),
    r(
        "POST",
        "/repos/{owner}/{repo}/hooks/{hook_id}/pings",
        |w, c| hooks::ping(w, c, &REPOSITORY),
    ),
    r(
        "GET",
        "/repos/{owner}/{repo}/hooks/{hook_id}/deliveries",
        |w, c| hooks::deliveries(w, c, &REPOSITORY),
    ),
    r(
        "GET",
        "/repos/{owner}/{repo}/hooks/{hook_id}/deliveries/{delivery_id}",
        |w, c| hooks::delivery(w, c, &REPOSITORY),
    ),
    r(
        "POST",
        "/repos/{owner}/{repo}/hooks/{hook_id}/deliveries/{delivery_id}/attempts",
        |w, c| hooks::redeliver(w, c, &REPOSITORY),
    ),
    r("GET", "/orgs/{org}/hooks", |w, c| {
        hooks::list(w, c, &ORGANIZATION)
    }),
    r("POST", "/orgs/{org}/hooks", |w, c| {
        hooks::create(w, c, &ORGANIZATION)
    }),
    r("GET", "/orgs/{org}/hooks/{hook_id}", |w, c| {
        hooks::get(w, c, &ORGANIZATION)
    }),
    r("PATCH", "/orgs/{org}/hooks/{hook_id}", |w, c| {
        hooks::update(w, c, &ORGANIZATION)
    }),
    r("DELETE", "/orgs/{org}/hooks/{hook_id}", |w, c| {
        hooks::delete(w, c, &ORGANIZATION)
    }),
    r("POST", "/orgs/{org}/hooks/{hook_id}/pings", |w, c| {
        hooks::ping(w, c, &ORGANIZATION)
    }),
    r("GET", "/orgs/{org}/hooks/{hook_id}/deliveries", |w, c| {
        hooks::deliveries(w, c, &ORGANIZATION)
    }),
    r(
        "GET",
        "/orgs/{org}/hooks/{hook_id}/deliveries/{delivery_id}",
        |w, c| hooks::delivery(w, c, &ORGANIZATION),
    ),
    r(
        "POST",
        "/orgs/{org}/hooks/{hook_id}/deliveries/{delivery_id}/attempts",
        |w, c| hooks::redeliver(w, c, &ORGANIZATION),
    ),
];

/// One of the three levels runners, groups and hooks exist at: how many path parameters it takes, and what it needs.
pub(crate) struct LevelOf {
    pub(crate) params: usize,
    pub(crate) permission: &'static str,
    pub(crate) hook_permission: &'static str,
    pub(crate) scope: fn(&World, &Ctx) -> Option<Scope>,
}

pub(crate) static REPOSITORY: LevelOf = LevelOf {
    params: 2,
    permission: "administration",
    hook_permission: "repository_hooks",
    scope: |w, c| {
        w.repo_id(&format!("{}/{}", c.param(0), c.param(1)))
            .ok()
            .map(Scope::Repository)
    },
};
pub(crate) static ORGANIZATION: LevelOf = LevelOf {
    params: 1,
    permission: "organization_self_hosted_runners",
    hook_permission: "organization_hooks",
    scope: |w, c| w.parse_scope(&format!("orgs/{}", c.param(0))).ok(),
};
pub(crate) static ENTERPRISE: LevelOf = LevelOf {
    params: 1,
    permission: "enterprise_self_hosted_runners",
    hook_permission: "enterprise_hooks",
    scope: |w, c| w.parse_scope(&format!("enterprises/{}", c.param(0))).ok(),
};

/// The endpoint of a path, and its parameters.
pub(crate) fn find(method: &str, segments: &[String]) -> Option<(Vec<String>, &'static Route)> {
    ROUTES
        .iter()
        .filter(|r| r.method == method)
        .find_map(|route| {
            let mut params = Vec::new();
            let mut parts = route.template.split('/').filter(|s| !s.is_empty());
            for segment in segments {
                let part = parts.next()?;
                if part.starts_with('{') {
                    params.push(segment.clone());
                } else if part != segment {
                    return None;
                }
            }
            parts.next().is_none().then_some((params, route))
        })
}
