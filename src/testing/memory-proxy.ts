import { RouseError } from '../errors.ts';
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
} from '../proxy/port.ts';
import { wireVersion } from '../proxy/wire.ts';
import type { Mtree, Saveset, VaultStats } from '../vault/api.ts';

/**
 * A proxy in memory, for tests of what drives it: clones and exports are entries of a map, jobs end
 * at once. One object outlives a "killed" server, as a real proxy does.
 */
export class MemoryProxy implements Proxy {
  readonly clonesById = new Map<string, CloneView>();
  readonly exportsByClone = new Map<string, ExportView>();
  readonly clonesMade: string[] = [];
  readonly #savesets: Saveset[];
  readonly #jobs = new Map<string, JobView>();

  constructor(savesets: readonly Saveset[]) {
    this.#savesets = [...savesets];
  }

  async status(): Promise<ProxyStatus> {
    return {
      name: 'local',
      version: 'memory',
      wire: wireVersion,
      pid: 1,
      startedMs: 0,
      nowMs: 0,
      vault: { id: 'memory', path: '/memory', blockBytes: 32_768 },
      nfs: { port: 2049, mountPort: 2049, portmapper: 'off' },
      clones: this.clonesById.size,
      exports: this.exportsByClone.size,
      jobs: 0,
      load: 0,
      cache: { usedBytes: 0, boundBytes: 1 },
      networks: [],
      memoryBytes: 1,
      space: { totalBytes: 1_000, freeBytes: 900 },
    };
  }

  async savesets(): Promise<readonly Saveset[]> {
    return this.#savesets;
  }

  async saveset(id: string): Promise<Saveset> {
    const saveset = this.#savesets.find((candidate) => candidate.id === id);
    if (saveset === undefined) throw new RouseError('not-found', `there is no saveset ${id}`);
    return saveset;
  }

  async readSavesetFile(): Promise<Buffer> {
    return Buffer.alloc(0);
  }

  async createClone(spec: CloneSpec): Promise<CloneView> {
    const known = this.clonesById.get(spec.cloneId);
    if (known !== undefined) return known;
    const saveset = await this.saveset(spec.savesetId);
    const clone: CloneView = {
      ...spec,
      path: `/${spec.mtree}/${spec.cloneId}`,
      disks: saveset.disks.map(({ name, root }) => ({
        name,
        path: `${spec.folder}/${name}-flat.vmdk`,
        sizeBytes: root.sizeBytes,
      })),
      writtenBytes: 0,
      allocatedBytes: 0,
    };
    this.clonesById.set(spec.cloneId, clone);
    this.clonesMade.push(spec.cloneId);
    return clone;
  }

  async clones(): Promise<readonly CloneView[]> {
    return [...this.clonesById.values()];
  }

  async deleteClone(cloneId: string): Promise<void> {
    if (this.exportsByClone.has(cloneId)) throw new RouseError('busy', `${cloneId} is exported`);
    this.clonesById.delete(cloneId);
  }

  async writeCloneFile(cloneId: string): Promise<void> {
    this.#clone(cloneId);
  }

  async readCloneFile(cloneId: string): Promise<Buffer> {
    this.#clone(cloneId);
    return Buffer.alloc(0);
  }

  #clone(cloneId: string): CloneView {
    const clone = this.clonesById.get(cloneId);
    if (clone === undefined) throw new RouseError('not-found', `there is no clone ${cloneId}`);
    return clone;
  }

  async createExport({ cloneId, clients }: ExportSpec): Promise<ExportView> {
    const exported: ExportView = {
      path: this.#clone(cloneId).path,
      cloneId,
      clients,
      nfsPort: 2049,
      mountPort: 2049,
      connected: [],
      mounted: [],
      watchedSinceMs: 0,
      counters: { reads: 0, readBytes: 0, writes: 0, writtenBytes: 0, others: 0, refused: 0 },
    };
    this.exportsByClone.set(cloneId, exported);
    return exported;
  }

  async exports(): Promise<readonly ExportView[]> {
    return [...this.exportsByClone.values()];
  }

  async deleteExport(path: string): Promise<void> {
    for (const [cloneId, exported] of this.exportsByClone) {
      if (exported.path === path) this.exportsByClone.delete(cloneId);
    }
  }

  async startJob(spec: JobSpec): Promise<JobView> {
    const view: JobView = {
      id: spec.id,
      kind: spec.kind,
      state: 'done',
      version: 1,
      startedMs: 0,
      endedMs: 0,
      doneBytes: 1,
      totalBytes: 1,
      newBytes: 0,
      knownBytes: 0,
      result: { kind: 'restore', bytes: 1 },
    };
    this.#jobs.set(spec.id, view);
    return view;
  }

  async job(id: string): Promise<JobView> {
    const view = this.#jobs.get(id);
    if (view === undefined) throw new RouseError('not-found', `there is no job ${id}`);
    return view;
  }

  async cancelJob(id: string): Promise<void> {
    await this.job(id);
  }

  async vaultStats(): Promise<VaultStats> {
    throw new RouseError('proxy-unreachable', 'this proxy has no vault to count');
  }

  async mtrees(): Promise<readonly Mtree[]> {
    return [{ name: 'main', codec: 'lz4', createdMs: 0 }];
  }

  async createMtree(name: string, codec: Mtree['codec']): Promise<Mtree> {
    return { name, codec, createdMs: 0 };
  }

  async reach(addresses: readonly string[]): Promise<readonly ReachView[]> {
    return addresses.map((address) => ({ address, answer: 'answers' }));
  }
}
