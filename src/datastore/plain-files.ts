/**
 * The bytes of the plain files of a clone: one real file each, named by its number, never by what
 * a client says. A file without bytes has none. Directory entries are in the file table.
 */
import type { Files, OpenFile } from '../lib/files.ts';
import { datastoreLimits } from '../limits.ts';
import type { FileId } from '../nfs/file-system.ts';
import { SharedWork } from './shared-work.ts';

interface Opened {
  readonly id: FileId;
  readonly file: OpenFile;
  readonly syncs: SharedWork;
  users: number;
  /** Counts writes, and how many of them are synced. */
  written: number;
  synced: number;
  gone: boolean;
}

export class PlainFiles {
  readonly #files: Files;
  readonly #directory: string;
  /** A sync failed: unsynced bytes of plain files may be lost. */
  readonly #onSyncFailure: () => Promise<void>;
  readonly #open = new Map<FileId, Promise<Opened>>();
  readonly #ready = new Map<FileId, Opened>();
  #namesMade = 0;
  #namesSynced = 0;
  readonly #names = new SharedWork(() => this.#syncNames());

  constructor(files: Files, directory: string, onSyncFailure: () => Promise<void>) {
    this.#files = files;
    this.#directory = directory;
    this.#onSyncFailure = onSyncFailure;
  }

  /** Answered writes that no sync has covered. */
  get unsynced(): boolean {
    for (const opened of this.#ready.values()) if (opened.synced < opened.written) return true;
    return false;
  }

  async size(id: FileId): Promise<{ sizeBytes: number; allocatedBytes: number; ms: number }> {
    const stat = await this.#files.stat(this.#path(id));
    return {
      sizeBytes: stat?.sizeBytes ?? 0,
      allocatedBytes: stat?.allocatedBytes ?? 0,
      ms: stat?.modifiedMs ?? 0,
    };
  }

  /** Bytes read, at once when they are in memory; -1: ask `read`. */
  readNow(id: FileId, target: Buffer, position: number): number {
    return this.#ready.get(id)?.file.readNow(target, position) ?? -1;
  }

  read(id: FileId, target: Buffer, position: number): Promise<number> {
    return this.#use(id, ({ file }) => file.read(target, position));
  }

  write(id: FileId, data: Buffer, position: number): Promise<void> {
    return this.#use(id, async (opened) => {
      opened.written++;
      await opened.file.write([data], position);
    });
  }

  truncate(id: FileId, sizeBytes: number): Promise<void> {
    return this.#use(id, async (opened) => {
      opened.written++;
      await opened.file.truncate(sizeBytes);
    });
  }

  /** Makes everything written so far durable, and that the file is there. */
  async sync(id: FileId): Promise<void> {
    await this.#use(id, async (opened) => {
      await opened.syncs.request();
    });
  }

  /** Every file in the area: what a process that was killed left in the kernel's memory. */
  async syncAll(ids: Iterable<FileId>): Promise<void> {
    const names = new Set(await this.#files.list(this.#directory));
    for (const id of ids) if (names.has(String(id))) await this.sync(id);
  }

  /** Gives the bytes back. The file table no longer knows the file. */
  async remove(id: FileId): Promise<void> {
    const opening = this.#open.get(id);
    this.#open.delete(id);
    this.#ready.delete(id);
    if (opening !== undefined) {
      const opened = await opening;
      opened.gone = true;
      if (opened.users === 0) await opened.file.close();
    }
    if ((await this.#files.stat(this.#path(id))) !== undefined) {
      await this.#files.remove(this.#path(id));
    }
  }

  /** Removes what no table knows: files whose removal was cut short. */
  async sweep(known: (id: FileId) => boolean): Promise<void> {
    for (const name of await this.#files.list(this.#directory)) {
      if (!known(Number(name))) await this.#files.remove(`${this.#directory}/${name}`);
    }
  }

  async close(): Promise<void> {
    for (const opening of this.#open.values()) {
      const opened = await opening;
      if (opened.synced < opened.written) await opened.syncs.request();
      await opened.file.close();
    }
    this.#open.clear();
    this.#ready.clear();
  }

  #path(id: FileId): string {
    return `${this.#directory}/${id}`;
  }

  async #use<T>(id: FileId, work: (opened: Opened) => Promise<T>): Promise<T> {
    let opening = this.#open.get(id);
    if (opening === undefined) {
      opening = this.#start(id);
      this.#open.set(id, opening);
      opening.catch(() => this.#open.delete(id));
    }
    const opened = await opening;
    opened.users++;
    try {
      return await work(opened);
    } finally {
      opened.users--;
      if (opened.gone && opened.users === 0) await opened.file.close();
      else if (this.#open.size > datastoreLimits.openFilesMax) await this.#closeOne();
    }
  }

  async #start(id: FileId): Promise<Opened> {
    const known = (await this.#files.stat(this.#path(id))) !== undefined;
    const file = await this.#files.open(this.#path(id), 'write');
    if (!known) this.#namesMade++;
    const opened: Opened = {
      id,
      file,
      syncs: new SharedWork(() => this.#syncOne(opened)),
      users: 0,
      written: 0,
      synced: 0,
      gone: false,
    };
    this.#ready.set(id, opened);
    return opened;
  }

  async #syncOne(opened: Opened): Promise<void> {
    const { written } = opened;
    try {
      await Promise.all([
        opened.file.sync(),
        this.#namesSynced < this.#namesMade ? this.#names.request() : undefined,
      ]);
    } catch (error) {
      await this.#onSyncFailure();
      throw error;
    }
    opened.synced = Math.max(opened.synced, written);
  }

  async #syncNames(): Promise<void> {
    const made = this.#namesMade;
    await this.#files.syncDirectory(this.#directory);
    this.#namesSynced = made;
  }

  /** The one longest open, unless it is in use or holds bytes that are not synced. */
  async #closeOne(): Promise<void> {
    for (const opened of this.#ready.values()) {
      if (opened.users > 0 || opened.synced < opened.written) continue;
      this.#open.delete(opened.id);
      this.#ready.delete(opened.id);
      await opened.file.close();
      return;
    }
  }
}
