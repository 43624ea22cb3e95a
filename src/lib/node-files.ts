import { constants } from 'node:fs';
import * as fs from 'node:fs';
import * as promises from 'node:fs/promises';
import { RouseError, systemErrorCode, toRouseError } from '../errors.ts';
import type { Files, FileStat, OpenFile, OpenMode } from './files.ts';
import { directBytes, isAligned, preadNoWait, punchHole, setDirect } from './libc.ts';

/** The real file system behind the `Files` port. */
export const nodeFiles: Files = {
  open: (path, mode) => guard(path, () => openNodeFile(path, mode)),
  rename: (from, to) => guard(to, () => promises.rename(from, to)),
  remove: (path) => guard(path, () => promises.unlink(path)),
  makeDirectory: (path) =>
    guard(path, async () => void (await promises.mkdir(path, { recursive: true }))),
  removeDirectory: (path) => guard(path, () => promises.rmdir(path)),
  list: (path) => guard(path, () => listDirectory(path)),
  stat: (path) => guard(path, () => statPath(path)),
  syncDirectory: (path) => guard(path, () => syncDirectory(path)),
  space: (path) => guard(path, () => spaceOf(path)),
};

async function guard<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw toRouseError(error, path);
  }
}

async function listDirectory(path: string): Promise<string[]> {
  try {
    return await promises.readdir(path);
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return [];
    throw error;
  }
}

async function statPath(path: string): Promise<FileStat | undefined> {
  try {
    const stat = await promises.stat(path);
    return {
      sizeBytes: stat.size,
      allocatedBytes: stat.blocks * 512,
      isDirectory: stat.isDirectory(),
      modifiedMs: stat.mtimeMs,
    };
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}

async function syncDirectory(path: string): Promise<void> {
  const handle = await promises.open(path, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function spaceOf(path: string): Promise<{ totalBytes: number; freeBytes: number }> {
  const stat = await promises.statfs(path);
  return { totalBytes: stat.blocks * stat.bsize, freeBytes: stat.bavail * stat.bsize };
}

const flagsOf: Record<OpenMode, number> = {
  read: constants.O_RDONLY,
  write: constants.O_RDWR | constants.O_CREAT,
  create: constants.O_RDWR | constants.O_CREAT | constants.O_EXCL,
};

async function openNodeFile(path: string, mode: OpenMode): Promise<OpenFile> {
  const handle = await promises.open(path, flagsOf[mode], 0o600);
  return new NodeFile(path, handle);
}

class NodeFile implements OpenFile {
  readonly #path: string;
  readonly #handle: promises.FileHandle;
  readonly #fd: number;

  constructor(path: string, handle: promises.FileHandle) {
    this.#path = path;
    this.#handle = handle;
    this.#fd = handle.fd;
  }

  async read(target: Uint8Array, position: number): Promise<number> {
    let done = 0;
    while (done < target.length) {
      const bytes = await this.#readSome(target, done, position + done);
      if (bytes === 0) break;
      done += bytes;
    }
    return done;
  }

  async #readSome(target: Uint8Array, at: number, position: number): Promise<number> {
    try {
      const { bytesRead } = await this.#handle.read(target, at, target.length - at, position);
      return bytesRead;
    } catch (error) {
      throw toRouseError(error, this.#path);
    }
  }

  readNow(target: Uint8Array, position: number): number {
    return preadNoWait(this.#fd, target, position);
  }

  async write(buffers: readonly Uint8Array[], position: number): Promise<void> {
    const list = buffers.filter((buffer) => buffer.length > 0);
    const total = list.reduce((sum, buffer) => sum + buffer.length, 0);
    try {
      const { bytesWritten } = await this.#handle.writev(list, position);
      if (bytesWritten < total)
        this.writeNow(afterBytes(list, bytesWritten), position + bytesWritten);
    } catch (error) {
      throw toRouseError(error, this.#path);
    }
  }

  async writeUncached(buffers: readonly Uint8Array[], position: number): Promise<void> {
    const written = await this.#writeDirect(buffers[0], position);
    await this.write(afterBytes(buffers, written), position + written);
  }

  /** How many bytes went past the page cache: whole pages of one buffer, or none. */
  async #writeDirect(buffer: Uint8Array | undefined, position: number): Promise<number> {
    if (buffer === undefined || position % directBytes !== 0 || !isAligned(buffer)) return 0;
    if (!setDirect(this.#fd, true)) return 0;
    const end = buffer.length - (buffer.length % directBytes);
    let done = 0;
    try {
      while (done < end && done % directBytes === 0) {
        const at = position + done;
        done += (await this.#handle.write(buffer, done, end - done, at)).bytesWritten;
      }
    } catch (error) {
      // The device's blocks are larger than ours.
      if (systemErrorCode(error) !== 'EINVAL') throw toRouseError(error, this.#path);
    } finally {
      setDirect(this.#fd, false);
    }
    return done;
  }

  writeNow(buffers: readonly Uint8Array[], position: number): void {
    let list = buffers.filter((buffer) => buffer.length > 0);
    let at = position;
    try {
      while (list.length > 0) {
        const slice = list.slice(0, iovecsMax);
        const written = fs.writevSync(this.#fd, slice, at);
        if (written === 0) throw new RouseError('io-error', `${this.#path}: nothing was written`);
        at += written;
        list = afterBytes(list, written);
      }
    } catch (error) {
      throw toRouseError(error, this.#path);
    }
  }

  async sync(): Promise<void> {
    try {
      await this.#handle.datasync();
    } catch (error) {
      throw toRouseError(error, this.#path);
    }
  }

  async punch(position: number, length: number): Promise<void> {
    punchHole(this.#fd, position, length);
  }

  async truncate(sizeBytes: number): Promise<void> {
    try {
      await this.#handle.truncate(sizeBytes);
    } catch (error) {
      throw toRouseError(error, this.#path);
    }
  }

  async size(): Promise<number> {
    return (await this.#handle.stat()).size;
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }
}

/** IOV_MAX of Linux (limits.h). */
const iovecsMax = 1024;

function afterBytes(buffers: readonly Uint8Array[], bytes: number): Uint8Array[] {
  let skip = bytes;
  const rest: Uint8Array[] = [];
  for (const buffer of buffers) {
    if (skip >= buffer.length) {
      skip -= buffer.length;
    } else {
      rest.push(skip === 0 ? buffer : buffer.subarray(skip));
      skip = 0;
    }
  }
  return rest;
}
