/** The end of a publication: its export is never taken away from a client without a word. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach, test } from 'node:test';
import { MemoryHypervisor } from '../hypervisors/memory.ts';
import { recoveryLimits } from '../limits.ts';
import type { ExportView } from '../proxy/port.ts';
import { FakeClock, settle } from '../testing/fake-clock.ts';
import { MemoryProxy } from '../testing/memory-proxy.ts';
import { openRecoveryBench, type RecoveryBench } from '../testing/recovery-bench.ts';
import type { Saveset } from '../vault/api.ts';
import { recoveryRequest } from './schema.ts';

const saveset: Saveset = {
  id: 'saveset1',
  mtree: 'main',
  machine: { id: 'files', name: 'files01' },
  takenAtMs: 1,
  kind: 'full',
  consistency: 'crash',
  disks: [{ name: 'vda', root: { hash: '', depth: 0, sizeBytes: 1 << 20 }, source: 'test' }],
  files: [],
  cost: { readBytes: 0, zeroBytes: 0, knownBytes: 0, newBytes: 0, storedBytes: 0 },
  labels: {},
};
const hourMs = 3_600_000;
const dayMs = 24 * hourMs;
const client = '192.0.2.7';

const directory = mkdtempSync(join(tmpdir(), 'rouse-publication-'));
after(() => rmSync(directory, { recursive: true, force: true }));
let files = 0;
let clock: FakeClock;
let proxy: MemoryProxy;
let bench: RecoveryBench;

beforeEach(async () => {
  clock = new FakeClock();
  proxy = new MemoryProxy([saveset]);
  bench = await openRecoveryBench({
    path: join(directory, `${files++}.sqlite`),
    saveset,
    clock,
    hypervisor: new MemoryHypervisor(clock),
    desk: () => ({
      proxies: async () => [{ name: 'local', address: '192.0.2.1', isAway: false, calls: proxy }],
    }),
  });
});
afterEach(async () => {
  const closed = bench.close();
  await clock.advance(0);
  await closed;
});

async function quiet(): Promise<void> {
  for (let turn = 0; turn < 100; turn++) await settle();
}

async function pass(milliseconds: number): Promise<void> {
  await clock.jump(milliseconds);
  await quiet();
}

async function publish(): Promise<string> {
  const request = { machine: 'files01', mode: 'publish', clients: [client], leaseMs: dayMs };
  const { id } = await bench.recoveries.create(recoveryRequest.parse(request));
  await quiet();
  assert.equal((await bench.recoveries.get(id)).state, 'available');
  return id;
}

/** What the proxy sees of the clients from now on. */
function seen(change: Partial<ExportView>): void {
  for (const [cloneId, view] of proxy.exportsByClone) {
    proxy.exportsByClone.set(cloneId, { ...view, ...change });
  }
}

const state = async (id: string) => (await bench.recoveries.get(id)).state;
const cutOff = () => bench.told.filter((line) => line.includes('clients-cut-off'));

/** Its lease has ended, and the grace time has passed. */
async function pastGrace(): Promise<void> {
  await pass(dayMs);
  await pass(recoveryLimits.graceMs);
}

test('nobody uses it: it goes when its grace time has passed', async () => {
  const id = await publish();
  await pastGrace();
  assert.equal(await state(id), 'cancelled');
  assert.equal(proxy.exportsByClone.size, 0);
  assert.deepEqual(cutOff(), []);
});

test('an idle client that has it mounted keeps it, and people see why', async () => {
  const id = await publish();
  await pass(dayMs);
  await pass(recoveryLimits.graceMs - hourMs);
  seen({ mounted: [client], lastUsedMs: clock.now() });
  await pass(hourMs);
  await pass(hourMs);
  assert.equal(await state(id), 'cleaning');
  const { steps } = await bench.recoveries.get(id);
  assert.match(steps[12]?.detail ?? '', /192\.0\.2\.7 has it mounted/);
  assert.equal(proxy.exportsByClone.size, 1);
  seen({ mounted: [] });
  seen({ watchedSinceMs: clock.now() - 2 * dayMs, lastUsedMs: clock.now() - 2 * dayMs });
  await pass(hourMs);
  assert.equal(await state(id), 'cancelled');
  assert.deepEqual(cutOff(), []);
});

test('a client that mounted it and was silent for a day is told about', async () => {
  const id = await publish();
  seen({ mounted: [client], lastUsedMs: clock.now() });
  await pastGrace();
  assert.equal(await state(id), 'cancelled');
  assert.match(cutOff().join(), /192\.0\.2\.7 mounted it, and was silent since/);
});

test('an open connection keeps it, however silent', async () => {
  const id = await publish();
  seen({ connected: [client], lastUsedMs: clock.now() });
  await pastGrace();
  await pass(2 * dayMs);
  assert.equal(await state(id), 'cleaning');
  assert.equal(proxy.exportsByClone.size, 1);
});

test('a person cuts off a client that the clean-up waits for', async () => {
  const id = await publish();
  seen({ connected: [client], lastUsedMs: clock.now() });
  await pastGrace();
  assert.equal(await state(id), 'cleaning');
  await bench.recoveries.cancel(id, { keepWrites: false });
  await pass(hourMs);
  assert.equal(await state(id), 'cancelled');
  assert.match(cutOff().join(), /192\.0\.2\.7 is connected/);
});

test('after a start of the proxy, which forgets mounts, it stays for a day', async () => {
  const id = await publish();
  await pass(dayMs);
  seen({ watchedSinceMs: clock.now() + recoveryLimits.graceMs - hourMs });
  await pass(recoveryLimits.graceMs);
  assert.equal(await state(id), 'cleaning');
  await pass(dayMs);
  assert.equal(await state(id), 'cancelled');
  assert.deepEqual(cutOff(), []);
});

test('a person takes it away at once, and is told from whom', async () => {
  const id = await publish();
  seen({ mounted: [client], connected: [client], lastUsedMs: clock.now() });
  await bench.recoveries.cancel(id, { keepWrites: false });
  await quiet();
  const view = await bench.recoveries.get(id);
  assert.equal(view.state, 'cancelled');
  assert.match(view.steps[12]?.detail ?? '', /is gone; 192\.0\.2\.7 is connected/);
  assert.equal(cutOff().length, 1);
});

test('a person who takes it away from nobody is told nothing of the kind', async () => {
  const id = await publish();
  seen({ watchedSinceMs: clock.now() });
  await bench.recoveries.cancel(id, { keepWrites: false });
  await quiet();
  assert.equal(await state(id), 'cancelled');
  assert.deepEqual(cutOff(), []);
});
