import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { openCatalog } from '../catalog/catalog.ts';
import type { RecoveryRow } from '../catalog/recoveries.ts';
import { type Database, openDatabase } from '../database/database.ts';
import { RouseError } from '../errors.ts';
import { MemoryHypervisor } from '../hypervisors/memory.ts';
import { systemRandom } from '../lib/random.ts';
import { recoveryLimits } from '../limits.ts';
import { FakeClock, settle } from '../testing/fake-clock.ts';
import { memoryPlacement } from '../testing/memory-placement.ts';
import { MemoryProxy } from '../testing/memory-proxy.ts';
import type { Saveset } from '../vault/api.ts';
import type { Engine } from '../workflows/api.ts';
import { createEngine } from '../workflows/engine.ts';
import { instantAccess } from './instant-access.ts';
import { listenToLeases } from './lease.ts';
import { recoveryRequest } from './schema.ts';
import { inputOf, Recoveries, type RecoveryDesk } from './service.ts';

const savesetOfWeb01: Saveset = {
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

const hourMs = 3_600_000;
const dayMs = 24 * hourMs;
const directory = mkdtempSync(join(tmpdir(), 'rouse-lease-'));
after(() => rmSync(directory, { recursive: true, force: true }));
let files = 0;

/** A server with a fake clock beside a hypervisor and a proxy that outlive it. */
class World {
  readonly clock = new FakeClock();
  readonly hypervisor: MemoryHypervisor;
  readonly proxy = new MemoryProxy([savesetOfWeb01]);
  readonly told: string[] = [];
  readonly messages: string[] = [];
  readonly #path = join(directory, `catalog-${files++}.sqlite`);
  #database: Database | undefined;
  #engine: Engine | undefined;
  #recoveries: Recoveries | undefined;

  constructor(relocationPartMs = 0) {
    this.hypervisor = new MemoryHypervisor(this.clock, { relocationPartMs });
  }

  get recoveries(): Recoveries {
    assert.ok(this.#recoveries);
    return this.#recoveries;
  }

  async start(): Promise<void> {
    const { clock } = this;
    const database = await openDatabase({ path: this.#path, clock });
    const catalog = openCatalog(database, clock);
    const engine = createEngine({ database, clock, random: systemRandom, report: () => undefined });
    const desk: RecoveryDesk = {
      clock,
      random: systemRandom,
      transaction: (work) => database.transaction(work),
      engine,
      recoveries: catalog.recoveries,
      device: async () => ({ id: 'local', name: 'local', address: '/memory' }),
      placement: memoryPlacement(() => [{ name: 'local' }]),
      proxies: async () => [
        { name: 'local', address: '127.0.0.1', isAway: false, calls: this.proxy },
      ],
      hypervisor: async () => this.hypervisor,
      tell: async (_id, level, kind, message) => {
        this.told.push(`${level} ${kind}`);
        this.messages.push(message);
      },
      keepPicture: async () => undefined,
      picture: async () => undefined,
      chooseSaveset: async () => savesetOfWeb01,
      chooseHypervisor: async () => 'memory',
      findMachine: async () => ({ id: 'uuid-of-helper', name: 'helper', hypervisorId: 'memory' }),
      hypervisorName: async () => 'memory',
      savesetView: () => assert.fail('not asked for'),
      savesetStored: async () => undefined,
    };
    const recoveries = new Recoveries(desk);
    const { open, relocate, close } = instantAccess(desk);
    engine.register(open);
    engine.register(relocate);
    engine.register(close);
    recoveries.listen();
    const input = async (id: string) => inputOf(await catalog.recoveries.get(id));
    listenToLeases(desk, input, (id) => recoveries.hostId(id));
    await engine.start();
    this.#database = database;
    this.#engine = engine;
    this.#recoveries = recoveries;
  }

  async stop(): Promise<void> {
    const stopped = this.#engine?.stop();
    await this.clock.advance(0);
    await stopped;
    await this.#database?.close();
  }

  /** A machine that runs with a lease of that length. */
  async wake(leaseMs: number): Promise<string> {
    await this.start();
    const request = recoveryRequest.parse({ machine: 'web01', powerOn: true, leaseMs });
    const { id } = await this.recoveries.create(request);
    await this.until(id, 'available');
    this.told.length = 0;
    return id;
  }

  async until(id: string, state: RecoveryRow['state']): Promise<void> {
    for (let turn = 0; turn < 200; turn++) {
      if ((await this.recoveries.get(id)).state === state) return this.#quiet();
      await settle();
    }
    assert.equal((await this.recoveries.get(id)).state, state);
  }

  /** Everything that fell due has been done, as far as no time has to pass. */
  async #quiet(): Promise<void> {
    for (let turn = 0; turn < 50; turn++) await settle();
  }

  async pass(milliseconds: number): Promise<void> {
    await this.clock.jump(milliseconds);
    await this.#quiet();
  }

  async power(): Promise<string | undefined> {
    const { machines } = await this.hypervisor.inventory();
    return machines.find(({ name }) => name === 'web01')?.power;
  }
}

async function withWorld(
  work: (world: World) => Promise<void>,
  relocationPartMs?: number,
): Promise<void> {
  const world = new World(relocationPartMs);
  try {
    await work(world);
  } finally {
    await world.stop();
  }
}

const warning = 'warning lease.ends-soon';

test('people are warned 72, 24 and 1 hours before the end, once each', () =>
  withWorld(async (world) => {
    const id = await world.wake(10 * dayMs);
    await world.pass(7 * dayMs - 1);
    assert.deepEqual(world.told, []);
    await world.pass(1);
    assert.deepEqual(world.told, [warning]);
    assert.match(world.messages.at(-1) ?? '', /web01 ends in 3 d.*rouse renew /);
    await world.pass(2 * dayMs);
    assert.deepEqual(world.told, [warning, warning]);
    await world.pass(23 * hourMs);
    assert.deepEqual(world.told, [warning, warning, warning]);
    const { warnings } = await world.recoveries.get(id);
    assert.equal(warnings.length, 1, 'the last says how long there is');
    assert.match(warnings[0] ?? '', /ends in 1 h/);
  }));

test('renewing moves the warnings and the end', () =>
  withWorld(async (world) => {
    const id = await world.wake(4 * dayMs);
    await world.pass(dayMs);
    assert.deepEqual(world.told, [warning]);
    const renewed = await world.recoveries.renew(id, { leaseMs: 10 * dayMs });
    assert.deepEqual(renewed.warnings, []);
    assert.equal(renewed.leaseEndsMs, world.clock.now() + 10 * dayMs);
    await world.pass(4 * dayMs);
    assert.deepEqual(world.told, [warning, 'info lease.renewed']);
    assert.equal((await world.recoveries.get(id)).state, 'available');
    await world.pass(3 * dayMs);
    assert.deepEqual(world.told, [warning, 'info lease.renewed', warning]);
  }));

test('a lease of less than an hour gives no warning that would be too late', () =>
  withWorld(async (world) => {
    const id = await world.wake(hourMs / 2);
    await world.pass(hourMs / 2 - 1);
    assert.deepEqual(world.told, []);
    await world.pass(1);
    await world.until(id, 'parked');
    assert.deepEqual(world.told, ['warning lease.ended']);
  }));

test('at its end the machine is shut down, not cut off, and all it wrote is kept', () =>
  withWorld(async (world) => {
    const ways: string[] = [];
    const { hypervisor } = world;
    const powerOff = hypervisor.powerOff.bind(hypervisor);
    hypervisor.powerOff = (machine, how, graceMs) => {
      ways.push(`${how} ${graceMs}`);
      return powerOff(machine, how, graceMs);
    };
    const id = await world.wake(hourMs / 2);
    await world.pass(hourMs / 2);
    await world.until(id, 'parked');
    assert.deepEqual(ways, [`shutdown ${recoveryLimits.shutdownMs}`]);
    assert.equal(await world.power(), 'off', 'it is registered still');
    assert.equal(world.proxy.clonesById.size, 1);
    assert.equal(world.proxy.exportsByClone.size, 1);
    const { leaseEndsMs } = await world.recoveries.get(id);
    assert.equal(leaseEndsMs, world.clock.now() + recoveryLimits.graceMs);
  }));

test('what was put away by hand ends as well, after warnings, and renew keeps it longer', () =>
  withWorld(async (world) => {
    const id = await world.wake(dayMs);
    await world.recoveries.cancel(id, { keepWrites: true });
    await world.until(id, 'parked');
    const { leaseEndsMs } = await world.recoveries.get(id);
    assert.equal(leaseEndsMs, world.clock.now() + recoveryLimits.graceMs);
    world.told.length = 0;
    await world.pass(recoveryLimits.graceMs - 72 * hourMs);
    assert.deepEqual(world.told, [warning]);
    const text = /What web01 wrote is discarded in 3 d.*rouse renew /;
    assert.match((await world.recoveries.get(id)).warnings[0] ?? '', text);

    const renewed = await world.recoveries.renew(id, { leaseMs: 30 * dayMs });
    assert.deepEqual(renewed.warnings, []);
    assert.equal(renewed.leaseEndsMs, world.clock.now() + 30 * dayMs);
    await world.pass(29 * dayMs);
    assert.equal(world.proxy.clonesById.size, 1);
    assert.equal((await world.recoveries.get(id)).state, 'parked');
    await world.pass(dayMs);
    await world.until(id, 'cancelled');
    assert.equal(world.proxy.clonesById.size, 0);
  }));

test('renewing what is cleaned up already says so', () =>
  withWorld(async (world) => {
    const id = await world.wake(dayMs);
    await world.recoveries.cancel(id, { keepWrites: false });
    await world.until(id, 'cancelled');
    await assert.rejects(world.recoveries.renew(id, { leaseMs: hourMs }), {
      code: 'wrong-state',
    });
  }));

test('what was put away is resumed with a lease of its own, and put away anew', () =>
  withWorld(async (world) => {
    const id = await world.wake(dayMs);
    await world.recoveries.cancel(id, { keepWrites: true });
    await world.until(id, 'parked');
    await world.pass(recoveryLimits.graceMs - hourMs);
    await world.recoveries.resume(id);
    await world.until(id, 'available');
    await world.pass(2 * hourMs);
    assert.equal((await world.recoveries.get(id)).state, 'available');
    await world.recoveries.cancel(id, { keepWrites: true });
    await world.until(id, 'parked');
    await world.pass(recoveryLimits.graceMs - hourMs);
    assert.equal((await world.recoveries.get(id)).state, 'parked');
    await world.pass(hourMs);
    await world.until(id, 'cancelled');
  }));

test('it is cleaned up when the grace time has passed, and not before', () =>
  withWorld(async (world) => {
    const id = await world.wake(hourMs / 2);
    await world.pass(hourMs / 2);
    await world.until(id, 'parked');
    await world.pass(recoveryLimits.graceMs - 1);
    assert.equal((await world.recoveries.get(id)).state, 'parked');
    assert.equal(world.proxy.clonesById.size, 1);
    await world.pass(1);
    await world.until(id, 'cancelled');
    assert.equal(world.proxy.clonesById.size + world.proxy.exportsByClone.size, 0);
    assert.equal(await world.power(), undefined);
  }));

test('a parked machine is resumed on the same clone, with a new lease and no end left over', () =>
  withWorld(async (world) => {
    const id = await world.wake(hourMs / 2);
    await world.pass(hourMs / 2);
    await world.until(id, 'parked');
    await world.pass(dayMs);
    await world.recoveries.resume(id);
    await world.until(id, 'available');
    assert.equal(await world.power(), 'on');
    assert.deepEqual(world.proxy.clonesMade.length, 1);
    const { leaseEndsMs, warnings } = await world.recoveries.get(id);
    assert.equal(leaseEndsMs, world.clock.now() + hourMs / 2);
    assert.deepEqual(warnings, []);
    await world.recoveries.renew(id, { leaseMs: 300 * dayMs });
    await world.pass(recoveryLimits.graceMs);
    assert.equal((await world.recoveries.get(id)).state, 'available');
  }));

test('resuming that fails gives the grace time anew', () =>
  withWorld(async (world) => {
    const id = await world.wake(hourMs / 2);
    await world.pass(hourMs / 2);
    await world.until(id, 'parked');
    await world.pass(recoveryLimits.graceMs - hourMs);
    const broken = new RouseError('bad-request', 'told to fail');
    world.hypervisor.faults.failOnce('powerOn', broken);
    await world.recoveries.resume(id);
    await world.until(id, 'parked');
    await world.pass(2 * hourMs);
    assert.equal((await world.recoveries.get(id)).state, 'parked');
    assert.equal(world.proxy.clonesById.size, 1);
    await world.pass(recoveryLimits.graceMs);
    await world.until(id, 'cancelled');
  }));

test('a lease that ends while its machine is relocated is postponed', () =>
  withWorld(async (world) => {
    const id = await world.wake(2 * hourMs);
    await world.recoveries.relocate(id, { datastore: 'production' });
    await world.pass(0);
    await world.pass(2 * hourMs);
    assert.equal((await world.recoveries.get(id)).state, 'relocating');
    assert.deepEqual(world.told.at(-1), 'warning lease.extended');
    assert.equal(await world.power(), 'on');
    for (let hour = 0; hour < 5; hour++) await world.pass(hourMs);
    await world.until(id, 'done');
    assert.equal(await world.power(), 'on');
  }, hourMs));

test('a server that was away at the end parks at once, without old warnings', () =>
  withWorld(async (world) => {
    const id = await world.wake(10 * dayMs);
    await world.stop();
    await world.clock.jump(11 * dayMs);
    await world.start();
    await world.until(id, 'parked');
    assert.equal(await world.power(), 'off');
    assert.deepEqual(world.told, ['warning lease.ended']);
  }));

test('a server that was away for two warnings gives the nearer one', () =>
  withWorld(async (world) => {
    const id = await world.wake(10 * dayMs);
    await world.stop();
    await world.clock.jump(9 * dayMs + hourMs);
    await world.start();
    await world.pass(0);
    assert.deepEqual(world.told, [warning]);
    assert.match((await world.recoveries.get(id)).warnings[0] ?? '', /ends in 23 h/);
  }));

test('a machine that was moved to production by other means runs on when the lease ends', () =>
  withWorld(async (world) => {
    const id = await world.wake(hourMs / 2);
    const { machineId } = await world.recoveries.get(id);
    assert.ok(machineId !== null);
    const from = { name: `rouse-${id}`, server: '', path: '', nfsPort: 1, mountPort: 1 };
    const moved = world.hypervisor.relocate(
      {
        machineId,
        fromDatastore: from,
        toDatastoreId: 'production',
        bandwidthBytesPerSecond: 0,
      },
      { signal: new AbortController().signal, progress: () => undefined },
    );
    await world.pass(0);
    await moved;
    await world.pass(hourMs / 2);
    await world.until(id, 'done');
    assert.equal(await world.power(), 'on');
    assert.equal(world.proxy.clonesById.size + world.proxy.exportsByClone.size, 0);
  }));
