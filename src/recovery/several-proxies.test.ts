/** With several proxies, all that a recovery does happens at the one it was given. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach, test } from 'node:test';
import { isRouseError } from '../errors.ts';
import { MemoryHypervisor } from '../hypervisors/memory.ts';
import { systemClock } from '../lib/clock.ts';
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
let path: string;
let bench: RecoveryBench;

async function open(): Promise<RecoveryBench> {
  const proxies = { near, far };
  return openRecoveryBench({
    path,
    saveset,
    clock: systemClock,
    hypervisor: new MemoryHypervisor(systemClock),
    desk: () => ({
      proxies: async () =>
        known.map((name, index) => ({
          name,
          address: `192.0.2.${index + 1}`,
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
  assert.equal(view.export?.address, '192.0.2.2');
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
