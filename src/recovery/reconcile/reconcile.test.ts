/** Drift of every kind, planted beside things of other people; and by seed, at random. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach, test } from 'node:test';
import * as fc from 'fast-check';
import type { Database } from '../../database/database.ts';
import { RouseError } from '../../errors.ts';
import { MemoryHypervisor } from '../../hypervisors/memory.ts';
import { systemClock } from '../../lib/clock.ts';
import { MemoryProxy } from '../../testing/memory-proxy.ts';
import { openRecoveryBench, type RecoveryBench } from '../../testing/recovery-bench.ts';
import type { Saveset } from '../../vault/api.ts';
import type { ReconcileFinding, ReconcileReport } from '../reconcile-schema.ts';
import { recoveryRequest } from '../schema.ts';
import { inputOf } from '../service.ts';
import { Reconciler } from './reconcile.ts';

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

const root = mkdtempSync(join(tmpdir(), 'rouse-reconcile-'));
after(() => rmSync(root, { recursive: true, force: true }));
let files = 0;

/** One server with its hypervisor and proxy, and somebody else's things beside ours. */
class Scene {
  readonly hypervisor: MemoryHypervisor;
  readonly proxy: MemoryProxy;
  readonly told: string[] = [];
  readonly bench: RecoveryBench;
  readonly reconciler: Reconciler;
  readonly #database: Database;
  /** What the backups of this server are, by token. */
  readonly backups = new Map<string, string>();
  readonly checkpoints = new Set<string>();
  isHypervisorAway = false;

  static async open(): Promise<Scene> {
    let database: Database | undefined;
    const hypervisor = new MemoryHypervisor(systemClock);
    const proxy = new MemoryProxy([saveset]);
    const bench = await openRecoveryBench({
      path: join(root, `${files++}.sqlite`),
      saveset,
      clock: systemClock,
      hypervisor,
      desk: (_, opened) => {
        database = opened;
        return {
          proxies: async () => [
            { name: 'local', address: '192.0.2.1', isAway: false, calls: proxy },
          ],
        };
      },
    });
    assert.ok(database !== undefined);
    return new Scene(bench, database, hypervisor, proxy);
  }

  private constructor(
    bench: RecoveryBench,
    database: Database,
    hypervisor: MemoryHypervisor,
    proxy: MemoryProxy,
  ) {
    this.bench = bench;
    this.#database = database;
    this.hypervisor = hypervisor;
    this.proxy = proxy;
    this.hypervisor.addMachine({ name: 'helper', power: 'on' });
    this.reconciler = new Reconciler({
      ...bench.desk,
      hypervisor: async () => {
        if (this.isHypervisorAway) throw new RouseError('host-unreachable', 'it does not answer');
        return this.#mortal(hypervisor);
      },
      proxies: async () =>
        (await bench.desk.proxies()).map((one) => ({ ...one, calls: this.#mortal(one.calls) })),
      hypervisors: async () => [{ id: 'memory', name: 'lab' }],
      inputOf,
      hostId: (id) => bench.recoveries.hostId(id),
      backupState: async (token) => this.backups.get(token),
      isBackupRunning: async (token) => this.backups.get(token) === 'running',
      checkpoints: async () => this.checkpoints,
      report: async (level, finding) => void this.told.push(`${level} ${finding.kind}`),
      failed: (error) => assert.fail(String(error)),
    });
  }

  /** Calls until the server dies: from then on none takes effect, and none answers well. */
  lives = Number.POSITIVE_INFINITY;

  /** Each call is met before and after it acts. */
  #mortal<T extends object>(target: T): T {
    const meet = () => {
      this.lives -= 1;
      if (this.lives < 0) throw new Error('killed');
    };
    return new globalThis.Proxy(target, {
      get(object, name) {
        const value: unknown = Reflect.get(object, name, object);
        if (typeof value !== 'function') return value;
        return async (...values: unknown[]) => {
          meet();
          const answer: unknown = await Reflect.apply(value, object, values);
          meet();
          return answer;
        };
      },
    });
  }

  async recover(mode: 'instant' | 'flr', name: string, powerOn = false): Promise<string> {
    const more = mode === 'flr' ? { into: 'helper' } : { powerOn };
    const request = recoveryRequest.parse({ machine: 'web01', mode, name, ...more });
    const { id } = await this.bench.recoveries.create(request);
    await this.bench.until(id, 'available');
    return id;
  }

  /** As a database restored from an earlier copy does. */
  async forget(id: string): Promise<void> {
    await this.#database.query.deleteFrom('recoveries').where('id', '=', id).execute();
    await this.#database.query.deleteFrom('runs').where('subject', '=', id).execute();
  }

  async end(id: string): Promise<void> {
    await this.bench.catalog.recoveries.update(id, { state: 'cancelled' });
  }

  reconcile(more: { dryRun?: boolean; force?: boolean } = {}): Promise<ReconcileReport> {
    return this.reconciler.reconcile({ dryRun: false, force: false, ...more });
  }

  datastoreOf(id: string) {
    const path = `/main/Recover-local-${id}`;
    return { name: `rouse-${id}`, server: '192.0.2.1', path, nfsPort: 2049, mountPort: 2049 };
  }

  /** Everything of that recovery, wherever it lies. */
  async of(id: string): Promise<string[]> {
    const { machines, disks } = await this.hypervisor.traces();
    const { datastores } = await this.hypervisor.inventory();
    const clone = `Recover-local-${id}`;
    return [
      ...machines.filter(({ mark }) => mark === id).map(({ name }) => `machine ${name}`),
      ...disks
        .filter(({ location }) => location.startsWith(`192.0.2.1:/main/${clone}/`))
        .map(({ device, machineName }) => `disk ${device} of ${machineName}`),
      ...datastores
        .filter(({ location }) => location === `192.0.2.1:/main/${clone}`)
        .map(({ name }) => `datastore ${name}`),
      ...(this.proxy.exportsByClone.has(clone) ? ['export'] : []),
      ...(this.proxy.clonesById.has(clone) ? ['clone'] : []),
    ];
  }

  async close(): Promise<void> {
    await this.reconciler.stop();
    await this.bench.close();
  }
}

let scene: Scene;
beforeEach(async () => {
  scene = await Scene.open();
});
afterEach(() => scene.close());

const outcomes = (findings: readonly ReconcileFinding[]) =>
  findings.map(({ kind, outcome }) => `${kind} ${outcome}`);

test('where all is as it should be, nothing is found and nothing is done', async () => {
  await scene.recover('instant', 'web01', true);
  await scene.recover('flr', 'files');
  const before = scene.hypervisor.faults.calls.length;
  const report = await scene.reconcile();
  assert.deepEqual(report.findings, []);
  assert.deepEqual(report.unreachable, []);
  const made = scene.hypervisor.faults.calls.slice(before);
  assert.deepEqual(new Set(made), new Set(['inventory', 'traces']), 'it looks and no more');
});

test('what a forgotten recovery left is taken away in order, and a dry run only says so', async () => {
  const id = await scene.recover('instant', 'web01');
  await scene.forget(id);
  const there = await scene.of(id);
  assert.equal(there.length, 5);
  const dry = await scene.reconcile({ dryRun: true });
  assert.deepEqual(outcomes(dry.findings), [
    'machine would mend',
    'datastore would mend',
    'export would mend',
    'clone would mend',
  ]);
  assert.deepEqual(await scene.of(id), there);
  assert.deepEqual(scene.told, []);
  const report = await scene.reconcile();
  assert.deepEqual(outcomes(report.findings), [
    'machine mended',
    'datastore mended',
    'export mended',
    'clone mended',
  ]);
  assert.deepEqual(await scene.of(id), []);
  assert.equal(scene.told.length, 4);
  assert.deepEqual((await scene.reconcile()).findings, []);
});

test('a machine that runs is not stopped, and keeps all that it needs', async () => {
  const id = await scene.recover('instant', 'web01', true);
  await scene.forget(id);
  const there = await scene.of(id);
  for (const more of [{ dryRun: true }, {}, { force: true }]) {
    const { findings } = await scene.reconcile(more);
    assert.deepEqual(outcomes(findings), [
      'machine left',
      'datastore left',
      'export left',
      'clone left',
    ]);
    assert.deepEqual(await scene.of(id), there);
  }
  assert.equal(scene.told.length, 4, 'told once');
  assert.equal(scene.reconciler.leftCount, 4);
});

test('a relocated machine is production, known or not', async () => {
  const id = await scene.recover('instant', 'web01', true);
  await scene.bench.recoveries.relocate(id, { datastore: 'production' });
  await scene.bench.until(id, 'done');
  assert.deepEqual((await scene.reconcile()).findings, []);
  await scene.forget(id);
  assert.deepEqual((await scene.reconcile({ force: true })).findings, []);
  assert.deepEqual(await scene.of(id), ['machine web01']);
});

test('a machine that somebody else moved away is found out, and its recovery cleaned up', async () => {
  const id = await scene.recover('instant', 'web01', true);
  const machineId = (await scene.hypervisor.findMarked(id)) ?? '';
  const move = { toDatastoreId: 'production', bandwidthBytesPerSecond: 0 };
  await scene.hypervisor.relocate(
    { machineId, fromDatastore: scene.datastoreOf(id), ...move },
    { signal: new AbortController().signal, progress: () => undefined },
  );
  assert.deepEqual(outcomes((await scene.reconcile()).findings), ['recovery mended']);
  await scene.bench.until(id, 'done');
  assert.deepEqual(await scene.of(id), ['machine web01']);
  assert.equal(await scene.hypervisor.powerState(machineId), 'on');
});

test('killed at any call, it leaves nothing worse, and the next pass ends it', async () => {
  let points = 0;
  for (let lives = 0; ; lives += 1) {
    await scene.close();
    scene = await Scene.open();
    const forgotten = await scene.recover('instant', 'web01');
    const ended = await scene.recover('flr', 'files');
    const stands = await scene.recover('instant', 'stands', true);
    await scene.forget(forgotten);
    await scene.end(ended);
    scene.proxy.exportsByClone.delete(`Recover-local-${stands}`);
    scene.lives = lives;
    await scene.reconcile({ force: true });
    const died = scene.lives < 0;
    for (const id of [forgotten, ended]) {
      const there = await scene.of(id);
      const isUsed = there.some((name) => /^(machine|disk|datastore)/.test(name));
      assert.ok(!isUsed || there.includes('export'), `killed at ${lives}: ${there.join()}`);
      assert.ok(!there.includes('export') || there.includes('clone'), `killed at ${lives}`);
    }
    scene.lives = Number.POSITIVE_INFINITY;
    await scene.reconcile({ force: true });
    const left = [...(await scene.of(forgotten)), ...(await scene.of(ended))];
    assert.deepEqual(left, [], `killed at ${lives}`);
    assert.equal((await scene.of(stands)).length, 5, `killed at ${lives}`);
    if (!died) break;
    points += 1;
  }
  assert.ok(points >= 30, `only ${points} points were tried`);
});

test('what was written stays unless it is asked to go', async () => {
  const id = await scene.recover('instant', 'web01');
  await scene.forget(id);
  const clone = scene.proxy.clonesById.get(`Recover-local-${id}`);
  assert.ok(clone !== undefined);
  scene.proxy.clonesById.set(clone.cloneId, { ...clone, writtenBytes: 4096 });
  const { findings } = await scene.reconcile();
  assert.match(findings.at(-1)?.note ?? '', /holds 4 KiB that were written/);
  assert.deepEqual(await scene.of(id), ['clone']);
  await scene.reconcile({ force: true });
  assert.deepEqual(await scene.of(id), []);
});

test('an attached disk goes when its guest does not use it; in doubt it stays', async () => {
  const id = await scene.recover('flr', 'files');
  await scene.end(id);
  const unsure = await scene.reconcile();
  assert.deepEqual(outcomes(unsure.findings), [
    'disk left',
    'datastore left',
    'export left',
    'clone left',
  ]);
  const helper = scene.hypervisor.addMachine({
    ...(await scene.hypervisor.machine('helper')),
    disks: [],
  });
  await scene.hypervisor.attachDisk(helper.id, {
    datastore: scene.datastoreOf(id),
    path: 'files/vda-flat.vmdk',
    sizeBytes: 1,
    serial: 's',
  });
  let mounts = ['/mnt'];
  helper.agent = (disks) => disks.map(({ name }) => ({ name, seenAs: `/dev/${name}`, mounts }));
  for (const dryRun of [true, false]) {
    const { findings } = await scene.reconcile({ force: true, dryRun });
    assert.equal(findings[0]?.outcome, 'left', 'a dry run promises no more than is done');
    assert.match(findings[0]?.note ?? '', /mounted at \/mnt/);
  }
  mounts = [];
  assert.ok((await scene.reconcile()).findings.every(({ outcome }) => outcome === 'mended'));
  assert.deepEqual(await scene.of(id), []);
  assert.equal(await scene.hypervisor.powerState('helper'), 'on');
});

test('export and datastore of a recovery that needs them are made again', async () => {
  const id = await scene.recover('flr', 'files');
  const clients = scene.proxy.exportsByClone.get(`Recover-local-${id}`)?.clients;
  scene.proxy.exportsByClone.clear();
  assert.deepEqual(outcomes((await scene.reconcile()).findings), ['export mended']);
  assert.deepEqual(scene.proxy.exportsByClone.get(`Recover-local-${id}`)?.clients, clients);
  await scene.hypervisor.detachDisk('uuid-of-helper', 'vda');
  await scene.hypervisor.unmountDatastore('host-1', `rouse-${id}`);
  const { findings } = await scene.reconcile();
  assert.deepEqual(outcomes(findings), ['datastore mended', 'disk left']);
  assert.match(findings[1]?.problem ?? '', /vda is no longer attached/);
  const again = await scene.recover('instant', 'web01');
  scene.hypervisor.forgetMachine((await scene.hypervisor.findMarked(again)) ?? '');
  scene.proxy.clonesById.delete(`Recover-local-${id}`);
  const gone = (await scene.reconcile()).findings.map(({ problem }) => problem);
  assert.ok(gone.includes('its machine is no longer registered'), gone.join());
  assert.ok(gone.includes('its clone is gone from proxy local'), gone.join());
});

test('what a run is working on is no drift', async () => {
  const gate = Promise.withResolvers<void>();
  scene.hypervisor.faults.holdOnce('register', gate.promise, 'after');
  const request = recoveryRequest.parse({ machine: 'web01' });
  const { id } = await scene.bench.recoveries.create(request);
  while (!scene.hypervisor.faults.calls.includes('register')) {
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.deepEqual((await scene.reconcile({ force: true })).findings, []);
  gate.resolve();
  await scene.bench.until(id, 'available');
  assert.equal((await scene.of(id)).length, 5);
});

test('an unreachable hypervisor is told, its exports stay, and the rest goes on', async () => {
  const lost = await scene.recover('instant', 'lost');
  await scene.end(lost);
  const orphan = 'abcdefghjk';
  const spec = { mtree: 'main', savesetId: 'saveset1', folder: 'x' };
  await scene.proxy.createClone({ cloneId: `Recover-local-${orphan}`, ...spec });
  scene.isHypervisorAway = true;
  const report = await scene.reconcile({ force: true });
  assert.deepEqual(
    report.unreachable.map(({ kind, name }) => `${kind} ${name}`),
    ['hypervisor lab'],
  );
  assert.deepEqual(await scene.of(orphan), [], 'a clone that nobody was shown can go');
  assert.equal((await scene.of(lost)).length, 5);
  scene.isHypervisorAway = false;
  await scene.reconcile();
  assert.deepEqual(await scene.of(lost), []);
});

test('an export of which nothing is known stays until it is forced, or was silent for a day', async () => {
  const cloneId = 'Recover-local-abcdefghjk';
  const spec = { mtree: 'main', savesetId: 'saveset1', folder: 'x' };
  await scene.proxy.createClone({ cloneId, ...spec });
  const view = await scene.proxy.createExport({ cloneId, clients: ['192.0.2.9'] });
  const watchedSinceMs = systemClock.now();
  scene.proxy.exportsByClone.set(cloneId, { ...view, watchedSinceMs, mounted: ['192.0.2.9'] });
  const { findings } = await scene.reconcile();
  assert.deepEqual(outcomes(findings), ['export left', 'clone left']);
  assert.match(findings[0]?.note ?? '', /192\.0\.2\.9 has it mounted/);
  await scene.reconcile({ force: true });
  assert.deepEqual(await scene.of('abcdefghjk'), []);
  await scene.proxy.createClone({ cloneId, ...spec });
  const old = await scene.proxy.createExport({ cloneId, clients: ['192.0.2.9'] });
  scene.proxy.exportsByClone.set(cloneId, { ...old, watchedSinceMs: 0 });
  await scene.reconcile();
  assert.deepEqual(await scene.of('abcdefghjk'), []);
});

test('backups that have ended leave nothing; running, needed and foreign ones stay', async () => {
  const begin = async (name: string, state?: string) => {
    const { id } = scene.hypervisor.addMachine({ name, power: 'on' });
    const token = `token${name}`;
    await scene.hypervisor.beginBackup({ machineId: id, token, scratchDirectory: '/scratch' });
    if (state !== undefined) scene.backups.set(token, state);
  };
  await begin('running', 'running');
  await begin('failed', 'failed');
  await begin('foreign');
  const { findings } = await scene.reconcile();
  assert.deepEqual(
    findings.map(({ name, outcome }) => `${name} ${outcome}`),
    ['job rouse-tokenfailed of failed mended', 'job rouse-tokenforeign of foreign left'],
  );
  assert.deepEqual([...scene.hypervisor.openBackups.values()], ['tokenrunning', 'tokenforeign']);
});

/** Somebody else's, each nearly like ours. */
async function plantForeign(id: string): Promise<void> {
  const { hypervisor } = scene;
  const ours = scene.datastoreOf(id);
  const elsewhere = { ...ours, name: `rouse-${'z'.repeat(10)}`, server: '198.51.100.7' };
  const nearly = { ...ours, name: `rouse-${'y'.repeat(10)}`, path: `/main/Recover-other-${id}` };
  const prod = { ...ours, name: 'production-nfs', server: '198.51.100.8', path: '/vol/prod' };
  // Nothing uses this one, so that nothing but its place protects it.
  const idle = { ...elsewhere, name: `rouse-${'x'.repeat(10)}` };
  for (const spec of [elsewhere, nearly, prod, idle]) {
    await hypervisor.mountDatastore('host-1', spec);
  }
  for (const [index, datastore] of [elsewhere, nearly, prod].entries()) {
    const foreign = { name: `foreign${index}`, power: index === 0 ? 'on' : 'off' } as const;
    const machine = hypervisor.addMachine({ ...foreign, mark: index === 1 ? id : undefined });
    const spec = { datastore, path: 'web01/vda-flat.vmdk', sizeBytes: 1, serial: 'x' };
    await hypervisor.attachDisk(machine.id, spec);
  }
}

async function foreignThings(): Promise<string> {
  const { machines, datastores } = await scene.hypervisor.inventory();
  const named = machines.filter(({ name }) => name.startsWith('foreign'));
  const details = await Promise.all(named.map(({ id }) => scene.hypervisor.machine(id)));
  const mounted = datastores.filter(
    ({ location }) => !location.startsWith('192.0.2.1:/main/Recover-local-'),
  );
  return JSON.stringify([details, mounted]);
}

interface Planted {
  readonly mode: 'instant' | 'flr';
  readonly fate: 'stands' | 'ended' | 'forgotten';
  readonly runs: boolean;
  readonly lost: readonly ('export' | 'clone' | 'datastore' | 'machine')[];
  readonly wrote: boolean;
}

const planted = fc.record<Planted>({
  mode: fc.constantFrom('instant', 'flr'),
  fate: fc.constantFrom('stands', 'ended', 'forgotten'),
  runs: fc.boolean(),
  lost: fc.uniqueArray(fc.constantFrom('export', 'clone', 'datastore', 'machine'), {
    maxLength: 2,
  }),
  wrote: fc.boolean(),
});

async function plant({ mode, fate, runs, lost, wrote }: Planted, index: number): Promise<string> {
  const { hypervisor, proxy } = scene;
  const id = await scene.recover(mode, `m${index}`, runs);
  const clone = `Recover-local-${id}`;
  const machineId = (await hypervisor.findMarked(id)) ?? '';
  const { writtenBytes: _, ...view } = proxy.clonesById.get(clone)!;
  proxy.clonesById.set(clone, { ...view, writtenBytes: wrote ? 4096 : 0 });
  if (lost.includes('export')) proxy.exportsByClone.delete(clone);
  if (lost.includes('clone') && lost.includes('export')) proxy.clonesById.delete(clone);
  if (lost.includes('machine')) hypervisor.forgetMachine(machineId);
  if (lost.includes('datastore') && lost.includes('machine')) {
    await hypervisor.unmountDatastore('host-1', `rouse-${id}`).catch(() => undefined);
  }
  if (fate === 'ended') await scene.end(id);
  if (fate === 'forgotten') await scene.forget(id);
  return id;
}

test('after any drift, ours is as it should be or told, and nobody else is touched', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(planted, { minLength: 1, maxLength: 4 }),
      fc.boolean(),
      async (plan, force) => {
        await scene.close();
        scene = await Scene.open();
        const ids: string[] = [];
        for (const [index, one] of plan.entries()) ids.push(await plant(one, index));
        await plantForeign(ids[0]!);
        const foreign = await foreignThings();
        const running = (await scene.hypervisor.inventory()).machines.filter(
          ({ power }) => power === 'on',
        );
        const { findings } = await scene.reconcile({ force });
        assert.equal(await foreignThings(), foreign, "somebody else's");
        const { machines } = await scene.hypervisor.inventory();
        for (const { id } of running) {
          assert.equal(machines.find((one) => one.id === id)?.power, 'on', 'it runs on');
        }
        for (const [index, id] of ids.entries()) {
          const told = findings.filter(({ recovery }) => recovery === id);
          await judge(plan[index]!, id, told, force);
        }
        const again = await scene.reconcile({ force });
        assert.deepEqual(
          again.findings.filter(({ outcome }) => outcome === 'mended'),
          [],
          'the second pass has nothing to do',
        );
      },
    ),
    { numRuns: 40 },
  );
});

async function judge(
  { mode, fate, runs, lost }: Planted,
  id: string,
  told: readonly ReconcileFinding[],
  force: boolean,
): Promise<void> {
  const there = (await scene.of(id)).filter((name) => !name.startsWith('machine foreign'));
  const kinds = new Set(told.map(({ kind }) => kind));
  const isHeld = there.some((name) => /^(datastore|disk)/.test(name));
  if (isHeld && !(lost.includes('export') && fate !== 'stands')) {
    assert.ok(there.includes('export') || told.length > 0, 'a mounted export is served');
  }
  if (fate === 'stands') {
    const isWhole = there.length === 5 || (mode === 'flr' && there.length === 4);
    assert.ok(isWhole || told.length > 0, `${there.join()} should be whole, or told`);
    return;
  }
  for (const name of there.filter((one) => !/^disk vda of m\d/.test(one))) {
    const kind = name.split(' ')[0] as ReconcileFinding['kind'];
    assert.ok(kinds.has(kind), `${name} is left, and nobody was told`);
  }
  const stays = mode === 'instant' && runs && !lost.includes('machine');
  if (force && !stays) assert.deepEqual(there, [], 'all of it is gone');
}
