import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach, test } from 'node:test';
import { type Catalog, openCatalog } from '../catalog/catalog.ts';
import { type Database, openDatabase } from '../database/database.ts';
import { isRouseError, RouseError } from '../errors.ts';
import { linkLimits } from '../proxy/link-limits.ts';
import type { ProxyStatus } from '../proxy/port.ts';
import { wireVersion } from '../proxy/wire.ts';
import { FakeClock } from '../testing/fake-clock.ts';
import { MemoryProxy } from '../testing/memory-proxy.ts';
import type { PlacementQuestion } from './port.ts';
import { Ranking } from './ranking.ts';
import { ProxyRegistry } from './registry.ts';
import { winnerOf } from './scoring.ts';

const directory = mkdtempSync(join(tmpdir(), 'rouse-registry-'));
after(() => rmSync(directory, { recursive: true, force: true }));
let files = 0;
let clock: FakeClock;
let database: Database;
let catalog: Catalog;
let registry: ProxyRegistry;
let active: { id: string; name: string; proxy: string | null; machineId: string }[];
let told: string[];
let learned: string[];
let closed: number;
let unreachable = false;
let asked: (readonly string[])[];

class AskedProxy extends MemoryProxy {
  override async reach(addresses: readonly string[]) {
    asked.push(addresses);
    return super.reach(addresses);
  }
}

beforeEach(async () => {
  clock = new FakeClock();
  database = await openDatabase({ path: join(directory, `${files++}.sqlite`), clock });
  catalog = openCatalog(database, clock);
  [active, told, learned, asked, closed] = [[], [], [], [], 0];
  registry = new ProxyRegistry({
    clock,
    rows: catalog.proxies,
    connect: () => ({ calls: new AskedProxy([]), close: () => void closed++ }),
    learn: async (name) => {
      if (unreachable) throw new RouseError('proxy-unreachable', 'it does not answer');
      learned.push(name);
      return ['vault'];
    },
    deviceName: async (id) => `the ${id}`,
    activeRecoveries: async () => active,
    tell: (level, kind, name) => void told.push(`${level} ${kind} ${name}`),
  });
  for (const name of ['a', 'b']) {
    const addresses = [`10.1.0.${name === 'a' ? 2 : 3}`];
    await catalog.proxies.put({ name, kind: 'enrolled', addresses, enrolledMs: clock.now() });
  }
});
afterEach(() => database.close());

async function statusNow(more: Partial<ProxyStatus> = {}): Promise<ProxyStatus> {
  return { ...(await new MemoryProxy([]).status()), nowMs: clock.now(), ...more };
}
const state = async (name: string) => (await registry.get(name)).state;

test('never heard of, heard, silent, back: the state follows the heartbeats', async () => {
  assert.equal(await state('a'), 'disconnected');
  await registry.heard('a', await statusNow());
  assert.equal(await state('a'), 'connected');
  const silent = new Set<string>();
  await clock.jump(linkLimits.silentMsMax);
  assert.equal(await state('a'), 'connected');
  await clock.jump(1);
  assert.equal(await state('a'), 'disconnected');
  assert.equal((await registry.reachable())[0]?.isAway, true);
  await registry.tellOfSilent(silent);
  await registry.tellOfSilent(silent);
  await registry.heard('a', await statusNow());
  assert.equal(await state('a'), 'connected');
  assert.deepEqual(told, [
    'info proxy.connected a',
    'warning proxy.disconnected a',
    'info proxy.connected a',
  ]);
});

test('a vault is read when its proxy is new or was restarted, not at every heartbeat', async () => {
  await registry.heard('a', await statusNow());
  await registry.heard('a', await statusNow());
  assert.deepEqual(learned, ['a']);
  await registry.heard('a', await statusNow({ startedMs: 7 }));
  assert.deepEqual(learned, ['a', 'a']);
  assert.deepEqual((await registry.get('a')).devices, [{ id: 'vault', name: 'the vault' }]);
});

test('one that is heard and cannot be called gets no work until it can', async () => {
  unreachable = true;
  const heard = registry.heard('a', await statusNow());
  await assert.rejects(heard, (error) => {
    assert.ok(isRouseError(error, 'proxy-unreachable'));
    assert.match(error.message, /hears proxy a, and cannot call it: it does not answer/);
    return true;
  });
  assert.deepEqual((await registry.get('a')).devices, []);
  unreachable = false;
  await registry.heard('a', await statusNow());
  assert.equal((await registry.get('a')).devices.length, 1);
});

test('one of another version gets no work, and is told what to update', async () => {
  await registry.heard('a', await statusNow({ wire: wireVersion + 1 }));
  assert.match((await registry.get('a')).problem ?? '', /update the server$/);
  await registry.heard('a', await statusNow({ wire: wireVersion - 1 }));
  assert.match((await registry.get('a')).problem ?? '', /update proxy a$/);
  assert.deepEqual(learned, []);
  await registry.heard('a', await statusNow());
  assert.equal((await registry.get('a')).problem, null);
  assert.deepEqual(learned, ['a']);
});

test('its clock is compared with ours', async () => {
  await registry.heard('a', await statusNow({ nowMs: clock.now() + 90_000 }));
  assert.equal((await registry.get('a')).skewMs, 90_000);
});

test('removed only when nothing lives there; its certificates are remembered as refused', async () => {
  await catalog.proxies.update('a', { fingerprint: 'AA', nextFingerprint: 'BB' });
  active = [{ id: 'r1', name: 'web01', proxy: 'a', machineId: 'm' }];
  await assert.rejects(registry.remove('a'), (error) => {
    assert.ok(isRouseError(error, 'busy'));
    assert.match(error.message, /proxy a serves web01 \(r1\)/);
    return true;
  });
  active = [];
  await registry.heard('a', await statusNow());
  await registry.remove('a');
  assert.equal(closed, 1);
  await assert.rejects(registry.get('a'), (error) => isRouseError(error, 'not-found'));
  assert.equal(await catalog.proxies.removedMs('AA'), clock.now());
  assert.equal(await catalog.proxies.removedMs('BB'), clock.now());
  assert.equal(await catalog.proxies.removedMs('CC'), undefined);
});

test('the embedded one is never removed', async () => {
  await catalog.proxies.put({ name: 'local', kind: 'embedded', addresses: [], enrolledMs: 0 });
  await assert.rejects(registry.remove('local'), (error) => isRouseError(error, 'wrong-state'));
  const [first] = await registry.reachable();
  assert.deepEqual([first?.name, first?.address], ['local', '127.0.0.1']);
});

test('ranking asks proxies what they reach only when there is a choice of them', async () => {
  const rows = catalog.proxies;
  const ranking = new Ranking({ clock, rows, registry, activeRecoveries: async () => active });
  const question: PlacementQuestion = {
    device: { id: 'vault', name: 'vault' },
    machineId: 'm',
    hosts: [
      {
        id: 'h1',
        name: 'esx1',
        state: 'connected',
        addresses: ['10.1.0.11'],
        cluster: null,
        hypervisor: { id: 'vc', name: 'vc' },
        nfsSlots: null,
        recoveries: 0,
      },
    ],
    wanted: { proxy: null, hostId: null },
    without: [],
    prefer: {},
    datastore: null,
    mounts: true,
  };
  const networks = ['10.1.0.2/24', '10.1.0.3/24'];
  await registry.heard('a', await statusNow({ networks }));
  const chosen = async () => winnerOf(await ranking.rank(question))?.proxy;
  assert.equal(await chosen(), 'a');
  assert.deepEqual(asked, []);
  await registry.heard('b', await statusNow({ networks }));
  assert.equal(await chosen(), 'a');
  assert.deepEqual(asked, [['10.1.0.11'], ['10.1.0.11']]);
  const past = { hypervisorId: 'vc', hostId: 'h1', clusterId: null };
  await ranking.mounted({ ...past, proxy: 'b', address: '10.1.0.3', error: null });
  assert.equal(await chosen(), 'b');
  await clock.jump(1);
  await ranking.mounted({ ...past, proxy: 'b', address: '10.1.0.3', error: 'refused' });
  assert.equal(await chosen(), 'a');
  active = [{ id: 'r', name: 'x', proxy: 'b', machineId: 'm' }];
  await catalog.proxies.update('b', { neverFor: [] });
  await registry.drain('a', { undo: false });
  assert.equal(await chosen(), 'b');
  await registry.drain('a', { undo: true });
  await registry.change('a', { onlyFor: ['elsewhere'] });
  assert.equal(await chosen(), 'b');
});
