import * as path from 'node:path';
import type { Services } from './api/services.ts';
import { type Catalog, openCatalog } from './catalog/catalog.ts';
import { MachineCatalog, savesetView } from './catalog/catalog-service.ts';
import { EventLog } from './catalog/event-service.ts';
import { HypervisorCatalog } from './catalog/hypervisor-service.ts';
import { StatusBoard } from './catalog/status-service.ts';
import { VaultDoor } from './catalog/vault-service.ts';
import { Backups, type BackupDesk } from './backup/service.ts';
import { backupWorkflow, type BackupWorld, hypervisorLabel } from './backup/taking.ts';
import { BackupTurns } from './backup/turns.ts';
import type { Config } from './config.ts';
import { connectHypervisor } from './connect-hypervisor.ts';
import { type Database, openDatabase } from './database/database.ts';
import { RouseError } from './errors.ts';
import type { BackupSource } from './hypervisors/port.ts';
import { KnownProxies } from './known-proxies.ts';
import type { Clock } from './lib/clock.ts';
import type { Random } from './lib/random.ts';
import { SecretFiles } from './lib/secret-files.ts';
import { pick } from './lib/text.ts';
import { renderMetrics } from './metrics.ts';
import { fileLevelRecovery } from './recovery/flr.ts';
import { fullRestore } from './recovery/full-restore.ts';
import { instantAccess } from './recovery/instant-access.ts';
import { listenToLeases } from './recovery/lease.ts';
import { Reconciler } from './recovery/reconcile/reconcile.ts';
import { inputOf, Recoveries, type RecoveryDesk } from './recovery/service.ts';
import { ScratchFiles } from './scratch-files.ts';
import type { Saveset } from './vault/api.ts';
import type { Engine } from './workflows/api.ts';
import { createEngine } from './workflows/engine.ts';
import { keepPruned, pruneRuns } from './workflows/pruning.ts';

/** The server's stores and services, joined; main.ts puts listeners before them. */
export interface ServerOptions {
  readonly config: Config;
  readonly log: ServerLog;
  readonly version: string;
  readonly clock: Clock;
  readonly random: Random;
}

export interface ServerLog {
  info(facts: object, message: string): void;
  error(facts: object, message: string): void;
}

export interface Server {
  readonly services: Services;
  /** What it says of itself when it is ready. */
  readonly facts: Readonly<Record<string, string | number>>;
  close(): Promise<void>;
}

export async function openServer(options: ServerOptions): Promise<Server> {
  const { config, clock } = options;
  const database = await openDatabase({ path: config.catalogFile, clock });
  const rooms = new Rooms(options, database);
  await rooms.start();
  return {
    services: rooms.services(),
    facts: rooms.facts(),
    close: async () => {
      await rooms.stop();
      await database.close();
    },
  };
}

/** Stores and services by name; how they see each other is said here and nowhere else. */
class Rooms {
  readonly #options: ServerOptions;
  readonly #database: Database;
  readonly #catalog: Catalog;
  readonly #hypervisors: HypervisorCatalog;
  readonly #machines: MachineCatalog;
  readonly #recoveries: Recoveries;
  readonly #reconciler: Reconciler;
  readonly #backups: Backups;
  readonly #engine: Engine;
  readonly #proxies: KnownProxies;
  readonly #scratch: ScratchFiles;
  readonly #startedMs: number;

  constructor(options: ServerOptions, database: Database) {
    const { config, clock, random, log } = options;
    this.#options = options;
    this.#database = database;
    this.#startedMs = clock.now();
    this.#catalog = openCatalog(database, clock);
    this.#scratch = new ScratchFiles(config.scratch, path.join(config.data, 'pictures'));
    this.#engine = createEngine({
      database,
      clock,
      random,
      report: (error, where) => log.error({ err: error, where }, 'a workflow met an error'),
    });
    this.#proxies = new KnownProxies({
      config,
      clock,
      random,
      log,
      catalog: this.#catalog,
      transaction: (work) => database.transaction(work),
    });
    this.#hypervisors = this.#hypervisorCatalog();
    this.#machines = new MachineCatalog({
      hypervisors: this.#hypervisors,
      savesets: () => this.#catalog.savesets.list(),
      activeRecoveries: () => this.#catalog.recoveries.list({ active: true }),
    });
    const desk = this.#recoveryDesk();
    this.#recoveries = this.#recoveryService(desk);
    this.#reconciler = this.#reconcilerOf(desk);
    this.#backups = this.#backupService();
  }

  #hypervisorCatalog(): HypervisorCatalog {
    const { config, clock, random } = this.#options;
    const secrets = new SecretFiles(config.secrets);
    return new HypervisorCatalog({
      clock,
      random,
      rows: this.#catalog.hypervisors,
      secrets,
      connect: (id, spec) => connectHypervisor(id, spec, { clock, data: config.data, secrets }),
      usersOf: async (hypervisorId) => {
        const active = await this.#catalog.recoveries.list({ active: true });
        return active.filter((row) => row.hypervisorId === hypervisorId).map(({ name }) => name);
      },
    });
  }

  #recoveryDesk(): RecoveryDesk {
    const { clock, random } = this.#options;
    return {
      clock,
      random,
      transaction: (work) => this.#database.transaction(work),
      engine: this.#engine,
      recoveries: this.#catalog.recoveries,
      device: (savesetId) => this.#deviceOf(savesetId),
      proxies: () => this.#proxies.registry.reachable(),
      placement: this.#proxies.ranking,
      hypervisor: (id) => this.#hypervisors.driver(id),
      tell: async (recoveryId, level, kind, message) => {
        const row = await this.#catalog.recoveries.find(recoveryId);
        const subject = { kind: 'recovery', id: recoveryId, name: row?.name ?? recoveryId };
        await this.#catalog.events.append({ level, kind, subject, message });
      },
      keepPicture: (id, png) => this.#scratch.keepPicture(id, png),
      picture: (id) => this.#scratch.picture(id),
      chooseSaveset: (request) => this.#machines.chooseSaveset(request),
      chooseHypervisor: (reference, machineId) => this.#chooseHypervisor(reference, machineId),
      findMachine: (reference, hypervisor) =>
        this.#machines.findOnHypervisor(reference, hypervisor),
      hypervisorName: (id) => this.#hypervisorName(id),
      savesetView,
      savesetStored: (saveset, proxy) => this.#savesetStored(saveset, proxy),
    };
  }

  #recoveryService(desk: RecoveryDesk): Recoveries {
    const recoveries = new Recoveries(desk);
    const { open, relocate, close } = instantAccess(desk);
    this.#engine.register(open);
    this.#engine.register(relocate);
    this.#engine.register(close);
    this.#engine.register(fileLevelRecovery(desk));
    this.#engine.register(fullRestore(desk));
    recoveries.listen();
    listenToLeases(
      desk,
      async (id) => inputOf(await this.#catalog.recoveries.get(id)),
      (id) => recoveries.hostId(id),
    );
    return recoveries;
  }

  #reconcilerOf(desk: RecoveryDesk): Reconciler {
    const { log } = this.#options;
    const { backups, savesets, events } = this.#catalog;
    return new Reconciler({
      ...desk,
      hypervisors: () => this.#hypervisors.rows(),
      inputOf,
      hostId: (id) => this.#recoveries.hostId(id),
      backupState: async (token) => (await backups.find(token))?.state,
      isBackupRunning: async (token) => {
        const run = await this.#engine.run(token);
        return run !== undefined && run.endedMs === undefined;
      },
      checkpoints: async () =>
        new Set((await savesets.list()).flatMap(({ labels }) => Object.values(labels))),
      report: async (level, { kind, name, where, recovery, problem, note }) => {
        const subject =
          recovery === null ? null : { kind: 'recovery', id: recovery, name: recovery };
        const message = `${kind} ${name} at ${where}: ${problem}: ${note}`;
        await events.append({ level, kind: `reconcile.${kind}`, subject, message });
      },
      failed: (error) => log.error({ err: error }, 'the reconciler met an error'),
    });
  }

  async #savesetStored(saveset: Saveset, proxy: string): Promise<void> {
    await this.#catalog.savesets.put(saveset, await this.#proxies.deviceOf(proxy));
  }

  async #deviceOf(savesetId: string): Promise<{ id: string; name: string; address: string }> {
    const id = await this.#catalog.savesets.deviceOf(savesetId);
    const device = id === null ? undefined : await this.#catalog.devices.find(id);
    if (device !== undefined) return device;
    throw new RouseError('not-found', `no device is known that holds saveset ${savesetId}`, {
      advice: 'Its proxy was never reached: look at rouse proxy list.',
    });
  }

  /** Named; or where the machine was backed up from; or the only one there is. */
  async #chooseHypervisor(
    reference: string | undefined,
    machineId: string,
  ): Promise<string | null> {
    if (reference !== undefined) return (await this.#hypervisors.row(reference)).id;
    const rows = await this.#hypervisors.rows();
    const [first] = rows;
    if (first === undefined) {
      throw new RouseError('not-found', 'no hypervisor is known yet', {
        advice: 'Add one: rouse hypervisor add NAME qemu:///system',
      });
    }
    if (rows.length === 1) return first.id;
    const [latest] = await this.#catalog.savesets.list({ machineId, limit: 1 });
    const origin = latest?.labels[hypervisorLabel];
    const known = rows.find(({ id }) => id === origin);
    if (known !== undefined) return known.id;
    const names = rows.map(({ name }) => name).join(', ');
    throw new RouseError('bad-request', 'several hypervisors could take this machine', {
      advice: `Name one with --hypervisor: ${names}`,
    });
  }

  async #hypervisorName(id: string): Promise<string> {
    const rows = await this.#hypervisors.rows();
    return rows.find((row) => row.id === id)?.name ?? id;
  }

  #backupService(): Backups {
    const { config, clock, random } = this.#options;
    const desk: BackupDesk = {
      clock,
      random,
      engine: this.#engine,
      rows: this.#catalog.backups,
      transaction: (work) => this.#database.transaction(work),
      scratchDirectory: config.scratch,
      findMachine: (reference, hypervisor) =>
        this.#machines.findOnHypervisor(reference, hypervisor),
      hypervisorName: (id) => this.#hypervisorName(id),
      proxy: async (reference) =>
        (await this.#proxies.registry.row(reference ?? config.proxyName)).name,
      savesetsOf: async (machineId, proxy) =>
        this.#catalog.savesets.list({ machineId, deviceId: await this.#proxies.deviceOf(proxy) }),
      mtree: (reference, proxy) => this.#mtree(reference, proxy),
      tell: async ({ id, name }, level, kind, message) => {
        await this.#catalog.events.append({
          level,
          kind,
          subject: { kind: 'backup', id, name },
          message,
        });
      },
    };
    const backups = new Backups(desk);
    const world: BackupWorld = {
      clock,
      turns: new BackupTurns(),
      waits: (id, because) => backups.waits(id, because),
      stateOf: (id) => backups.stateOf(id),
      proxy: (name) => this.#proxies.calls(name ?? config.proxyName),
      hypervisor: (id) => this.#hypervisors.driver(id),
      keepFiles: (id, files) => this.#scratch.keep(id, files),
      keptFiles: async (id) => (await this.#scratch.kept(id)) as BackupSource['files'],
      dropFiles: (id) => this.#scratch.drop(id),
      savesetStored: (saveset, proxy) => this.#savesetStored(saveset, proxy ?? config.proxyName),
      begun: (id, source) =>
        this.#catalog.backups.update(id, {
          kind: source.kind,
          fullBecause: source.fullBecause ?? null,
          consistency: source.consistency,
        }),
      progress: (id, view) => backups.progress(id, view),
      settled: (run, input) => backups.settled(run, input),
    };
    this.#engine.register(backupWorkflow(world));
    return backups;
  }

  async #mtree(reference: string | undefined, proxy: string): Promise<string> {
    const calls = await this.#proxies.calls(proxy);
    const mtrees = await calls.mtrees();
    if (reference === undefined) {
      const [first] = mtrees;
      return first?.name ?? (await calls.createMtree('main', 'lz4')).name;
    }
    const named = mtrees.map(({ name }) => ({ id: name, name }));
    return pick('mtree', reference, named, 'rouse vault stats').name;
  }

  async start(): Promise<void> {
    await this.#proxies.start();
    await keepPruned(this.#engine, this.#options.clock, () => this.#prune());
    await this.#engine.start();
    this.#reconciler.start();
  }

  /** A recovery's runs are needed until it has ended, and while what is left of it can be tidied. */
  #prune(): Promise<number> {
    return pruneRuns(this.#database, this.#options.clock, async (subject) => {
      const row = await this.#catalog.recoveries.find(subject.replace(/^seal\//, ''));
      return row !== undefined && row.state !== 'done' && row.state !== 'cancelled';
    });
  }

  async stop(): Promise<void> {
    await this.#reconciler.stop();
    await this.#engine.stop();
    await this.#hypervisors.close();
    await this.#proxies.stop();
  }

  facts(): Readonly<Record<string, string | number>> {
    const { port } = this.#proxies.door;
    return port === undefined ? {} : { Proxies: `join over TLS at port ${port}` };
  }

  services(): Services {
    const { config, version } = this.#options;
    const board = new StatusBoard({
      server: {
        version,
        pid: process.pid,
        startedMs: this.#startedMs,
        socket: config.serverSocket,
        dataDirectory: config.data,
      },
      hypervisors: this.#hypervisors,
      proxy: () => this.#proxies.embedded(),
      proxies: () => this.#proxies.registry.reachable(),
      machineCount: async () => (await this.#machines.machines()).length,
      savesetCount: async () => (await this.#catalog.savesets.list()).length,
      activeRecoveries: () => this.#catalog.recoveries.list({ active: true }),
      leftByReconciler: () => this.#reconciler.leftCount,
      runningBackups: async () => (await this.#catalog.backups.list({ state: 'running' })).length,
    });
    return {
      recoveries: this.#recoveries,
      reconciler: this.#reconciler,
      backups: this.#backups,
      catalog: this.#machines,
      hypervisors: this.#hypervisors,
      exports: board,
      proxies: this.#proxies.registry,
      proxyTokens: this.#proxies.door,
      events: new EventLog(this.#catalog.events),
      vault: new VaultDoor({
        random: this.#options.random,
        proxy: () => this.#proxies.embedded(),
        savesetId: async (reference) =>
          (await this.#machines.chooseSaveset({ saveset: reference })).id,
        refresh: () => this.#proxies.refresh(config.proxyName),
      }),
      status: board,
      metrics: async () => renderMetrics(await board.status(), await board.list()),
    };
  }
}
