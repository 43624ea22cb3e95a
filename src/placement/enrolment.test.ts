/** Joining over real TLS on the loopback, and everything that must be refused. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import * as net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tls from 'node:tls';
import { after, afterEach, beforeEach, test } from 'node:test';
import { type Catalog, openCatalog } from '../catalog/catalog.ts';
import { type Database, openDatabase } from '../database/database.ts';
import { type ErrorCode, isRouseError } from '../errors.ts';
import { systemClock } from '../lib/clock.ts';
import { httpClient } from '../lib/http-client.ts';
import { certificateFacts, type Identity } from '../lib/identity.ts';
import { systemRandom } from '../lib/random.ts';
import { SecureAgent } from '../lib/secure-agent.ts';
import { proxyClient } from '../proxy/client.ts';
import { enrol } from '../proxy/enrol.ts';
import { readJoined, type JoinedProxy } from '../proxy/joined.ts';
import { linkLimits } from '../proxy/link-limits.ts';
import { listenForRemoteServer, type SecureListener } from '../proxy/listen.ts';
import { ServerLink } from '../proxy/server-link.ts';
import { readToken } from '../proxy/token.ts';
import { wireVersion } from '../proxy/wire.ts';
import { FakeClock } from '../testing/fake-clock.ts';
import { MemoryProxy } from '../testing/memory-proxy.ts';
import { ProxyDoor } from './door.ts';
import { ProxyRegistry } from './registry.ts';

const dayMs = 86_400_000;
const root = mkdtempSync(join(tmpdir(), 'rouse-enrolment-'));
after(() => rmSync(root, { recursive: true, force: true }));
let count = 0;

/** A server's door, with all that is behind it. */
class Server {
  readonly clock: FakeClock;
  readonly directory = join(root, `server-${count++}`);
  database!: Database;
  catalog!: Catalog;
  registry!: ProxyRegistry;
  door!: ProxyDoor;

  constructor(nowMs: number) {
    this.clock = new FakeClock(nowMs);
  }

  async open(): Promise<this> {
    const { clock } = this;
    this.database = await openDatabase({ path: join(root, `${count++}.sqlite`), clock });
    this.catalog = openCatalog(this.database, clock);
    this.registry = new ProxyRegistry({
      clock,
      rows: this.catalog.proxies,
      connect: () => ({ calls: new MemoryProxy([]), close: () => undefined }),
      learn: async () => ['vault'],
      deviceName: async (id) => id,
      activeRecoveries: async () => [],
      tell: () => undefined,
    });
    this.door = new ProxyDoor({
      config: {
        tls: { port: 0, host: '127.0.0.1' },
        tlsDirectory: join(this.directory, 'tls'),
        proxyAddresses: [],
      },
      clock,
      random: systemRandom,
      catalog: this.catalog,
      registry: this.registry,
      log: { info: () => undefined, error: (facts) => assert.fail(JSON.stringify(facts)) },
      transaction: (work) => this.database.transaction(work),
    });
    await this.door.open();
    return this;
  }

  get url(): string {
    return `https://127.0.0.1:${this.door.port}`;
  }

  async token(name?: string, lifeMs?: number): Promise<string> {
    const request = {
      ...(name === undefined ? {} : { name }),
      ...(lifeMs === undefined ? {} : { lifeMs }),
    };
    return (await this.door.newToken(request)).token;
  }

  async close(): Promise<void> {
    await this.door.close();
    this.registry.close();
    await this.database.close();
  }
}

let server: Server;
beforeEach(async () => {
  server = await new Server(systemClock.now()).open();
});
afterEach(() => server.close());

const place = () => {
  const directory = join(root, `proxy-${count++}`);
  return {
    joined: join(directory, 'joined.json'),
    joining: join(directory, 'joining.json'),
    catalog: join(directory, 'catalog.sqlite'),
  };
};

interface Joining {
  readonly token: string;
  readonly name?: string;
  readonly files?: ReturnType<typeof place>;
  readonly clock?: FakeClock;
  readonly url?: string;
}

function joinAs({ token, name = 'edge1', files = place(), clock, url }: Joining) {
  return enrol({
    server: url ?? server.url,
    token,
    name,
    addresses: [],
    callAddress: undefined,
    callPort: 0,
    labels: { site: 'paris' },
    files,
    version: '9.9.9',
    clock: clock ?? server.clock,
  });
}

async function refused(work: Promise<unknown>, code: ErrorCode, message: RegExp, advice = /./) {
  await assert.rejects(work, (error) => {
    assert.ok(isRouseError(error, code), String(error));
    assert.match(error.message, message);
    assert.match(error.advice, advice);
    return true;
  });
}

/** What an enrolled proxy says: through its link, once. */
async function call(identity: Identity | undefined, route: string, body: object): Promise<unknown> {
  const agent = new SecureAgent({ identity, check: () => undefined });
  const client = httpClient({ url: server.url, peer: 'server', agent });
  try {
    return await client.post(`/v1/link/${route}`, body);
  } finally {
    client.close();
  }
}

async function beat(joined: JoinedProxy): Promise<unknown> {
  const status = await new MemoryProxy([]).status();
  const { addresses, callAddress, identity } = joined;
  const body = { status, addresses, callAddress, callPort: 9444 };
  return call(identity, 'heartbeat', body);
}

test('a proxy joins with a token, and is known by its certificate from then on', async () => {
  const files = place();
  const joined = await joinAs({ token: await server.token(), files });
  assert.deepEqual([joined.name, joined.addresses], ['edge1', ['127.0.0.1']]);
  assert.deepEqual(readJoined(files.joined), joined);
  assert.equal(statSync(files.joined).mode & 0o777, 0o600);
  const facts = certificateFacts(joined.identity.certificate);
  assert.deepEqual([facts.name, facts.role], ['edge1', 'Rouse proxy']);
  assert.equal((await server.registry.get('edge1')).state, 'disconnected');
  assert.deepEqual(await beat(joined), { state: 'connected', problem: null });
  const view = await server.registry.get('edge1');
  assert.deepEqual(
    [view.state, view.calledAt, view.labels],
    ['connected', '127.0.0.1:9444', { site: 'paris' }],
  );
  assert.equal(view.fingerprint, facts.fingerprint);
  await server.registry.drain('edge1', { undo: false });
  assert.deepEqual(await beat(joined), { state: 'draining', problem: null });
});

test('a token is good once; the same key may ask again when no answer came', async () => {
  const token = await server.token();
  const files = place();
  await joinAs({ token, files });
  await refused(joinAs({ token, name: 'edge2' }), 'unauthorised', /used by edge1 at/, /new one/);
  await refused(joinAs({ token, files }), 'already-exists', /that of proxy edge1/);
  // The answer was lost: the key that asked is kept until it is there.
  const again = await server.token();
  const lost = place();
  const { identity } = await joinAs({ token: again, name: 'edge3', files: lost });
  rmSync(lost.joined);
  const { id: tokenId } = readToken(again);
  writeFileSync(lost.joining, JSON.stringify({ tokenId, key: identity.key }));
  const second = await joinAs({ token: again, name: 'edge3', files: lost });
  assert.equal(second.identity.key, identity.key);
  assert.deepEqual(await beat(second), { state: 'connected', problem: null });
});

test('tokens that expired, are for another name, unknown or mistyped', async () => {
  const short = await server.token(undefined, 60_000);
  await server.clock.jump(60_001);
  await refused(joinAs({ token: short }), 'unauthorised', /the token expired at/, /new one/);
  const bound = await server.token('edge7');
  const other = /is for proxy edge7, not for edge1/;
  await refused(joinAs({ token: bound }), 'forbidden', other, /--name edge7/);
  await joinAs({ token: bound, name: 'edge7' });
  const elsewhere = await new Server(systemClock.now()).open();
  const foreign = readToken(await elsewhere.token());
  await elsewhere.close();
  const { fingerprint } = await server.door.newToken({});
  const { writeToken } = await import('../proxy/token.ts');
  const unknown = writeToken({ ...foreign, fingerprint });
  await refused(joinAs({ token: unknown }), 'unauthorised', /does not know that token/);
  await refused(joinAs({ token: `${bound}x` }), 'bad-request', /not whole, or was mistyped/);
  const wrongName = joinAs({ token: await server.token(), name: 'a/b' });
  await refused(wrongName, 'bad-request', /the name "a\/b" must be/, /--name/);
});

test('a name that is taken is refused, unless the token is for joining it anew', async () => {
  const first = await joinAs({ token: await server.token() });
  const taken = joinAs({ token: await server.token() });
  await refused(taken, 'already-exists', /a proxy named edge1 is known/, /token --name edge1/);
  await server.catalog.proxies.put({
    name: 'local',
    kind: 'embedded',
    addresses: [],
    enrolledMs: 0,
  });
  const own = joinAs({ token: await server.token('local'), name: 'local' });
  await refused(own, 'already-exists', /a proxy named local is known/);
  const second = await joinAs({ token: await server.token('edge1') });
  assert.deepEqual(await beat(second), { state: 'connected', problem: null });
  await refused(beat(first), 'forbidden', /edge1 was removed, or joined anew/, /--name edge1/);
});

test('clocks that are apart are told, and the token stays good', async () => {
  const token = await server.token();
  const clock = new FakeClock(server.clock.now() + 400_000);
  const apart = /the clocks are 6 min 40 s apart: the proxy's says .*, the server's/;
  await refused(joinAs({ token, clock }), 'wrong-state', apart, /timedatectl/);
  await joinAs({ token });
});

test('a proxy of another wire version is told which side to update', async () => {
  const { id: tokenId, secret } = readToken(await server.token());
  const joining = { tokenId, secret, name: 'x', request: '', labels: {}, version: '0.0.1' };
  const nowMs = server.clock.now();
  const older = call(undefined, 'enrol', { ...joining, wire: 0, nowMs });
  await refused(older, 'wrong-state', /speaks version 0/, /Update Rouse on the proxy/);
  const newer = call(undefined, 'enrol', { ...joining, wire: 99, nowMs });
  await refused(newer, 'wrong-state', /speaks version 99/, /Update Rouse on the server/);
  const nonsense = call(undefined, 'enrol', { ...joining, wire: wireVersion, nowMs });
  await refused(nonsense, 'bad-request', /not a certificate request/);
});

test('a man in the middle is refused before a byte is sent', async () => {
  const other = await new Server(systemClock.now()).open();
  const received: Buffer[] = [];
  const { key, certificate } = other.door.identity ?? assert.fail();
  const middle = tls.createServer({ key, cert: certificate }, (socket) => {
    socket.on('data', (bytes: Buffer) => received.push(bytes));
    socket.on('error', () => undefined);
  });
  await new Promise<void>((resolve) => middle.listen(0, '127.0.0.1', resolve));
  const { port } = middle.address() as net.AddressInfo;
  const token = await server.token();
  const work = joinAs({ token, url: `https://127.0.0.1:${port}` });
  await refused(work, 'forbidden', /is not the server that printed the token/, /Nothing was sent/);
  await new Promise((resolve) => middle.close(resolve));
  await other.close();
  assert.deepEqual(received, []);
  await joinAs({ token });
});

test('plain HTTP is spoken in neither direction', async () => {
  const received: Buffer[] = [];
  const plain = net.createServer((socket) => {
    socket.on('error', () => undefined);
    socket.on('data', (bytes: Buffer) => {
      received.push(bytes);
      socket.end('HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}');
    });
  });
  await new Promise<void>((resolve) => plain.listen(0, '127.0.0.1', resolve));
  const { port } = plain.address() as net.AddressInfo;
  const token = await server.token();
  await refused(
    joinAs({ token, url: `https://127.0.0.1:${port}` }),
    'server-unreachable',
    /no server/,
  );
  await new Promise((resolve) => plain.close(resolve));
  assert.ok(!Buffer.concat(received).toString('latin1').includes(readToken(token).secret));
  const insecure = joinAs({ token, url: `http://127.0.0.1:${server.door.port}` });
  await refused(insecure, 'bad-request', /is not the address of a server/, /https/);
  const http = httpClient({ url: `http://127.0.0.1:${server.door.port}`, peer: 'server' });
  await refused(http.post('/v1/link/enrol', {}), 'server-unreachable', /does not answer/);
  http.close();
});

test('without a certificate, with a foreign or an expired one, nothing is to be had', async () => {
  await refused(call(undefined, 'renew', { request: 'x' }), 'unauthorised', /no certificate/);
  const other = await new Server(systemClock.now()).open();
  const mine = server;
  server = other;
  const { identity: foreign } = await joinAs({ token: await other.token() });
  server = mine;
  await other.close();
  const own = server.door.identity ?? assert.fail();
  const borrowed = { ...foreign, authority: own.authority };
  const stranger = call(borrowed, 'renew', { request: 'x' });
  await refused(stranger, 'unauthorised', /did not give that certificate/);
  await refused(call(own, 'renew', { request: 'x' }), 'unauthorised', /\(Rouse server\)/);
  await server.close();
  server = await new Server(systemClock.now() - 100 * dayMs).open();
  const old = await joinAs({ token: await server.token() });
  await refused(beat(old), 'unauthorised', /certificate of proxy edge1 expired at/, /anew/);
});

test('a proxy that was removed is refused by name', async () => {
  const joined = await joinAs({ token: await server.token() });
  await beat(joined);
  await server.registry.remove('edge1');
  await refused(beat(joined), 'forbidden', /proxy edge1 was removed/, /token --name edge1/);
  const anew = await joinAs({ token: await server.token() });
  assert.deepEqual(await beat(anew), { state: 'connected', problem: null });
});

/** The proxy's own listener, and a server's call to it with that identity. */
async function askProxy(listener: SecureListener, identity: Identity): Promise<string> {
  const agent = new SecureAgent({ identity, check: () => undefined });
  const url = `https://127.0.0.1:${listener.port}`;
  const client = httpClient({ url, peer: 'proxy', agent });
  const calls = proxyClient((route, body, timeoutMs) => client.post(route, body, { timeoutMs }));
  try {
    return (await calls.status()).name;
  } finally {
    client.close();
  }
}

test('a proxy answers its server, and neither another proxy nor another server', async () => {
  const joined = await joinAs({ token: await server.token() });
  const other = await joinAs({ token: await server.token(), name: 'edge2' });
  const at = { port: 0, identity: joined.identity };
  const listener = await listenForRemoteServer(new MemoryProxy([]), at, () => undefined);
  const own = server.door.identity ?? assert.fail();
  assert.equal(await askProxy(listener, own), 'local');
  await refused(askProxy(listener, other.identity), 'forbidden', /only the server may call/);
  const elsewhere = await new Server(systemClock.now()).open();
  const foreign = elsewhere.door.identity ?? assert.fail();
  await refused(askProxy(listener, foreign), 'forbidden', /another authority/);
  const disguised = { ...foreign, authority: own.authority };
  await refused(askProxy(listener, disguised), 'proxy-unreachable', /does not answer/);
  await elsewhere.close();
  await listener.close();
});

test('a certificate is renewed in good time, with a new key, and the old one ends', async () => {
  await server.close();
  server = await new Server(systemClock.now() - 61 * dayMs).open();
  const files = place();
  const first = await joinAs({ token: await server.token(), files });
  const shown: JoinedProxy[] = [];
  const link = new ServerLink({
    file: files.joined,
    joined: first,
    callPort: 9444,
    clock: server.clock,
    log: { info: () => undefined, error: (_, message) => assert.fail(message) },
    status: () => new MemoryProxy([]).status(),
    renewed: (joined) => void shown.push(joined),
  });
  link.start();
  const until = async (is: () => boolean | Promise<boolean>) => {
    // Real sockets: a busy machine takes its time.
    for (let turn = 0; turn < 10_000 && !(await is()); turn++) await systemClock.sleep(2);
    assert.ok(await is());
  };
  await until(async () => (await server.registry.get('edge1')).state === 'connected');
  assert.equal(shown.length, 0);
  await server.clock.jump(61 * dayMs);
  await until(() => shown.length === 1);
  const [second] = shown;
  assert.ok(second !== undefined);
  assert.deepEqual(readJoined(files.joined), second);
  assert.notEqual(second.identity.key, first.identity.key);
  // Until the new one is used, the old one counts: a kill in between loses nothing.
  assert.deepEqual(await beat(first), { state: 'connected', problem: null });
  await server.clock.jump(linkLimits.heartbeatMs);
  const { fingerprint } = certificateFacts(second.identity.certificate);
  await until(async () => (await server.registry.get('edge1')).fingerprint === fingerprint);
  await refused(beat(first), 'forbidden', /no proxy edge1 with that certificate/);
  await link.close();
});

test("the server's own certificate is renewed; its authority and its proxies stay", async () => {
  await server.close();
  server = await new Server(systemClock.now() - 250 * dayMs).open();
  const before = server.door.identity;
  await server.clock.jump(250 * dayMs);
  const joined = await joinAs({ token: await server.token() });
  await server.door.renewWhenDue();
  const renewed = server.door.identity;
  assert.notEqual(renewed?.certificate, before?.certificate);
  assert.equal(renewed?.authority, before?.authority);
  assert.deepEqual(await beat(joined), { state: 'connected', problem: null });
  const kept = JSON.parse(readFileSync(join(server.directory, 'tls', 'server.json'), 'utf8'));
  assert.equal(kept.certificate, renewed?.certificate);
});

test('a server without a port for proxies says how to get one', async () => {
  const door = new ProxyDoor({
    config: { tls: undefined, tlsDirectory: '', proxyAddresses: [] },
    clock: server.clock,
    random: systemRandom,
    catalog: server.catalog,
    registry: server.registry,
    log: { info: () => undefined, error: () => undefined },
    transaction: (work) => work(),
  });
  await door.open();
  assert.equal(door.identity, undefined);
  await refused(door.newToken({}), 'wrong-state', /no port for proxies/, /--tls-port/);
});
