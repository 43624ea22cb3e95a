/** With several proxies, all that a recovery does happens at the one it was given. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach, test } from 'node:test';
import { type ErrorCode, isRouseError } from '../errors.ts';
import type { Host } from '../hypervisors/port.ts';
import { MemoryHypervisor } from '../hypervisors/memory.ts';
import { systemClock } from '../lib/clock.ts';
import { type MemoryPlacement, memoryPlacement } from '../testing/memory-placement.ts';
import { MemoryProxy } from '../testing/memory-proxy.ts';
import { openRecoveryBench, type RecoveryBench } from '../testing/recovery-bench.ts';
import type { Saveset } from '../vault/api.ts';
import { recoveryRequest } from './schema.ts';

const saveset: Saveset = {
  id: 'saveset1',
  mtree: 'main',
  machine: { id: 'uuid-of-web01', name: 'web01' },
  takenAtMs: 1,
  kind: 'full',
  consistency: 'crash',
  disks: [{ name: 'vda', root: { hash: '', depth: 0, sizeBytes: 1 << 20 }, source: 'test' }],
  files: [],
  cost: { readBytes: 0, zeroBytes: 0, knownBytes: 0, newBytes: 0, storedBytes: 0 },
  labels: {},
};

const directory = mkdtempSync(join(tmpdir(), 'rouse-proxies-'));
after(() => rmSync(directory, { recursive: true, force: true }));
let files = 0;
let near: MemoryProxy;
let far: MemoryProxy;
let known: string[];
let draining: string[];
let hosts: Host[];
let placement: MemoryPlacement;
let path: string;
let bench: RecoveryBench;

async function open(): Promise<RecoveryBench> {
  const proxies = { near, far };
  placement = memoryPlacement(() =>
    known.map((name, index) => ({
      name,
      state: draining.includes(name) ? 'draining' : 'connected',
      addresses: [`192.0.${index + 1}.1`],
      networks: [`192.0.${index + 1}.1/24`],
    })),
  );
  return openRecoveryBench({
    path,
    saveset,
    clock: systemClock,
    hypervisor: new MemoryHypervisor(systemClock, { hosts, datastores: [] }),
    desk: () => ({
      placement,
      proxies: async () =>
        known.map((name) => ({
          name,
          address: '127.0.0.1',
          isAway: false,
          calls: proxies[name as keyof typeof proxies],
        })),
    }),
  });
}

beforeEach(async () => {
  near = new MemoryProxy([saveset]);
  far = new MemoryProxy([saveset]);
  known = ['near', 'far'];
  draining = [];
  hosts = [
    { id: 'h1', name: 'esx1', state: 'connected', addresses: ['192.0.1.11', 'fd77::11'] },
    { id: 'h2', name: 'esx2', state: 'connected', addresses: ['192.0.2.12'] },
    { id: 'h3', name: 'esx3', state: 'maintenance', addresses: ['192.0.2.13'] },
  ];
  path = join(directory, `${files++}.sqlite`);
  bench = await open();
});
afterEach(() => bench.close());

const held = (proxy: MemoryProxy) => proxy.clonesById.size + proxy.exportsByClone.size;

async function wake(proxy: string): Promise<string> {
  const request = recoveryRequest.parse({ machine: 'web01', powerOn: true, proxy });
  const { id } = await bench.recoveries.create(request);
  await bench.until(id, 'available');
  return id;
}

test('the proxy asked for serves, under its own name and address, and is cleaned up', async () => {
  const id = await wake('far');
  const view = await bench.recoveries.get(id);
  assert.equal(view.proxy, 'far');
  assert.equal(view.export?.address, '192.0.2.1');
  assert.equal(view.host, 'esx2');
  assert.equal(view.clonePath, `/main/Recover-far-${id}`);
  assert.equal(held(far), 2);
  assert.deepEqual(near.clonesMade, []);
  await bench.recoveries.cancel(id, { keepWrites: false });
  await bench.until(id, 'cancelled');
  assert.equal(held(far), 0);
});

test('parked and woken by another server, it stays where its writes are', async () => {
  const id = await wake('far');
  await bench.recoveries.cancel(id, { keepWrites: true });
  await bench.until(id, 'parked');
  assert.equal(far.clonesById.size, 1);
  await bench.close();
  bench = await open();
  await bench.recoveries.resume(id);
  const view = await bench.until(id, 'available');
  assert.equal(view.proxy, 'far');
  assert.deepEqual([held(far), held(near)], [2, 0]);
});

test('of a proxy that was removed meanwhile, every later step says so', async () => {
  const id = await wake('far');
  known = ['near'];
  await assert.rejects(bench.recoveries.seal(id), (error) => {
    assert.ok(isRouseError(error, 'not-found'));
    assert.match(error.message, /proxy far was removed/);
    return true;
  });
  assert.equal((await bench.recoveries.get(id)).state, 'available');
  assert.equal(held(far), 2);
});

test('an unknown proxy is refused with those that there are', async () => {
  const request = recoveryRequest.parse({ machine: 'web01', proxy: 'middle' });
  await assert.rejects(bench.recoveries.create(request), (error) => {
    assert.ok(isRouseError(error, 'not-found'));
    assert.match(`${error.message} ${error.advice}`, /middle.*near/);
    return true;
  });
});

test('host and proxy are chosen as a pair, and the mount is remembered', async () => {
  const request = recoveryRequest.parse({ machine: 'web01', host: 'esx2' });
  const { id } = await bench.recoveries.create(request);
  const view = await bench.until(id, 'available');
  assert.deepEqual([view.host, view.proxy, view.export?.address], ['esx2', 'far', '192.0.2.1']);
  assert.match(view.steps[1]?.detail ?? '', /^far at 192.0.2.1: same network: 192.0.2.1 and/);
  const [past] = placement.remembered;
  assert.deepEqual(past, {
    proxy: 'far',
    address: '192.0.2.1',
    hypervisorId: 'memory',
    hostId: 'h2',
    clusterId: null,
    error: null,
  });
});

const plan = (more: object) =>
  bench.recoveries.plan(recoveryRequest.parse({ machine: 'web01', dryRun: true, ...more }));

test('a dry run shows every pair with its reasons, and changes nothing', async () => {
  const shown = await plan({ without: ['near'] });
  assert.deepEqual([shown.host, shown.proxy, shown.proxyAddress], ['esx2', 'far', '192.0.2.1']);
  assert.equal(shown.candidates.length, 6);
  assert.equal(shown.candidates.filter(({ chosen }) => chosen).length, 1);
  const maintained = shown.candidates.filter(({ host }) => host === 'esx3');
  assert.ok(maintained.every(({ refusals }) => refusals.includes('the host is in maintenance')));
  for (const { reasons } of shown.candidates) {
    for (const reason of reasons) assert.match(reason, / \([+-]\d+\)$/);
  }
  assert.deepEqual(await bench.recoveries.list({}), []);
  assert.deepEqual([near.clonesMade, far.clonesMade], [[], []]);
  assert.deepEqual(placement.remembered, []);
});

test('a dry run that finds nothing shows the table all the same', async () => {
  draining = ['near', 'far'];
  const shown = await plan({});
  assert.deepEqual([shown.host, shown.proxy], [null, null]);
  assert.equal(shown.refusal?.code, 'proxy-unreachable');
  assert.match(shown.refusal?.message ?? '', /nothing can take web01: .*proxy near is draining/);
  assert.equal(shown.candidates.length, 6);
});

test('a host or proxy that cannot is refused beforehand, and those that can are named', async () => {
  const refused = async (more: object, code: ErrorCode, message: RegExp, advice: RegExp) => {
    const request = recoveryRequest.parse({ machine: 'web01', ...more });
    await assert.rejects(bench.recoveries.create(request), (error) => {
      assert.ok(isRouseError(error, code), String(error));
      assert.match(error.message, message);
      assert.match(error.advice, advice);
      return true;
    });
  };
  const others = /These would do: esx. by .*, esx/;
  const host = /^host esx3 cannot take web01: esx3 by .*: the host is in maintenance/;
  await refused({ host: 'esx3' }, 'host-unreachable', host, others);
  await refused({ host: 'esx9' }, 'not-found', /no host is called "esx9"/, /esx1/);
  draining = ['far'];
  const proxy = /^host esx2 with proxy far cannot take web01: esx2 by far: proxy far is draining/;
  await refused({ host: 'esx2', proxy: 'far' }, 'proxy-unreachable', proxy, /esx2 by near/);
  assert.deepEqual(await bench.recoveries.list({}), []);
});

test('a draining proxy gets nothing new, and what it holds is woken there', async () => {
  const id = await wake('far');
  await bench.recoveries.cancel(id, { keepWrites: true });
  await bench.until(id, 'parked');
  draining = ['far'];
  await bench.recoveries.resume(id);
  assert.equal((await bench.until(id, 'available')).proxy, 'far');
  const request = recoveryRequest.parse({ machine: 'web01', name: 'web02' });
  const second = await bench.recoveries.create(request);
  assert.equal((await bench.until(second.id, 'available')).proxy, 'near');
});
