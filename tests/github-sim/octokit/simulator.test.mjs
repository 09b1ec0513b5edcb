// GitHub's own client against the simulator. The addresses come from the environment; see tests/octokit.rs.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { once } from "node:events";
import test from "node:test";

import { createAppAuth } from "@octokit/auth-app";
import { Octokit } from "@octokit/rest";
import { sign, verify } from "@octokit/webhooks-methods";

const control = process.env.SIM_CONTROL;
const baseUrl = process.env.SIM_REST;
assert.ok(control && baseUrl, "SIM_CONTROL and SIM_REST must be set");
const LABELS = ["self-hosted", "linux"];
const SECRET = "It's a Secret to Everybody";

async function tell(path, body, method = "POST") {
  const answer = await fetch(`${control}/${path}`, { method, body: JSON.stringify(body) });
  const value = await answer.json();
  assert.ok(answer.ok, `${path}: ${JSON.stringify(value)}`);
  return value;
}

let n = 0;
/** An organisation of its own for each test, so that none sees another's. */
async function organisation(repositories = ["web"]) {
  const org = `org${process.pid}x${(n += 1)}`;
  const admin = `${org}-admin`;
  await tell("owners", { login: org, kind: "organization", members: { [admin]: "admin" } });
  for (const name of repositories) await tell("repos", { owner: org, name });
  const scopes = ["repo", "admin:org", "admin:org_hook", "admin:repo_hook"];
  const { token } = await tell("tokens", { login: admin, scopes });
  return { org, admin, token, octokit: client(token) };
}

function client(auth) {
  return new Octokit({ auth, baseUrl, log: { debug() {}, info() {}, warn() {}, error() {} } });
}

test("a runner is registered just in time, listed, found by name and removed", async () => {
  const { org, octokit } = await organisation();
  const made = await octokit.rest.actions.generateRunnerJitconfigForOrg({ org, name: "r1", runner_group_id: 1, labels: LABELS });
  assert.equal(made.status, 201);
  assert.equal(made.data.runner.status, "offline");
  const files = JSON.parse(Buffer.from(made.data.encoded_jit_config, "base64").toString());
  assert.deepEqual(Object.keys(files).sort(), [".credentials", ".credentials_rsaparams", ".runner"]);
  const settings = JSON.parse(Buffer.from(files[".runner"], "base64").toString());
  assert.equal(settings.AgentName, "r1");
  await assert.rejects(
    octokit.rest.actions.generateRunnerJitconfigForOrg({ org, name: "r1", runner_group_id: 1, labels: LABELS }),
    (e) => e.status === 409 && /already exists/i.test(e.message),
  );
  const found = await octokit.request("GET /orgs/{org}/actions/runners", { org, name: "r1" });
  assert.equal(found.data.total_count, 1);
  const gone = await octokit.rest.actions.deleteSelfHostedRunnerFromOrg({ org, runner_id: made.data.runner.id });
  assert.equal(gone.status, 204);
  await assert.rejects(
    octokit.rest.actions.getSelfHostedRunnerForOrg({ org, runner_id: made.data.runner.id }),
    (e) => e.status === 404,
  );
});

test("lists are paged to their end by the Link header", async () => {
  const names = Array.from({ length: 75 }, (_, i) => `r${String(i).padStart(2, "0")}`);
  const { org, octokit } = await organisation(names);
  const repos = await octokit.paginate(octokit.rest.repos.listForOrg, { org, per_page: 20 });
  assert.deepEqual(repos.map((r) => r.name).sort(), names);
  const mine = await octokit.paginate(octokit.rest.repos.listForAuthenticatedUser, { per_page: 30 });
  assert.equal(mine.length, 75);
});

test("runs and jobs go through their states", async () => {
  const { org, octokit } = await organisation();
  const where = { owner: org, repo: "web" };
  const queued = await tell("jobs", { repository: `${org}/web`, labels: LABELS });
  const runs = await octokit.rest.actions.listWorkflowRunsForRepo({ ...where, status: "queued", created: ">=2020-01-01" });
  assert.equal(runs.data.total_count, 1);
  const run_id = runs.data.workflow_runs[0].id;
  assert.equal(run_id, queued.run_id);
  await tell(`jobs/${queued.job_id}/start`, { runner: "somebody" });
  const jobs = await octokit.rest.actions.listJobsForWorkflowRun({ ...where, run_id });
  assert.equal(jobs.data.jobs[0].status, "in_progress");
  assert.equal(jobs.data.jobs[0].runner_name, "somebody");
  await tell(`jobs/${queued.job_id}/complete`, { conclusion: "failure" });
  assert.equal((await octokit.rest.actions.getWorkflowRun({ ...where, run_id })).data.conclusion, "failure");
  assert.equal((await octokit.rest.actions.reRunWorkflowFailedJobs({ ...where, run_id })).status, 201);
  const all = await octokit.rest.actions.listJobsForWorkflowRun({ ...where, run_id, filter: "all" });
  assert.equal(all.data.total_count, 2);
  assert.equal((await octokit.rest.actions.cancelWorkflowRun({ ...where, run_id })).status, 202);
  await assert.rejects(octokit.rest.actions.cancelWorkflowRun({ ...where, run_id }), (e) => e.status === 409);
});

test("an ETag makes the second read free", async () => {
  const { org, octokit } = await organisation();
  const first = await octokit.rest.actions.listWorkflowRunsForRepo({ owner: org, repo: "web" });
  const before = first.headers["x-ratelimit-remaining"];
  await assert.rejects(
    octokit.rest.actions.listWorkflowRunsForRepo({ owner: org, repo: "web", headers: { "if-none-match": first.headers.etag } }),
    (e) => e.status === 304 && e.response.headers["x-ratelimit-remaining"] === before,
  );
});

test("what is missing is said as GitHub says it", async () => {
  const { org, admin } = await organisation();
  await assert.rejects(client("ghp_wrong").rest.users.getAuthenticated(), (e) => e.status === 401);
  const { token } = await tell("tokens", { login: admin, permissions: { actions: "read" } });
  await assert.rejects(
    client(token).rest.actions.generateRunnerJitconfigForOrg({ org, name: "r", runner_group_id: 1, labels: LABELS }),
    (e) => e.status === 403 && e.response.headers["x-accepted-github-permissions"] === "organization_self_hosted_runners=write",
  );
  await tell("owners", { login: `${org}-stranger`, kind: "user" });
  const stranger = await tell("tokens", { login: `${org}-stranger`, scopes: ["repo"] });
  await assert.rejects(client(stranger.token).rest.repos.get({ owner: org, repo: "web" }), (e) => e.status === 404);
});

test("an App signs in, finds its installation and registers a runner", async () => {
  const { org } = await organisation();
  const permissions = { administration: "write", actions: "read", organization_self_hosted_runners: "write" };
  const app = await tell("apps", { slug: `fleet-${org}`, permissions, events: ["workflow_job"] });
  const installation = await tell("installations", { app_id: app.id, account: org, repositories: null });
  const auth = { appId: app.id, privateKey: app.private_key };
  const asApp = new Octokit({ authStrategy: createAppAuth, auth, baseUrl });
  assert.equal((await asApp.rest.apps.getAuthenticated()).data.slug, `fleet-${org}`);
  const found = await asApp.rest.apps.getOrgInstallation({ org });
  assert.equal(found.data.id, installation.id);
  const octokit = new Octokit({ authStrategy: createAppAuth, auth: { ...auth, installationId: installation.id }, baseUrl });
  const repos = await octokit.paginate(octokit.rest.apps.listReposAccessibleToInstallation);
  assert.deepEqual(repos.map((r) => r.full_name), [`${org}/web`]);
  const made = await octokit.rest.actions.generateRunnerJitconfigForOrg({ org, name: "r1", runner_group_id: 1, labels: LABELS });
  assert.equal(made.status, 201);
});

test("the GHES form answers under /api/v3", async () => {
  const { org, token } = await organisation();
  const octokit = new Octokit({ auth: token, baseUrl: `${baseUrl}/api/v3` });
  const repo = await octokit.rest.repos.get({ owner: org, repo: "web" });
  assert.ok(repo.data.url.includes("/api/v3/repos/"));
});

test("webhooks verify with GitHub's own library, and a redelivery keeps its GUID", async () => {
  const { org, octokit } = await organisation();
  const received = [];
  let arrived;
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const piece of request) body += piece;
    received.push({ headers: request.headers, body });
    response.statusCode = 202;
    response.end();
    arrived?.();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const until = async (holds) => {
    const deadline = AbortSignal.timeout(20_000);
    while (!holds()) {
      await new Promise((resolve, reject) => {
        arrived = resolve;
        deadline.addEventListener("abort", () => reject(new Error(`received only ${received.length} deliveries`)));
      });
    }
  };
  try {
    const config = { url: `http://127.0.0.1:${server.address().port}/`, content_type: "json", secret: SECRET };
    const hook = await octokit.rest.repos.createWebhook({ owner: org, repo: "web", config, events: ["workflow_job"] });
    await until(() => received.some((r) => r.headers["x-github-event"] === "ping"));
    await tell("jobs", { repository: `${org}/web`, labels: LABELS });
    await until(() => received.some((r) => r.headers["x-github-event"] === "workflow_job"));
    for (const { headers, body } of received) {
      assert.equal(await verify(SECRET, body, headers["x-hub-signature-256"]), true);
      assert.equal(await verify("another secret", body, headers["x-hub-signature-256"]), false);
      assert.equal(await sign(SECRET, body), headers["x-hub-signature-256"]);
    }
    await tell("wait", { until: { deliveries_idle: true }, timeout_ms: 20000 });
    const where = { owner: org, repo: "web", hook_id: hook.data.id };
    const deliveries = await octokit.rest.repos.listWebhookDeliveries(where);
    const job = deliveries.data.find((d) => d.event === "workflow_job");
    assert.equal(job.status, "OK");
    const again = await octokit.rest.repos.redeliverWebhookDelivery({ ...where, delivery_id: job.id });
    assert.equal(again.status, 202);
    await until(() => received.filter((r) => r.headers["x-github-delivery"] === job.guid).length === 2);
  } finally {
    server.close();
    server.closeAllConnections();
  }
});
