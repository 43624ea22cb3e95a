import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openCatalog } from '#src/catalog/catalog.ts';
import { savesetView } from '#src/catalog/catalog-service.ts';
import { type Database, openDatabase } from '#src/database/database.ts';
import { MemoryHypervisor } from '#src/hypervisors/memory.ts';
import type { Hypervisor } from '#src/hypervisors/port.ts';
import type { RouseError } from '#src/errors.ts';
import { type Clock, systemClock } from '#src/lib/clock.ts';
import { systemRandom } from '#src/lib/random.ts';
import { pick } from '#src/lib/text.ts';
import type { Proxy } from '#src/proxy/port.ts';
import { fileLevelRecovery } from '#src/recovery/flr.ts';
import { fullRestore } from '#src/recovery/full-restore.ts';
import { instantAccess } from '#src/recovery/instant-access.ts';
import { listenToLeases } from '#src/recovery/lease.ts';
import type { Recovery } from '#src/recovery/schema.ts';
import { inputOf, Recoveries, type RecoveryDesk } from '#src/recovery/service.ts';
import { memoryPlacement } from '#src/testing/memory-placement.ts';
import { MemoryProxy } from '#src/testing/memory-proxy.ts';
import type { Saveset } from '#src/vault/api.ts';
import type { Engine } from '#src/workflows/api.ts';
import { createEngine } from '#src/workflows/engine.ts';

/** Hundreds of databases that need not outlive a power cut: in memory, where there is some. */
const memory = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();

export const saveset: Saveset = {
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

/**
 * A server that can be killed at any external call, before or after it took effect: from then on
 * nothing of that generation happens any more, and the next one opens the same database beside
 * the same hypervisor and proxy.
 */
export class RecoveryScene {
  readonly clock: Clock;
  readonly hypervisor: MemoryHypervisor;
  readonly proxy = new MemoryProxy([saveset]);
  readonly #directory = mkdtempSync(join(memory, 'rouse-recovery-'));
  /** Calls until death; Infinity: it lives. */
  #left = Number.POSITIVE_INFINITY;
  #calls = 0;
  #generation = 0;
  #failing: { call: keyof Proxy; when: 'before' | 'after'; error: RouseError } | undefined;

  constructor(clock: Clock = systemClock) {
    this.clock = clock;
    this.hypervisor = new MemoryHypervisor(clock);
  }

  /** External calls that were met so far, each counted before and after. */
  get calls(): number {
    return this.#calls;
  }

  /** The server that runs now dies at that many meetings from now. */
  dieAfter(meetings: number): void {
    this.#left = meetings;
    this.#calls = 0;
  }

  /** Every such call of the proxy fails from now on: `before` it acts, or `after`. */
  failProxy(call: keyof Proxy, when: 'before' | 'after', error: RouseError): void {
    this.#failing = { call, when, error };
  }

  /** Starts a server; with `dieAfter`, it dies at that many meetings from now. */
  async start(dieAfter = Number.POSITIVE_INFINITY): Promise<Running> {
    const generation = ++this.#generation;
    this.#left = dieAfter;
    this.#calls = 0;
    const { promise: died, resolve: die } = Promise.withResolvers<'died'>();
    const alive = () => generation === this.#generation && this.#left > 0;
    const meet = async () => {
      this.#calls++;
      if (alive()) this.#left--;
      if (alive()) return;
      die('died');
      await new Promise(() => undefined);
    };
    const clock: Clock = {
      now: () => this.clock.now(),
      monotonic: () => this.clock.monotonic(),
      // Nobody wakes up in a dead process.
      sleep: async (milliseconds, signal) => {
        if (!alive()) return new Promise(() => undefined);
        await this.clock.sleep(milliseconds, signal);
      },
    };
    const path = join(this.#directory, 'catalog.sqlite');
    return Running.open({
      database: await openDatabase({ path, clock }),
      clock,
      hypervisor: mortal(this.hypervisor, meet),
      proxy: mortal(this.#failingProxy(), meet),
      died,
    });
  }

  #failingProxy(): Proxy {
    return new Proxy2(this.proxy, {
      get: (object, name) => {
        const value: unknown = Reflect.get(object, name, object);
        if (typeof value !== 'function') return value;
        return async (...values: unknown[]) => {
          const failing = this.#failing?.call === name ? this.#failing : undefined;
          if (failing?.when === 'before') throw failing.error;
          const answer: unknown = await Reflect.apply(value, object, values);
          if (failing !== undefined) throw failing.error;
          return answer;
        };
      },
    });
  }

  end(): void {
    this.#generation++;
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

async function findIn(hypervisor: Hypervisor, reference: string) {
  const { machines } = await hypervisor.inventory();
  const machine = pick('machine', reference, machines);
  return { id: machine.id, name: machine.name, hypervisorId: 'memory' };
}

/** Every method meets death before it acts and after. */
function mortal<T extends object>(target: T, meet: () => Promise<void>): T {
  return new Proxy2(target, {
    get(object, name) {
      const value: unknown = Reflect.get(object, name, object);
      if (typeof value !== 'function' || free.includes(name)) return value;
      return async (...values: unknown[]) => {
        await meet();
        const answer: unknown = await Reflect.apply(value, object, values);
        await meet();
        return answer;
      };
    },
  });
}

/** Asked by views as well, so no step of its own: `configure` is pure. */
const free: readonly (string | symbol)[] = ['configure', 'clones'];

/** The language's own Proxy, as the port of ours has its name here. */
const Proxy2 = globalThis.Proxy;

export interface RunningParts {
  /** Where the proxy is, as hosts see it; default loopback. */
  readonly address?: string;
  /** What every request means; default one of the memory proxy. */
  readonly saveset?: Saveset;
  readonly database: Database;
  readonly clock: Clock;
  readonly hypervisor: Hypervisor;
  readonly proxy: Proxy;
  readonly died: Promise<'died'>;
}

export class Running {
  readonly engine: Engine;
  readonly recoveries: Recoveries;
  readonly desk: RecoveryDesk;
  /** Resolves when this generation has died. */
  readonly died: Promise<'died'>;
  /** What people were told: level and kind. */
  readonly told: string[] = [];
  readonly #database: Database;

  private constructor(
    desk: RecoveryDesk,
    recoveries: Recoveries,
    died: Promise<'died'>,
    database: Database,
  ) {
    this.engine = desk.engine;
    this.desk = desk;
    this.recoveries = recoveries;
    this.died = died;
    this.#database = database;
  }

  static async open(parts: RunningParts): Promise<Running> {
    const { database, clock, hypervisor, proxy, died } = parts;
    const { address = '127.0.0.1', saveset: chosen = saveset } = parts;
    const catalog = openCatalog(database, clock);
    const engine = createEngine({
      database,
      clock,
      random: systemRandom,
      report: () => undefined,
    });
    let running: Running | undefined = undefined as Running | undefined;
    const desk: RecoveryDesk = {
      clock,
      random: systemRandom,
      transaction: (work) => database.transaction(work),
      engine,
      recoveries: catalog.recoveries,
      device: async () => ({ id: 'local', name: 'local', address: '/memory' }),
      placement: memoryPlacement(() => [{ name: 'local', addresses: [address] }]),
      proxies: async () => [{ name: 'local', address, isAway: false, calls: proxy }],
      hypervisor: async () => hypervisor,
      tell: async (_id, level, kind) => void running?.told.push(`${level} ${kind}`),
      keepPicture: async () => undefined,
      picture: async () => undefined,
      chooseSaveset: async () => chosen,
      chooseHypervisor: async () => 'memory',
      findMachine: async (reference) => findIn(hypervisor, reference),
      hypervisorName: async () => 'memory',
      savesetView,
      savesetStored: async () => undefined,
    };
    const recoveries = new Recoveries(desk);
    const { open, relocate, close } = instantAccess(desk);
    engine.register(open);
    engine.register(relocate);
    engine.register(close);
    engine.register(fileLevelRecovery(desk));
    engine.register(fullRestore(desk));
    recoveries.listen();
    listenToLeases(
      desk,
      async (id) => inputOf(await catalog.recoveries.get(id)),
      (id) => recoveries.hostId(id),
    );
    running = new Running(desk, recoveries, died, database);
    await engine.start();
    return running;
  }

  /** Waits for the state, or says that this generation died first. */
  async until(id: string, states: readonly Recovery['state'][]): Promise<Recovery | 'died'> {
    const stop = new AbortController();
    const reached = async (): Promise<Recovery> => {
      for await (const view of this.recoveries.watch(id, stop.signal)) {
        if (states.includes(view.state)) return view;
      }
      throw new Error(`recovery ${id} never was ${states.join(' or ')}`);
    };
    const result = await Promise.race([reached(), this.died]);
    stop.abort();
    return result;
  }

  /** As a database restored from an earlier copy does. */
  async forget(id: string): Promise<void> {
    await this.#database.query.deleteFrom('recoveries').where('id', '=', id).execute();
    await this.#database.query.deleteFrom('runs').where('subject', '=', id).execute();
  }

  /** What is left of a dead one: its connection, so that the next can open the file. */
  async bury(): Promise<void> {
    await this.#database.close();
    // Its engine still waits for calls that never answer: it is told to look no further.
    void this.engine.stop().catch(() => undefined);
  }

  async stop(): Promise<void> {
    await this.engine.stop();
    await this.#database.close();
  }
}
