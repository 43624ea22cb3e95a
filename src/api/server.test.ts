import assert from 'node:assert/strict';
import { linkSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { z } from 'zod';
import { backup } from '../backup/schema.ts';
import { hypervisorView, machineView, savesetView, status } from '../catalog/schema.ts';
import { vaultJob, vaultStats } from '../catalog/schema.ts';
import { exportView, inventory, testReport } from '../catalog/schema.ts';
import { RouseError } from '../errors.ts';
import { httpClient } from '../lib/http-client.ts';
import { systemRandom } from '../lib/random.ts';
import { apiLimits } from '../limits.ts';
import { proxyToken, proxyView } from '../placement/schema.ts';
import { recovery, recoveryPlan } from '../recovery/schema.ts';
import { stubServices } from '../testing/stub-services.ts';
import { buildApi, createApi } from './server.ts';

const logged: object[] = [];
const log = { info: () => undefined, error: (facts: object) => void logged.push(facts) };
const services = stubServices();
const options = { services, log, random: systemRandom, version: '0.1.0' };
const app = buildApi(options);
after(() => app.close());

async function ask(method: 'GET' | 'POST' | 'DELETE', url: string, body?: object) {
  const answer = await app.inject({ method, url, ...(body === undefined ? {} : { body }) });
  return {
    status: answer.statusCode,
    headers: answer.headers,
    json: answer.body === '' ? undefined : answer.json(),
  };
}

async function refused(method: 'GET' | 'POST', url: string, body?: object) {
  const answer = await ask(method, url, body);
  assert.match(String(answer.headers['content-type']), /^application\/problem\+json/);
  const { title, advice, code, status: code_ } = answer.json;
  assert.equal(answer.status, code_);
  assert.equal(answer.json.type, `urn:rouse:error:${code}`);
  return { code, says: `${title}. ${advice}` };
}

test('every list and view has the shape that its schema says', async () => {
  const parse = async (schema: z.ZodType, url: string) => {
    const answer = await ask('GET', url);
    assert.equal(answer.status, 200, url);
    // Nothing is stripped: the answer has these fields and no others.
    assert.deepEqual(schema.parse(answer.json), answer.json);
  };
  await parse(status, '/v1/status');
  await parse(z.object({ machines: z.array(machineView) }), '/v1/machines');
  await parse(machineView, '/v1/machines/web01');
  await parse(z.object({ savesets: z.array(savesetView) }), '/v1/savesets?machine=web01');
  await parse(savesetView, '/v1/savesets/qy7m2c5n8k');
  await parse(z.object({ hypervisors: z.array(hypervisorView) }), '/v1/hypervisors');
  await parse(inventory, '/v1/hypervisors/lab/inventory');
  await parse(z.object({ exports: z.array(exportView) }), '/v1/exports');
  await parse(vaultStats, '/v1/vault');
});

test('a recovery is begun, seen, renewed, relocated and cancelled', async () => {
  const body = { machine: 'web01', powerOn: true, leaseMs: 3_600_000 };
  const begun = await ask('POST', '/v1/recoveries', body);
  assert.equal(begun.status, 202);
  recovery.parse(begun.json);
  const where = String(begun.headers['location']);
  assert.equal(where, `/v1/recoveries/${begun.json.id}`);
  assert.equal((await ask('GET', where)).json.id, begun.json.id);
  const renewed = await ask('POST', `${where}/renew`, { leaseMs: 7_200_000 });
  assert.equal(renewed.json.leaseEndsMs - begun.json.leaseEndsMs, 3_600_000);
  const moved = await ask('POST', `${where}/relocate`, {
    datastore: 'prod',
    at: '2026-11-23T02:00:00+01:00',
  });
  assert.equal(moved.json.relocation.atMs, Date.parse('2026-11-23T01:00:00Z'));
  const sealed = await ask('POST', `${where}/seal`);
  assert.equal(sealed.status, 201);
  savesetView.parse(sealed.json);
  assert.equal((await ask('POST', `${where}/cancel`, { keepWrites: true })).json.state, 'parked');
  assert.equal((await ask('POST', `${where}/resume`)).json.state, 'available');
  const list = await ask('GET', '/v1/recoveries?active=true');
  assert.deepEqual(
    list.json.recoveries.map((view: { id: string }) => view.id),
    [begun.json.id],
  );
});

test('defaults are filled in before the service sees the request', async () => {
  await ask('POST', '/v1/recoveries', { machine: 'web01' });
  const [, request] = services.calls.at(-1) as [string, object];
  assert.deepEqual(request, {
    machine: 'web01',
    mode: 'instant',
    without: [],
    prefer: {},
    powerOn: false,
    identity: 'new',
    connectNetworks: false,
    leaseMs: 10 * 86_400_000,
    dryRun: false,
  });
});

test('a dry run answers the plan', async () => {
  const before = services.calls.length;
  const answer = await ask('POST', '/v1/recoveries', { machine: 'web01', dryRun: true });
  assert.equal(answer.status, 200);
  recoveryPlan.parse(answer.json);
  assert.equal(services.calls.length, before);
});

test('what is wrong is said by the name of the field', async () => {
  const bad = async (body: object) => (await refused('POST', '/v1/recoveries', body)).says;
  const web = { machine: 'web01' };
  assert.match(await bad({}), /^machine is missing: name a machine or a saveset\./);
  assert.match(
    await bad({ ...web, mode: 'instnt' }),
    /^mode "instnt" must be instant, publish, new or flr\. Did you mean instant\?/,
  );
  assert.match(
    await bad({ ...web, pwerOn: true }),
    /^the request has no field "pwerOn"\. Did you mean powerOn\?/,
  );
  assert.match(await bad({ ...web, powerOn: 'yes' }), /^powerOn "yes" must be true or false/);
  assert.match(await bad({ ...web, leaseMs: -5 }), /^leaseMs -5 would have ended already/);
  assert.match(await bad({ ...web, leaseMs: 4e10 }), /must be at most 365 days/);
  assert.match(await bad({ ...web, at: 'soon' }), /^at "soon" must be milliseconds since 1970/);
  assert.match(await bad({ ...web, name: '../x' }), /name "..\/x" must hold neither slashes/);
  assert.match(await bad({ ...web, mode: 'publish' }), /^clients is missing: publish to which/);
  assert.match(
    await bad({ ...web, mode: 'publish', clients: ['10.0.0.300'] }),
    /^clients.0 "10.0.0.300" must be an IPv4 or IPv6 address/,
  );
  assert.match(await bad({ ...web, clients: ['10.0.0.3'] }), /mode instant exports to its host/);
  assert.match(await bad({ ...web, saveset: 'x', at: 5 }), /leave it out, as a saveset is named/);
  assert.match(await bad({ ...web, relocateAt: 'at once' }), /^relocateTo is missing/);
  assert.match(await bad([]), /must be a JSON object|machine is missing/);
  const both = await bad({ ...web, powerOn: 1, host: '' });
  assert.match(both, /host "" must not be empty/);
  assert.match(both, /powerOn 1 must be true or false/);
});

test('a backup is of a machine or of files', async () => {
  const bad = async (body: object) => (await refused('POST', '/v1/backups', body)).says;
  assert.match(await bad({}), /^machine is missing: name a machine, or give files/);
  const files = { name: 'x', disks: [{ path: '/a' }] };
  assert.match(await bad({ machine: 'a', files }), /^files cannot be given together with machine/);
  assert.match(await bad({ files: { name: 'x', disks: [] } }), /must hold at least one disk/);
  assert.match(
    await bad({ files: { name: 'x', disks: [{ path: 'a.raw' }] } }),
    /^files.disks.0.path "a.raw" must be an absolute path/,
  );
  const answer = await ask('POST', '/v1/backups', { files });
  assert.equal(answer.status, 202);
  backup.parse(answer.json);
  assert.deepEqual(services.calls.at(-1), [
    'backup',
    { kind: 'files', files, mtree: undefined, proxy: undefined },
  ]);
});

test('a hypervisor is added, tested and forgotten', async () => {
  const body = { name: 'far', uri: 'qemu+ssh://root@far/system' };
  const added = await ask('POST', '/v1/hypervisors', body);
  assert.equal(added.status, 201);
  assert.deepEqual(added.json.datastores, []);
  testReport.parse((await ask('POST', '/v1/hypervisors/far/test')).json);
  assert.equal((await ask('DELETE', '/v1/hypervisors/far')).status, 204);
  assert.equal((await ask('GET', '/v1/hypervisors/far')).status, 404);
  const wrong = await refused('POST', '/v1/hypervisors', { name: 'x', uri: 'somewhere' });
  assert.match(wrong.says, /uri "somewhere" must be a libvirt URI/);
});

test('unknown names and addresses are answered with the nearest', async () => {
  const machine = await refused('GET', '/v1/machines/wbe01');
  assert.deepEqual(machine, {
    code: 'not-found',
    says: 'no machine is called "wbe01". Did you mean web01?',
  });
  assert.match((await refused('GET', '/v1/recoverys')).says, /Did you mean \/v1\/recoveries\?/);
  assert.match((await refused('POST', '/v1/status')).says, /does not take POST. Use GET/);
});

test('bodies that are no JSON, or too large, or of another type', async () => {
  const send = async (payload: string, type = 'application/json') => {
    const headers = { 'content-type': type };
    const answer = await app.inject({ method: 'POST', url: '/v1/backups', payload, headers });
    assert.equal(answer.statusCode, 400);
    assert.equal(answer.json().stack, undefined);
    return answer.json().title;
  };
  assert.equal(await send('{"a":'), 'the body of the request is not JSON');
  assert.equal(await send('a=1', 'text/xml'), 'the body of the request must be JSON');
  const large = JSON.stringify({ a: 'x'.repeat(apiLimits.requestBytesMax) });
  assert.equal(await send(large), 'the body of the request is too large');
  assert.match(await send('{"__proto__": {"machine": "web01"}}'), /not JSON|no field/);
  assert.match((await refused('POST', '/v1/vault/rescan', { all: true })).says, /takes no fields/);
});

test('an unexpected error shows an id, and the log the rest', async () => {
  const broken = stubServices();
  broken.status.status = () => Promise.reject(new TypeError('secret of /srv/x'));
  const other = buildApi({ ...options, services: broken });
  const answer = await other.inject('/v1/status');
  assert.equal(answer.statusCode, 500);
  assert.doesNotMatch(answer.body, /secret|TypeError|server\.ts/);
  const { incident } = answer.json().details;
  const entry = logged.find((facts) => 'incident' in facts && facts.incident === incident);
  assert.ok(entry !== undefined && 'err' in entry && entry.err instanceof TypeError);
  await other.close();
});

test('the OpenAPI document names every route and resolves every reference', async () => {
  const { json } = await ask('GET', '/v1/openapi.json');
  assert.equal(json.openapi, '3.1.1');
  assert.ok(json.paths['/v1/recoveries/{recovery}/events'].get);
  const body = json.paths['/v1/recoveries'].post.requestBody.content['application/json'].schema;
  assert.deepEqual(body, { $ref: '#/components/schemas/RecoveryRequest' });
  const request = json.components.schemas.RecoveryRequest;
  assert.equal(request.required, undefined);
  assert.equal(request.properties.mode.default, 'instant');
  const references = [...JSON.stringify(json).matchAll(/"\$ref":"([^"]+)"/g)].map((m) => m[1]);
  assert.ok(references.length > 20);
  for (const reference of references) {
    const name = reference?.replace('#/components/schemas/', '') ?? '';
    assert.ok(name in json.components.schemas, reference);
  }
  const ids = Object.values(json.paths as Record<string, Record<string, { operationId: string }>>)
    .flatMap((path) => Object.values(path))
    .map((operation) => operation.operationId);
  assert.equal(new Set(ids).size, ids.length);
});

const directory = mkdtempSync(join(tmpdir(), 'rouse-api-'));
after(() => rmSync(directory, { recursive: true }));

test('over a socket: streams, pictures, metrics, and a second server', async () => {
  const socket = join(directory, 'server.sock');
  const api = await createApi({ ...options, listen: { socket } });
  assert.equal(statSync(socket).mode & 0o777, 0o600);
  const client = httpClient({ url: api.urls[0] ?? '', peer: 'server' });
  const begun = recovery.parse(await client.post('/v1/recoveries', { machine: 'broken01' }));
  const states: string[] = [];
  for await (const event of client.events(`/v1/recoveries/${begun.id}/events`)) {
    states.push(recovery.parse(event.data).state);
  }
  assert.equal(states.at(-1), 'failed');
  const ids = [];
  for await (const event of client.events('/v1/events?after=1')) ids.push(event.id);
  assert.deepEqual(ids, ['2', '3']);
  assert.equal((await client.bytes(`/v1/recoveries/${begun.id}/picture`)).length, 4);
  assert.match((await client.bytes('/metrics')).toString(), /rouse_exports 1/);
  const job = vaultJob.parse(await client.post('/v1/vault/verify'));
  assert.equal(job.kind, 'verify');
  await assert.rejects(async () => {
    for await (const _ of client.events('/v1/recoveries/nothing/events')) assert.fail();
  }, /no recovery is called "nothing"/);
  await assert.rejects(createApi({ ...options, listen: { socket } }), {
    code: 'busy',
    message: /a server listens on .* already/,
  });

  const slow = recovery.parse(await client.post('/v1/recoveries', { machine: 'slow01' }));
  const cut = (async () => {
    for await (const event of client.events(`/v1/recoveries/${slow.id}/events`)) {
      if (recovery.parse(event.data).steps[5]?.state === 'running') void api.close();
    }
  })();
  await assert.rejects(cut, { code: 'server-unreachable' });
  client.close();
});

test('a socket that a killed server left is taken over', async () => {
  const socket = join(directory, 'stale.sock');
  const dead = createServer();
  await new Promise<void>((resolve) => dead.listen(socket, resolve));
  // Closing removes the name; a hard link keeps one that nobody listens on.
  const stale = join(directory, 'left.sock');
  linkSync(socket, stale);
  await new Promise((resolve) => dead.close(resolve));
  const api = await createApi({ ...options, listen: { socket: stale } });
  const client = httpClient({ url: stale, peer: 'server' });
  status.parse(await client.get('/v1/status'));
  client.close();
  await api.close();
  const missing = join(directory, 'none', 'server.sock');
  await assert.rejects(createApi({ ...options, listen: { socket: missing } }), RouseError);
});

test('TCP is for the loopback, and for no page of another site', async () => {
  const elsewhere = { ...options, listen: { tcp: { host: '0.0.0.0', port: 0 } } };
  await assert.rejects(createApi(elsewhere), { code: 'bad-request' });
  const api = await createApi({ ...options, listen: { tcp: { host: '127.0.0.1', port: 0 } } });
  const url = api.urls[0] ?? '';
  const client = httpClient({ url, peer: 'server' });
  status.parse(await client.get('/v1/status'));
  client.close();
  const { port } = new URL(url);
  const taken = { tcp: { host: '127.0.0.1', port: Number(port) } };
  await assert.rejects(createApi({ ...options, listen: taken }), { code: 'port-taken' });
  await api.close();
  const over = buildApi(options, true);
  const from = async (headers: Record<string, string>) =>
    (await over.inject({ url: '/v1/status', headers })).statusCode;
  assert.equal(await from({ host: 'localhost:8480' }), 200);
  assert.equal(await from({ host: '[::1]:8480', origin: 'http://[::1]:8480' }), 200);
  assert.equal(await from({ host: 'rebound.example:8480' }), 403);
  assert.equal(await from({ host: '127.0.0.1:8480', origin: 'https://evil.example' }), 403);
  await over.close();
});

test('proxies are listed, drained, changed and removed', async () => {
  const { json } = await ask('GET', '/v1/proxies');
  const { proxies } = z.object({ proxies: z.array(proxyView) }).parse(json);
  const [first] = proxies;
  assert.ok(first);
  const path = `/v1/proxies/${first.name}`;
  const drained = await ask('POST', `${path}/drain`, {});
  assert.equal(proxyView.parse(drained.json).state, 'draining');
  const back = await ask('POST', `${path}/drain`, { undo: true });
  assert.equal(proxyView.parse(back.json).state, 'connected');
  const changed = await ask('POST', path, { labels: { site: 'x' }, onlyFor: ['A'] });
  assert.deepEqual(proxyView.parse(changed.json).onlyFor, ['A']);
  assert.match((await refused('POST', path, { labels: { '': 'x' } })).says, /labels/);
  const token = await ask('POST', '/v1/proxy-tokens', { name: 'edge1', lifeMs: 60_000 });
  assert.equal(token.status, 201);
  assert.equal(proxyToken.parse(token.json).name, 'edge1');
  const long = await refused('POST', '/v1/proxy-tokens', { lifeMs: 8 * 86_400_000 });
  assert.match(long.says, /lifeMs .*must be at most a week/);
  assert.equal((await ask('DELETE', path)).status, 204);
  assert.equal((await ask('GET', '/v1/proxies/nobody')).status, 404);
});
