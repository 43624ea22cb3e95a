import * as path from 'node:path';
import * as fs from 'node:fs/promises';
import { RouseError, toRouseError } from '../errors.ts';
import { punchHole } from '../lib/libc.ts';

/**
 * An image being written, from nothing: every byte not written reads as zeros. Calls may run in
 * parallel as long as their ranges do not overlap.
 */
export interface DiskOutput {
  readonly path: string;
  readonly sizeBytes: number;
  /** Zeros within are found and take no space. */
  write(source: Uint8Array, offset: number): Promise<void>;
  zero(offset: number, length: number): Promise<void>;
  /** Durable when it resolves: content and name. Nothing before that is a valid image. */
  finish(): Promise<void>;
  /** Closes and removes the file. No error when it has gone. */
  abandon(): Promise<void>;
}

export interface OutputOptions {
  /** Replace what is there (a file made beforehand); otherwise that is `already-exists`. */
  readonly replace?: boolean;
}

/** Pieces in which zeros are looked for: what file systems and qcow2 allocate at best. */
export const zeroPieceBytes = 64 * 1024;
const zeros = Buffer.alloc(zeroPieceBytes);

export function isZero(bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.length; at += zeroPieceBytes) {
    const part = bytes.subarray(at, at + zeroPieceBytes);
    if (zeros.compare(part, 0, part.length, 0, part.length) !== 0) return false;
  }
  return true;
}

/** The file below an output. Failures are RouseErrors: `disk-full` names the path. */
export class OutputFile {
  readonly path: string;
  readonly #handle: fs.FileHandle;
  #isOpen = true;

  private constructor(target: string, handle: fs.FileHandle) {
    this.path = target;
    this.#handle = handle;
  }

  static async create(target: string, options: OutputOptions): Promise<OutputFile> {
    try {
      if (options.replace === true) await refuseOther(target);
      const handle = await fs.open(target, options.replace === true ? 'w' : 'wx', 0o600);
      return new OutputFile(target, handle);
    } catch (error) {
      throw toRouseError(error, target);
    }
  }

  async write(source: Uint8Array, position: number): Promise<void> {
    let done = 0;
    while (done < source.length) {
      const length = source.length - done;
      const write = this.#handle.write(source, done, length, position + done);
      const { bytesWritten } = await this.#guard(write);
      if (bytesWritten === 0) throw new RouseError('io-error', `${this.path}: nothing was written`);
      done += bytesWritten;
    }
  }

  /** Makes a range that may have been written read as zeros again. */
  async clear(position: number, length: number): Promise<void> {
    if (punchHole(this.#handle.fd, position, length)) return;
    for (let at = 0; at < length; at += zeroPieceBytes) {
      const part = Math.min(zeroPieceBytes, length - at);
      await this.write(zeros.subarray(0, part), position + at);
    }
  }

  truncate(sizeBytes: number): Promise<void> {
    return this.#guard(this.#handle.truncate(sizeBytes));
  }

  async read(target: Uint8Array, position: number): Promise<void> {
    const read = this.#handle.read(target, 0, target.length, position);
    const { bytesRead } = await this.#guard(read);
    if (bytesRead !== target.length) {
      throw new RouseError('io-error', `${this.path}: shrank while it was written`);
    }
  }

  sync(): Promise<void> {
    return this.#guard(this.#handle.datasync());
  }

  /** Durable with its name. */
  async finish(): Promise<void> {
    await this.#guard(this.#handle.sync());
    await this.#close();
    const folder = await this.#guard(fs.open(path.dirname(this.path), 'r'));
    try {
      await this.#guard(folder.sync());
    } finally {
      await folder.close();
    }
  }

  async abandon(): Promise<void> {
    await this.#close();
    await this.#guard(fs.rm(this.path, { force: true }));
  }

  async #close(): Promise<void> {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    await this.#guard(this.#handle.close());
  }

  async #guard<T>(work: Promise<T>): Promise<T> {
    try {
      return await work;
    } catch (error) {
      throw toRouseError(error, this.path);
    }
  }
}

async function refuseOther(target: string): Promise<void> {
  const stat = await fs.stat(target).catch(() => undefined);
  if (stat === undefined || stat.isFile()) return;
  throw new RouseError('bad-request', `${target}: only a plain file can be replaced`, {
    advice: 'Name a file in a folder of the datastore.',
  });
}

export function checkOutputSize(target: string, sizeBytes: number): void {
  if (Number.isSafeInteger(sizeBytes) && sizeBytes > 0 && sizeBytes % 512 === 0) return;
  throw new RouseError('bad-request', `${target}: a disk of ${sizeBytes} bytes cannot be made`, {
    advice: 'A disk has a multiple of 512 bytes, and at least one sector.',
  });
}
