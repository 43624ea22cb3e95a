import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Backups, type BackupDesk } from '#src/backup/service.ts';
import { backupWorkflow, type BackupWorld } from '#src/backup/taking.ts';
import type { Backup } from '#src/backup/schema.ts';
import { BackupTurns } from '#src/backup/turns.ts';
import { openCatalog } from '#src/catalog/catalog.ts';
import { type Database, openDatabase } from '#src/database/database.ts';
import { RouseError } from '#src/errors.ts';
import { MemoryHypervisor } from '#src/hypervisors/memory.ts';
import type { BackupSource, BackupSpec, Hypervisor } from '#src/hypervisors/port.ts';
import { type Clock, systemClock } from '#src/lib/clock.ts';
import { systemRandom } from '#src/lib/random.ts';
import { Jobs, type JobProgress } from '#src/proxy/jobs.ts';
import type { JobResult, JobSpec, JobView, Proxy } from '#src/proxy/port.ts';
import { MemoryProxy } from '#src/testing/memory-proxy.ts';
import type { Saveset } from '#src/vault/api.ts';
import type { Engine } from '#src/workflows/api.ts';
import { createEngine } from '#src/workflows/engine.ts';

const memory = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();

/** Each begin is another point in time; labels and content say which. */
export class PointsInTime extends MemoryHypervisor {
  points = 0;
  /** The point that can be read now, by token. */
  readonly readable = new Map<string, string>();

  override async beginBackup(spec: BackupSpec): Promise<BackupSource> {
    const source = await super.beginBackup(spec);
    const point = `point-${++this.points}`;
    this.readable.set(spec.token, point);
    const [disk] = source.disks;
    if (disk === undefined) throw new RouseError('internal', 'the machine has no disk');
    const access = { via: 'file', path: point, format: 'raw' } as const;
    const labels = { checkpoint: point };
    return { ...source, labels, disks: [{ ...disk, access }], warnings: ['no nvram'] };
  }

  override async endBackup(machineId: string, token: string, outcome: 'stored' | 'failed') {
    await super.endBackup(machineId, token, outcome);
    this.readable.delete(token);
  }
}

/** A proxy whose vault outlives it, and whose jobs do not. */
export class BackupProxy extends MemoryProxy {
  readonly vault: Saveset[] = [];
  readonly #hypervisor: PointsInTime;
  #jobs: Jobs;
  /** Reading takes that many turns of the event loop. */
  turns = 4;
  started = 0;

  constructor(hypervisor: PointsInTime) {
    super([]);
    this.#hypervisor = hypervisor;
    this.#jobs = this.#newJobs();
  }

  #newJobs(): Jobs {
    return new Jobs((spec, progress) => this.#run(spec, progress), systemClock);
  }

  restart(): void {
    void this.#jobs.close();
    this.#jobs = this.#newJobs();
  }

  async #run(spec: JobSpec, { signal, update }: JobProgress): Promise<JobResult> {
    if (spec.kind !== 'backup') throw new RouseError('internal', `no ${spec.kind} here`);
    this.started++;
    const known = this.vault.find(({ labels }) => labels['rouse.job'] === spec.id);
    if (known !== undefined) return { kind: 'saveset', saveset: known };
    let content = '';
    for (let turn = 0; turn < this.turns; turn++) {
      await new Promise((resolve) => setImmediate(resolve));
      signal.throwIfAborted();
      const [disk] = spec.source.disks;
      const now = this.#hypervisor.readable.get(spec.source.token) ?? 'nothing';
      if (disk?.access.via !== 'file' || disk.access.path !== now) {
        throw new RouseError('io-error', `the job serves ${now}`);
      }
      content = now;
      update({ doneBytes: turn, totalBytes: this.turns });
    }
    const saveset: Saveset = {
      id: `saveset-of-${spec.id}`,
      mtree: spec.mtree,
      machine: spec.machine,
      takenAtMs: spec.takenAtMs,
      kind: 'full',
      consistency: 'crash',
      disks: [{ name: 'vda', root: { hash: '', depth: 0, sizeBytes: 1 }, source: content }],
      files: [],
      cost: { readBytes: 1, zeroBytes: 0, knownBytes: 0, newBytes: 1, storedBytes: 1 },
      labels: { ...spec.source.labels, 'rouse.job': spec.id },
    };
    this.vault.push(saveset);
    return { kind: 'saveset', saveset };
  }

  override async startJob(spec: JobSpec): Promise<JobView> {
    return this.#jobs.start(spec);
  }

  override async job(id: string, waitMs?: number, version?: number): Promise<JobView> {
    return this.#jobs.view(id, waitMs, version);
  }

  override async cancelJob(id: string): Promise<void> {
    await this.#jobs.cancel(id);
  }
}

/** Like RecoveryScene: a server that dies at the n-th meeting with the world outside. */
export class BackupScene {
  readonly hypervisor = new PointsInTime(systemClock, {
    machines: [
      { name: 'web01', disks: [{ name: 'vda', sizeBytes: 1, format: 'raw', source: 'vda' }] },
    ],
  });
  readonly proxy = new BackupProxy(this.hypervisor);
  /** Called at every meeting that is survived. */
  onMeeting: (count: number) => void = () => undefined;
  readonly #directory = mkdtempSync(join(memory, 'rouse-backup-'));
  readonly #kept = new Map<string, BackupSource['files']>();
  #left = Number.POSITIVE_INFINITY;
  #meetings = 0;
  #generation = 0;

  async start(dieAfter = Number.POSITIVE_INFINITY): Promise<BackupServer> {
    const generation = ++this.#generation;
    this.#left = dieAfter;
    const { promise: died, resolve: die } = Promise.withResolvers<'died'>();
    const alive = () => generation === this.#generation && this.#left > 0;
    const meet = async () => {
      if (alive()) this.#left--;
      if (alive()) return this.onMeeting(++this.#meetings);
      die('died');
      await new Promise(() => undefined);
    };
    const clock: Clock = {
      now: () => systemClock.now(),
      monotonic: () => systemClock.monotonic(),
      sleep: async (milliseconds, signal) => {
        if (!alive()) return new Promise(() => undefined);
        // Pauses between attempts need not be slept through.
        await systemClock.sleep(Math.min(milliseconds, 20), signal);
      },
    };
    const database = await openDatabase({
      path: join(this.#directory, 'catalog.sqlite'),
      clock: systemClock,
    });
    return BackupServer.open({
      database,
      clock,
      hypervisor: mortal(this.hypervisor, meet),
      proxy: mortal(this.proxy, meet),
      kept: this.#kept,
      died,
    });
  }

  end(): void {
    this.#generation++;
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

const LanguageProxy = globalThis.Proxy;

/** A thing whose every call may be the last thing that a server does. */
export function mortal<T extends object>(target: T, meet: () => Promise<void>): T {
  return new LanguageProxy(target, {
    get(object, name) {
      const value: unknown = Reflect.get(object, name, object);
      if (typeof value !== 'function') return value;
      return async (...values: unknown[]) => {
        await meet();
        const answer: unknown = await Reflect.apply(value, object, values);
        await meet();
        return answer;
      };
    },
  });
}

interface ServerParts {
  readonly database: Database;
  readonly clock: Clock;
  readonly hypervisor: Hypervisor;
  readonly proxy: Proxy;
  readonly kept: Map<string, BackupSource['files']>;
  readonly died: Promise<'died'>;
  /** The id of a machine of that name; default as of MemoryHypervisor. */
  readonly machineId?: (name: string) => string;
}

export class BackupServer {
  readonly backups: Backups;
  readonly died: Promise<'died'>;
  readonly engine: Engine;
  /** The savesets of the catalog. */
  readonly savesets: () => Promise<readonly Saveset[]>;
  readonly #database: Database;

  private constructor(backups: Backups, engine: Engine, parts: ServerParts) {
    this.backups = backups;
    this.engine = engine;
    this.died = parts.died;
    this.#database = parts.database;
    this.savesets = () => openCatalog(parts.database, parts.clock).savesets.list();
  }

  static async open(parts: ServerParts): Promise<BackupServer> {
    const { database, clock, hypervisor, proxy, kept } = parts;
    const catalog = openCatalog(database, clock);
    const random = systemRandom;
    const engine = createEngine({ database, clock, random, report: () => undefined });
    const desk: BackupDesk = {
      clock,
      random,
      engine,
      rows: catalog.backups,
      transaction: (work) => database.transaction(work),
      scratchDirectory: '/scratch',
      findMachine: async (name) => {
        const id = parts.machineId?.(name) ?? `uuid-of-${name}`;
        return { id: `uuid-of-${name}`, name, hypervisorId: 'memory', managedId: id };
      },
      hypervisorName: async () => 'memory',
      proxy: async () => 'local',
      savesetsOf: (machineId) => catalog.savesets.list({ machineId }),
      mtree: async () => 'main',
      tell: async () => undefined,
    };
    const backups = new Backups(desk);
    const world: BackupWorld = {
      clock,
      turns: new BackupTurns(),
      stateOf: (id) => backups.stateOf(id),
      waits: (id, because) => backups.waits(id, because),
      proxy: async () => proxy,
      hypervisor: async () => hypervisor,
      keepFiles: async (id, files) => void kept.set(id, files),
      keptFiles: async (id) => kept.get(id) ?? [],
      dropFiles: async (id) => void kept.delete(id),
      savesetStored: (saveset) => catalog.savesets.put(saveset),
      begun: (id, { kind, consistency, fullBecause = null }) =>
        catalog.backups.update(id, { kind, consistency, fullBecause }),
      progress: (id, view) => backups.progress(id, view),
      settled: (run, input) => backups.settled(run, input),
    };
    engine.register(backupWorkflow(world));
    await engine.start();
    return new BackupServer(backups, engine, parts);
  }

  async ended(id: string): Promise<Backup | 'died'> {
    const finished = this.engine.finished(id).then(() => this.backups.get(id));
    finished.catch(() => undefined);
    return Promise.race([finished, this.died]);
  }

  async bury(): Promise<void> {
    await this.#database.close();
    void this.engine.stop().catch(() => undefined);
  }

  async stop(): Promise<void> {
    await this.engine.stop();
    await this.#database.close();
  }
}
