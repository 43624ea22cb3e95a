import * as path from 'node:path';
import { RouseError } from '../errors.ts';
import type { Files } from '../lib/files.ts';
import type { FileSystem } from '../nfs/file-system.ts';
import type { Saveset, SavesetWriter } from '../vault/api.ts';
import type { CloneSpec, CloneView } from './port.ts';

/** A clone that is open, as datastore/ makes it. */
export interface OpenClone {
  readonly cloneId: string;
  readonly mtree: string;
  readonly savesetId: string;
  readonly folder: string;
  /** Part of every NFS handle; u32, the same over restarts. */
  readonly exportId: number;
  readonly secret: Uint8Array;
  readonly fileSystem: FileSystem;
  /** Paths below the export. */
  readonly disks: readonly {
    readonly name: string;
    readonly path: string;
    readonly sizeBytes: number;
  }[];
  stats(): { readonly writtenBytes: number; readonly allocatedBytes: number };
  writeFile(file: string, bytes: Uint8Array): Promise<void>;
  readFile(file: string): Promise<Buffer>;
  /** Writes base and layer of every disk, as of now, and the files of the folder. */
  sealInto(writer: SavesetWriter, signal: AbortSignal): Promise<void>;
  close(): Promise<void>;
}

/** How clones are made, opened and thrown away; main.ts passes datastore/'s. */
export interface CloneMaker {
  create(directory: string, spec: CloneSpec, saveset: Saveset): Promise<OpenClone>;
  open(directory: string): Promise<OpenClone>;
  /** Removes everything of it; repeatable, also half done. */
  discard(directory: string): Promise<void>;
}

export interface ClonesParts {
  readonly files: Files;
  readonly directory: string;
  readonly maker: CloneMaker;
  readonly saveset: (id: string) => Promise<Saveset>;
  readonly log: { error(facts: object, message: string): void };
}

/** The open clones of a proxy, by id. Creating, discarding and sealing one wait for each other. */
export class Clones {
  readonly #parts: ClonesParts;
  readonly #open = new Map<string, OpenClone>();
  readonly #queues = new Map<string, Promise<unknown>>();

  constructor(parts: ClonesParts) {
    this.#parts = parts;
  }

  get count(): number {
    return this.#open.size;
  }

  /** A clone that cannot be opened stays where it is, is told about, and stops nobody else. */
  async openAll(): Promise<void> {
    await this.#parts.files.makeDirectory(this.#parts.directory);
    for (const name of await this.#parts.files.list(this.#parts.directory)) {
      const directory = path.join(this.#parts.directory, name);
      try {
        this.#open.set(name, await this.#parts.maker.open(directory));
      } catch (error) {
        this.#parts.log.error({ err: error, directory }, 'a clone cannot be opened');
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

  create(spec: CloneSpec, saveset: Saveset): Promise<CloneView> {
    return this.#inTurn(spec.cloneId, async () => {
      const known = this.#open.get(spec.cloneId);
      if (known !== undefined) {
        if (known.savesetId === spec.savesetId) return viewOf(known);
        throw new RouseError(
          'already-exists',
          `clone ${spec.cloneId} is one of saveset ${known.savesetId}`,
        );
      }
      const directory = this.#directoryOf(spec.cloneId);
      const clone = await this.#parts.maker.create(directory, spec, saveset);
      this.#open.set(spec.cloneId, clone);
      return viewOf(clone);
    });
  }

  discard(cloneId: string): Promise<void> {
    return this.#inTurn(cloneId, async () => {
      const directory = this.#directoryOf(cloneId);
      const clone = this.#open.get(cloneId);
      this.#open.delete(cloneId);
      await clone?.close();
      await this.#parts.maker.discard(directory);
    });
  }

  seal(
    cloneId: string,
    writer: SavesetWriter,
    takenAtMs: number,
    labels: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<Saveset> {
    return this.#inTurn(cloneId, async () => {
      const clone = this.#find(cloneId);
      const base = await this.#parts.saveset(clone.savesetId);
      await clone.sealInto(writer, signal);
      return writer.seal({
        machine: base.machine,
        takenAtMs,
        kind: 'sealed',
        basedOn: base.id,
        consistency: 'crash',
        labels,
      });
    });
  }

  views(): CloneView[] {
    return [...this.#open.values()].map(viewOf);
  }

  view(cloneId: string): CloneView {
    return viewOf(this.#find(cloneId));
  }

  shared(cloneId: string): Pick<OpenClone, 'exportId' | 'secret' | 'fileSystem'> & {
    readonly path: string;
  } {
    const clone = this.#find(cloneId);
    const { exportId, secret, fileSystem } = clone;
    return { path: viewOf(clone).path, exportId, secret, fileSystem };
  }

  writeFile(cloneId: string, file: string, bytes: Uint8Array): Promise<void> {
    return this.#find(cloneId).writeFile(file, bytes);
  }

  readFile(cloneId: string, file: string): Promise<Buffer> {
    return this.#find(cloneId).readFile(file);
  }

  #find(cloneId: string): OpenClone {
    const clone = this.#open.get(cloneId);
    if (clone !== undefined) return clone;
    throw new RouseError('not-found', `this proxy has no clone ${cloneId}`);
  }

  /** Ids become names of directories and parts of export paths. */
  #directoryOf(cloneId: string): string {
    if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/.test(cloneId)) {
      throw new RouseError('bad-request', `"${cloneId}" cannot be the id of a clone`);
    }
    return path.join(this.#parts.directory, cloneId);
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

function viewOf(clone: OpenClone): CloneView {
  const { cloneId, mtree, savesetId, folder, disks } = clone;
  return {
    cloneId,
    mtree,
    savesetId,
    folder,
    disks,
    path: `/${mtree}/${cloneId}`,
    ...clone.stats(),
  };
}
