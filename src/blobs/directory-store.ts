import { dirname, join } from 'node:path';
import { isRouseError } from '../errors.ts';
import type { Files, OpenFile } from '../lib/files.ts';
import type { Random } from '../lib/random.ts';
import {
  checkBlobName,
  existingBlob,
  missingBlob,
  shortBlob,
  type BlobReader,
  type BlobStat,
  type BlobStore,
} from './port.ts';

/** A TiB has some 33,000 packs: one stat after the other would take seconds. */
const statsAtOnce = 64;

/**
 * Half-written blobs are called so until they are renamed to their names, in the same folder: a
 * rename within one directory is one change of it, there after a power cut or not.
 */
const temporaryPrefix = '.partial-';

export interface DirectoryStoreOptions {
  readonly files: Files;
  readonly directory: string;
  readonly random: Random;
}

/**
 * Blobs as files below one directory: written to a temporary file, synced, renamed, and the
 * directory synced, so that a name never stands for half a blob.
 */
export async function openDirectoryStore(options: DirectoryStoreOptions): Promise<BlobStore> {
  const store = new DirectoryBlobStore(options);
  await store.prepare();
  return store;
}

class DirectoryBlobStore implements BlobStore {
  readonly place: string;
  readonly #files: Files;
  readonly #random: Random;
  readonly #folders = new Map<string, Promise<void>>();
  /** Names being put: `rename` would silently replace a file that appears in between. */
  readonly #putting = new Set<string>();

  constructor(options: DirectoryStoreOptions) {
    this.place = options.directory;
    this.#files = options.files;
    this.#random = options.random;
  }

  async prepare(): Promise<void> {
    await this.#makeRoot(this.place);
    await this.#clean('');
  }

  /**
   * Removes what killed puts have left, and syncs all names that are there: whoever was killed may
   * not have come to it, and a name that is seen is a name that will be counted on.
   */
  async #clean(folder: string): Promise<void> {
    await this.#files.syncDirectory(join(this.place, folder));
    const entries = await this.#files.list(join(this.place, folder));
    for (const entry of entries) {
      const path = join(this.place, folder, entry);
      if (entry.startsWith(temporaryPrefix)) await this.#removeIfThere(path);
      else if (!entry.includes('.') && (await this.#files.stat(path))?.isDirectory === true)
        await this.#clean(join(folder, entry));
    }
  }

  /** The store's own name must survive a power cut too, and so must its parents'. */
  async #makeRoot(path: string): Promise<void> {
    const isThere = (await this.#files.stat(path)) !== undefined;
    if (!isThere) await this.#makeRoot(dirname(path));
    await this.#files.makeDirectory(path);
    await this.#files.syncDirectory(dirname(path));
  }

  async put(name: string, chunks: readonly Uint8Array[]): Promise<void> {
    checkBlobName(name);
    if (this.#putting.has(name)) throw existingBlob(this.place, name);
    this.#putting.add(name);
    try {
      await this.#putAlone(name, chunks);
    } finally {
      this.#putting.delete(name);
    }
  }

  async #putAlone(name: string, chunks: readonly Uint8Array[]): Promise<void> {
    const path = join(this.place, name);
    if ((await this.#files.stat(path)) !== undefined) {
      await this.#files.syncDirectory(dirname(path)); // Then "exists" means "is durable".
      throw existingBlob(this.place, name);
    }
    const temporary = join(dirname(path), temporaryPrefix + this.#random.id());
    await this.#folder(dirname(name));
    try {
      await this.#writeSynced(temporary, chunks);
      await this.#files.rename(temporary, path);
    } catch (error) {
      await this.#removeIfThere(temporary).catch(() => undefined);
      throw error;
    }
    try {
      await this.#files.syncDirectory(dirname(path));
    } catch (error) {
      await this.#removeIfThere(path).catch(() => undefined);
      throw error;
    }
  }

  async #writeSynced(path: string, chunks: readonly Uint8Array[]): Promise<void> {
    const file = await this.#files.open(path, 'create');
    try {
      await file.writeUncached(chunks, 0);
      await file.sync();
    } finally {
      await file.close();
    }
  }

  /**
   * Makes a folder below the store once, durably: each level's name is synced in its parent, also
   * when it was there, since whoever made it may have been killed before the sync.
   */
  #folder(name: string): Promise<void> {
    if (name === '.') return Promise.resolve();
    const known = this.#folders.get(name);
    if (known !== undefined) return known;
    const made = this.#makeFolder(name);
    this.#folders.set(name, made);
    made.catch(() => this.#folders.delete(name));
    return made;
  }

  async #makeFolder(name: string): Promise<void> {
    await this.#folder(dirname(name));
    const path = join(this.place, name);
    await this.#files.makeDirectory(path);
    await this.#files.syncDirectory(dirname(path));
  }

  async get(name: string): Promise<Buffer> {
    const reader = await this.open(name);
    try {
      const bytes = Buffer.allocUnsafeSlow(reader.sizeBytes);
      await reader.read(bytes, 0);
      return bytes;
    } finally {
      await reader.close();
    }
  }

  async open(name: string): Promise<BlobReader> {
    checkBlobName(name);
    const file = await this.#openFile(name);
    try {
      return new FileReader(name, file, await file.size());
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  async #openFile(name: string): Promise<OpenFile> {
    try {
      return await this.#files.open(join(this.place, name), 'read');
    } catch (error) {
      throw isRouseError(error, 'not-found') ? missingBlob(this.place, name) : error;
    }
  }

  async list(prefix: string): Promise<BlobStat[]> {
    const found: BlobStat[] = [];
    const slash = prefix.lastIndexOf('/');
    await this.#listInto(found, slash < 0 ? '' : prefix.slice(0, slash), prefix);
    return found;
  }

  async #listInto(found: BlobStat[], folder: string, prefix: string): Promise<void> {
    const entries = await this.#files.list(join(this.place, folder));
    const listed = entries
      .filter((entry) => !entry.startsWith('.'))
      .map((entry) => (folder === '' ? entry : `${folder}/${entry}`))
      .filter((name) => name.startsWith(prefix) || prefix.startsWith(`${name}/`));
    for (let at = 0; at < listed.length; at += statsAtOnce)
      await Promise.all(
        listed.slice(at, at + statsAtOnce).map(async (name) => {
          const stat = await this.#files.stat(join(this.place, name));
          if (stat === undefined) return;
          if (stat.isDirectory) await this.#listInto(found, name, prefix);
          else found.push({ name, sizeBytes: stat.sizeBytes });
        }),
      );
  }

  async stat(name: string): Promise<BlobStat | undefined> {
    checkBlobName(name);
    const stat = await this.#files.stat(join(this.place, name));
    if (stat === undefined || stat.isDirectory) return undefined;
    return { name, sizeBytes: stat.sizeBytes };
  }

  async remove(name: string): Promise<void> {
    checkBlobName(name);
    if (await this.#removeIfThere(join(this.place, name)))
      await this.#files.syncDirectory(dirname(join(this.place, name)));
  }

  async #removeIfThere(path: string): Promise<boolean> {
    try {
      await this.#files.remove(path);
      return true;
    } catch (error) {
      if (isRouseError(error, 'not-found')) return false;
      throw error;
    }
  }

  space() {
    return this.#files.space(this.place);
  }
}

class FileReader implements BlobReader {
  readonly sizeBytes: number;
  readonly #name: string;
  readonly #file: OpenFile;

  constructor(name: string, file: OpenFile, sizeBytes: number) {
    this.#name = name;
    this.#file = file;
    this.sizeBytes = sizeBytes;
  }

  readNow(target: Uint8Array, position: number): boolean {
    return this.#file.readNow(target, position) === target.length;
  }

  async read(target: Uint8Array, position: number): Promise<void> {
    if ((await this.#file.read(target, position)) !== target.length)
      throw shortBlob(this.#name, position, target.length, this.sizeBytes);
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}
