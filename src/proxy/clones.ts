import {
  type Clone,
  type CloneSurroundings,
  createClone,
  discardClone,
  listClones,
  openClone,
} from '../datastore/clone.ts';
import { RouseError } from '../errors.ts';
import type { FileSystem } from '../nfs/file-system.ts';
import type { Saveset, SavesetWriter, Vault } from '../vault/api.ts';
import type { SealedContent } from '../datastore/seal.ts';
import type { JobProgress } from './jobs.ts';
import type { CloneSpec, CloneView } from './port.ts';

/** What the NFS server needs of a clone to export it. */
export interface SharedClone {
  readonly path: string;
  /** Part of every handle, the same over restarts. */
  readonly exportId: number;
  readonly secret: Uint8Array;
  readonly fileSystem: FileSystem;
}

export interface ClonesParts {
  readonly around: CloneSurroundings;
  /** The directory that holds them all. */
  readonly directory: string;
  readonly vault: Pick<Vault, 'saveset' | 'savesets' | 'readFile' | 'blockBytes'>;
  readonly log: { error(facts: object, message: string): void };
}

/** The open clones of a proxy, by id. Creating, discarding and sealing one wait for each other. */
export class Clones {
  readonly #parts: ClonesParts;
  readonly #open = new Map<string, Clone>();
  readonly #queues = new Map<string, Promise<unknown>>();

  constructor(parts: ClonesParts) {
    this.#parts = parts;
  }

  get count(): number {
    return this.#open.size;
  }

  /** A clone that cannot be opened stays where it is, is told about, and stops nobody else. */
  async openAll(): Promise<void> {
    const { around, directory, log } = this.#parts;
    for (const id of await listClones(around, directory)) {
      try {
        this.#open.set(id, await openClone(around, directory, id));
      } catch (error) {
        log.error({ err: error, clone: id }, 'a clone cannot be opened');
      }
    }
  }

  async closeAll(): Promise<void> {
    for (const [id, clone] of this.#open) {
      await clone.close();
      this.#open.delete(id);
    }
  }

  has(cloneId: string): boolean {
    return this.#open.has(cloneId);
  }

  create(spec: CloneSpec): Promise<CloneView> {
    return this.#inTurn(spec.cloneId, async () => {
      const { around, directory, vault } = this.#parts;
      const saveset = await vault.saveset(spec.savesetId);
      const files: { name: string; bytes: Buffer }[] = [];
      for (const file of saveset.files) {
        files.push({ name: file.name, bytes: await vault.readFile(file) });
      }
      await createClone(around, directory, { ...spec, disks: saveset.disks, files });
      const known = this.#open.get(spec.cloneId);
      const clone = known ?? (await openClone(around, directory, spec.cloneId));
      this.#open.set(spec.cloneId, clone);
      return viewOf(clone);
    });
  }

  discard(cloneId: string): Promise<void> {
    return this.#inTurn(cloneId, async () => {
      const clone = this.#open.get(cloneId);
      this.#open.delete(cloneId);
      await clone?.close();
      await discardClone(this.#parts.around, this.#parts.directory, cloneId);
    });
  }

  /** The same writes sealed again answer the saveset that is there. */
  seal(
    cloneId: string,
    writer: SavesetWriter,
    takenAtMs: number,
    labels: Readonly<Record<string, string>>,
    { signal, update }: Pick<JobProgress, 'signal' | 'update'>,
  ): Promise<Saveset> {
    return this.#inTurn(cloneId, async () => {
      const clone = this.#find(cloneId);
      const { vault } = this.#parts;
      const base = await vault.saveset(clone.record.savesetId);
      const content = await clone.sealInto(writer, vault.blockBytes, {
        signal,
        onProgress: update,
      });
      signal.throwIfAborted();
      const sealed = (await vault.savesets()).filter(
        (one) => one.kind === 'sealed' && one.labels[cloneLabel] === cloneId,
      );
      for (const saveset of sealed) {
        if (!(await isSameContent(vault, saveset, content))) continue;
        await writer.abandon();
        return saveset;
      }
      return writer.seal({
        machine: base.machine,
        takenAtMs,
        kind: 'sealed',
        basedOn: base.id,
        consistency: 'crash',
        labels: { ...labels, [cloneLabel]: cloneId },
      });
    });
  }

  views(): Promise<CloneView[]> {
    return Promise.all([...this.#open.values()].map(viewOf));
  }

  view(cloneId: string): Promise<CloneView> {
    return viewOf(this.#find(cloneId));
  }

  mtreeOf(cloneId: string): string {
    return this.#find(cloneId).record.mtree;
  }

  pathOf(cloneId: string): string {
    return pathOf(this.#find(cloneId));
  }

  shared(cloneId: string): SharedClone {
    const clone = this.#find(cloneId);
    return {
      path: pathOf(clone),
      exportId: Math.max(1, clone.record.generation),
      secret: clone.handleSecret,
      fileSystem: clone.fileSystem(),
    };
  }

  writeFile(cloneId: string, file: string, bytes: Uint8Array): Promise<void> {
    return this.#find(cloneId).writeFile(file, bytes);
  }

  readFile(cloneId: string, file: string): Promise<Buffer> {
    return this.#find(cloneId).readFile(file);
  }

  #find(cloneId: string): Clone {
    const clone = this.#open.get(cloneId);
    if (clone !== undefined) return clone;
    throw new RouseError('not-found', `this proxy has no clone ${cloneId}`);
  }

  async #inTurn<T>(cloneId: string, work: () => Promise<T>): Promise<T> {
    const before = this.#queues.get(cloneId) ?? Promise.resolve();
    const mine = before.catch(() => undefined).then(work);
    this.#queues.set(cloneId, mine);
    try {
      return await mine;
    } finally {
      if (this.#queues.get(cloneId) === mine) this.#queues.delete(cloneId);
    }
  }
}

/** The label by which sealing the same clone again finds what was sealed before. */
const cloneLabel = 'rouse.clone';

async function isSameContent(
  vault: Pick<Vault, 'readFile'>,
  saveset: Saveset,
  { disks, files }: SealedContent,
): Promise<boolean> {
  if (saveset.disks.length !== disks.length || saveset.files.length !== files.length) return false;
  for (const { name, root } of disks) {
    const before = saveset.disks.find((disk) => disk.name === name)?.root;
    if (before?.hash !== root.hash || before.sizeBytes !== root.sizeBytes) return false;
  }
  for (const { name, bytes } of files) {
    const before = saveset.files.find((file) => file.name === name);
    if (before === undefined || !(await vault.readFile(before)).equals(bytes)) return false;
  }
  return true;
}

/** product.md, step 6: `/<mtree>/Recover-<proxy>-<id>`. */
function pathOf({ record }: Clone): string {
  return `/${record.mtree}/${record.cloneId}`;
}

async function viewOf(clone: Clone): Promise<CloneView> {
  const { cloneId, mtree, savesetId, folder } = clone.record;
  const stats = await clone.stats();
  const { disks } = clone;
  return { cloneId, mtree, savesetId, folder, disks, path: pathOf(clone), ...stats };
}
