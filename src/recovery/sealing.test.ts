/** Sealing as a run: it goes on over a restart of the server, can be cancelled, and takes turns. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach, test } from 'node:test';
import { isRouseError, RouseError } from '../errors.ts';
import { MemoryHypervisor } from '../hypervisors/memory.ts';
import { systemClock } from '../lib/clock.ts';
import type { JobSpec, JobView } from '../proxy/port.ts';
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
const sealed: Saveset = { ...saveset, id: 'sealed1', kind: 'sealed', basedOn: saveset.id };

/** Its seals are half done until the test ends them. */
class SealingProxy extends MemoryProxy {
  readonly seals = new Map<string, JobView>();
  readonly started: string[] = [];
  #wake: (() => void)[] = [];

  constructor() {
    super([saveset, sealed]);
  }

  override async startJob(spec: JobSpec): Promise<JobView> {
    if (spec.kind !== 'seal') return super.startJob(spec);
    this.started.push(spec.id);
    const known = this.seals.get(spec.id);
    if (known?.state === 'running' || known?.state === 'done') return known;
    const fresh = { ...(await super.startJob(spec)), state: 'running', totalBytes: 2 } as const;
    const { result: _, ...view } = fresh;
    return this.#set(view);
  }

  override async job(id: string, waitMs = 0, version = 0): Promise<JobView> {
    const view = this.seals.get(id);
    if (view === undefined) return super.job(id);
    if (waitMs === 0 || view.version > version || view.state !== 'running') return view;
    await new Promise<void>((resolve) => this.#wake.push(resolve));
    return this.job(id, waitMs, version);
  }

  override async cancelJob(id: string): Promise<void> {
    this.end(id, { state: 'cancelled' });
  }

  end(id: string, change: Partial<JobView>): void {
    const view = this.seals.get(id);
    if (view === undefined) throw new RouseError('not-found', `no job ${id}`);
    this.#set({ ...view, ...change, version: view.version + 1 });
  }

  #set(view: JobView): JobView {
    this.seals.set(view.id, view);
    for (const wake of this.#wake.splice(0)) wake();
    return view;
  }
}

const done = { state: 'done', result: { kind: 'saveset', saveset: sealed } } as const;
const directory = mkdtempSync(join(tmpdir(), 'rouse-seals-'));
after(() => rmSync(directory, { recursive: true, force: true }));
let files = 0;
let proxy: SealingProxy;
let stored: string[];
let path: string;
let bench: RecoveryBench;

async function open(): Promise<RecoveryBench> {
  return openRecoveryBench({
    path,
    saveset,
    clock: systemClock,
    hypervisor: new MemoryHypervisor(systemClock),
    desk: () => ({
      proxies: async () => [{ name: 'local', address: '192.0.2.1', isAway: false, calls: proxy }],
      savesetStored: async ({ id }) => void stored.push(id),
    }),
  });
}

beforeEach(async () => {
  proxy = new SealingProxy();
  stored = [];
  path = join(directory, `${files++}.sqlite`);
  bench = await open();
});
afterEach(() => bench.close());

async function wake(): Promise<string> {
  const { id } = await bench.recoveries.create(recoveryRequest.parse({ machine: 'web01' }));
  await bench.until(id, 'available');
  return id;
}

/** The sealing once `is` holds. */
async function sealingOf(
  id: string,
  sealId: string,
  is: (doneBytes: number, state: string) => boolean,
) {
  const { signal } = new AbortController();
  for await (const view of bench.recoveries.seals.watch(id, sealId, signal)) {
    if (is(view.doneBytes, view.state)) return view;
  }
  return bench.recoveries.seals.get(id, sealId);
}

test('a sealing tells how far it is, and its end', async () => {
  const id = await wake();
  const begun = await bench.recoveries.seals.begin(id);
  const half = await sealingOf(id, begun.id, (doneBytes) => doneBytes > 0);
  assert.deepEqual([half.state, half.doneBytes, half.totalBytes], ['running', 1, 2]);
  proxy.end(begun.id, done);
  const ended = await sealingOf(id, begun.id, (_, state) => state === 'done');
  assert.deepEqual([ended.savesetId, stored], ['sealed1', ['sealed1']]);
  assert.ok(bench.told.some((line) => line.includes('recovery.sealed')));
  assert.equal((await bench.recoveries.get(id)).state, 'available');
});

test('another server goes on with the same job', async () => {
  const id = await wake();
  const { id: sealId } = await bench.recoveries.seals.begin(id);
  await sealingOf(id, sealId, (doneBytes) => doneBytes > 0);
  await bench.close();
  bench = await open();
  proxy.end(sealId, done);
  await sealingOf(id, sealId, (_, state) => state === 'done');
  assert.deepEqual([...new Set(proxy.started)], [sealId]);
  assert.deepEqual(stored, ['sealed1']);
});

test('a proxy that forgot the job is asked again, under the same id', async () => {
  const id = await wake();
  const { id: sealId } = await bench.recoveries.seals.begin(id);
  await sealingOf(id, sealId, (doneBytes) => doneBytes > 0);
  const fresh = new SealingProxy();
  for (const [key, clone] of proxy.clonesById) fresh.clonesById.set(key, clone);
  const old = proxy;
  proxy = fresh;
  old.end(sealId, { state: 'failed', error: { code: 'io-error', message: 'gone', advice: '' } });
  const ended = bench.recoveries.seals.watch(id, sealId, new AbortController().signal);
  for await (const view of ended) {
    if (fresh.seals.has(sealId) && view.state === 'running') fresh.end(sealId, done);
  }
  assert.deepEqual(fresh.started, [sealId]);
  assert.deepEqual(stored, ['sealed1']);
});

test('cancelled, the job ends at the proxy and nothing is stored', async () => {
  const id = await wake();
  const { id: sealId } = await bench.recoveries.seals.begin(id);
  await sealingOf(id, sealId, (doneBytes) => doneBytes > 0);
  await bench.recoveries.seals.cancel(id, sealId);
  const ended = await sealingOf(id, sealId, (_, state) => state === 'cancelled');
  assert.equal(ended.state, 'cancelled');
  assert.equal(proxy.seals.get(sealId)?.state, 'cancelled');
  assert.deepEqual(stored, []);
  await assert.rejects(bench.recoveries.seals.cancel(id, sealId), (error) =>
    isRouseError(error, 'wrong-state'),
  );
});

test('two at once take turns, a third waits with the second; both answer the saveset', async () => {
  const id = await wake();
  const first = await bench.recoveries.seals.begin(id);
  await sealingOf(id, first.id, (doneBytes) => doneBytes > 0);
  const second = await bench.recoveries.seals.begin(id);
  assert.notEqual(second.id, first.id);
  const third = bench.recoveries.seal(id);
  assert.deepEqual(proxy.started, [first.id]);
  proxy.end(first.id, done);
  await sealingOf(id, second.id, (doneBytes) => doneBytes > 0);
  proxy.end(second.id, done);
  assert.equal((await third).id, 'sealed1');
  assert.deepEqual(proxy.started, [first.id, second.id]);
  const all = await bench.recoveries.seals.list(id);
  assert.deepEqual(
    all.map((one) => one.savesetId),
    ['sealed1', 'sealed1'],
  );
});
