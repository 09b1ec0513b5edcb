//! A tour over the REST surface: every answer validates, and would not with any one required field taken out.

use std::collections::{BTreeMap, BTreeSet};

use github_sim::machine::{
    AppSpec, Faults, GroupSpec, HookSpec, InstallationSpec, JobSpec, Message, OwnerSpec, RepoSpec,
    Request, Response, RunSpec, TokenSpec, World, WorldConfig,
};
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::schema::{Found, OpenApi, without};

/// Answers that GitHub gives on any endpoint, listed or not.
const GENERAL: [u16; 9] = [301, 304, 401, 403, 404, 429, 500, 502, 503];

struct Tour {
    world: World,
    specs: [OpenApi; 2],
    problems: Vec<String>,
    removed: usize,
    seen: BTreeSet<(String, String, u16)>,
    /// By method, route and status: a validator is dear.
    made: BTreeMap<(String, String, u16), Validator>,
}

impl Tour {
    fn new() -> Self {
        Self {
            world: World::new(5, WorldConfig::default()),
            specs: [
                OpenApi::load("rest/openapi-subset.api.github.com.json"),
                OpenApi::load("rest/openapi-subset.ghec.json"),
            ],
            problems: Vec::new(),
            removed: 0,
            seen: BTreeSet::new(),
            made: BTreeMap::new(),
        }
    }

    /// Sends, checks the status, validates the body, and takes its required fields out one by one.
    fn go(&mut self, request: Request, want: u16) -> Value {
        let before = self.world.requests().total();
        let response = self.world.call(&request);
        assert_eq!(self.world.requests().total(), before + 1);
        let route = self.world.requests().entries.back().unwrap().route;
        let what = format!("{} {} -> {}", request.method, request.path, response.status);
        if response.status != want {
            self.problems.push(format!(
                "{what}, wanted {want}: {}",
                String::from_utf8_lossy(&response.body)
            ));
            return response.value();
        }
        self.check(&request.method, route, &response, &what);
        response.value()
    }

    fn check(&mut self, method: &str, route: &str, response: &Response, what: &str) {
        self.seen
            .insert((method.to_owned(), route.to_owned(), response.status));
        let spec = &self.specs[usize::from(route.starts_with("/enterprises"))];
        let body = response.value();
        match spec.answer(spec.operation(method, route), response.status) {
            Found::Body(schema) => {
                let key = (method.to_owned(), route.to_owned(), response.status);
                let validator = self
                    .made
                    .entry(key)
                    .or_insert_with(|| spec.validator(&schema));
                let errors: Vec<String> = validator
                    .iter_errors(&body)
                    .map(|e| format!("{}: {e:.200}", e.instance_path))
                    .collect();
                if !errors.is_empty() {
                    self.problems.push(format!("{what}: {errors:?}"));
                    return;
                }
                for (pointer, field) in spec.required(&schema, &body, "") {
                    let Some(broken) = without(&body, &pointer, &field) else {
                        self.problems.push(format!(
                            "{what}: {pointer}/{field} is required and not there"
                        ));
                        continue;
                    };
                    self.removed += 1;
                    if validator.is_valid(&broken) {
                        self.problems
                            .push(format!("{what}: still valid without {pointer}/{field}"));
                    }
                }
            }
            Found::Empty if response.body.is_empty() => {}
            Found::Empty => self
                .problems
                .push(format!("{what}: a body where none is specified")),
            Found::Unlisted | Found::Unknown if GENERAL.contains(&response.status) => {
                let shaped = response.status == 304 && response.body.is_empty()
                    || body["message"].is_string();
                if !shaped {
                    self.problems
                        .push(format!("{what}: an error without a message"));
                }
            }
            Found::Unlisted => self
                .problems
                .push(format!("{what}: the operation does not list this status")),
            Found::Unknown => self
                .problems
                .push(format!("{what}: {route} is not in the specification")),
        }
    }

    fn set_up(&mut self) -> String {
        let w = &mut self.world;
        w.add_owner(OwnerSpec::enterprise("corp")).unwrap();
        w.add_owner(OwnerSpec {
            enterprise: Some("corp".into()),
            ..OwnerSpec::organization("acme")
        })
        .unwrap();
        w.add_owner(OwnerSpec::user("mona")).unwrap();
        w.add_repo(RepoSpec::new("acme", "web")).unwrap();
        w.add_repo(RepoSpec::new("acme", "open").public()).unwrap();
        w.add_repo(RepoSpec::new("mona", "own").public()).unwrap();
        w.add_group(GroupSpec {
            organization: Some("acme".into()),
            enterprise: None,
            name: "some".into(),
            visibility: "selected".into(),
            repositories: vec!["acme/web".into()],
            allows_public_repositories: true,
        })
        .unwrap();
        let scopes = [
            "repo",
            "admin:org",
            "admin:org_hook",
            "admin:repo_hook",
            "manage_runners:enterprise",
        ];
        w.add_token(TokenSpec::classic("acme-admin", &scopes))
            .unwrap()
    }
}

fn jit_body(name: &str, group: u64) -> Value {
    json!({"name": name, "runner_group_id": group, "labels": ["self-hosted", "linux", "fast"]})
}

#[test]
fn every_answer_fits_the_specification_and_would_not_with_a_required_field_missing() {
    let mut t = Tour::new();
    let token = t.set_up();
    let own = t
        .world
        .add_token(TokenSpec::classic("mona", &["repo", "admin:repo_hook"]))
        .unwrap();
    let corp = t
        .world
        .add_token(TokenSpec::classic(
            "corp-admin",
            &["manage_runners:enterprise"],
        ))
        .unwrap();
    let get = |path: &str| Request::get(path).token(&token);
    let post = |path: &str, body: Value| Request::post(path, &body).token(&token);

    // accounts and repositories
    for path in [
        "/versions",
        "/rate_limit",
        "/user",
        "/user/repos",
        "/user/repos?affiliation=owner&visibility=public",
        "/users/mona",
        "/users/mona/repos",
        "/orgs/acme",
        "/orgs/acme/repos",
        "/orgs/acme/repos?type=private&sort=created&direction=desc",
        "/repos/acme/web",
        "/repos/acme/open",
    ] {
        t.go(get(path), 200);
    }
    t.go(Request::get("/user/repos").token(&own), 200);
    t.go(get("/user/repos?type=all&visibility=all"), 422);
    t.go(get("/repos/acme/none"), 404);
    t.go(Request::get("/user"), 401);
    t.go(Request::get("/user").token("ghp_wrong"), 401);

    // runners at the three levels
    for (level, who) in [
        ("repos/acme/web", &token),
        ("repos/mona/own", &own),
        ("orgs/acme", &token),
        ("enterprises/corp", &corp),
    ] {
        let base = format!("/{level}/actions/runners");
        let as_who = |r: Request| r.token(who);
        t.go(
            as_who(Request::post(
                &format!("{base}/registration-token"),
                &Value::Null,
            )),
            201,
        );
        t.go(
            as_who(Request::post(&format!("{base}/remove-token"), &Value::Null)),
            201,
        );
        t.go(as_who(Request::get(&format!("{base}/downloads"))), 200);
        let jit = t.go(
            as_who(Request::post(
                &format!("{base}/generate-jitconfig"),
                &jit_body("r1", 1),
            )),
            201,
        );
        let id = jit["runner"]["id"].clone();
        t.go(
            as_who(Request::post(
                &format!("{base}/generate-jitconfig"),
                &jit_body("r1", 1),
            )),
            409,
        );
        t.go(
            as_who(Request::post(
                &format!("{base}/generate-jitconfig"),
                &json!({"name": "x"}),
            )),
            422,
        );
        t.go(
            as_who(Request::post(
                &format!("{base}/generate-jitconfig"),
                &jit_body("r2", 99),
            )),
            404,
        );
        t.go(as_who(Request::get(&base)), 200);
        t.go(as_who(Request::get(&format!("{base}?name=r1"))), 200);
        t.go(as_who(Request::get(&format!("{base}/{id}"))), 200);
        t.go(as_who(Request::get(&format!("{base}/{id}/labels"))), 200);
        if !level.starts_with("enterprises") {
            let labels = json!({"labels": ["gpu"]});
            t.go(
                as_who(Request::post(&format!("{base}/{id}/labels"), &labels)),
                200,
            );
            t.go(
                as_who(Request::put(&format!("{base}/{id}/labels"), &labels)),
                200,
            );
            t.go(
                as_who(Request::delete(&format!("{base}/{id}/labels/gpu"))),
                200,
            );
            t.go(
                as_who(Request::delete(&format!("{base}/{id}/labels/gpu"))),
                404,
            );
            t.go(as_who(Request::delete(&format!("{base}/{id}/labels"))), 200);
        }
        t.go(as_who(Request::delete(&format!("{base}/{id}"))), 204);
        t.go(as_who(Request::delete(&format!("{base}/{id}"))), 404);
    }
    t.go(
        Request::get("/enterprises/corp/actions/runners/deprecations/2.336.0").token(&corp),
        200,
    );

    // groups
    let groups = "/orgs/acme/actions/runner-groups";
    t.go(get(groups), 200);
    let made = t.go(
        post(
            groups,
            json!({"name": "new", "visibility": "selected", "selected_repository_ids": []}),
        ),
        201,
    );
    let id = made["id"].clone();
    t.go(get(&format!("{groups}/{id}")), 200);
    t.go(get(&format!("{groups}/2/repositories")), 200);
    t.go(
        Request::put(
            &format!("{groups}/{id}/repositories"),
            &json!({"selected_repository_ids": [1]}),
        )
        .token(&token),
        204,
    );
    t.go(
        Request::patch(&format!("{groups}/{id}"), &json!({"name": "newer"})).token(&token),
        200,
    );
    t.go(
        post(
            "/orgs/acme/actions/runners/generate-jitconfig",
            jit_body("grouped", 2),
        ),
        201,
    );
    t.go(get(&format!("{groups}/2/runners")), 200);
    t.go(
        Request::delete(&format!("{groups}/{id}")).token(&token),
        204,
    );
    let groups = "/enterprises/corp/actions/runner-groups";
    t.go(Request::get(groups).token(&corp), 200);
    t.go(Request::get(&format!("{groups}/1")).token(&corp), 200);
    let made = t.go(
        Request::post(groups, &json!({"name": "new"})).token(&corp),
        201,
    );
    t.go(
        Request::patch(
            &format!("{groups}/{}", made["id"]),
            &json!({"name": "newer"}),
        )
        .token(&corp),
        200,
    );
    t.go(
        Request::delete(&format!("{groups}/{}", made["id"])).token(&corp),
        204,
    );
    let policy = "/orgs/acme/actions/permissions/self-hosted-runners";
    t.go(get(policy), 200);
    t.go(
        Request::put(policy, &json!({"enabled_repositories": "all"})).token(&token),
        204,
    );
    t.go(
        Request::put(policy, &json!({"enabled_repositories": "some"})).token(&token),
        422,
    );

    // runs and jobs in every state
    let jobs = vec![
        JobSpec::new("build", &["self-hosted", "linux"]).steps(&["true"]),
        JobSpec::new("test", &["self-hosted", "linux"]).needs(&["build"]),
        JobSpec::new("ship", &["self-hosted"]).environment("prod"),
    ];
    let run = t.world.queue_run(&RunSpec::new("acme/web", jobs)).unwrap();
    let base = "/repos/acme/web/actions";
    let job = t.world.run(run).unwrap().jobs()[0];
    let look = |t: &mut Tour| {
        for path in [
            format!("{base}/runs"),
            format!("{base}/runs?status=queued&per_page=1"),
            format!(
                "{base}/runs?status=in_progress&created=%3E%3D2020-01-01&exclude_pull_requests=true"
            ),
            format!("{base}/runs/{run}"),
            format!("{base}/runs/{run}/jobs"),
            format!("{base}/runs/{run}/jobs?filter=all&per_page=1&page=2"),
            format!("{base}/runs/{run}/attempts/1"),
            format!("{base}/runs/{run}/attempts/1/jobs"),
            format!("{base}/jobs/{job}"),
        ] {
            t.go(get(&path), 200);
        }
    };
    look(&mut t);
    t.go(get(&format!("{base}/runs/{run}/pending_deployments")), 200);
    let workflows = t.go(get(&format!("{base}/workflows")), 200);
    let workflow = workflows["workflows"][0]["id"].clone();
    t.go(get(&format!("{base}/workflows/{workflow}")), 200);
    t.go(get(&format!("{base}/workflows/ci.yml/runs")), 200);
    let jit = t.go(
        post(
            "/orgs/acme/actions/runners/generate-jitconfig",
            jit_body("worker", 1),
        ),
        201,
    );
    let runner = jit["runner"]["id"].as_u64().unwrap();
    let session = t.world.runner_connect(runner).unwrap();
    let Ok(Some(Message::Job { request_id })) = t.world.runner_poll(&session, false) else {
        panic!("no job")
    };
    t.world.runner_acquire(&session, &request_id).unwrap();
    look(&mut t);
    t.go(get("/orgs/acme/actions/runners"), 200);
    t.go(
        Request::delete(&format!("/orgs/acme/actions/runners/{runner}")).token(&token),
        422,
    );
    t.world
        .runner_complete(&session, &request_id, "failure")
        .unwrap();
    t.go(post(&format!("{base}/runs/{run}/rerun"), Value::Null), 403);
    t.go(post(&format!("{base}/runs/{run}/cancel"), Value::Null), 202);
    look(&mut t);
    t.go(post(&format!("{base}/runs/{run}/cancel"), Value::Null), 409);
    t.go(
        post(&format!("{base}/runs/{run}/rerun-failed-jobs"), Value::Null),
        201,
    );
    look(&mut t);
    t.go(get(&format!("{base}/runs/{run}/attempts/2/jobs")), 200);
    t.go(get(&format!("{base}/runs/{run}/attempts/3/jobs")), 404);
    t.go(
        post(&format!("{base}/runs/{run}/force-cancel"), Value::Null),
        202,
    );
    t.go(
        post(&format!("{base}/runs/{run}/force-cancel"), Value::Null),
        409,
    );
    t.go(post(&format!("{base}/runs/{run}/rerun"), Value::Null), 201);
    t.go(post(&format!("{base}/runs/{run}/cancel"), Value::Null), 202);
    let last = *t.world.run(run).unwrap().jobs().first().unwrap();
    t.go(post(&format!("{base}/jobs/{last}/rerun"), Value::Null), 201);
    t.go(get(&format!("{base}/runs/1")), 404);

    // hooks
    for base in ["/repos/acme/web/hooks", "/orgs/acme/hooks"] {
        let body = json!({"name": "web", "active": true, "events": ["workflow_job"],
            "config": {"url": "http://receiver/", "content_type": "json", "secret": "s", "insecure_ssl": "0"}});
        let hook = t.go(post(base, body.clone()), 201)["id"].clone();
        t.go(post(base, body), 422);
        t.go(post(base, json!({"name": "web", "config": {}})), 422);
        t.go(get(base), 200);
        t.go(get(&format!("{base}/{hook}")), 200);
        t.go(
            Request::patch(&format!("{base}/{hook}"), &json!({"add_events": ["push"]}))
                .token(&token),
            200,
        );
        t.go(post(&format!("{base}/{hook}/pings"), Value::Null), 204);
        for d in t.world.take_deliveries() {
            let answered = github_sim::machine::DeliveryOutcome::Answered {
                status: 200,
                duration_ms: 7,
                body: "ok".into(),
            };
            t.world.delivery_done(d.attempt, answered);
        }
        let list = t.go(get(&format!("{base}/{hook}/deliveries")), 200);
        let delivery = list[0]["id"].clone();
        t.go(get(&format!("{base}/{hook}/deliveries/{delivery}")), 200);
        t.go(
            post(
                &format!("{base}/{hook}/deliveries/{delivery}/attempts"),
                Value::Null,
            ),
            202,
        );
        t.go(
            get(&format!("{base}/{hook}/deliveries?cursor=nonsense")),
            400,
        );
        t.go(
            Request::delete(&format!("{base}/{hook}")).token(&token),
            204,
        );
    }

    assert!(
        t.problems.is_empty(),
        "{} problems:\n{}",
        t.problems.len(),
        t.problems.join("\n")
    );
    assert!(
        t.removed > 1_000,
        "only {} required fields were tried",
        t.removed
    );
    assert!(
        t.seen.len() > 80,
        "only {} kinds of answer were seen",
        t.seen.len()
    );
}

#[test]
fn answers_to_an_app_fit_the_specification() {
    let mut t = Tour::new();
    t.set_up();
    let key = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let public_key = aws_lc_rs::signature::KeyPair::public_key(&key)
        .as_ref()
        .to_vec();
    let spec = AppSpec {
        slug: "fleet".into(),
        permissions: [("administration", "write"), ("actions", "read")]
            .map(|(a, b)| (a.into(), b.into()))
            .into(),
        events: vec!["workflow_job".into()],
        webhook: Some(github_sim::machine::WebhookSpec {
            url: "http://receiver/".into(),
            secret: "s".into(),
        }),
        public_key,
    };
    let (app, client_id) = t.world.add_app(spec).unwrap();
    let org = InstallationSpec {
        app_id: app,
        account: "acme".into(),
        repositories: None,
        permissions: None,
    };
    let installation = t.world.add_installation(org).unwrap();
    let user = InstallationSpec {
        app_id: app,
        account: "mona".into(),
        repositories: Some(vec!["mona/own".into()]),
        permissions: None,
    };
    let on_user = t.world.add_installation(user).unwrap();
    let now = t.world.now_ms() / 1000;
    let sign = |iss: &str, iat: u64, exp: u64| {
        sign_jwt(&key, &json!({"iss": iss, "iat": iat, "exp": exp}))
    };
    let jwt = sign(&app.to_string(), now - 60, now + 540);
    let get = |path: &str| Request::get(path).token(&jwt);

    for path in [
        "/app",
        "/app/hook/config",
        "/app/installations",
        "/app/hook/deliveries",
        "/orgs/acme/installation",
        "/repos/acme/web/installation",
        "/users/mona/installation",
    ] {
        t.go(get(path), 200);
    }
    t.go(
        Request::get("/app").token(&sign(&client_id, now - 60, now + 540)),
        200,
    );
    t.go(get("/repos/acme/none/installation"), 404);
    t.go(get(&format!("/app/installations/{installation}")), 200);
    for wrong in [
        sign("1", now - 60, now + 540),
        sign(&app.to_string(), now - 60, now + 700),
        sign(&app.to_string(), now + 90, now + 500),
        sign(&app.to_string(), now - 700, now - 1),
    ] {
        let r = t.world.call(&Request::get("/app").token(&wrong));
        assert!(matches!(r.status, 401 | 404), "{}", r.status);
    }
    let other = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let forged = sign_jwt(
        &other,
        &json!({"iss": app.to_string(), "iat": now - 60, "exp": now + 540}),
    );
    t.go(Request::get("/app").token(&forged), 401);

    let path = format!("/app/installations/{installation}/access_tokens");
    let made = t.go(Request::post(&path, &Value::Null).token(&jwt), 201);
    let narrow = json!({"repositories": ["web"], "permissions": {"actions": "read"}});
    let narrowed = t.go(Request::post(&path, &narrow).token(&jwt), 201);
    t.go(
        Request::post(&path, &json!({"permissions": {"contents": "write"}})).token(&jwt),
        422,
    );
    t.go(
        Request::post(&path, &json!({"repositories": ["none"]})).token(&jwt),
        422,
    );
    let token = made["token"].as_str().unwrap().to_owned();
    assert!(
        token.starts_with(&format!("ghs_{app}_")) && token.len() > 300,
        "the long form of 2026"
    );
    t.go(
        Request::get("/installation/repositories").token(&token),
        200,
    );
    t.go(
        Request::get("/repos/acme/web/actions/runs").token(&token),
        200,
    );
    t.go(
        Request::post(
            "/repos/acme/web/actions/runners/generate-jitconfig",
            &jit_body("r1", 1),
        )
        .token(&token),
        201,
    );
    let refused = Request::post(
        "/orgs/acme/actions/runners/generate-jitconfig",
        &jit_body("r1", 1),
    )
    .token(&token);
    t.go(refused.clone(), 403);
    let r = t.world.call(&refused);
    assert_eq!(
        r.header("x-accepted-github-permissions"),
        Some("organization_self_hosted_runners=write")
    );
    t.world.set_faults(Faults {
        not_found_for_missing_permission: true,
        ..Faults::default()
    });
    t.go(refused, 404);
    t.world.set_faults(Faults::default());
    let narrowed = narrowed["token"].as_str().unwrap().to_owned();
    t.go(
        Request::get("/repos/acme/web/actions/runs").token(&narrowed),
        200,
    );
    t.go(
        Request::get("/repos/acme/web/actions/runners").token(&narrowed),
        403,
    );
    t.go(Request::get("/user").token(&token), 403);
    t.go(
        Request::get("/enterprises/corp/actions/runners").token(&token),
        403,
    );

    t.go(
        Request::put(
            &format!("/app/installations/{installation}/suspended"),
            &Value::Null,
        )
        .token(&jwt),
        204,
    );
    t.go(
        Request::get("/installation/repositories").token(&token),
        403,
    );
    t.go(Request::post(&path, &Value::Null).token(&jwt), 403);
    t.go(
        Request::delete(&format!("/app/installations/{installation}/suspended")).token(&jwt),
        204,
    );
    t.go(Request::delete("/installation/token").token(&token), 204);
    t.go(
        Request::get("/installation/repositories").token(&token),
        401,
    );
    t.go(
        Request::delete(&format!("/app/installations/{on_user}")).token(&jwt),
        204,
    );

    // an hour later the token is nothing any more
    let later = t.go(Request::post(&path, &Value::Null).token(&jwt), 201)["token"]
        .as_str()
        .unwrap()
        .to_owned();
    t.world.advance(t.world.now_ms() + 3_600_000);
    t.go(
        Request::get("/installation/repositories").token(&later),
        401,
    );
    assert!(
        t.problems.is_empty(),
        "{} problems:\n{}",
        t.problems.len(),
        t.problems.join("\n")
    );
}

fn sign_jwt(key: &aws_lc_rs::rsa::KeyPair, claims: &Value) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
    let signed = format!(
        "{}.{}",
        B64.encode(r#"{"alg":"RS256","typ":"JWT"}"#),
        B64.encode(claims.to_string())
    );
    let mut signature = vec![0; key.public_modulus_len()];
    let random = aws_lc_rs::rand::SystemRandom::new();
    key.sign(
        &aws_lc_rs::signature::RSA_PKCS1_SHA256,
        &random,
        signed.as_bytes(),
        &mut signature,
    )
    .unwrap();
    format!("{signed}.{}", B64.encode(signature))
}

#[test]
fn the_rules_of_every_call_hold() {
    let mut t = Tour::new();
    let token = t.set_up();
    let bare = Request {
        headers: vec![("authorization".into(), format!("Bearer {token}"))],
        ..Request::get("/user")
    };
    assert_eq!(t.world.call(&bare).status, 403, "no User-Agent");
    let odd = Request::get("/user")
        .token(&token)
        .header("x-github-api-version", "2021-01-01");
    assert_eq!(t.world.call(&odd).status, 400);
    let newest = Request::get("/rate_limit")
        .token(&token)
        .header("x-github-api-version", "2026-03-10");
    assert!(t.world.call(&newest).value().get("rate").is_none());
    let ghes = t
        .world
        .call(&Request::get("/api/v3/repos/acme/web").token(&token))
        .value();
    assert!(
        ghes["url"]
            .as_str()
            .unwrap()
            .contains("/api/v3/repos/acme/web"),
        "{}",
        ghes["url"]
    );

    // pages: nothing is missing and nothing is twice, and the URLs have another form than the one asked for
    for i in 0..130 {
        t.world
            .add_repo(RepoSpec::new("acme", &format!("r{i:03}")))
            .unwrap();
    }
    let mut path = "/orgs/acme/repos?per_page=50".to_owned();
    let mut names = Vec::new();
    loop {
        let r = t.world.call(&Request::get(&path).token(&token));
        names.extend(
            r.value()
                .as_array()
                .unwrap()
                .iter()
                .map(|x| x["name"].as_str().unwrap().to_owned()),
        );
        let Some(next) = r.header("link").and_then(|l| {
            let one = l.split(", ").find(|p| p.ends_with("rel=\"next\""))?;
            Some(one[1..one.find('>')?].to_owned())
        }) else {
            break;
        };
        assert!(next.contains("/organizations/"), "{next}");
        path = next
            .strip_prefix("https://api.github.com")
            .unwrap()
            .to_owned();
    }
    assert_eq!(names.len(), 132);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 132);
    let solo = t.set_up_user();
    let one = t
        .world
        .call(&Request::get("/user/repos?per_page=100").token(&solo));
    assert_eq!(one.header("link"), None, "no header when everything fits");

    // a renamed repository
    t.world.rename_repo("acme/web", "site").unwrap();
    let moved = t
        .world
        .call(&Request::get("/repos/acme/web/actions/runs").token(&token));
    assert_eq!(moved.status, 301);
    let to = moved
        .header("location")
        .unwrap()
        .strip_prefix("https://api.github.com")
        .unwrap()
        .to_owned();
    assert_eq!(t.world.call(&Request::get(&to).token(&token)).status, 200);
    assert_eq!(
        t.world
            .call(&Request::get("/repos/acme/site").token(&token))
            .status,
        200
    );
}

impl Tour {
    fn set_up_user(&mut self) -> String {
        self.world.add_owner(OwnerSpec::user("solo")).unwrap();
        self.world.add_repo(RepoSpec::new("solo", "one")).unwrap();
        self.world
            .add_token(TokenSpec::fine_grained("solo", &[("actions", "read")]))
            .unwrap()
    }
}

#[test]
fn a_filtered_list_of_runs_ends_at_a_thousand() {
    let mut t = Tour::new();
    let token = t.set_up();
    t.world.set_limits(github_sim::machine::Limits::off());
    t.world
        .add_hook(HookSpec::repository("acme/open", "http://receiver/", "s"))
        .unwrap();
    for _ in 0..1_005 {
        t.world
            .queue_run(&RunSpec::one("acme/web", JobSpec::new("b", &["x"])))
            .unwrap();
    }
    let mut count = |query: &str| {
        let mut n = 0;
        for page in 1..=12 {
            let path = format!("/repos/acme/web/actions/runs?per_page=100&page={page}{query}");
            let list = t.world.call(&Request::get(&path).token(&token)).value();
            n += list["workflow_runs"].as_array().unwrap().len();
        }
        n
    };
    assert_eq!(count("&status=queued"), 1_000);
    assert_eq!(count(""), 1_005);
}
