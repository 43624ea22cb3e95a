import * as os from 'node:os';
import { RouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import type { Files } from '../lib/files.ts';
import type { NfsServer } from '../nfs/server.ts';
import type { Mtree, Saveset, Vault, VaultStats } from '../vault/api.ts';
import { Clones } from './clones.ts';
import { ExportList } from './export-list.ts';
import { Jobs } from './jobs.ts';
import type {
  CloneSpec,
  CloneView,
  ExportSpec,
  ExportView,
  JobSpec,
  JobView,
  Proxy,
  ProxyStatus,
  ReachView,
} from './port.ts';
import { ownNetworks, tryToReach } from './reach.ts';
import { createRunner, type RunnerParts } from './runner.ts';
import { wireVersion } from './wire.ts';

/**
 * The worker in its own process. It owns the vault, the clones and their exports; all of them are
 * found again after a restart, before the first NFS call is answered. Calls are serialised per
 * clone by `Clones`; jobs run beside them.
 */
export interface LocalProxyParts extends Pick<
  RunnerParts,
  'openFile' | 'openNbd' | 'openReader' | 'createTarget'
> {
  readonly name: string;
  readonly version: string;
  readonly vault: Vault;
  readonly vaultPath: string;
  readonly clones: Clones;
  readonly exportsFile: string;
  readonly files: Files;
  readonly nfs: NfsServer;
  readonly clock: Clock;
}

export class LocalProxy implements Proxy {
  readonly #parts: LocalProxyParts;
  readonly #exports: ExportList;
  readonly #jobs: Jobs;
  readonly #startedMs: number;

  constructor(parts: LocalProxyParts) {
    this.#parts = parts;
    this.#startedMs = parts.clock.now();
    this.#exports = new ExportList(parts.files, parts.exportsFile);
    const runner = createRunner({
      vault: parts.vault,
      openFile: parts.openFile,
      openNbd: parts.openNbd,
      openReader: parts.openReader,
      createTarget: parts.createTarget,
      sealClone: (cloneId, writer, takenAtMs, labels, progress) =>
        parts.clones.seal(cloneId, writer, takenAtMs, labels, progress),
      mtreeOf: (cloneId) => parts.clones.mtreeOf(cloneId),
    });
    this.#jobs = new Jobs(runner, parts.clock);
  }

  /** Opens every clone and exports it as before; then the listeners may start. */
  async start(): Promise<void> {
    await this.#parts.clones.openAll();
    await this.#exports.load();
    for (const entry of this.#exports.all()) {
      // The entry of a clone that cannot be opened stays: once it is mended, it is exported again.
      if (this.#parts.clones.has(entry.cloneId)) this.#serve(entry.cloneId, entry.clients);
    }
    await this.#parts.nfs.start();
  }

  async close(): Promise<void> {
    await this.#jobs.close();
    await this.#parts.nfs.close();
    await this.#parts.clones.closeAll();
    await this.#parts.vault.close();
  }

  async status(): Promise<ProxyStatus> {
    const { name, version, vault, vaultPath, nfs, files, clock } = this.#parts;
    const cache = vault.cacheStats();
    return {
      name,
      version,
      wire: wireVersion,
      nowMs: clock.now(),
      pid: process.pid,
      startedMs: this.#startedMs,
      vault: { id: vault.id, path: vaultPath, blockBytes: vault.blockBytes },
      nfs: { port: nfs.nfsPort, mountPort: nfs.mountPort, portmapper: nfs.portmapper },
      clones: this.#parts.clones.count,
      exports: this.#exports.all().length,
      jobs: this.#jobs.running,
      load: os.loadavg()[0]! / os.availableParallelism(),
      cache: { usedBytes: cache.usedBytes, boundBytes: cache.boundBytes },
      networks: ownNetworks(),
      memoryBytes: process.memoryUsage.rss(),
      space: await files.space(vaultPath),
    };
  }

  async savesets(): Promise<readonly Saveset[]> {
    return this.#parts.vault.savesets();
  }

  async saveset(id: string): Promise<Saveset> {
    return this.#parts.vault.saveset(id);
  }

  async readSavesetFile(savesetId: string, name: string): Promise<Buffer> {
    const saveset = await this.#parts.vault.saveset(savesetId);
    const file = saveset.files.find((candidate) => candidate.name === name);
    if (file !== undefined) return this.#parts.vault.readFile(file);
    throw new RouseError('not-found', `saveset ${savesetId} has no file ${name}`);
  }

  async createClone(spec: CloneSpec): Promise<CloneView> {
    return this.#parts.clones.create(spec);
  }

  async clones(): Promise<readonly CloneView[]> {
    return this.#parts.clones.views();
  }

  async deleteClone(cloneId: string): Promise<void> {
    const shared = this.#exports.find(cloneId);
    if (shared !== undefined) {
      throw new RouseError('busy', `clone ${cloneId} is exported to ${shared.clients.join(', ')}`);
    }
    await this.#parts.clones.discard(cloneId);
  }

  async writeCloneFile(cloneId: string, path: string, bytes: Uint8Array): Promise<void> {
    await this.#parts.clones.writeFile(cloneId, path, bytes);
  }

  async readCloneFile(cloneId: string, path: string): Promise<Buffer> {
    return this.#parts.clones.readFile(cloneId, path);
  }

  async createExport(spec: ExportSpec): Promise<ExportView> {
    const shared = this.#exports.find(spec.cloneId);
    if (shared === undefined) {
      // Served first: what is written down must be something that can be served.
      this.#serve(spec.cloneId, spec.clients);
      try {
        await this.#exports.add({ cloneId: spec.cloneId, clients: spec.clients });
      } catch (error) {
        await this.#parts.nfs.removeExport(this.#parts.clones.pathOf(spec.cloneId));
        await this.#exports.remove(spec.cloneId).catch(() => undefined);
        throw error;
      }
    } else if (shared.clients.join() !== spec.clients.join()) {
      throw new RouseError(
        'already-exists',
        `clone ${spec.cloneId} is exported to ${shared.clients.join(', ')}`,
        { advice: 'An export answers one host only: end it first.' },
      );
    }
    return this.#exportView(spec.cloneId);
  }

  #serve(cloneId: string, clients: readonly string[]): void {
    const { path, exportId, secret, fileSystem } = this.#parts.clones.shared(cloneId);
    this.#parts.nfs.addExport({ id: exportId, path, secret, clients, fileSystem });
  }

  async exports(): Promise<readonly ExportView[]> {
    const served = this.#exports.all().filter(({ cloneId }) => this.#parts.clones.has(cloneId));
    return served.map(({ cloneId }) => this.#exportView(cloneId));
  }

  #exportView(cloneId: string): ExportView {
    const path = this.#parts.clones.pathOf(cloneId);
    const status = this.#parts.nfs.exports().find((entry) => entry.path === path);
    if (status === undefined) throw new RouseError('not-found', `there is no export ${path}`);
    return {
      path,
      cloneId,
      clients: status.clients,
      nfsPort: this.#parts.nfs.nfsPort,
      mountPort: this.#parts.nfs.mountPort,
      connected: status.connected,
      mounted: status.mounted,
      watchedSinceMs: status.servedSinceMs,
      ...(status.lastUsedMs === undefined ? {} : { lastUsedMs: status.lastUsedMs }),
      counters: {
        reads: status.reads,
        readBytes: status.readBytes,
        writes: status.writes,
        writtenBytes: status.writtenBytes,
        others: status.others,
        refused: status.refused,
      },
    };
  }

  async deleteExport(path: string): Promise<void> {
    const entry = this.#exports.all().find(({ cloneId }) => path.endsWith(`/${cloneId}`));
    if (entry === undefined) return;
    await this.#exports.remove(entry.cloneId);
    await this.#parts.nfs.removeExport(path);
  }

  async startJob(spec: JobSpec): Promise<JobView> {
    return this.#jobs.start(spec);
  }

  async job(id: string, waitMs?: number, version?: number): Promise<JobView> {
    return this.#jobs.view(id, waitMs, version);
  }

  async cancelJob(id: string): Promise<void> {
    await this.#jobs.cancel(id);
  }

  async vaultStats(): Promise<VaultStats> {
    return this.#parts.vault.stats();
  }

  async mtrees(): Promise<readonly Mtree[]> {
    return this.#parts.vault.mtrees();
  }

  async createMtree(name: string, codec: Mtree['codec']): Promise<Mtree> {
    return this.#parts.vault.createMtree(name, codec);
  }

  async reach(addresses: readonly string[]): Promise<readonly ReachView[]> {
    return Promise.all(
      addresses.map(async (address) => ({ address, answer: await tryToReach(address) })),
    );
  }
}
