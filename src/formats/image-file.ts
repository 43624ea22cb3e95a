import * as fs from 'node:fs';
import * as promises from 'node:fs/promises';
import { RouseError, systemErrorCode, toRouseError } from '../errors.ts';
import { formatLimits } from '../limits.ts';
import type { Extent } from '../lib/disk.ts';
import { nextData, nextHole } from '../lib/libc.ts';

/** One file or block device of an image, open for reading, with the size it had then. */
export class ImageFile {
  readonly path: string;
  readonly sizeBytes: number;
  readonly isBlockDevice: boolean;
  /** Device and inode: the same for every name of one file. */
  readonly identity: string;
  readonly #handle: promises.FileHandle;
  #closed = false;

  private constructor(path: string, handle: promises.FileHandle, facts: ImageFacts) {
    this.path = path;
    this.#handle = handle;
    this.sizeBytes = facts.sizeBytes;
    this.isBlockDevice = facts.isBlockDevice;
    this.identity = facts.identity;
  }

  /** Never waits for a pipe's writer: the kind is checked before opening, and again after. */
  static async open(path: string): Promise<ImageFile> {
    let handle: promises.FileHandle | undefined;
    try {
      checkKind(path, await promises.stat(path));
      handle = await promises.open(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
      const stat = await handle.stat();
      checkKind(path, stat);
      return new ImageFile(path, handle, await factsOf(path, stat));
    } catch (error) {
      await handle?.close();
      throw toRouseError(error, path);
    }
  }

  /** Fills `target`; a range outside of the file is `corrupt-data`: the image is cut off. */
  async read(target: Uint8Array, position: number): Promise<void> {
    if (position + target.length > this.sizeBytes) throw this.truncated(position, target.length);
    let done = 0;
    while (done < target.length) {
      const bytes = await this.#readSome(target, done, position + done);
      if (bytes === 0) throw this.#shrunk(position + done);
      done += bytes;
    }
  }

  /** As `read`, but zeros beyond the end. */
  async readPadded(target: Uint8Array, position: number): Promise<void> {
    const present = Math.max(0, Math.min(target.length, this.sizeBytes - position));
    target.fill(0, present);
    if (present > 0) await this.read(target.subarray(0, present), position);
  }

  async #readSome(target: Uint8Array, at: number, position: number): Promise<number> {
    if (this.#closed) throw new RouseError('internal', `${this.path}: read after it was closed`);
    try {
      const { bytesRead } = await this.#handle.read(target, at, target.length - at, position);
      return bytesRead;
    } catch (error) {
      throw this.#readError(error);
    }
  }

  /** Holes as the file system knows them, found and not read. Beyond the end all is zero. */
  extents(position: number, length: number): Extent[] {
    if (this.#closed) throw new RouseError('internal', `${this.path}: read after it was closed`);
    this.#checkNotShrunk();
    const end = position + length;
    const dataEnd = Math.min(end, this.sizeBytes);
    const list: Extent[] = [];
    let at = position;
    while (at < dataEnd) {
      const start = Math.max(at, Math.min(this.#nextData(at, dataEnd), dataEnd));
      if (start > at) list.push({ offset: at, length: start - at, zero: true });
      if (start >= dataEnd) {
        at = dataEnd;
        break;
      }
      const hole = this.isBlockDevice ? dataEnd : nextHole(this.#handle.fd, start);
      const stop = Math.min(dataEnd, hole > start ? hole : dataEnd);
      list.push({ offset: start, length: stop - start, zero: false });
      at = stop;
    }
    if (at < end) list.push({ offset: at, length: end - at, zero: true });
    return list;
  }

  /**
   * No data until the end looks like any failure of the call; so it is believed only when the file
   * system says that a hole begins right there. In doubt it is data, and read.
   */
  #nextData(at: number, end: number): number {
    if (this.isBlockDevice) return at;
    const data = nextData(this.#handle.fd, at);
    if (data >= 0) return data;
    return nextHole(this.#handle.fd, at) === at ? end : at;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#handle.close();
  }

  truncated(position: number, length: number): RouseError {
    return new RouseError(
      'corrupt-data',
      `${this.path}: cut off: ${length} bytes at ${position} are missing, ` +
        `the file ends at ${this.sizeBytes}`,
      { advice: 'Copy the image again, whole, or use another copy of it.' },
    );
  }

  /** A file that shrank has a hole where it had data: silence here would lose the data. */
  #checkNotShrunk(): void {
    if (this.isBlockDevice) return;
    let sizeBytes: number;
    try {
      sizeBytes = fs.fstatSync(this.#handle.fd).size;
    } catch (error) {
      throw this.#readError(error);
    }
    if (sizeBytes < this.sizeBytes) throw this.#shrunk(sizeBytes);
  }

  #shrunk(position: number): RouseError {
    return new RouseError(
      'io-error',
      `${this.path}: shrank while it was read: it had ${this.sizeBytes} bytes when opened, ` +
        `now it ends at ${position}`,
      { advice: 'Find what shortens this disk, stop it, and start again.' },
    );
  }

  #readError(error: unknown): RouseError {
    const code = systemErrorCode(error);
    if (code === 'ESTALE' || code === 'ENXIO' || code === 'ENODEV') {
      return new RouseError('io-error', `${this.path}: vanished while it was read (${code})`, {
        advice: 'Check that its file system or device is still there, and start again.',
        cause: error,
      });
    }
    return toRouseError(error, this.path);
  }
}

interface ImageFacts {
  readonly sizeBytes: number;
  readonly isBlockDevice: boolean;
  readonly identity: string;
}

function checkKind(path: string, stat: fs.Stats): void {
  if (stat.isFile() || stat.isBlockDevice()) return;
  const kind = stat.isDirectory() ? 'a directory' : 'neither a file nor a block device';
  throw new RouseError('bad-request', `${path}: ${kind}, not a disk image`, {
    advice: 'Name the disk image itself.',
  });
}

async function factsOf(path: string, stat: fs.Stats): Promise<ImageFacts> {
  const isBlockDevice = stat.isBlockDevice();
  const sizeBytes = isBlockDevice ? await deviceBytes(path, stat.rdev) : stat.size;
  if (sizeBytes === 0) {
    throw new RouseError('bad-request', `${path}: empty (0 bytes): there is no disk in it`, {
      advice: 'Check the name; an empty file is often what a failed copy left behind.',
    });
  }
  if (sizeBytes > formatLimits.sizeBytesMax) {
    throw new RouseError('unsupported-format', `${path}: ${sizeBytes} bytes are too many`);
  }
  const identity = isBlockDevice ? `device ${stat.rdev}` : `${stat.dev}:${stat.ino}`;
  return { sizeBytes, isBlockDevice, identity };
}

/** stat(2) says 0 for a device. The sectors of sysfs are 512 bytes, whatever the device's are. */
async function deviceBytes(path: string, rdev: number): Promise<number> {
  // Linux' dev_t (sysmacros.h): twelve bits of major number, minor's low eight below.
  const major = Math.floor(rdev / 256) % 4096;
  const minor = (rdev % 256) + Math.floor(rdev / 2 ** 20) * 256;
  const text = await promises.readFile(`/sys/dev/block/${major}:${minor}/size`, 'utf8');
  const sectors = Number(text.trim());
  if (!Number.isSafeInteger(sectors)) {
    throw new RouseError('io-error', `${path}: the size of this device is unknown`);
  }
  return sectors * 512;
}
